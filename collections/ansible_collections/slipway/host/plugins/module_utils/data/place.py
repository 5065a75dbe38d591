# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where trees are put: a hidden folder for the unfinished one, and a rename that makes it visible.

Root works here in folders that may belong to others.  So the unfinished tree is made in a folder
that root alone can enter and that is opened once, as the working folder: whatever somebody renames
meanwhile, nothing is written elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.data.progress import WorkError, amount

# In a stage: the unfinished tree, a link to one on another disk, and what was replaced.
TREE, LINK, OLD = "tree", "link", "old"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
AT_FDCWD, RENAME_EXCHANGE = -100, 2
# The folder of the role's own notes in a tree.
NOTES = _probe.TREE_RECORD.split("/")[1]


@dataclass(frozen=True)
class Look:
    """How a tree is to look: who has it, and the mode of its folders.

    Files get the same mode without the right to enter, programs keep theirs.
    """

    owner: int
    group: int
    mode: int

    def file(self, program: bool) -> int:
        """Return the mode of a file."""
        return self.mode & (0o777 if program else 0o666)


def make_folder(path: str) -> None:
    """Make a folder and those above it; what is new belongs to who has the one above."""
    if os.path.isdir(path):
        return
    parent = posixpath.dirname(path)
    make_folder(parent)
    above = os.stat(parent)
    os.mkdir(path, 0o755)
    os.chown(path, above.st_uid, above.st_gid, follow_symlinks=False)


def room(folder: str) -> int:
    """Return how many bytes may still be written below a folder that may not be there yet."""
    while not os.path.isdir(folder):
        folder = posixpath.dirname(folder)
    free = os.statvfs(folder)
    return free.f_bavail * free.f_frsize


def choose(folders: Sequence[str], needed: int, had: dict[str, int]) -> str:
    """Return the first of FOLDERS with room for NEEDED bytes, of which it may HAVE some already.

    Raise WorkError where none has.
    """
    for folder in folders:
        if room(folder) + had.get(folder, 0) >= needed:
            return folder
    free = ", ".join(f"{amount(room(folder))} in {folder}" for folder in folders)
    raise WorkError(
        f"needs {amount(needed)}, free are {free}; make room, or list a folder on a larger disk in "
        "ml_data_disks"
    )


class Stage:
    """The hidden folder beside a tree, in which the next one is made."""

    def __init__(self, path: str) -> None:
        """PATH is where the tree goes, on the same disk."""
        self.folder, self.name = posixpath.split(path)
        self.path = f"{self.folder}/{_probe.STAGES}/{self.name}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make it the working folder; what is unfinished is removed before and after."""
        make_folder(self.folder)
        with working(self.folder):
            for name in (_probe.STAGES, self.name):
                _enter_own(name)
            clear()
            try:
                yield
            finally:
                clear()

    def show(self, what: str) -> None:
        """Put WHAT of the stage, its working folder, in the tree's place; the old one goes.

        Whoever looks sees the old one or the new one.
        """
        os.sync()
        with _opened(self.folder) as above:
            _swap(what, self.name, above)
            os.fsync(above)

    def take(self) -> None:
        """Remove the tree: at once from sight, then from the disk."""
        with self.entered(), _opened(self.folder) as above:
            os.rename(self.name, TREE, src_dir_fd=above)

    def remove(self) -> None:
        """Remove the stage, and the folder of stages where it was the last."""
        sweep(posixpath.dirname(self.path), [self.name], reverse=True)


@contextmanager
def _opened(folder: str, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> Iterator[int]:
    descriptor = os.open(folder, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_tree(path: str) -> Iterator[int]:
    """Open a tree that others may rename; a link in its place is an error."""
    with _opened(path, FOLDER) as descriptor:
        yield descriptor


@contextmanager
def working(folder: str) -> Iterator[None]:
    """Make FOLDER the working folder for as long as it takes."""
    with _opened(".") as back, _opened(folder) as there:
        os.fchdir(there)
        try:
            yield
        finally:
            os.fchdir(back)


def _enter_own(name: str) -> None:
    """Make a folder that root alone can enter the working folder; it is made where missing."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700)
    descriptor = os.open(name, FOLDER)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise WorkError(f"{os.getcwd()}/{name} is there and is not root's; remove it")
        # Without what a folder above lends it: its group, and the bit that goes on lending it.
        os.fchown(descriptor, -1, os.getegid())
        os.fchmod(descriptor, 0o700)
        os.fchdir(descriptor)
    finally:
        os.close(descriptor)


def clear() -> None:
    """Remove what is unfinished from the working folder; a download stays."""
    with _opened(".") as here:
        for name in (TREE, LINK, OLD):
            if os.path.lexists(name):
                _discard(name, here)


def _swap(what: str, name: str, above: int) -> None:
    """Rename WHAT to NAME in the folder ABOVE; what was there gets the name WHAT."""
    try:
        os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(what, name, dst_dir_fd=above)
        return
    if not _exchange(what, above, name):
        # A file system that cannot exchange: the name is gone for a moment.
        os.rename(name, OLD, src_dir_fd=above)
        os.rename(what, name, dst_dir_fd=above)
        os.rename(OLD, what)


def _exchange(what: str, above: int, name: str) -> bool:
    """Exchange two names at once; return whether the file system and the C library can."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, what.encode(), above, name.encode(), RENAME_EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(error, os.strerror(error), name)


def follow(path: str, new: Look) -> None:
    """Make a tree look as NEW; in it follows what looked as its top did, the rest is somebody's.

    The top comes last, so that a run that was interrupted is seen.
    """
    with opened_tree(path) as top:
        found = os.fstat(top)
        old = Look(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
        if old == new:
            return
        for folder, names, files, descriptor in os.fwalk(dir_fd=top):
            if folder == ".":
                # The role's own notes stay its own.
                names[:] = [name for name in names if name != NOTES]
            for name in (*names, *files):
                _follow(name, descriptor, old, new)
        os.fchown(top, new.owner, new.group)
        os.fchmod(top, new.mode)


def _follow(name: str, above: int, old: Look, new: Look) -> None:
    found = os.stat(name, dir_fd=above, follow_symlinks=False)
    owner = new.owner if found.st_uid == old.owner else -1
    group = new.group if found.st_gid == old.group else -1
    if (owner, group) != (-1, -1) and (owner, group) != (found.st_uid, found.st_gid):
        os.chown(name, owner, group, dir_fd=above, follow_symlinks=False)
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        modes = {old.mode: new.mode}
    elif stat.S_ISREG(found.st_mode):
        modes = {old.file(program): new.file(program) for program in (True, False)}
    else:
        return
    if modes.get(mode, mode) == mode:
        return
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
    try:
        os.fchmod(descriptor, modes[mode])
    finally:
        os.close(descriptor)


def sweep(folder: str, names: Sequence[str], reverse: bool = False) -> None:
    """Remove from a folder of stages what is none of NAMES, or just these; it goes when empty."""
    if not os.path.lexists(folder):
        return
    with opened_tree(folder) as top:
        for name in os.listdir(top):
            if (name in names) == reverse:
                _discard(name, top)
    with suppress(OSError):
        os.rmdir(folder)


def _discard(name: str, above: int) -> None:
    """Remove a file or a folder that lies in the folder ABOVE."""
    if stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
        # By its way through the descriptor: rmtree takes one itself since Python 3.11 alone.
        shutil.rmtree(f"/proc/self/fd/{above}/{name}")
    else:
        os.unlink(name, dir_fd=above)
