# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saves images to an archive with a record beside it, and loads them by that record.

The record ``ARCHIVE.json`` names the SHA-256 digest of the archive, and the context digest of each
image. Only images that the host's own records describe are saved, and only an archive that its
record describes is loaded. An image gets its tag after its smoke test passed on this host.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from ansible_collections.slipway.host.plugins.module_utils.images import record, smoke
from ansible_collections.slipway.host.plugins.module_utils.state import containers, paths

MODE = 0o600
CHUNK = 1 << 20


class ArchiveError(Exception):
    """Images were not saved or loaded; the message has the reason and the remedy."""


def record_path(path: str) -> str:
    """Return the path of the record of an archive."""
    return f"{path}.json"


def save_images(path: str, references: Sequence[str]) -> None:
    """Write archive and record; raise ArchiveError, UnsafePathError or OSError on failure."""
    digests = _recorded_digests(references)
    with (
        paths.opened_parent(path, make=True) as (folder, name),
        folder.replacing(name, MODE, os.geteuid(), os.getegid()) as descriptor,
        subprocess.Popen(
            ["docker", "save", *references], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
    ):
        output = cast("IO[bytes]", process.stdout)
        with open(descriptor, "wb", closefd=False) as archive:
            digest = _copy(output, archive)
        errors = process.communicate()[1].decode("utf-8", "replace").strip()
        if process.returncode != 0:
            raise ArchiveError(f"docker save failed: {errors or process.returncode}")
        if _recorded_digests(references) != digests:
            raise ArchiveError("an image changed while it was saved. Save the images again.")
    text = json.dumps({"archive": digest, "images": digests}, indent=2)
    with paths.opened_parent(record_path(path)) as (folder, name):
        folder.replace(name, text.encode(), MODE, os.geteuid(), os.getegid())


def _recorded_digests(references: Sequence[str]) -> dict[str, str]:
    """Return the context digest of each image; raise ArchiveError without a matching record."""
    digests = {}
    for reference in references:
        content = record.inspect_image(reference)
        if content is None:
            raise ArchiveError(f"image {reference} is not on the host. Build it first.")
        digest = containers.read_image_record(reference).get("digest", "")
        if not record.is_recorded(reference, digest, content):
            raise ArchiveError(
                f"image {reference}: content {containers.short_id(content.identity)} is not "
                "recorded on this host; expected an image that was built, loaded or accepted "
                "there. Run: ./slipway images build"
            )
        digests[reference] = digest
    return digests


def _copy(source: IO[bytes], target: IO[bytes] | None) -> str:
    """Copy a stream, or only read it; return its SHA-256 digest in hex."""
    hashed = hashlib.sha256()
    while chunk := source.read(CHUNK):
        hashed.update(chunk)
        if target is not None:
            target.write(chunk)
    return hashed.hexdigest()


def read_archive_record(path: str) -> dict[str, Any]:
    """Return the record of an archive; raise ArchiveError if there is none."""
    try:
        text = paths.read_file(record_path(path))
        document = json.loads(text)
        return {
            "archive": str(document["archive"]),
            "images": {str(key): str(value) for key, value in document["images"].items()},
        }
    except FileNotFoundError:
        raise ArchiveError(
            f"{record_path(path)} does not exist; expected the record that ./slipway images save "
            "wrote beside the archive. Copy both files, or set another path with -e "
            "ml_images_archive=PATH"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, paths.UnsafePathError):
            raise
        raise ArchiveError(
            f"{record_path(path)} is not the record of an archive: {error}. Save the images again."
        ) from None


def missing_images(archive: Mapping[str, Any]) -> list[str]:
    """Return the images of an archive whose content the host does not have or did not record."""
    return [
        reference
        for reference, digest in archive["images"].items()
        if not record.is_recorded(reference, digest, record.inspect_image(reference))
    ]


def load_images(path: str, timeout: float) -> tuple[list[str], dict[str, str]]:
    """Load the images of an archive that the host lacks; return their tags, and the failures.

    Smoke tests end after TIMEOUT seconds. Raise ArchiveError for an archive that differs from its
    record, UnsafePathError or OSError if it cannot be read.
    """
    archive = read_archive_record(path)
    loaded: list[str] = []
    failed: dict[str, str] = {}
    with record.build_lock():
        references = missing_images(archive)
        if not references:
            return [], {}
        for reference, content in _load_contents(path, archive["archive"], references).items():
            try:
                _accept(reference, content, archive["images"][reference], timeout)
                loaded.append(reference)
            except (ArchiveError, smoke.SmokeError) as error:
                failed[reference] = str(error)
            finally:
                _docker("image", "rm", reference + smoke.CANDIDATE)
    return loaded, failed


def _load_contents(
    path: str, digest: str, references: Sequence[str]
) -> dict[str, record.Content | None]:
    """Load an archive and return its images, each with the tag of a candidate.

    The tags of the host stay as they were.
    """
    before = {reference: record.inspect_image(reference) for reference in references}
    with paths.opened_file(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        _check_digest(path, _copy(stream, None), digest)
        stream.seek(0)
        # Through a pipe, so that the loaded bytes are checked: somebody may change the file.
        with subprocess.Popen(
            ["docker", "load", "--quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            program_input = cast("IO[bytes]", process.stdin)
            try:
                read = _copy(stream, program_input)
            except BrokenPipeError:
                read = ""
            errors = process.communicate()[1].decode("utf-8", "replace").strip()
    loaded = {reference: record.inspect_image(reference) for reference in references}
    for reference in references:
        _restore_tag(reference, before[reference], loaded[reference])
    if process.returncode != 0:
        raise ArchiveError(f"docker load failed: {errors or process.returncode}")
    _check_digest(path, read, digest)
    return loaded


def _check_digest(path: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise ArchiveError(
            f"{path}: SHA-256 {digest[:12]}; expected {expected[:12]} of {record_path(path)}. "
            "Copy the archive again, or save the images again."
        )


def _restore_tag(
    reference: str, before: record.Content | None, after: record.Content | None
) -> None:
    """Restore the tag of the previous image, and tag the loaded image as a candidate."""
    if after is None:
        return
    _docker("tag", after.identity, reference + smoke.CANDIDATE)
    if before is None:
        _docker("image", "rm", "--no-prune", reference)
    elif before.identity != after.identity:
        _docker("tag", before.identity, reference)


def _docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], capture_output=True, check=False)


def _accept(reference: str, content: record.Content | None, digest: str, timeout: float) -> None:
    """Test a loaded image, record it and set its tag."""
    if content is None or content.digest != digest:
        label = containers.short_id(content.digest) or "none" if content else "no image"
        raise ArchiveError(
            f"context digest in the archive: {label}; expected {containers.short_id(digest)}. "
            "Save the images again."
        )
    proven = smoke.test_content(content, timeout)
    record.write_record(reference, content, digest, record.LOADED, proven=proven)
    tagged = subprocess.run(
        ["docker", "tag", content.identity, reference], capture_output=True, text=True, check=False
    )
    if tagged.returncode != 0:
        raise ArchiveError(f"docker tag failed: {tagged.stderr.strip()}")
