# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stages: hidden folders for unfinished trees. A rename makes the finished tree visible.

A stage is a folder that only root can enter. It is the working folder while a tree is created in
it. Other users may rename the old tree at any time, so after each rename into the stage the result
is compared with the tree that was checked before, and moved back if it is another one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from ansible_collections.slipway.host.plugins.module_utils.data import folders
from ansible_collections.slipway.host.plugins.module_utils.data.folders import Identity
from ansible_collections.slipway.host.plugins.module_utils.data.progress import TreeError
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

# In a stage: the unfinished tree, a link to a tree on another disk, and the replaced tree or link.
TREE, LINK, OLD = "tree", "link", "old"
# Files in a stage: the downloaded part of an archive, and the record of this download.
PART, PART_RECORD = "archive", "archive.json"
# The unfinished tree of a set of files, with complete files only. The next run continues it.
FILES = "downloaded-files"
CONTENTS = (TREE, LINK, OLD, PART, PART_RECORD, FILES)
AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2


class Stage:
    """The hidden folder beside a tree, in which the next tree is created."""

    def __init__(self, path: str) -> None:
        """PATH is the path of the tree; the stage is on the same disk."""
        self.tree_path = path
        folder, self.name = posixpath.split(path)
        self.stages = f"{folder}/{trees.STAGES}"
        # The opened parent folder of the tree, while the stage is entered.
        self.parent: Folder | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Use the stage as the working folder; delete unfinished trees before and after."""
        with (
            paths.opened_parent(self.tree_path, make=True) as (parent, name),
            _opened_private(parent, trees.STAGES, make=True) as stages,
            _opened_private(stages, name, make=True) as stage,
            folders.working_folder(stage.descriptor),
        ):
            self.parent = parent
            delete_unfinished()
            try:
                yield
            finally:
                delete_unfinished()
                self.parent = None

    def move_to_path(self, name: str, replaced: Identity | None = None) -> None:
        """Move NAME from the stage to the path of the tree, and the old tree into the stage.

        A reader sees the complete old tree or the complete new one. REPLACED is the identity of the
        old tree, None if there is none. Raise TreeError if another file or folder has its path now.
        """
        parent = self._opened_parent()
        os.sync()
        if name == FILES:
            # What is exchanged for the old tree must not be continued by the next run.
            os.rename(FILES, TREE)
            name = TREE
        new = folders.identify(os.lstat(name))
        if replaced is None:
            _rename_new(name, self.name, target=parent.descriptor)
        elif not _exchange(name, parent.descriptor, self.name):
            # On a file system without exchange, the path is missing for a moment.
            os.rename(self.name, OLD, src_dir_fd=parent.descriptor)
            self._check_moved(OLD, replaced)
            _rename_new(name, self.name, target=parent.descriptor)
        elif folders.identify(os.lstat(name)) != replaced:
            _exchange(name, parent.descriptor, self.name)
            if folders.identify(os.lstat(name)) != new:
                self._move_back(name)
            raise self._renamed_by_others()
        os.fsync(parent.descriptor)

    def delete_tree(self, expected: Identity) -> None:
        """Delete the tree or link at the path: first move it into the stage, then delete it there.

        Raise TreeError if its identity is not the EXPECTED one any more.
        """
        with self.entered():
            os.rename(self.name, OLD, src_dir_fd=self._opened_parent().descriptor)
            self._check_moved(OLD, expected)

    def delete(self) -> None:
        """Delete the stage, and the folder of stages if it is empty then."""
        delete_stages(self.stages, only=[self.name])

    def downloaded_bytes(self) -> int:
        """Return the size of what was downloaded to the stage."""
        with ExitStack() as stack:
            try:
                parent, name = stack.enter_context(paths.opened_parent(self.tree_path))
                stages = stack.enter_context(_opened_private(parent, trees.STAGES))
                stage = stack.enter_context(_opened_private(stages, name))
            except FileNotFoundError:
                return 0
            info = stage.lstat(PART)
            size = info.st_size if info else 0
            with suppress(FileNotFoundError), stage.entered(FILES) as files:
                for _inside, _folders, names, folder in folders.walk(files):
                    for name in names:
                        info = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
                        size += info.st_size
            return size

    def _opened_parent(self) -> Folder:
        if self.parent is None:
            raise RuntimeError("the stage is not entered")
        return self.parent

    def _check_moved(self, name: str, expected: Identity) -> None:
        """Undo a rename into the stage if it moved another file or folder than the checked one."""
        if folders.identify(os.lstat(name)) != expected:
            self._move_back(name)
            raise self._renamed_by_others()

    def _move_back(self, name: str) -> None:
        """Move an entry out of the stage, under another name if its own is used again."""
        target = self._opened_parent().descriptor
        try:
            _rename_new(name, self.name, target)
        except FileExistsError:
            _rename_new(name, f"{self.name}.{secrets.token_hex(4)}", target)

    def _renamed_by_others(self) -> TreeError:
        return TreeError(
            f"{self.tree_path}: found another file or folder than a moment before; expected the "
            "same. It was not changed. Find out which program renames it, then run again."
        )


@contextmanager
def _opened_private(parent: Folder, name: str, make: bool = False) -> Iterator[Folder]:
    """Open a folder that only root can enter; MAKE creates it if it is missing."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent.descriptor)
    with parent.entered(name) as folder:
        info = folder.info()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise UnsafePathError(
                folder.path,
                f"{paths.describe(info)}, mode {stat.S_IMODE(info.st_mode):04o}",
                "a folder that only root can write",
            )
        # Without the group and the setgid bit that a new folder inherits from its parent.
        os.fchown(folder.descriptor, -1, os.getegid())
        os.fchmod(folder.descriptor, 0o700)
        yield folder


def delete_unfinished() -> None:
    """Delete unfinished and replaced trees from the working folder, but no download."""
    with folders.opened_working_folder() as stage:
        for name in (TREE, LINK, OLD):
            stage.remove(name)


def delete_stages(path: str, only: Sequence[str] | None = None, keep: Sequence[str] = ()) -> None:
    """Delete the stages in the folder PATH, or ONLY these, except those to KEEP.

    The folder is deleted if it is empty then. Only files that a stage may contain are deleted: if
    somebody renamed another folder of root to the folder of stages, it keeps its content.
    """
    with ExitStack() as stack:
        try:
            parent, stages_name = stack.enter_context(paths.opened_parent(path))
            stages = stack.enter_context(_opened_private(parent, stages_name))
        except FileNotFoundError:
            return
        for name in os.listdir(stages.descriptor):
            if name in keep or (only is not None and name not in only):
                continue
            with _opened_private(stages, name) as stage:
                for content in CONTENTS:
                    stage.remove(content)
                left = os.listdir(stage.descriptor)
            if left:
                raise UnsafePathError(
                    f"{path}/{name}", f"{left[0]} in it", "only files of an interrupted run"
                )
            os.rmdir(name, dir_fd=stages.descriptor)
        with suppress(OSError):
            os.rmdir(stages_name, dir_fd=parent.descriptor)


def _renameat2(name: str, source: int, new: str, target: int, flag: int) -> bool:
    """Rename with a FLAG; return whether the file system and the C library support it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(source, os.fsencode(name), target, os.fsencode(new), flag) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(error, os.strerror(error), new)


def _exchange(name: str, parent: int, other: str) -> bool:
    """Exchange NAME in the working folder with OTHER in PARENT; return whether it is supported."""
    return _renameat2(name, AT_FDCWD, other, parent, RENAME_EXCHANGE)


def _rename_new(name: str, new: str, target: int) -> None:
    """Rename NAME in the working folder to the name NEW in TARGET, which must not exist."""
    if _renameat2(name, AT_FDCWD, new, target, RENAME_NOREPLACE):
        return
    with suppress(FileNotFoundError):
        os.stat(new, dir_fd=target, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(name, new, dst_dir_fd=target)


def move_new(name: str, folder: Folder, new: str) -> None:
    """Move NAME in the working folder into another folder, in which NEW must not exist."""
    _rename_new(name, new, target=folder.descriptor)
