# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where trees are put: a hidden stage for the unfinished tree, and a rename that makes it visible.

Root works here in folders that may belong to others, who may swap any name at any moment. So each
folder is opened once, by :mod:`state.paths`, and all work goes on in what was opened. The stage is
a folder that root alone can enter; it is the working folder while a tree is made in it. What is
renamed into the stage is compared with what was checked before, and goes back if it is not the
same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import pwd
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.data.progress import WorkError, amount
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

# In a stage: the unfinished tree, a link to a tree on another disk, and what was replaced.
TREE, LINK, OLD = "tree", "link", "old"
# Files in a stage: the downloaded part of an archive, and the record of this download.
PART, PART_NOTE = "archive", "archive.json"
CONTENTS = (TREE, LINK, OLD, PART, PART_NOTE)
AT_FDCWD, RENAME_NOREPLACE, RENAME_EXCHANGE = -100, 1, 2
# The folder of the role's own notes in a tree.
NOTES = trees.TREE_RECORD.split("/")[1]
# No disk is filled to its end: other programs of the host need room on it.
RESERVED_SHARE, RESERVED_BYTES = 20, 1 << 30

# Device and inode: what tells a file or folder from all others while it is there.
Identity = tuple[int, int]


def identity(info: os.stat_result) -> Identity:
    """Return what tells a file or folder from all others."""
    return info.st_dev, info.st_ino


@dataclass(frozen=True)
class Look:
    """Owner and group of a tree, and the mode of its folders.

    Files get the same mode without the right to enter, programs keep theirs.
    """

    owner: int
    group: int
    mode: int

    def file(self, program: bool) -> int:
        """Return the mode of a file."""
        return self.mode & (0o777 if program else 0o666)


def room(path: str) -> int:
    """Return how many bytes may be written below a folder that may not be there yet.

    A part of each disk stays free.
    """
    while True:
        try:
            with paths.opened_folder(path) as folder:
                return free_bytes(folder.descriptor)
        except FileNotFoundError:
            path = posixpath.dirname(path)


def free_bytes(descriptor: int | str) -> int:
    """Return how many bytes may be written to a disk, without the part that stays free."""
    disk = os.statvfs(descriptor)
    reserved = min(RESERVED_BYTES, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)
    return max(0, disk.f_bavail * disk.f_frsize - reserved)


def free_names(descriptor: int | str) -> int | None:
    """Return how many more files a disk takes, None where the file system sets no limit."""
    disk = os.statvfs(descriptor)
    return max(0, disk.f_favail - disk.f_files // RESERVED_SHARE) if disk.f_files else None


def choose(folders: Sequence[str], needed: int, had: Mapping[str, int]) -> str:
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


@contextmanager
def opened_parent(path: str) -> Iterator[tuple[Folder | None, str]]:
    """Open the folder that holds PATH; yield it, or None where it is missing, with the name."""
    with ExitStack() as stack:
        found: Folder | None
        try:
            found, name = stack.enter_context(paths.opened_parent(path))
        except FileNotFoundError:
            found, name = None, posixpath.basename(path)
        yield found, name


@contextmanager
def opened_tree(path: str) -> Iterator[Folder | None]:
    """Open the tree at PATH and yield it, None where there is none.

    Raise UnsafePathError for anything in its place or on the way to it, links included.
    """
    with ExitStack() as stack:
        above, name = stack.enter_context(opened_parent(path))
        found: Folder | None = None
        if above:
            with suppress(FileNotFoundError):
                found = stack.enter_context(above.entered(name))
        yield found


@dataclass(frozen=True)
class Link:
    """A symbolic link: where it leads, what it is in words, and what tells it from others."""

    target: str
    description: str
    identity: Identity


def link_at(path: str) -> Link | None:
    """Return the link at PATH, None for anything else."""
    with opened_parent(path) as (above, name):
        info = above.lstat(name) if above else None
        if not above or info is None or paths.type_of(info) != paths.LINK:
            return None
        try:
            target = os.readlink(name, dir_fd=above.descriptor)
        except OSError:
            raise above.refuse(name, info, "a folder") from None
        return Link(target, paths.describe(info, target), identity(info))


def is_closed_way(path: str) -> bool:
    """Return whether nobody but root can change what the names of PATH, a folder, lead to.

    A folder such as ``/tmp`` counts as closed where the next folder is root's: its sticky bit keeps
    others from renaming that. Programs that reach files by their path may work in such a folder.
    """
    owners = {0, os.geteuid()}
    for parts in range(len(posixpath.normpath(path).strip("/").split("/")) + 1):
        part = "/" + "/".join(posixpath.normpath(path).strip("/").split("/")[:parts])
        info = os.lstat(part)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in owners:
            return False
        sticky = info.st_mode & stat.S_ISVTX and part != posixpath.normpath(path)
        if info.st_mode & 0o022 and not sticky:
            return False
    return True


class Stage:
    """The hidden folder beside a tree, in which the next tree is made."""

    def __init__(self, path: str) -> None:
        """PATH is where the tree goes, on the same disk."""
        self.place = path
        folder, self.name = posixpath.split(path)
        self.stages = f"{folder}/{trees.STAGES}"
        self.path = f"{self.stages}/{self.name}"
        # The opened folder that holds the tree, while the stage is entered.
        self.above: Folder | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the stage the working folder; what is unfinished is removed before and after."""
        with (
            paths.opened_parent(self.place, make=True) as (above, name),
            _private(above, trees.STAGES, make=True) as stages,
            _private(stages, name, make=True) as stage,
            working(stage.descriptor),
        ):
            self.above = above
            clear()
            try:
                yield
            finally:
                clear()
                self.above = None

    def show(self, what: str, replaced: Identity | None = None) -> None:
        """Put WHAT of the stage in the tree's place; what was there comes into the stage.

        A reader sees the complete old tree or the complete new one. REPLACED is the identity of the
        old tree, None if there is none. Raise WorkError if another file or folder has its path now.
        """
        above = self._opened_above()
        new = identity(os.lstat(what))
        os.sync()
        if replaced is None:
            _rename_new(what, self.name, target=above.descriptor)
        elif not _exchange(what, above.descriptor, self.name):
            # A file system that cannot exchange: the name is gone for a moment.
            os.rename(self.name, OLD, src_dir_fd=above.descriptor)
            self._compare(OLD, replaced)
            _rename_new(what, self.name, target=above.descriptor)
        elif identity(os.lstat(what)) != replaced:
            _exchange(what, above.descriptor, self.name)
            if identity(os.lstat(what)) != new:
                self._put_back(what)
            raise self._swapped()
        os.fsync(above.descriptor)

    def take(self, expected: Identity) -> None:
        """Remove what has the tree's name: at once from sight, then from the disk.

        Raise WorkError where it is not the EXPECTED one any more.
        """
        with self.entered():
            os.rename(self.name, OLD, src_dir_fd=self._opened_above().descriptor)
            self._compare(OLD, expected)

    def remove(self) -> None:
        """Remove the stage, and the folder of stages where it was the last."""
        sweep(self.stages, [self.name], reverse=True)

    def downloaded(self) -> int:
        """Return how many bytes of a download lie in the stage."""
        with ExitStack() as stack:
            try:
                above, name = stack.enter_context(paths.opened_parent(self.place))
                stages = stack.enter_context(_private(above, trees.STAGES))
                stage = stack.enter_context(_private(stages, name))
            except FileNotFoundError:
                return 0
            info = stage.lstat(PART)
            return info.st_size if info else 0

    def _opened_above(self) -> Folder:
        if self.above is None:
            raise RuntimeError("the stage is not entered")
        return self.above

    def _compare(self, name: str, expected: Identity) -> None:
        """Undo a rename into the stage if another file or folder than the checked one was moved."""
        if identity(os.lstat(name)) != expected:
            self._put_back(name)
            raise self._swapped()

    def _put_back(self, name: str) -> None:
        """Rename what is not ours out of the stage, by another name where its own is taken."""
        target = self._opened_above().descriptor
        try:
            _rename_new(name, self.name, target)
        except FileExistsError:
            _rename_new(name, f"{self.name}.{secrets.token_hex(4)}", target)

    def _swapped(self) -> WorkError:
        return WorkError(
            f"{self.place}: found another file or folder than a moment before; expected the same. "
            "It was left as it is. Find out who renames it, then run again."
        )


@contextmanager
def _private(above: Folder, name: str, make: bool = False) -> Iterator[Folder]:
    """Open a folder that root alone can enter; MAKE makes it where it is missing."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above.descriptor)
    with above.entered(name) as folder:
        info = folder.info()
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise UnsafePathError(
                folder.path,
                f"{paths.describe(info)}, mode {stat.S_IMODE(info.st_mode):04o}",
                "a folder that only root can write",
            )
        # Without what a folder above lends it: its group, and the bit that goes on lending it.
        os.fchown(folder.descriptor, -1, os.getegid())
        os.fchmod(folder.descriptor, 0o700)
        yield folder


@contextmanager
def working(descriptor: int) -> Iterator[None]:
    """Make an opened folder the working folder for as long as it takes."""
    back = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(descriptor)
        try:
            yield
        finally:
            os.fchdir(back)
    finally:
        os.close(back)


@contextmanager
def here(name: str = "") -> Iterator[Folder]:
    """Open the working folder, or a folder in it; only in a stage, which is root's alone."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = Folder(descriptor, os.getcwd(), True)
        if not name:
            yield folder
            return
        with folder.entered(name) as inside:
            yield inside
    finally:
        os.close(descriptor)


def clear() -> None:
    """Remove what is unfinished from the working folder; a download stays."""
    with here() as stage:
        for name in (TREE, LINK, OLD):
            discard(name, stage)


def _rename2(name: str, source: int, new: str, target: int, flag: int) -> bool:
    """Rename by renameat2; return whether the file system and the C library can."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(source, os.fsencode(name), target, os.fsencode(new), flag) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(error, os.strerror(error), new)


def _exchange(what: str, above: int, name: str) -> bool:
    """Exchange a name of the working folder with one of ABOVE; return whether that can be done."""
    return _rename2(what, AT_FDCWD, name, above, RENAME_EXCHANGE)


def _rename_new(name: str, new: str, target: int) -> None:
    """Rename a name of the working folder to one that is not there yet."""
    if _rename2(name, AT_FDCWD, new, target, RENAME_NOREPLACE):
        return
    with suppress(FileNotFoundError):
        os.stat(new, dir_fd=target, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(name, new, dst_dir_fd=target)


def move_new(name: str, folder: Folder, new: str) -> None:
    """Move a name of the working folder into another folder, where it is not there yet."""
    _rename_new(name, new, target=folder.descriptor)


# A folder within a tree, the names of folders in it, the names of everything else, and it opened.
Step = tuple[str, list[str], list[str], Folder]


def walk(top: Folder, bottom_up: bool = False) -> Iterator[Step]:
    """Walk through an opened tree without its notes; no link is followed, no pipe waited for."""
    yield from _walk(top, "", bottom_up)


def _walk(folder: Folder, inside: str, bottom_up: bool) -> Iterator[Step]:
    folders: list[str] = []
    others: list[str] = []
    for entry in os.scandir(folder.descriptor):
        if entry.name == NOTES and not inside:
            continue
        (folders if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    if not bottom_up:
        yield inside, folders, others, folder
    for name in folders:
        with folder.entered(name) as below:
            yield from _walk(below, f"{inside}{name}/", bottom_up)
    if bottom_up:
        yield inside, folders, others, folder


def follow(top: Folder, new: Look, made: bool = False) -> None:
    """Give a tree owner, group and mode; in it follows what looked as its top did.

    The rest is somebody's. MADE says that root made this tree, by a note that only root can write.
    The top comes last, so that a run that was interrupted is seen.

    Raise UnsafePathError where the tree belongs to somebody else and may have been put in this
    place by whoever can rename it: root would give away another user's files.
    """
    found = top.info()
    old = Look(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
    if old == new:
        return
    if old.owner != new.owner and not (made and old.owner == os.geteuid()):
        parent = posixpath.dirname(top.path)
        if not is_closed_way(parent):
            raise UnsafePathError(
                top.path,
                f"{paths.describe(found)}, in a folder that others can write",
                f"a folder owned by {_user_name(new.owner)}",
            )
    # Bottom up: what an opened folder is trusted with is known before it is given away.
    for _inside, folders, others, folder in walk(top, bottom_up=True):
        for name in (*folders, *others):
            _follow(name, folder, old, new)
    os.fchown(top.descriptor, new.owner, new.group)
    os.fchmod(top.descriptor, new.mode)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _follow(name: str, above: Folder, old: Look, new: Look) -> None:
    walked = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.descriptor)
    try:
        info = os.fstat(walked)
        kind = paths.type_of(info)
        if info.st_uid not in (old.owner, new.owner):
            return
        # A further name of a file, in a folder that others can write, may be a file of elsewhere.
        if info.st_nlink > 1 and kind != paths.FOLDER and not above.trusted:
            return
        # By what was opened, whatever its name leads to now.
        opened = f"/proc/self/fd/{walked}"
        owner = new.owner if info.st_uid == old.owner else info.st_uid
        group = new.group if info.st_gid == old.group else info.st_gid
        if (owner, group) != (info.st_uid, info.st_gid):
            os.chown(opened, owner, group)
        mode = stat.S_IMODE(info.st_mode)
        if kind == paths.FOLDER:
            modes = {old.mode: new.mode}
        elif kind == paths.FILE:
            modes = {old.file(program): new.file(program) for program in (True, False)}
        else:
            return
        if modes.get(mode, mode) != mode:
            os.chmod(opened, modes[mode])
    finally:
        os.close(walked)


def sweep(path: str, names: Sequence[str], reverse: bool = False) -> None:
    """Remove from the folder of stages PATH what is none of NAMES, or just these.

    The folder goes when it is empty. Only what a stage may hold is removed: a folder of root's that
    somebody renamed to be the folder of stages keeps its content.
    """
    with ExitStack() as stack:
        try:
            above, stages_name = stack.enter_context(paths.opened_parent(path))
            stages = stack.enter_context(_private(above, stages_name))
        except FileNotFoundError:
            return
        for name in os.listdir(stages.descriptor):
            if (name in names) == reverse:
                with _private(stages, name) as stage:
                    for content in CONTENTS:
                        discard(content, stage)
                    left = os.listdir(stage.descriptor)
                if left:
                    raise UnsafePathError(
                        f"{path}/{name}", f"{left[0]} in it", "what an interrupted run leaves"
                    )
                os.rmdir(name, dir_fd=stages.descriptor)
        with suppress(OSError):
            os.rmdir(stages_name, dir_fd=above.descriptor)


def discard(name: str, above: Folder) -> None:
    """Remove a name with all that is in it from a folder; links are removed, not followed."""
    info = above.lstat(name)
    if info is None:
        return
    if paths.type_of(info) != paths.FOLDER:
        os.unlink(name, dir_fd=above.descriptor)
        return
    with above.entered(name) as folder:
        for inside in os.listdir(folder.descriptor):
            discard(inside, folder)
    os.rmdir(name, dir_fd=above.descriptor)
