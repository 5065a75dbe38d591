# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role notes of a data set, in it: what it was made from, and every file that it made.

So what the role made and what people added can be told apart, whenever it goes or is replaced. The
notes count only where they are root's: who has the tree may put anything in their place.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import zlib
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import place
from ansible_collections.slipway.host.plugins.module_utils.data.progress import WorkError
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

FOLDER = place.NOTES
RECORD, FILES = "record.json", "files.gz"
# The survey looks for so many of the names at the top, no more.
WATCHED = 256
# So many examples are named to a person.
SHOWN = 3
# A list of files that is longer counts as broken.
MAX_LIST = 1 << 30

# Size, time of the last change and kind: what is told of a file without reading it.
Seen = tuple[int, int, str]


def _seen(name: str, above: Folder) -> Seen:
    found = os.stat(name, dir_fd=above.descriptor, follow_symlinks=False)
    return found.st_size, int(found.st_mtime), "l" if stat.S_ISLNK(found.st_mode) else "f"


def read(tree: Folder) -> dict[str, Any] | None:
    """Return what was noted of a data set, None where nothing was noted by root."""
    found = trees.read_record(tree.descriptor, trees.TREE_RECORD)
    return found if found and found["owner"] in (0, os.geteuid()) else None


def missing(tree: Folder, noted: dict[str, Any]) -> list[str]:
    """Return the names at the top of a tree that were noted and are gone."""
    return [name for name in noted["names"] if tree.lstat(name) is None]


def write(tree: Folder, version: str, checksum: str) -> None:
    """Note what a tree that is complete was made from; the tree is in a stage."""
    names = sorted(os.listdir(tree.descriptor))
    if FOLDER in names:
        raise WorkError(
            f"cannot note what was unpacked: found {FOLDER} in the archive; expected no such "
            "folder, which is the role's. Make the archive without it, or declare 'strip'."
        )
    tree.make_folder(FOLDER, 0o755, os.geteuid(), os.getegid())
    count, total = 0, 0
    with tree.entered(FOLDER) as notes:
        with (
            open(FILES, "xb", opener=_opener(notes)) as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as file,
        ):
            for inside, _names, files, folder in place.walk(tree):
                for name in files:
                    size, mtime, kind = _seen(name, folder)
                    file.write(os.fsencode(f"{size} {mtime} {kind} {inside}{name}\0"))
                    count, total = count + 1, total + size
        record = {
            "version": version,
            "checksum": checksum,
            "files": count,
            "bytes": total,
            "names": names[:WATCHED],
        }
        content = json.dumps(record, indent=1) + "\n"
        notes.replace(RECORD, content.encode(), 0o644, os.geteuid(), os.getegid())


def _opener(folder: Folder) -> Any:
    return lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644, dir_fd=folder.descriptor)


def _made(tree: Folder) -> dict[str, Seen]:
    """Return the files that the role made, as they were then; where the notes are broken, none."""
    found: dict[str, Seen] = {}
    try:
        with (
            tree.entered(FOLDER) as notes,
            notes.opened(FILES) as descriptor,
            open(descriptor, "rb", closefd=False) as raw,
            gzip.GzipFile(fileobj=raw) as file,
        ):
            if os.fstat(descriptor).st_uid not in (0, os.geteuid()):
                return {}
            content = file.read(MAX_LIST)
        if len(content) == MAX_LIST:
            return {}
        for line in os.fsdecode(content).split("\0")[:-1]:
            size, mtime, kind, name = line.split(" ", 3)
            found[name] = int(size), int(mtime), kind
    except (OSError, ValueError, EOFError, zlib.error):
        return {}
    return found


def added(tree: Folder) -> list[str]:
    """Return some files of a tree that the role did not make, or not so."""
    made, found = _made(tree), []
    for inside, _names, files, folder in place.walk(tree):
        for name in files:
            if made.get(f"{inside}{name}") != _seen(name, folder):
                found.append(f"{inside}{name}")
                if len(found) > SHOWN:
                    return found
    return found


def remove(tree: Folder) -> int:
    """Remove from a tree what the role made; return how many files stay, which are people's.

    The notes go last, so that a run that was interrupted is seen.
    """
    made, kept = _made(tree), 0
    for inside, names, files, folder in place.walk(tree, bottom_up=True):
        for name in files:
            if made.get(f"{inside}{name}") == _seen(name, folder):
                os.unlink(name, dir_fd=folder.descriptor)
            else:
                kept += 1
        for name in names:
            _remove_if_empty(name, folder.descriptor)
    with tree.entered(FOLDER) as notes:
        info = notes.info()
        if info.st_uid not in (0, os.geteuid()):
            raise UnsafePathError(notes.path, paths.describe(info), "a folder owned by root")
        for name in (FILES, RECORD):
            if notes.lstat(name):
                os.unlink(name, dir_fd=notes.descriptor)
    os.rmdir(FOLDER, dir_fd=tree.descriptor)
    return kept


def _remove_if_empty(name: str, above: int) -> None:
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
