# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a bundle: every file with size and SHA-256, and what was requested."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

FORMAT = 1
# Names are paths below a folder of the reader. No part starts with a dot or a hyphen.
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~!-]*(/[A-Za-z0-9_][A-Za-z0-9._+~!-]*)*")
MAX_PATH = 250
DIGEST = re.compile(r"[0-9a-f]{64}")


# No file is larger; tar and the system have no place for sizes of any length.
MAX_SIZE = 1 << 50


class BundleError(Exception):
    """A bundle cannot be made or used; the message is for a person."""


@contextmanager
def files_of(name: object) -> Iterator[None]:
    """Raise BundleError instead of OSError while the files of bundle NAME are read or written."""
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{error.filename or name}: {error.strerror or error}; expected a file that can be "
            "read or written. Check its disk and its permissions, then run again."
        ) from None


@dataclass(frozen=True)
class Entry:
    """A file of the bundle; an omitted one is in the older bundle that ``since`` names."""

    path: str
    size: int
    sha256: str
    kind: str
    omitted: bool = False


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    requested: the options of the command. project: version and commit. controller: digests of the
    lock files, machine, and the paths of the wheels by Python version. since: name and digest of
    the manifest of an older bundle, or None. files: sorted by path.
    """

    requested: dict[str, Any]
    project: dict[str, Any]
    controller: dict[str, Any]
    files: tuple[Entry, ...]
    since: dict[str, str] | None = None

    def as_json(self) -> bytes:
        """Return the bytes that are signed."""
        content = {
            "format": FORMAT,
            "requested": self.requested,
            "project": self.project,
            "controller": self.controller,
            "since": self.since,
            "files": [vars(entry) for entry in self.files],
        }
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def read(content: bytes, name: str) -> Manifest:
    """Return the manifest of the bundle NAME; raise BundleError unless each part is valid."""
    try:
        data = json.loads(content)
        number = data["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(
            f"{name}: invalid manifest.json; expected JSON of a bundle. Make the bundle again."
        ) from None
    if number != FORMAT:
        raise BundleError(
            f"{name}: format {number!r}; expected {FORMAT}. Use the version of Slipway that made "
            "the bundle, or a newer one."
        )
    try:
        read_manifest = Manifest(
            requested=dict(data["requested"]),
            project=dict(data["project"]),
            controller=dict(data["controller"]),
            files=tuple(_entry(item) for item in data["files"]),
            since=_since(data["since"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"{name}: invalid manifest.json: {error}; expected the form of format {FORMAT}. "
            "Make the bundle again."
        ) from None
    paths = [entry.path for entry in read_manifest.files]
    if paths != sorted(set(paths)):
        raise BundleError(
            f"{name}: unsorted or repeated paths in manifest.json; expected each path once. "
            "Make the bundle again."
        )
    return read_manifest


def _entry(item: dict[str, Any]) -> Entry:
    entry = Entry(**item)
    if not PATH.fullmatch(entry.path) or len(entry.path) > MAX_PATH:
        raise ValueError(f"path {entry.path!r} leads out of the bundle or has special characters")
    if not DIGEST.fullmatch(entry.sha256):
        raise ValueError(f"SHA-256 {entry.sha256!r} of {entry.path}")
    if type(entry.size) is not int or not 0 <= entry.size <= MAX_SIZE:
        raise ValueError(f"size {entry.size!r} of {entry.path}")
    if type(entry.omitted) is not bool or type(entry.kind) is not str:
        raise ValueError(f"kind of {entry.path}")
    return entry


def check_older_name(name: str) -> None:
    """Raise ValueError for a name of a bundle that no manifest can have."""
    if not PATH.fullmatch(name) or "/" in name:
        raise ValueError(f"name {name!r} of the older bundle")


def _since(item: dict[str, str] | None) -> dict[str, str] | None:
    if item is None:
        return None
    check_older_name(item["name"])
    if not DIGEST.fullmatch(item["manifest"]):
        raise ValueError(f"SHA-256 {item['manifest']!r} of the older bundle")
    return {"name": item["name"], "manifest": item["manifest"]}
