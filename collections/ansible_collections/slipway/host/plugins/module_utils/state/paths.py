# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work of root on paths that other users can change: no link of theirs is ever followed.

A user may replace any name in a folder he can write, at any moment. So nothing below such a folder
is reached by its path. Each component is opened within the folder opened before it, without
following links, and what was opened is checked: its type, its owner, its number of names. Then
work continues on the opened file or folder, whatever becomes of its name.

A folder is *trusted* if root owns it and nobody else can write it. On the way through trusted
folders root's own links are followed, such as ``/var/run`` or a ``/home`` that an administrator
moved to another disk. Behind the first folder that somebody else can write no link is followed.
systemd draws the same line for its own file operations (``CHASE_SAFE`` in ``chase.h``).

``openat2`` with ``RESOLVE_NO_SYMLINKS`` would walk several components in one call, but checks no
owner, so each component would have to be opened anyway.

Work in the home of a user is done with the rights of that user, see :func:`acting_as`: root has no
more rights there than the user on a network file system with ``root_squash``.

This file travels to the host with the survey, so it uses the standard library of Python 3.9 alone
and imports late.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

MAX_LINKS = 40  # Linux follows no more (path_resolution(7))
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
# A pipe would be waited for, a terminal would become the controlling one.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UnsafePathError(ValueError):
    """Something in the way that root must not follow or overwrite; the text names it."""

    def __init__(self, path: str, found: str, expected: str) -> None:
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


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


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
            descriptor = _reopened(walked, os.O_RDONLY | os.O_CLOEXEC)
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
                raise self.refuse(name, info, f"a file owned by {_names([uid])}")
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
                    raise self.refuse(name, info, f"a folder owned by {_names([uid])}")
                if folder.names():
                    raise self.refuse(name, info, "an empty folder, or one of its user")
            set_owner(folder.descriptor, uid, gid)
            os.fchmod(folder.descriptor, mode)

    @contextmanager
    def entered(self, name: str) -> Iterator[Folder]:
        """Open a folder in this one; raise UnsafePathError for anything else."""
        walked = self._walk(name)
        try:
            info = os.fstat(walked)
            descriptor = _reopened(walked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(walked)
        try:
            path = f"{self.path.rstrip('/')}/{name}"
            yield Folder(descriptor, path, self.trusted and is_trusted(info))
        finally:
            os.close(descriptor)

    def _walk(self, name: str) -> int:
        """Open a folder of this one for walking only."""
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


def _reopened(walked: int, flags: int) -> int:
    """Open what an O_PATH descriptor refers to: that file and no other."""
    return os.open(f"/proc/self/fd/{walked}", flags)


def set_owner(descriptor: int, uid: int, gid: int) -> None:
    """Give an opened file to a user and a group, unless it is theirs already.

    A user acting for himself may not "give" a file, even to himself.
    """
    info = os.fstat(descriptor)
    if (info.st_uid, info.st_gid) != (uid, gid):
        os.fchown(descriptor, uid, gid)


class _Walk:
    """A walk from the root folder down a path, one component at a time."""

    def __init__(self, path: str, owners: Collection[int] | None, make: bool) -> None:
        self.path, self.owners, self.make = path, owners, make
        self.left = _components(path)
        self.links = 0
        self.start()

    def start(self) -> None:
        self.folder = Folder(os.open("/", os.O_PATH | os.O_CLOEXEC), "/", True)
        self.folder.trusted = is_trusted(self.folder.info())

    def close(self) -> None:
        os.close(self.folder.descriptor)

    def run(self) -> Folder:
        while self.left:
            name = self.left.pop(0)
            if name == "..":
                raise UnsafePathError(self.path, "'..' in a path", "a path without '..'")
            info = self.folder.lstat(name)
            if info is None and self.make:
                self._make(name)
                info = self.folder.lstat(name)
            if info is not None and type_of(info) == LINK and self.folder.trusted:
                self._follow(name, info)
            else:
                self._enter(name)
        return self.folder

    def _make(self, name: str) -> None:
        """Make a missing folder; what is new in somebody's folder is his, else root's."""
        above = self.folder.info()
        theirs = not self.folder.trusted
        uid, gid = (above.st_uid, above.st_gid) if theirs else (os.geteuid(), os.getegid())
        self.folder.make_folder(name, 0o755, uid, gid)

    def _follow(self, name: str, info: os.stat_result) -> None:
        """Continue where a link in a trusted folder leads; only root can have made it."""
        self.links += 1
        if self.links > MAX_LINKS:
            raise self.folder.refuse(name, info, f"at most {MAX_LINKS} links on the way")
        target = os.readlink(name, dir_fd=self.folder.descriptor)
        above = [] if target.startswith("/") else _components(self.folder.path)
        self.left = [*_resolved([*above, *_components(target)]), *self.left]
        self.close()
        self.start()

    def _enter(self, name: str) -> None:
        walked = self.folder._walk(name)  # noqa: SLF001 - a class of this file
        info = os.fstat(walked)
        trusted = self.folder.trusted and is_trusted(info)
        if not trusted and self.owners is not None and info.st_uid not in self.owners:
            os.close(walked)
            raise self.folder.refuse(name, info, f"a folder owned by {_names(self.owners)}")
        path = f"{self.folder.path.rstrip('/')}/{name}"
        self.close()
        self.folder = Folder(walked, path, trusted)


def _resolved(parts: list[str]) -> list[str]:
    """Return components without ``..``; those of root's own links lead where their text says."""
    found: list[str] = []
    for part in parts:
        if part == "..":
            del found[-1:]
        else:
            found.append(part)
    return found


def _names(owners: Collection[int]) -> str:
    import pwd

    def name(uid: int) -> str:
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    return " or ".join(name(uid) for uid in sorted(owners))


@contextmanager
def opened_folder(
    path: str, owners: Collection[int] | None = None, make: bool = False
) -> Iterator[Folder]:
    """Open the folder PATH, an absolute path, and yield it.

    OWNERS are the user IDs that may own it and its parents from the first folder on that is not
    trusted; None allows everybody. MAKE makes missing folders, mode 0755; a new folder belongs to
    the owner of the folder it is made in. Raise UnsafePathError for a link or anything else that
    must not be followed, FileNotFoundError where a folder is missing, OSError where the host
    refuses.
    """
    if not path.startswith("/"):
        raise ValueError(f"not an absolute path: {path!r}")
    walk = _Walk(path, owners, make)
    try:
        folder = walk.run()
        descriptor = _reopened(folder.descriptor, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        walk.close()
    try:
        yield Folder(descriptor, folder.path, folder.trusted)
    finally:
        os.close(descriptor)


@contextmanager
def opened_parent(
    path: str, owners: Collection[int] | None = None, make: bool = False
) -> Iterator[tuple[Folder, str]]:
    """Open the folder that holds PATH; yield it with the last component of PATH."""
    parent, _separator, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise ValueError(f"not a path of a file: {path!r}")
    with opened_folder(parent or "/", owners, make) as folder:
        yield folder, name


def check_parent(path: str) -> None:
    """Raise UnsafePathError for a link in the place of a folder, unless root alone can redirect it.

    Such a link leads through folders, and to a folder, that nobody but root can change. For
    example, an administrator moved ``/var/lib`` to another disk.
    """
    with opened_parent(path) as (above, name):
        info = above.lstat(name)
        if info is None or type_of(info) != LINK:
            return
        refusal = above.refuse(
            name, info, "a folder, or a link to a folder that only root can replace"
        )
    try:
        with opened_folder(path) as folder:
            is_roots = folder.trusted
    except FileNotFoundError:
        is_roots = False
    if not is_roots:
        raise refusal


@contextmanager
def opened_file(path: str, owners: Collection[int] | None = None) -> Iterator[int]:
    """Open a regular file for reading and yield its descriptor.

    Links are followed as on the way to a folder: root's own in trusted folders, and no others.
    Raise UnsafePathError and OSError as :func:`opened_folder` and :meth:`Folder.opened`.
    """
    for _link in range(MAX_LINKS):
        with opened_parent(path, owners) as (folder, name):
            info = folder.lstat(name)
            if info is None or type_of(info) != LINK or not folder.trusted:
                with folder.opened(name) as descriptor:
                    yield descriptor
                return
            target = os.readlink(name, dir_fd=folder.descriptor)
            above = [] if target.startswith("/") else _components(folder.path)
        path = "/" + "/".join(_resolved([*above, *_components(target)]))
    raise UnsafePathError(path, "a circle of links", "a file")


def read_file(path: str, limit: int = 1 << 24, owners: Collection[int] | None = None) -> bytes:
    """Return the first LIMIT bytes of a file that :func:`opened_file` opens."""
    with opened_file(path, owners) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        return stream.read(limit)


@contextmanager
def acting_as(name: str) -> Iterator[None]:
    """Do the work of the block with the rights of a user, and take root's back afterwards.

    Real and saved user ID stay root's, so the user can neither signal nor trace the process. Does
    nothing where the process is not root's: then it has no rights to give up. Raise KeyError for an
    unknown user.
    """
    import pwd

    entry = pwd.getpwnam(name)
    if os.geteuid() != 0 or entry.pw_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def as_user(name: str, work: Callable[[], Any], seconds: float = 30) -> Any:
    """Return what WORK returns, JSON data, when done with a user's rights within SECONDS.

    A user may mount a file system of his own that never answers him, and nobody else. So the work
    is done by a child process, which is killed after the time: Raise TimeoutError then, and OSError
    where the work fails without a result.
    """
    import json
    import select
    import signal
    import time

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                with acting_as(name):
                    result = [work(), ""]
            except Exception as error:
                result = [None, f"{type(error).__name__}: {error}"]
            with open(writing, "wb") as stream:
                stream.write(json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(writing)
    chunks: list[bytes] = []
    end = time.monotonic() + seconds
    try:
        while select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
            chunk = os.read(reading, 1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
        else:
            raise TimeoutError(0, f"no answer within {seconds:.0f} seconds")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        # A child that the kernel does not end is not waited for.
        os.waitpid(child, 0 if chunks else os.WNOHANG)
    result, why = json.loads(b"".join(chunks) or b'[null, "it was ended"]')
    if why:
        raise OSError(0, f"the work with the rights of {name} failed ({why})")
    return result
