# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record in a data set: its version and checksum, and a list of all unpacked files.

The list distinguishes unpacked files from files that people added or changed, before a data set is
replaced or removed, and for the acceptance check of data sets. Only a record of root is valid,
because the owner of the tree can replace it.

A file with its recorded inode, size and ctime is unchanged: no program can set the ctime back. Any
other file is compared by its digest. Lists of old versions have neither: there the time of
modification decides.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

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

# The first line of a list with digests.
MARK = "digests"
CHUNK = 1 << 20


class FileState(NamedTuple):
    """The state of a file, or of a symbolic link.

    digest: SHA-256 digest of its content, or of the target of a link; empty in lists of old
    versions, which also have no inode and ctime.
    """

    size: int
    mtime: int
    kind: str
    inode: int = 0
    ctime: int = 0
    digest: str = ""


def _read_state(name: str, parent: Folder) -> FileState:
    """Return the state of a file without its digest."""
    info = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
    kind = "l" if stat.S_ISLNK(info.st_mode) else "f"
    return FileState(info.st_size, int(info.st_mtime), kind, info.st_ino, info.st_ctime_ns)


def _read_digest(name: str, parent: Folder, state: FileState) -> str:
    """Return the digest of a file in the given STATE; empty for what root must not read."""
    if state.kind == "l":
        target = os.readlink(name, dir_fd=parent.descriptor)
        return hashlib.sha256(os.fsencode(target)).hexdigest()
    digest, left = hashlib.sha256(), state.size
    try:
        with parent.opened(name) as file, open(file, "rb", closefd=False) as stream:
            # A file may grow without end meanwhile.
            while left > 0 and (chunk := stream.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    except (OSError, UnsafePathError):
        return ""
    return digest.hexdigest()


def _is_unchanged(
    recorded: FileState | None, name: str, parent: Folder, by_digest: bool = False
) -> bool:
    """Return whether a file is as recorded; BY_DIGEST reads it in any case."""
    if recorded is None:
        return False
    present = _read_state(name, parent)
    if not recorded.digest:
        return recorded[:3] == present[:3]
    if (recorded.size, recorded.kind) != (present.size, present.kind):
        return False
    same = recorded[3:5] == present[3:5]
    if same and not by_digest:
        return True
    return _read_digest(name, parent, present) == recorded.digest


def read(tree: Folder) -> dict[str, Any] | None:
    """Return the record of a data set, None if root wrote none."""
    record = trees.read_record(tree.descriptor, trees.TREE_RECORD)
    return record if record and record["owner"] in (0, os.geteuid()) else None


def missing_names(tree: Folder, record: dict[str, Any]) -> list[str]:
    """Return the recorded names that are missing at the top of a tree."""
    return [name for name in record["names"] if tree.lstat(name) is None]


def write(tree: Folder, version: str, checksum: str, digests: Mapping[str, bytes]) -> None:
    """Write the record of a complete tree, which is still in a stage.

    DIGESTS are those of files that were just written; other files are read.
    """
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
            file.write(f"{MARK}\0".encode())
            for inside, _names, files, folder in folders.walk(tree):
                for name in files:
                    state, path = _read_state(name, folder), f"{inside}{name}"
                    known = digests.get(path) if state.kind == "f" else None
                    digest = known.hex() if known else _read_digest(name, folder, state)
                    words = (*state[:5], digest or "-", path)
                    file.write(os.fsencode(" ".join(map(str, words)) + "\0"))
                    count, total = count + 1, total + state.size
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


def _read_files(tree: Folder) -> dict[str, FileState] | None:
    """Return the state of the files after unpacking, by name; None if the list is broken."""
    states: dict[str, FileState] = {}
    try:
        with (
            tree.entered(FOLDER) as records,
            records.opened(FILES) as descriptor,
            open(descriptor, "rb", closefd=False) as raw,
            gzip.GzipFile(fileobj=raw) as file,
        ):
            if os.fstat(descriptor).st_uid not in (0, os.geteuid()):
                return None
            content = file.read(MAX_LIST)
        if len(content) == MAX_LIST:
            return None
        lines = os.fsdecode(content).split("\0")[:-1]
        if lines[:1] != [MARK]:
            for line in lines:
                size, mtime, kind, name = line.split(" ", 3)
                states[name] = FileState(int(size), int(mtime), kind)
            return states
        for line in lines[1:]:
            size, mtime, kind, inode, ctime, digest, name = line.split(" ", 6)
            numbers = int(inode), int(ctime)
            states[name] = FileState(int(size), int(mtime), kind, *numbers, digest)
    except (OSError, ValueError, EOFError, zlib.error):
        return None
    return states


def find_added_files(tree: Folder) -> list[str]:
    """Return files that people added or changed, at most one more than are shown."""
    unpacked, added = _read_files(tree) or {}, []
    for inside, _names, files, folder in folders.walk(tree):
        for name in files:
            if not _is_unchanged(unpacked.get(f"{inside}{name}"), name, folder):
                added.append(f"{inside}{name}")
                if len(added) > SHOWN:
                    return added
    return added


class Differences(NamedTuple):
    """How the files of a tree differ from the list: their number, and names that differ.

    has_digests: whether the list has digests. changed, missing: at most one name more than shown.
    """

    files: int
    has_digests: bool
    changed: list[str]
    missing: list[str]


def find_differences(tree: Folder, by_digest: bool) -> Differences | None:
    """Compare the unpacked files with the list, None if it is broken; BY_DIGEST reads every file.

    Files that people added do not count.
    """
    unpacked = _read_files(tree)
    if unpacked is None:
        return None
    count, has_digests = len(unpacked), any(state.digest for state in unpacked.values())
    changed: list[str] = []
    # A folder that somebody added may have any depth.
    parents = {name[: end + 1] for name in unpacked for end, char in enumerate(name) if char == "/"}
    for inside, _names, files, folder in folders.walk(tree, only=parents):
        for name in files:
            recorded = unpacked.pop(f"{inside}{name}", None)
            if recorded and not _is_unchanged(recorded, name, folder, by_digest):
                changed.append(f"{inside}{name}")
                if len(changed) > SHOWN:
                    return Differences(count, has_digests, changed, [])
    return Differences(count, has_digests, changed, sorted(unpacked)[: SHOWN + 1])


def delete_unpacked_files(tree: Folder) -> int:
    """Delete the unpacked files of a tree; return the number of other files, which remain.

    The record is deleted last, so that the next run finishes an interrupted run.
    """
    unpacked, kept = _read_files(tree) or {}, 0
    for inside, names, files, folder in folders.walk(tree, bottom_up=True):
        for name in files:
            if _is_unchanged(unpacked.get(f"{inside}{name}"), name, folder):
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
