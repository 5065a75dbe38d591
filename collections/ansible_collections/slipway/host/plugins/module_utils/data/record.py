# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record in a data set: its version and checksum, and a list of all unpacked files.

The list distinguishes unpacked files from files that people added, before a data set is replaced or
removed. Only a record of root is valid, because the owner of the tree can replace it.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import zlib
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import folders
from ansible_collections.slipway.host.plugins.module_utils.data.progress import TreeError
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

FOLDER = folders.RECORDS
RECORD, FILES = "record.json", "files.gz"
# Number of names at the top of a tree that are recorded for the survey, at most.
MAX_NAMES = 256
# Number of examples in a message.
SHOWN = 3
# A longer list of files counts as broken; bytes.
MAX_LIST = 1 << 30

# Size, time of the last change and kind of a file.
FileState = tuple[int, int, str]


def _read_state(name: str, parent: Folder) -> FileState:
    info = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
    return info.st_size, int(info.st_mtime), "l" if stat.S_ISLNK(info.st_mode) else "f"


def read(tree: Folder) -> dict[str, Any] | None:
    """Return the record of a data set, None if root wrote none."""
    record = trees.read_record(tree.descriptor, trees.TREE_RECORD)
    return record if record and record["owner"] in (0, os.geteuid()) else None


def missing_names(tree: Folder, record: dict[str, Any]) -> list[str]:
    """Return the recorded names that are missing at the top of a tree."""
    return [name for name in record["names"] if tree.lstat(name) is None]


def write(tree: Folder, version: str, checksum: str) -> None:
    """Write the record of a complete tree, which is still in a stage."""
    names = sorted(os.listdir(tree.descriptor))
    if FOLDER in names:
        raise TreeError(
            f"cannot write the record of the data set: found {FOLDER} in the archive; expected no "
            "such folder. Create the archive without this folder, or declare 'strip'."
        )
    tree.make_folder(FOLDER, 0o755, os.geteuid(), os.getegid())
    count, total = 0, 0
    with tree.entered(FOLDER) as records:
        with (
            open(FILES, "xb", opener=_opener(records)) as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as file,
        ):
            for inside, _names, files, folder in folders.walk(tree):
                for name in files:
                    size, mtime, kind = _read_state(name, folder)
                    file.write(os.fsencode(f"{size} {mtime} {kind} {inside}{name}\0"))
                    count, total = count + 1, total + size
        record = {
            "version": version,
            "checksum": checksum,
            "files": count,
            "bytes": total,
            "names": names[:MAX_NAMES],
        }
        content = json.dumps(record, indent=1) + "\n"
        records.replace(RECORD, content.encode(), 0o644, os.geteuid(), os.getegid())


def _opener(folder: Folder) -> Any:
    return lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644, dir_fd=folder.descriptor)


def _read_files(tree: Folder) -> dict[str, FileState]:
    """Return the state of the files after unpacking, by name; empty if the list is broken."""
    states: dict[str, FileState] = {}
    try:
        with (
            tree.entered(FOLDER) as records,
            records.opened(FILES) as descriptor,
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
            states[name] = int(size), int(mtime), kind
    except (OSError, ValueError, EOFError, zlib.error):
        return {}
    return states


def find_added_files(tree: Folder) -> list[str]:
    """Return files that people added or changed, at most one more than are shown."""
    unpacked, added = _read_files(tree), []
    for inside, _names, files, folder in folders.walk(tree):
        for name in files:
            if unpacked.get(f"{inside}{name}") != _read_state(name, folder):
                added.append(f"{inside}{name}")
                if len(added) > SHOWN:
                    return added
    return added


def delete_unpacked_files(tree: Folder) -> int:
    """Delete the unpacked files of a tree; return the number of other files, which remain.

    The record is deleted last, so that the next run finishes an interrupted run.
    """
    unpacked, kept = _read_files(tree), 0
    for inside, names, files, folder in folders.walk(tree, bottom_up=True):
        for name in files:
            if unpacked.get(f"{inside}{name}") == _read_state(name, folder):
                os.unlink(name, dir_fd=folder.descriptor)
            else:
                kept += 1
        for name in names:
            _delete_if_empty(name, folder.descriptor)
    with tree.entered(FOLDER) as records:
        info = records.info()
        if info.st_uid not in (0, os.geteuid()):
            raise UnsafePathError(records.path, paths.describe(info), "a folder owned by root")
        for name in (FILES, RECORD):
            if records.lstat(name):
                os.unlink(name, dir_fd=records.descriptor)
    os.rmdir(FOLDER, dir_fd=tree.descriptor)
    return kept


def _delete_if_empty(name: str, parent: int) -> None:
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
