# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder ``~/.docker`` of a user, after ``sudo docker login`` left files of root in it.

Keys of an entry of left_by_root: user, whose folder holds nothing that belongs to root.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]


def is_roots(info: os.stat_result | None) -> bool:
    """Whether this is a folder or a file of root's; other names of a file may be anywhere."""
    if info is None:
        return False
    kind = info.st_mode & 0o170000
    return info.st_uid == 0 and (kind == 0o040000 or (kind == 0o100000 and info.st_nlink == 1))


def ask_left_by_root(name: str) -> list[str] | None:
    """Return what root owns of a user's ``.docker`` and directly in it, null without a user.

    ``sudo docker login`` leaves it so. A home that is not the user's own is not looked into.
    """
    import pwd

    try:
        entry = pwd.getpwnam(name)
        with reading.safe_paths().opened_folder(entry.pw_dir, (0, entry.pw_uid)) as home:
            if not 0 != entry.pw_uid == home.info().st_uid:
                return []
            with home.entered(".docker") as folder:
                found = [one for one in folder.names() if is_roots(folder.lstat(one))]
                return sorted([*found, *(["."] if is_roots(folder.info()) else [])])
    except KeyError:
        return None
    except (OSError, ValueError):
        return []


ASKS = {"left": reading.each(ask_left_by_root)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state import paths
from ansible_collections.slipway.host.plugins.module_utils.state.model import Kind

NAME = ".docker"
# buildx has records three folders below.
MAX_DEPTH = 8


def compare_left_by_root(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the names that root owns in a user's ``.docker``."""
    names = answer["left"][entry["user"]]
    if names:
        yield f"{', '.join(names)} in ~/.docker is root's", f"{entry['user']}'s"


KINDS = (Kind("left_by_root", "user", "left", compare_left_by_root),)


def give_back(home: str, uid: int, gid: int) -> None:
    """Give everything of root in HOME's ``.docker`` to the user, if the home is the user's.

    The user may replace any name there at any moment. So each step opens a name within the folder
    opened before, without following links, and changes only what was opened and checked. A file
    with several names (hard links) is left alone, and so is everything of other users.
    """
    try:
        with paths.opened_folder(home, owners=(0, uid)) as folder:
            if folder.info().st_uid == uid:
                _give(folder, NAME, uid, gid, MAX_DEPTH)
    except paths.UnsafePathError:
        return


def _give(folder: paths.Folder, name: str, uid: int, gid: int, depth: int) -> None:
    device = folder.info().st_dev
    try:
        info = folder.lstat(name)
        if info is None or info.st_dev != device:
            return
        if paths.type_of(info) == paths.FOLDER:
            with folder.entered(name) as inner:
                if inner.info().st_dev != device:
                    return
                # The content first, while the user cannot change names in a folder of root's.
                for child in inner.names() if depth else ():
                    _give(inner, child, uid, gid, depth - 1)
                _set_owner(inner.descriptor, uid, gid)
        elif paths.type_of(info) == paths.FILE:
            with folder.opened(name) as descriptor:
                if os.fstat(descriptor).st_dev == device:
                    _set_owner(descriptor, uid, gid)
    except (OSError, paths.UnsafePathError):
        return  # a link, a file with several names, or gone


def _set_owner(descriptor: int, uid: int, gid: int) -> None:
    if is_roots(os.fstat(descriptor)):
        paths.set_owner(descriptor, uid, gid)
