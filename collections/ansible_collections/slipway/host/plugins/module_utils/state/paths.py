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

Work in the home of a user is done with the rights of that user, see :mod:`state.user_rights`: root
has no more rights there than the user on a network file system with ``root_squash``.

This file travels to the host with the survey, so it uses the standard library of Python 3.9 alone
and imports late.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from ansible_collections.slipway.host.plugins.module_utils.state import reading
from ansible_collections.slipway.host.plugins.module_utils.state.folder import (
    FILE,
    FOLDER,
    LINK,
    Folder,
    UnsafePathError,
    describe,
    is_trusted,
    owner_name,
    owner_names,
    reopened,
    set_owner,
    type_of,
)

# Users of this file need no other for what it opens.
__all__ = [
    "FILE",
    "FOLDER",
    "LINK",
    "Folder",
    "UnsafePathError",
    "describe",
    "opened_file",
    "opened_folder",
    "opened_parent",
    "owner_name",
    "read_file",
    "set_owner",
    "type_of",
]
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAX_LINKS = 40  # Linux follows no more (path_resolution(7))


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


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
            reading.refuse_user_mount(f"{self.folder.path.rstrip('/')}/{name}")
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
        walked = self.folder.walk(name)
        info = os.fstat(walked)
        trusted = self.folder.trusted and is_trusted(info)
        if not trusted and self.owners is not None and info.st_uid not in self.owners:
            os.close(walked)
            raise self.folder.refuse(name, info, f"a folder owned by {owner_names(self.owners)}")
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
        descriptor = reopened(folder.descriptor, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
