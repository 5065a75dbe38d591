# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role notes of a data set, in it: what it was made from, and every file that it made.

So what the role made and what people added can be told apart, whenever it goes or is replaced.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import place

FOLDER = place.NOTES
RECORD, FILES = f"{FOLDER}/record.json", f"{FOLDER}/files.gz"
# The survey looks for so many of the names at the top, no more.
WATCHED = 256
# So many examples are named to a person.
SHOWN = 3

# Size, time of the last change and kind: what is told of a file without reading it.
Seen = tuple[int, int, str]


def _seen(name: str, above: int) -> Seen:
    found = os.stat(name, dir_fd=above, follow_symlinks=False)
    return found.st_size, int(found.st_mtime), "l" if stat.S_ISLNK(found.st_mode) else "f"


def _walk(top: int, bottom_up: bool = False) -> Iterator[tuple[str, list[str], list[str], int]]:
    """Yield ``(folder, names of folders, names of files, descriptor)``, notes left out."""
    for folder, names, files, descriptor in os.fwalk(dir_fd=top, topdown=not bottom_up):
        inside = "" if folder == "." else folder.removeprefix("./") + "/"
        if inside == "" and FOLDER in names:
            names.remove(FOLDER)
        if not inside.startswith(f"{FOLDER}/"):
            # Links to folders are told as folders, and are files to us.
            links = [name for name in names if _seen(name, descriptor)[2] == "l"]
            yield inside, [n for n in names if n not in links], files + links, descriptor


def write(path: str, version: str, checksum: str) -> None:
    """Note what a tree that is complete was made from."""
    names = sorted(os.listdir(path))
    os.mkdir(f"{path}/{FOLDER}", 0o755)
    count, total = 0, 0
    with place.opened_tree(path) as top, gzip.open(f"{path}/{FILES}", "wb", 1) as file:
        for inside, _names, files, descriptor in _walk(top):
            for name in files:
                size, mtime, kind = _seen(name, descriptor)
                file.write(os.fsencode(f"{size} {mtime} {kind} {inside}{name}\0"))
                count, total = count + 1, total + size
    record = {
        "version": version,
        "checksum": checksum,
        "files": count,
        "bytes": total,
        "names": names[:WATCHED],
    }
    Path(path, RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _made(path: str) -> dict[str, Seen]:
    """Return the files that the role made, as they were then; where the notes are broken, none."""
    found: dict[str, Seen] = {}
    try:
        with gzip.open(f"{path}/{FILES}", "rb") as file:
            for line in os.fsdecode(file.read()).split("\0")[:-1]:
                size, mtime, kind, name = line.split(" ", 3)
                found[name] = int(size), int(mtime), kind
    except (OSError, ValueError, EOFError, zlib.error):
        return {}
    return found


def added(path: str) -> list[str]:
    """Return some files of a tree that the role did not make, or not so."""
    made, found = _made(path), []
    with place.opened_tree(path) as top:
        for inside, _names, files, descriptor in _walk(top):
            for name in files:
                if made.get(f"{inside}{name}") != _seen(name, descriptor):
                    found.append(f"{inside}{name}")
                    if len(found) > SHOWN:
                        return found
    return found


def remove(path: str) -> int:
    """Remove from a tree what the role made; return how many files stay, which are people's.

    The notes go last, so that a run that was interrupted is seen.
    """
    made, kept = _made(path), 0
    with place.opened_tree(path) as top:
        for inside, names, files, descriptor in _walk(top, bottom_up=True):
            for name in files:
                if made.get(f"{inside}{name}") == _seen(name, descriptor):
                    os.unlink(name, dir_fd=descriptor)
                else:
                    kept += 1
            for name in names:
                _remove_if_empty(name, descriptor)
    for name in (FILES, RECORD):
        Path(path, name).unlink(missing_ok=True)
    Path(path, FOLDER).rmdir()
    return kept


def _remove_if_empty(name: str, above: int) -> None:
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def read(path: str) -> dict[str, Any]:
    """Return what was noted of a tree."""
    found: dict[str, Any] = json.loads(Path(path, RECORD).read_text(encoding="utf-8"))
    return found
