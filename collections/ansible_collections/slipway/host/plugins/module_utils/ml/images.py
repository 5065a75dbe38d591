# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on this host: lists, saves, loads, commits and pushes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import api, labels, launch
from .engine import Docker, parse_ids, parsing
from .errors import MlError, reason
from .settings import Cuda, Host

# Only the role ml_images creates tags with this prefix: their images were built and tested.
RESERVED_PREFIX = "slipway/"
# A file name that stands for standard input or output.
STREAM = Path("-")


class Image(NamedTuple):
    """An image of the catalogue, or an image committed from one; size in bytes."""

    reference: str
    name: str
    variant: str
    id: str
    digest: str
    size: int
    created: str

    def short_name(self, host: Host) -> str:
        """Return the name of the image, or its reference if the name means another image."""
        return self.name if host.images.get(self.name) == self.reference else self.reference


def parse_images(inspected: Mapping[str, Any]) -> list[Image]:
    """Return an image for each tag of docker's description of an image."""
    return [parse_image(inspected, tag) for tag in inspected.get("RepoTags") or ()]


def parse_image(inspected: Mapping[str, Any], reference: str) -> Image:
    """Return an image from docker's description of it."""
    image_labels = inspected["Config"].get("Labels") or {}
    return Image(
        reference=str(reference),
        name=str(image_labels.get(labels.IMAGE, "")),
        variant=str(image_labels.get(labels.VARIANT, "")),
        id=str(inspected["Id"]),
        digest=str(image_labels.get(labels.DIGEST, "")),
        size=int(inspected["Size"]),
        created=str(inspected["Created"]),
    )


def list_images(docker: Docker) -> list[Image]:
    """Return the tagged images of the catalogue on this host, by reference."""
    filters = api.escape(json.dumps({"label": [labels.IMAGE]}))
    (ids,) = docker.get(parse_ids, f"/images/json?filters={filters}")
    images_by_id = docker.get(parse_images, *(f"/images/{api.escape(name)}/json" for name in ids))
    images = [image for tagged in images_by_id for image in tagged]
    return sorted(images, key=lambda image: image.reference)


def find_image(docker: Docker, name: str, host: Host) -> Image:
    """Return an image by its name in the catalogue, alias or reference.

    Raise MlError for an image that is not on this host.
    """
    alias = host.aliases.get(name)
    reference = host.images.get(alias.image if alias else name, name)
    inspected = docker.image(reference)
    if inspected is None:
        known = ", ".join(sorted(host.images)) or "none"
        raise MlError(f"no image {reference} on this host. Images of the catalogue here: {known}")
    with parsing():
        return parse_image(inspected, reference)


def find_gpu_image(docker: Docker, host: Host) -> Image | None:
    """Return the first image with CUDA that the administrator declared, None if none is here.

    Not by label: an image that somebody else made has any label.
    """
    for reference in sorted(host.cuda):
        inspected = docker.image(reference)
        if inspected is not None:
            with parsing():
                return parse_image(inspected, reference)
    return None


def find_cuda(host: Host, image: Image) -> Cuda | None:
    """Return the CUDA release of an image of the catalogue, or of one committed from it.

    None for an image whose release the host's declaration does not have.
    """
    # An image that was committed has no context digest.
    reference = image.reference if image.digest else host.images.get(image.name, "")
    return host.cuda.get(reference) if image.variant == "gpu" else None


def describe_image(image: Image) -> list[str]:
    """Return lines to compare an image with the same image on another host."""
    lines = [f"image id        {image.id}"]
    if image.digest:
        lines.append(f"context digest  {image.digest}")
    return lines


def save(reference: str, file: Path, force: bool) -> None:
    """Write an image to a zstd archive; ``-`` is standard output.

    An incomplete archive is removed.  Raise MlError if the file exists and FORCE is false, or if it
    cannot be written.
    """
    source = ("docker", "image", "save", reference)
    compress = ("zstd", "--quiet", "--threads=0")
    if file == STREAM:
        if sys.stdout.isatty():
            raise MlError("cannot write an archive to a terminal. Name a file, or pipe the output")
        _pipe(source, (*compress, "--stdout"), stdout=None)
        return
    if os.path.lexists(file) and not force:
        raise MlError(f"file {file} already exists. To replace it, add: --force")
    if not os.path.isdir(file.parent):
        raise MlError(f"folder {file.parent} does not exist")
    # In the folder of the target: a rename replaces the target in one step.
    partial = file.parent / f".slipway.{os.urandom(8).hex()}"
    try:
        # Only a new file: in a folder that others can write, the name may be a link.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(partial, flags, 0o666), "wb") as stream:
            _pipe(source, (*compress, "--stdout"), stdout=stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise MlError(f"cannot write {file}: {reason(error, partial)}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(file: Path) -> list[str]:
    """Load an archive, compressed or not, and return the references in it; ``-`` is stdin.

    Raise MlError for an archive that cannot be read or is damaged.
    """
    if file != STREAM and not os.path.isfile(file):
        raise MlError(f"file {file} does not exist")
    # With --force, zstd passes on an archive that is not compressed.
    unpack = ("zstd", "--decompress", "--quiet", "--stdout", "--force")
    command = unpack if file == STREAM else (*unpack, "--", str(file))
    output = _pipe(command, ("docker", "image", "load", "--quiet"))
    return [line.partition(": ")[2] for line in output.splitlines() if ": " in line]


def _pipe(first: Sequence[str], second: Sequence[str], stdout: int | None = subprocess.PIPE) -> str:
    """Run FIRST | SECOND and return the output; empty if STDOUT is a file.

    Raise MlError with their error output if one of them fails.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
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
        except (OSError, ValueError) as error:
            raise MlError(f"cannot run {first[0]} and {second[0]}: {reason(error)}") from None
        # So that the first program notices the end of the second.
        if head.stdout is not None:
            head.stdout.close()
        output, _error = tail.communicate()
        if head.wait() != 0 or tail.returncode != 0:
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
            raise MlError("; ".join(lines) or f"{first[0]} or {second[0]} failed")
    return output or ""


class Commit(NamedTuple):
    """A prepared commit: the instructions for docker, and the differences to the container."""

    changes: tuple[str, ...]
    losses: tuple[str, ...]


def prepare_commit(container: Mapping[str, Any], image: Mapping[str, Any], user: str) -> Commit:
    """Return the commit of a container as a new image.

    CONTAINER and IMAGE are docker's descriptions.  Labels of the new image name the image that it
    was made from.  The context digest is empty, because it no longer describes the content.  User,
    folder, variables and labels of the start are reset to those of the image.
    """
    started, built = container["Config"], image["Config"]
    image_labels = built.get("Labels") or {}
    provenance = {
        **{name: "" for name in started.get("Labels") or {} if name not in image_labels},
        labels.DIGEST: "",
        labels.COMMITTED_FROM_DIGEST: image_labels.get(labels.DIGEST)
        or image_labels.get(labels.COMMITTED_FROM_DIGEST, ""),
        labels.COMMITTED_FROM: image["Id"],
        labels.COMMITTED_BY: user,
    }
    image_variables = set(built.get("Env") or ())
    variables = [entry for entry in started.get("Env") or () if entry not in image_variables]
    names = [entry.partition("=")[0] for entry in variables]
    changes = [f"LABEL {name}={json.dumps(value)}" for name, value in provenance.items()]
    changes += [f"ENV {name}=" for name in names]
    changes += [f"USER {built['User']}"] if built.get("User") else []
    changes += [f"WORKDIR {built['WorkingDir']}"] if built.get("WorkingDir") else []
    changes += [f"CMD {json.dumps(built.get('Cmd') or [])}"]
    return Commit(tuple(changes), tuple(_losses(container, names)))


def _losses(container: Mapping[str, Any], variables: Sequence[str]) -> Iterator[str]:
    """Yield the differences between the committed image and the container, as sentences."""
    targets = sorted(mount["Destination"] for mount in container.get("Mounts") or ())
    mounted = [target for target in targets if not target.startswith(launch.OWN_TARGETS)]
    if mounted:
        yield f"files in {', '.join(mounted)} are not in the image; they stay on the host"
    emptied = [name for name in variables if not name.startswith(launch.OWN_VARIABLES)]
    if emptied:
        yield f"the variables {', '.join(emptied)} are empty in the image"
    yield (
        "the image cannot be built again from sources, unlike an image of the catalogue "
        "(docs/add-an-image.md)"
    )
    yield "no smoke test has run on the image"


def commit(docker: Docker, name: str, reference: str, user: str) -> tuple[str, ...]:
    """Commit a container as an image; return the differences to the container, as sentences.

    Raise MlError for a reference of the catalogue, and if docker fails.
    """
    if reference.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{reference}: names with {RESERVED_PREFIX} are for images of the catalogue. "
            "Choose another name, such as me/work:1"
        )
    with parsing():
        (container,) = docker.get(dict, f"/containers/{api.escape(name)}/json")
        (image,) = docker.get(dict, f"/images/{api.escape(container['Image'])}/json")
        prepared = prepare_commit(container, image, user)
    options = [f"--change={change}" for change in prepared.changes]
    docker.run("container", "commit", *options, name, reference)
    return prepared.losses


def push(docker: Docker, source: str, target: str) -> str:
    """Push an image under the name TARGET; return its digest in the registry.

    Docker's progress goes to standard error.  Raise MlError for a name of the catalogue, and if the
    registry rejects the image; TARGET then names the same image as before.
    """
    if source != target and target.startswith(RESERVED_PREFIX):
        raise MlError(
            f"{target}: names with {RESERVED_PREFIX} are for images of the catalogue. "
            "Choose another name, such as me/work:1"
        )
    previous = docker.image(target)
    docker.run("image", "tag", source, target)
    completed = subprocess.run(
        ["docker", "image", "push", target],
        stdout=sys.stderr,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if completed.returncode == 0:
        with parsing():
            return _registry_digest(target, (docker.image(target) or {}).get("RepoDigests") or [])
    if previous is None:
        docker.run("image", "rm", "--no-prune", target)
    else:
        docker.run("image", "tag", str(previous.get("Id")), target)
    raise MlError(explain_refusal(target, docker.explain(completed.stderr)))


def _registry_digest(target: str, digests: Sequence[str]) -> str:
    """Return the digest of an image in the registry of the TARGET, empty for none."""
    # The last colon begins the tag, unless it begins the port of a registry.
    name, colon, tag = target.rpartition(":")
    repository = name if colon and "/" not in tag else target
    return next((digest for digest in digests if digest.partition("@")[0] == repository), "")


def explain_refusal(target: str, reason: str) -> str:
    """Return the REASON why a registry rejected an image, and the remedy."""
    if any(word in reason for word in ("denied", "unauthorized", "no basic auth credentials")):
        first, slash, _rest = target.partition("/")
        registry = first if slash and ("." in first or ":" in first) else ""
        return f"{reason}. Log in first: docker login {registry}".rstrip()
    return reason
