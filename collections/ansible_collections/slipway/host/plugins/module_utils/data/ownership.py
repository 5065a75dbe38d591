# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owner, group and modes of a tree and of the files in it."""

from __future__ import annotations

import grp
import os
import posixpath
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import folders
from ansible_collections.slipway.host.plugins.module_utils.data.progress import TreeError
from ansible_collections.slipway.host.plugins.module_utils.state import paths
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)


@dataclass(frozen=True)
class Attributes:
    """Owner and group of a tree, and the mode of its folders.

    Files have the same mode without execute permission; executable files keep this permission.
    """

    owner: int
    group: int
    mode: int

    def file_mode(self, executable: bool) -> int:
        """Return the mode of a file."""
        return self.mode & (0o777 if executable else 0o666)


def declared_attributes(tree: Mapping[str, Any]) -> Attributes:
    """Return the declared attributes of a tree; raise TreeError for an unknown user or group."""
    try:
        owner = pwd.getpwnam(tree["owner"]).pw_uid
        group = grp.getgrnam(tree["group"]).gr_gid
    except KeyError as error:
        raise TreeError(
            f"{error.args[0]}; expected an existing user and group. Declare it in "
            "user_access_users or user_access_groups."
        ) from None
    return Attributes(owner, group, int(tree["mode"], 8))


def set_attributes(top: Folder, new: Attributes, created_by_root: bool = False) -> None:
    """Set owner, group and mode of a tree, and of those files in it that had the old attributes.

    Other files keep their attributes, because people set them. CREATED_BY_ROOT: root created this
    tree, according to a record that only root can write. The top folder is changed last, so that
    the next run finishes an interrupted run.

    Raise UnsafePathError if the tree belongs to another user and others can rename its path: they
    may have moved a tree of a third user there, which root would give away.
    """
    info = top.info()
    old = Attributes(info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode))
    if old == new:
        return
    if old.owner != new.owner and not (created_by_root and old.owner == os.geteuid()):
        parent = posixpath.dirname(top.path)
        if not folders.only_root_can_rename(parent):
            raise UnsafePathError(
                top.path,
                f"{paths.describe(info)}, in a folder that others can write",
                f"a folder owned by {user_name(new.owner) or new.owner}",
            )
    # Bottom up: whether others can write an opened folder is determined before its owner changes.
    for _inside, names, other_names, folder in folders.walk(top, bottom_up=True):
        for name in (*names, *other_names):
            _set_attributes(name, folder, old, new)
    os.fchown(top.descriptor, new.owner, new.group)
    os.fchmod(top.descriptor, new.mode)


def user_name(uid: int) -> str:
    """Return the name of a user ID, empty if no user has it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _set_attributes(name: str, parent: Folder, old: Attributes, new: Attributes) -> None:
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.descriptor)
    try:
        info = os.fstat(descriptor)
        kind = paths.type_of(info)
        if info.st_uid not in (old.owner, new.owner):
            return
        # In a folder that others can write, a hard link may lead to a file outside of the tree.
        if info.st_nlink > 1 and kind != paths.FOLDER and not parent.trusted:
            return
        # The opened file, even if its name leads to another file now.
        opened = f"/proc/self/fd/{descriptor}"
        owner = new.owner if info.st_uid == old.owner else info.st_uid
        group = new.group if info.st_gid == old.group else info.st_gid
        if (owner, group) != (info.st_uid, info.st_gid):
            os.chown(opened, owner, group)
        mode = stat.S_IMODE(info.st_mode)
        if kind == paths.FOLDER:
            new_modes = {old.mode: new.mode}
        elif kind == paths.FILE:
            new_modes = {old.file_mode(flag): new.file_mode(flag) for flag in (True, False)}
        else:
            return
        if new_modes.get(mode, mode) != mode:
            os.chmod(opened, new_modes[mode])
    finally:
        os.close(descriptor)
