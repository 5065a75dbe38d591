# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host should hold of the catalogue, remembered between runs.

Rendering and hashing every build context costs some 60 ms a host; the survey has that much for
everything.  So the outcome is kept in the user's cache folder under a key over all that leads to
it: the bytes of the whole catalogue, the code that turns it into builds, and what was asked for.
Nothing about a host is remembered here.
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
    """An image as a host should hold it; the fields are those of ``ImageBuild``."""

    name: str
    variant: str
    reference: str
    digest: str
    image: Mapping[str, Any]


@cache
def fingerprint(folder: Path) -> str:
    """Return a digest over the catalogue's files and the code; read once a process."""
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


def _remember(file: Path, text: str) -> None:
    """Write a cache entry, and forget old ones; a cache that cannot be written is none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(text, encoding="utf-8")
        written.rename(file)
        for entry in file.parent.iterdir():
            if time.time() - entry.stat().st_mtime > KEEP_SECONDS:
                entry.unlink(missing_ok=True)
    except OSError:
        return


def _recall(file: Path) -> list[Planned] | None:
    """Return what a cache entry holds, None where there is none that can be read."""
    try:
        return [Planned(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Let the processes that want the same entry, one for each host, make it only once."""
    with ExitStack() as stack:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def planned(
    folder: str, names: Sequence[str], variant: str, base: str, args: Args
) -> list[Planned]:
    """Return what a host should hold for the images NAMES, in build order.

    Raise DeclarationError where the catalogue or what is asked of it makes no sense.
    """
    path = Path(folder).resolve()
    asked = json.dumps([fingerprint(path), list(names), variant, base, args], sort_keys=True)
    file = _cache_folder() / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    found = _recall(file)
    if found is None:
        with _one_at_a_time(file):
            found = _recall(file)
            if found is None:
                found = _made(path, names, variant, base, args)
                _remember(file, json.dumps([asdict(entry) for entry in found]))
    return found


def _made(path: Path, names: Sequence[str], variant: str, base: str, args: Args) -> list[Planned]:
    """Read the catalogue and plan from it."""
    # Imported late: with an entry in the cache, none of it is needed.
    from ansible_collections.slipway.host.plugins.module_utils.images import catalogue

    builds = catalogue.load_catalogue(path).builds(names, variant, base, args)
    return [Planned(b.name, b.variant, b.reference, b.digest, dict(b.image)) for b in builds]
