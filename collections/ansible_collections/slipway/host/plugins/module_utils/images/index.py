# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declared images of a host, from a cache.

Rendering and hashing all build contexts takes about 60 ms for each host, as long as the rest of a
survey.  So the result is stored in the user's cache folder.  Its key is a digest over the
catalogue, the code that assembles builds, and the request.  The cache has no data of hosts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels

Args = Mapping[str, Mapping[str, str]]

KEEP_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Planned:
    """A declared image of a host; the fields are those of ``ImageBuild``."""

    name: str
    variant: str
    reference: str
    digest: str
    parent: str | None
    cuda: str | None
    unavailable: Mapping[str, str]
    image: Mapping[str, Any]


@cache
def fingerprint(folder: Path) -> str:
    """Return a digest over the catalogue's files and the code; computed once a process."""
    hashed = hashlib.sha256()
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(str(labels.__file__))]
    files += sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    for path in files:
        if path.is_file():
            content = path.read_bytes()
            executable = os.access(path, os.X_OK)
            hashed.update(f"{path.name}\0{path}\0{executable}\0{len(content)}\0".encode())
            hashed.update(content)
    return hashed.hexdigest()


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "slipway" / "catalogue"


def _store(file: Path, text: str) -> None:
    """Write a cache entry and remove old ones; ignore a cache that cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(file)
        for entry in file.parent.iterdir():
            if time.time() - entry.stat().st_mtime > KEEP_SECONDS:
                entry.unlink(missing_ok=True)
    except OSError:
        return


@dataclass(frozen=True)
class _Entry:
    """A cache entry: images, and warnings about the catalogue that each run displays."""

    images: list[Planned]
    warnings: list[str]


def _load(file: Path) -> _Entry | None:
    """Return a cache entry, None for an entry that is missing or cannot be read."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return _Entry([Planned(**image) for image in stored["images"]], stored["warnings"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Lock a cache entry, so that only one of the processes for the hosts creates it."""
    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def planned(
    folder: str, names: Sequence[str], variant: str, base: str, args: Args
) -> list[Planned]:
    """Return the named images and the images below them, in build order.

    Raise DeclarationError for a mistake in the catalogue or in the request.
    """
    path = Path(folder).resolve()
    request = json.dumps([fingerprint(path), list(names), variant, base, args], sort_keys=True)
    file = _cache_folder() / f"{hashlib.sha256(request.encode()).hexdigest()}.json"
    entry = _load(file)
    if entry is None:
        with _lock(file):
            entry = _load(file)
            if entry is None:
                entry = _read_images(path, names, variant, base, args)
                _store(file, json.dumps(asdict(entry)))
    _display(entry.warnings)
    return entry.images


def _display(warnings: Sequence[str]) -> None:
    """Display warnings; Ansible displays equal warnings once in a run."""
    if warnings:
        from ansible.utils.display import Display

        for warning in warnings:
            Display().warning(warning)


def _read_images(path: Path, names: Sequence[str], variant: str, base: str, args: Args) -> _Entry:
    """Read the catalogue and return the images."""
    # Imported late: not needed with an entry in the cache.
    from ansible_collections.slipway.host.plugins.module_utils.images import catalogue

    loaded = catalogue.load_catalogue(path)
    builds = loaded.builds(names, variant, base, args)
    images = [
        Planned(
            *(b.name, b.variant, b.reference, b.digest, b.parent, b.cuda),
            unavailable=b.unavailable,
            image=dict(b.image),
        )
        for b in builds
    ]
    return _Entry(images, list(loaded.warnings))
