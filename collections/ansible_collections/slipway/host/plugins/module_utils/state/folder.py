# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder that was opened without following a link of anybody but root; see :mod:`state.paths`.

Work on names within the folder continues on what was opened, whatever becomes of its own name. This
file travels to the host with the survey, so it uses the standard library of Python 3.9 alone and
imports late.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

FOLDER = 0o040000
FILE = 0o100000
LINK = 0o120000
_TYPES = {
    FOLDER: "folder",
    FILE: "file",
    LINK: "symbolic link",
    0o010000: "named pipe",
    0o020000: "character device",
    0o060000: "block device",
    0o140000: "socket",
}
# Enough rights to walk through a folder, also where it cannot be listed.
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePathError(ValueError):
    """Something in the way that root must not follow or overwrite; the text names it.

    Users choose names and targets of links, so control characters in them are escaped.
    """

    def __init__(self, path: str, found: str, expected: str) -> None:
        path, found = escape_control(path), escape_control(found)
        super().__init__(
            f"{path}: found {found}; expected {expected}. Move it out of the way, then run again."
        )
        self.path, self.found, self.expected = path, found, expected


def type_of(info: os.stat_result) -> int:
    """Return the type bits of a file."""
    return info.st_mode & 0o170000


def owner_name(info: os.stat_result) -> str:
    """Return the name of a file's owner, the number where the user has no name."""
    import pwd

    try:
        return pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        return str(info.st_uid)


def describe(info: os.stat_result, target: str | None = None) -> str:
    """Return what a file is and whose, for a person: ``a symbolic link to /etc, owned by bob``."""
    leads = f" to {target}" if target is not None else ""
    if type_of(info) == FILE and info.st_nlink > 1:
        leads = f" with {info.st_nlink} names (hard links)"
    return f"a {_TYPES.get(type_of(info), 'special file')}{leads}, owned by {owner_name(info)}"


def is_trusted(info: os.stat_result) -> bool:
    """Return whether only root can change the names in this folder.

    A POSIX ACL that gives somebody else write permission shows as write permission of the group.
    """
    return info.st_uid == 0 and not info.st_mode & 0o022


class Folder:
    """An opened folder; all methods work on names within it and follow no link.

    ``path`` is for messages only. ``trusted`` says whether nobody but root can change any name on
    the way to it or in it.
    """

    def __init__(self, descriptor: int, path: str, trusted: bool) -> None:
        self.descriptor = descriptor
        self.path = path
        self.trusted = trusted

    def info(self) -> os.stat_result:
        """Return the status of the folder itself."""
        return os.fstat(self.descriptor)

    def secure(self, repaired_mode: Callable[[int], int], check: bool = False) -> bool:
        """Give the folder to root with a mode made of the present one; return whether it differed.

        Its group stays. CHECK changes nothing.
        """
        info = self.info()
        present = info.st_mode & 0o7777
        mode = repaired_mode(present)
        if (info.st_uid, present) == (0, mode):
            return False
        if check:
            return True
        set_owner(self.descriptor, 0, info.st_gid)
        os.fchmod(self.descriptor, mode)
        return True

    def set_mode(self, mode: int) -> None:
        """Set the mode of the folder itself."""
        os.fchmod(self.descriptor, mode)

    def lstat(self, name: str) -> os.stat_result | None:
        """Return the status of a name, None where there is none."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        return sorted(os.listdir(self.descriptor))

    def refuse(self, name: str, info: os.stat_result, expected: str) -> UnsafePathError:
        """Return the error for something in the way."""
        target = None
        if type_of(info) == LINK:
            try:
                target = os.readlink(name, dir_fd=self.descriptor)
            except OSError:
                target = "?"
        return UnsafePathError(f"{self.path.rstrip('/')}/{name}", describe(info, target), expected)

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Open a regular file for reading and yield its descriptor.

        Raise UnsafePathError for anything else, and for a file with further names where others can
        make names: it may be a file of somebody else that has another name here. Raise
        FileNotFoundError where there is none.
        """
        walked = os.open(name, _WALK, dir_fd=self.descriptor)
        try:
            info = os.fstat(walked)
            if type_of(info) != FILE:
                raise self.refuse(name, info, "a file")
            if info.st_nlink > 1 and not self.trusted:
                raise self.refuse(name, info, "a file with one name")
            # The same file, whatever its name leads to now.
            descriptor = reopened(walked, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(walked)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, name: str, limit: int = 1 << 24) -> bytes | None:
        """Return the first LIMIT bytes of a regular file, None where there is none.

        Raise UnsafePathError as :meth:`opened`.
        """
        try:
            with self.opened(name) as descriptor, open(descriptor, "rb", closefd=False) as stream:
                return stream.read(limit)
        except FileNotFoundError:
            return None

    def replace(self, name: str, content: bytes, mode: int, uid: int, gid: int) -> None:
        """Write a file by a temporary name, completely or not at all.

        What has the name now is replaced as a name: a link is not followed, further hard links keep
        the old content. A folder in its place is an error. MODE is set whatever the umask.
        """
        with (
            self.replacing(name, mode, uid, gid) as descriptor,
            open(descriptor, "wb", closefd=False) as stream,
        ):
            stream.write(content)

    @contextmanager
    def replacing(self, name: str, mode: int, uid: int, gid: int) -> Iterator[int]:
        """Yield the descriptor of a new file, which gets the name at the end; see :meth:`replace`.

        Where the block fails, nothing is left of the new file.
        """
        info = self.lstat(name)
        if info is not None and type_of(info) not in (FILE, LINK):
            raise self.refuse(name, info, "a file")
        temporary = f".{name[:200]}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # Nothing is imported here: a user may have no right to read root's Python.
        # Closed to others until owner and mode are set: the content may be secret.
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self.descriptor)
        try:
            try:
                yield descriptor
                set_owner(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            self.remove(temporary)
            raise

    def set_file(self, name: str, mode: int, uid: int, gid: int) -> None:
        """Set owner, group and mode of a regular file.

        Where others can make names, the file must be UID's already: a file of somebody else may
        have been moved here.
        """
        with self.opened(name) as descriptor:
            info = os.fstat(descriptor)
            if not self.trusted and info.st_uid != uid:
                raise self.refuse(name, info, f"a file owned by {owner_names([uid])}")
            set_owner(descriptor, uid, gid)
            # After the owner: the kernel clears setuid and setgid bits when that changes. A file
            # that is right keeps the time of its last change.
            if os.fstat(descriptor).st_mode & 0o7777 != mode:
                os.fchmod(descriptor, mode)

    def make_folder(self, name: str, mode: int, uid: int, gid: int) -> None:
        """Make a folder, or set owner, group and mode of the one that is there.

        Raise UnsafePathError where something else has the name. Where others can make names, a
        folder that is there must be UID's already, or be empty and root's, as an interrupted run
        leaves it: a folder of somebody else may have been moved here.
        """
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.descriptor)
        with self.entered(name) as folder:
            info = folder.info()
            if not self.trusted and info.st_uid != uid:
                # The folder made above, unless its name was given to another one since.
                if info.st_uid != os.geteuid():
                    raise self.refuse(name, info, f"a folder owned by {owner_names([uid])}")
                if folder.names():
                    raise self.refuse(name, info, "an empty folder, or one of its user")
            set_owner(folder.descriptor, uid, gid)
            os.fchmod(folder.descriptor, mode)

    @contextmanager
    def entered(self, name: str) -> Iterator[Folder]:
        """Open a folder in this one; raise UnsafePathError for anything else."""
        walked = self.walk(name)
        try:
            info = os.fstat(walked)
            descriptor = reopened(walked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(walked)
        try:
            path = f"{self.path.rstrip('/')}/{name}"
            yield Folder(descriptor, path, self.trusted and is_trusted(info))
        finally:
            os.close(descriptor)

    def walk(self, name: str) -> int:
        """Return a descriptor of a folder of this one, for walking only."""
        if name in ("", ".", "..") or "/" in name:
            raise ValueError(f"not a name within a folder: {name!r}")
        walked = os.open(name, _WALK, dir_fd=self.descriptor)
        info = os.fstat(walked)
        if type_of(info) != FOLDER:
            os.close(walked)
            raise self.refuse(name, info, "a folder")
        return walked

    def make_link(self, name: str, target: str) -> None:
        """Make a symbolic link; raise FileExistsError where something has the name."""
        os.symlink(target, name, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a name with all that is in it; links are removed, not followed."""
        info = self.lstat(name)
        if info is None:
            return
        if type_of(info) != FOLDER:
            os.unlink(name, dir_fd=self.descriptor)
            return
        import shutil

        # By its way through the descriptor: rmtree takes a dir_fd since Python 3.11 only. Below
        # its first folder it works on descriptors itself.
        shutil.rmtree(f"/proc/self/fd/{self.descriptor}/{name}")

    def remove_empty(self, name: str) -> None:
        """Remove a folder unless something is in it."""
        with suppress(OSError):
            os.rmdir(name, dir_fd=self.descriptor)


def reopened(walked: int, flags: int) -> int:
    """Open what an O_PATH descriptor refers to: that file and no other."""
    return os.open(f"/proc/self/fd/{walked}", flags)


def set_owner(descriptor: int, uid: int, gid: int) -> None:
    """Give an opened file to a user and a group, unless it is theirs already.

    A user acting for himself may not "give" a file, even to himself.
    """
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (uid, gid):
        os.fchown(descriptor, uid, gid)


def owner_names(owners: Collection[int]) -> str:
    """Return the names of users for a message; a number where a user has no name."""
    import pwd

    def name(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    return " or ".join(name(uid) for uid in sorted(owners))
