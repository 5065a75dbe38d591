# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on this host: which there are, and how they are carried, kept and pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import labels, launch
from .engine import Docker
from .errors import MlError
from .settings import Host

# Tags of this name are the role's: what stands there was built and proven.
RESERVED_PREFIX = "slipway/"
# A file name that stands for standard input or output.
STREAM = Path("-")


@dataclass(frozen=True)
class Image:
    """An image of the catalogue, or one made from it; size in bytes, digest of its context."""

    reference: str
    name: str
    variant: str
    id: str
    digest: str
    size: int
    created: str


def parse_images(found: Mapping[str, Any]) -> list[Image]:
    """Return an image once for each of its tags."""
    found_labels = found["Config"].get("Labels") or {}
    return [
        Image(
            reference=reference,
            name=found_labels.get(labels.IMAGE, ""),
            variant=found_labels.get(labels.VARIANT, ""),
            id=found["Id"],
            digest=found_labels.get(labels.DIGEST, ""),
            size=found["Size"],
            created=found["Created"],
        )
        for reference in found.get("RepoTags") or ()
    ]


def list_images(docker: Docker) -> list[Image]:
    """Return the tagged images on this host that are of the catalogue, by reference."""
    label = f"label={labels.IMAGE}"
    listed = docker.run("image", "ls", "--quiet", "--no-trunc", "--filter", label)
    ids = sorted(set(listed.split()))
    found = [image for entry in docker.inspect("image", ids) for image in parse_images(entry)]
    return sorted(found, key=lambda image: image.reference)


def find_image(docker: Docker, name: str, host: Host) -> dict[str, Any]:
    """Return docker's description of an image by its name in the catalogue, alias or reference.

    Raise MlError where this host does not have it.
    """
    alias = host.aliases.get(name)
    reference = host.images.get(alias.image if alias else name, name)
    found = docker.image(reference)
    if found is None:
        known = ", ".join(sorted(host.images)) or "none"
        raise MlError(f"there is no image {reference} on this host (of the catalogue: {known})")
    return {**found, "reference": reference}


def describe_image(found: Mapping[str, Any]) -> list[str]:
    """Return the lines by which an image on one host is compared with one on another."""
    found_labels = found["Config"].get("Labels") or {}
    lines = [f"image id        {found['Id']}"]
    if found_labels.get(labels.DIGEST):
        lines.append(f"context digest  {found_labels[labels.DIGEST]}")
    return lines


def save(reference: str, file: Path, force: bool) -> None:
    """Write an image to a zstd archive, whole or not at all; ``-`` is standard output.

    Raise MlError where the file is there already and not to be replaced, or cannot be written.
    """
    source = ("docker", "image", "save", reference)
    compress = ("zstd", "--quiet", "--threads=0")
    if file == STREAM:
        if sys.stdout.isatty():
            raise MlError("an archive is nothing for a terminal: name a file, or pipe it on")
        _pipe(source, (*compress, "--stdout"), into_stdout=True)
        return
    if file.exists() and not force:
        raise MlError(f"{file} is there already; --force replaces it")
    if not file.parent.is_dir():
        raise MlError(f"there is no folder {file.parent}")
    # Beside the target, so that there is room for it once it is written.
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        _pipe(source, (*compress, "-o", str(partial)))
        partial.replace(file)
    except OSError as error:
        raise MlError(f"{file} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path) -> list[str]:
    """Load an archive, compressed or not, and return the references in it; ``-`` is stdin.

    Raise MlError where it cannot be read or is damaged.
    """
    if file != STREAM and not file.is_file():
        raise MlError(f"there is no file {file}")
    # With --force, zstd hands on what it did not compress.
    unpack = ("zstd", "--decompress", "--quiet", "--stdout", "--force")
    words = unpack if file == STREAM else (*unpack, "--", str(file))
    said = _pipe(words, ("docker", "image", "load", "--quiet"))
    return [line.partition(": ")[2] for line in said.splitlines() if ": " in line]


def _pipe(first: Sequence[str], second: Sequence[str], into_stdout: bool = False) -> str:
    """Run FIRST | SECOND and return what came out, nothing where it goes INTO_STDOUT.

    Raise MlError with their words where either fails.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            head = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=errors)
            tail = subprocess.Popen(
                second,
                stdin=head.stdout,
                stdout=None if into_stdout else subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except FileNotFoundError as error:
            raise MlError(f"there is no {error.filename} command on this host") from None
        assert head.stdout is not None  # it is a pipe
        # So that the first one notices when the second one ends.
        head.stdout.close()
        written, _ = tail.communicate()
        if head.wait() != 0 or tail.returncode != 0:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise MlError("; ".join(said) or f"{first[0]} or {second[0]} failed")
    return written or ""


@dataclass(frozen=True)
class Commit:
    """What a container is kept as: the instructions for docker, and what is lost by it."""

    changes: tuple[str, ...]
    losses: tuple[str, ...]


def prepare_commit(container: Mapping[str, Any], image: Mapping[str, Any], user: str) -> Commit:
    """Work out how to keep a container as an image of its own.

    CONTAINER and IMAGE are docker's descriptions.  The image keeps where it comes from; the
    context digest, which it no longer is true to, becomes that of the image it was made from.
    What belonged to the one start (its user, folder, variables, labels) goes back to the image's.
    """
    ours, before = container["Config"], image["Config"]
    image_labels = before.get("Labels") or {}
    provenance = {
        **{name: "" for name in ours.get("Labels") or {} if name not in image_labels},
        labels.DIGEST: "",
        labels.COMMITTED_FROM_DIGEST: image_labels.get(labels.DIGEST)
        or image_labels.get(labels.COMMITTED_FROM_DIGEST, ""),
        labels.COMMITTED_FROM: image["Id"],
        labels.COMMITTED_BY: user,
    }
    own = set(before.get("Env") or ())
    names = [entry.partition("=")[0] for entry in ours.get("Env") or () if entry not in own]
    changes = [f"LABEL {name}={json.dumps(value)}" for name, value in provenance.items()]
    changes += [f"ENV {name}=" for name in names]
    changes += [f"USER {before['User']}"] if before.get("User") else []
    changes += [f"WORKDIR {before['WorkingDir']}"] if before.get("WorkingDir") else []
    changes += [f"CMD {json.dumps(before.get('Cmd') or [])}"]
    return Commit(tuple(changes), tuple(_losses(container, names)))


def _losses(container: Mapping[str, Any], variables: Sequence[str]) -> Iterator[str]:
    """Yield what an image does not have of the container that it was made from, in words."""
    targets = sorted(mount["Destination"] for mount in container.get("Mounts") or ())
    mounted = [target for target in targets if not target.startswith(launch.OWN_TARGETS)]
    if mounted:
        yield f"what lies in {', '.join(mounted)}: that stays on the host"
    given = [name for name in variables if not name.startswith(launch.OWN_VARIABLES)]
    if given:
        yield f"the variables {', '.join(given)}: they are empty in the image"
    yield (
        "how it was made: nobody can build it again, as a folder in the catalogue could be "
        "(docs/add-an-image.md)"
    )
    yield "its proof: no smoke test was run on it"


def commit(docker: Docker, name: str, reference: str, user: str) -> tuple[str, ...]:
    """Keep a container as an image; return what is lost by it, in words.

    Raise MlError where the reference is the role's, or docker refuses.
    """
    if reference.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{reference}: {RESERVED_PREFIX} is for images of the catalogue; take a name of your own"
        )
    container = docker.inspect("container", [name])[0]
    image = docker.inspect("image", [container["Image"]])[0]
    planned = prepare_commit(container, image, user)
    options = [f"--change={change}" for change in planned.changes]
    docker.run("container", "commit", *options, name, reference)
    return planned.losses


def push(docker: Docker, source: str, target: str) -> str:
    """Push an image under the name TARGET; return its digest in the registry.

    Docker's progress goes to standard error.  Raise MlError where the registry does not take it;
    the name is then as it was before. Raise it for a name that is the role's as well.
    """
    if source != target and target.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{target}: {RESERVED_PREFIX} is for images of the catalogue; take a name of your own"
        )
    before = docker.image(target)
    docker.run("image", "tag", source, target)
    done = subprocess.run(
        ["docker", "image", "push", target],
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return _registry_digest(
            target, docker.inspect("image", [target])[0].get("RepoDigests") or []
        )
    if before is None:
        docker.run("image", "rm", "--no-prune", target)
    else:
        docker.run("image", "tag", before["Id"], target)
    raise MlError(explain_refusal(target, docker.explain(done.stderr)))


def _registry_digest(target: str, digests: Sequence[str]) -> str:
    """Return which of an image's digests is that of the TARGET, empty where none is."""
    # The last colon begins the tag, unless it begins the port of a registry.
    name, colon, tag = target.rpartition(":")
    repository = name if colon and "/" not in tag else target
    return next((digest for digest in digests if digest.partition("@")[0] == repository), "")


def explain_refusal(target: str, why: str) -> str:
    """Return WHY a registry did not take an image, and what to do about it."""
    if any(word in why for word in ("denied", "unauthorized", "no basic auth credentials")):
        first, slash, _rest = target.partition("/")
        registry = first if slash and ("." in first or ":" in first) else ""
        return f"{why}. Log in first: docker login {registry}".rstrip()
    return why
