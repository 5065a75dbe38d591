# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on this host: lists, saves, loads, commits and pushes them."""

from __future__ import annotations

import json
import os
import secrets
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

# Tags with this prefix are the role's: their images were built and tested.
RESERVED_PREFIX = "slipway/"
# A file name that stands for standard input or output.
STREAM = Path("-")


@dataclass(frozen=True)
class Image:
    """An image of the catalogue, or one committed from it; size in bytes, its context digest."""

    reference: str
    name: str
    variant: str
    id: str
    digest: str
    size: int
    created: str


def parse_images(inspected: Mapping[str, Any]) -> list[Image]:
    """Return an image for each of its tags."""
    found_labels = inspected["Config"].get("Labels") or {}
    return [
        Image(
            reference=reference,
            name=found_labels.get(labels.IMAGE, ""),
            variant=found_labels.get(labels.VARIANT, ""),
            id=inspected["Id"],
            digest=found_labels.get(labels.DIGEST, ""),
            size=inspected["Size"],
            created=inspected["Created"],
        )
        for reference in inspected.get("RepoTags") or ()
    ]


def list_images(docker: Docker) -> list[Image]:
    """Return the tagged images of the catalogue on this host, by reference."""
    label = f"label={labels.IMAGE}"
    listed = docker.run("image", "ls", "--quiet", "--no-trunc", "--filter", label)
    ids = sorted(set(listed.split()))
    images = [image for entry in docker.inspect("image", ids) for image in parse_images(entry)]
    return sorted(images, key=lambda image: image.reference)


def find_image(docker: Docker, name: str, host: Host) -> dict[str, Any]:
    """Return docker's description of an image by its name in the catalogue, alias or reference.

    Raise MlError for an image that is not on this host.
    """
    alias = host.aliases.get(name)
    reference = host.images.get(alias.image if alias else name, name)
    inspected = docker.image(reference)
    if inspected is None:
        known = ", ".join(sorted(host.images)) or "none"
        raise MlError(f"no image {reference} on this host. Images of the catalogue here: {known}")
    return {**inspected, "reference": reference}


def describe_image(inspected: Mapping[str, Any]) -> list[str]:
    """Return lines to compare an image with the same image on another host."""
    found_labels = inspected["Config"].get("Labels") or {}
    lines = [f"image id        {inspected['Id']}"]
    if found_labels.get(labels.DIGEST):
        lines.append(f"context digest  {found_labels[labels.DIGEST]}")
    return lines


def save(reference: str, file: Path, force: bool) -> None:
    """Write an image to a zstd archive, whole or not at all; ``-`` is standard output.

    Raise MlError where the file exists and FORCE is false, or cannot be written.
    """
    source = ("docker", "image", "save", reference)
    compress = ("zstd", "--quiet", "--threads=0")
    if file == STREAM:
        if sys.stdout.isatty():
            raise MlError("cannot write an archive to a terminal. Name a file, or pipe the output")
        _pipe(source, (*compress, "--stdout"), stdout=None)
        return
    if file.exists() and not force:
        raise MlError(f"file {file} already exists. To replace it, add: --force")
    if not file.parent.is_dir():
        raise MlError(f"folder {file.parent} does not exist")
    # In the folder of the target: a rename replaces the target in one step.
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        # A new file: in a folder that others can write, a link may have any name already.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o666), "wb") as stream:
            _pipe(source, (*compress, "--stdout"), stdout=stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise MlError(f"cannot write {file}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path) -> list[str]:
    """Load an archive, compressed or not, and return the references in it; ``-`` is stdin.

    Raise MlError for an archive that cannot be read or is damaged.
    """
    if file != STREAM and not file.is_file():
        raise MlError(f"file {file} does not exist")
    # With --force, zstd passes on an archive that is not compressed.
    unpack = ("zstd", "--decompress", "--quiet", "--stdout", "--force")
    words = unpack if file == STREAM else (*unpack, "--", str(file))
    said = _pipe(words, ("docker", "image", "load", "--quiet"))
    return [line.partition(": ")[2] for line in said.splitlines() if ": " in line]


def _pipe(first: Sequence[str], second: Sequence[str], stdout: int | None = subprocess.PIPE) -> str:
    """Run FIRST | SECOND and return the output; empty where STDOUT leads elsewhere.

    Raise MlError with their output where either fails.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            head = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=errors)
            tail = subprocess.Popen(
                second,
                stdin=head.stdout,
                stdout=stdout,
                stderr=errors,
                text=True,
            )
        except FileNotFoundError as error:
            raise MlError(f"command {error.filename} not found on this host") from None
        assert head.stdout is not None  # it is a pipe
        # So that the first program notices the end of the second.
        head.stdout.close()
        written, _ = tail.communicate()
        if head.wait() != 0 or tail.returncode != 0:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise MlError("; ".join(said) or f"{first[0]} or {second[0]} failed")
    return written or ""


@dataclass(frozen=True)
class Commit:
    """A prepared commit: the instructions for docker, and the differences to the container."""

    changes: tuple[str, ...]
    losses: tuple[str, ...]


def prepare_commit(container: Mapping[str, Any], image: Mapping[str, Any], user: str) -> Commit:
    """Return the commit of a container as a new image.

    CONTAINER and IMAGE are docker's descriptions.  Labels of the new image name the image it comes
    from.  Its context digest is empty, because its content no longer matches.  User, folder,
    variables and labels of the one start are reset to those of the image.
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
    """Yield the differences between the committed image and the container, as sentences."""
    targets = sorted(mount["Destination"] for mount in container.get("Mounts") or ())
    mounted = [target for target in targets if not target.startswith(launch.OWN_TARGETS)]
    if mounted:
        yield f"files in {', '.join(mounted)} are not in the image; they stay on the host"
    given = [name for name in variables if not name.startswith(launch.OWN_VARIABLES)]
    if given:
        yield f"the variables {', '.join(given)} are empty in the image"
    yield (
        "the image cannot be built again from sources, unlike an image of the catalogue "
        "(docs/add-an-image.md)"
    )
    yield "no smoke test has run on the image"


def commit(docker: Docker, name: str, reference: str, user: str) -> tuple[str, ...]:
    """Commit a container as an image; return the differences to the container, as sentences.

    Raise MlError for a reference of the catalogue, and where docker fails.
    """
    if reference.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{reference}: names with {RESERVED_PREFIX} are for images of the catalogue. "
            "Choose another name, such as me/work:1"
        )
    container = docker.inspect("container", [name])[0]
    image = docker.inspect("image", [container["Image"]])[0]
    prepared = prepare_commit(container, image, user)
    options = [f"--change={change}" for change in prepared.changes]
    docker.run("container", "commit", *options, name, reference)
    return prepared.losses


def push(docker: Docker, source: str, target: str) -> str:
    """Push an image under the name TARGET; return its digest in the registry.

    Docker's progress goes to standard error.  Raise MlError for a name of the catalogue, and where
    the registry rejects the image; TARGET then names the same image as before.
    """
    if source != target and target.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{target}: names with {RESERVED_PREFIX} are for images of the catalogue. "
            "Choose another name, such as me/work:1"
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
    """Return the digest of an image in the registry of the TARGET, empty for none."""
    # The last colon begins the tag, unless it begins the port of a registry.
    name, colon, tag = target.rpartition(":")
    repository = name if colon and "/" not in tag else target
    return next((digest for digest in digests if digest.partition("@")[0] == repository), "")


def explain_refusal(target: str, why: str) -> str:
    """Return WHY a registry rejected an image, and what to do."""
    if any(word in why for word in ("denied", "unauthorized", "no basic auth credentials")):
        first, slash, _rest = target.partition("/")
        registry = first if slash and ("." in first or ":" in first) else ""
        return f"{why}. Log in first: docker login {registry}".rstrip()
    return why
