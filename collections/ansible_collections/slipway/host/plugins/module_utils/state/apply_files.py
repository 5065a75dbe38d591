# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make owned files and folders as declared, each replaced whole or not at all."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import acl, parents, paths

FILE_MODE, FOLDER_MODE = "0644", "0755"
# A folder for drop-ins of one unit goes with the last of them.
SYSTEMD_FOLDER = "/etc/systemd/system/"


def secure_parents(*guarded: str, check: bool = False) -> list[str]:
    """Give the parent folders of paths to root alone, see :mod:`parents`; return the changed ones.

    CHECK changes nothing. Missing folders are left. Raise UnsafePathError for a link in the place
    of one, unless root alone decides where it leads.
    """
    changed = []
    for path in parents.parents_of(guarded):
        try:
            if path != "/":
                paths.check_parent(path)
            with paths.opened_folder(path) as folder:
                if folder.secure(parents.expected_attributes(path).repaired_mode, check):
                    changed.append(path)
        except FileNotFoundError:
            continue
    return changed


def settle(entry: Mapping[str, Any]) -> None:
    """Make one entry of owned ``files`` true; see :mod:`files` for its keys.

    In a folder that only root can write, whatever has the name is replaced. In a folder that
    others can write, something of another type is refused, and so is a file of somebody else.
    Raise UnsafePathError where something is in the way, OSError where the host refuses,
    LookupError for an unknown owner or group.
    """
    state = entry.get("state") or "file"
    if state == "absent":
        _remove(entry["path"])
        return
    secure_parents(entry["path"])
    mode = int(entry.get("mode") or (FOLDER_MODE if state == "directory" else FILE_MODE), 8)
    uid, gid = _numbers(entry.get("owner") or "root", entry.get("group") or "root")
    with paths.opened_parent(entry["path"], make=True) as (folder, name):
        expected = paths.FOLDER if state == "directory" else paths.FILE
        clear(folder, name, expected, keeps=bool(entry.get("default_acl")))
        if state == "directory":
            folder.make_folder(name, mode, uid, gid)
            if entry.get("default_acl"):
                _set_default_acl(folder, name, entry["default_acl"])
            return
        content = entry.get("content")
        if content is None and folder.lstat(name) is not None:
            folder.set_file(name, mode, uid, gid)
        else:
            folder.replace(name, (content or "").encode(), mode, uid, gid)


def check(entry: Mapping[str, Any]) -> None:
    """Raise UnsafePathError where :func:`settle` would; change nothing."""
    if entry.get("state") == "absent":
        return
    is_folder = entry.get("state") == "directory"
    expected = "a folder" if is_folder else "a file"
    try:
        with paths.opened_parent(entry["path"]) as (folder, name):
            info = folder.lstat(name)
            if info is None or folder.trusted:
                return
            if paths.type_of(info) != (paths.FOLDER if is_folder else paths.FILE):
                raise folder.refuse(name, info, expected)
            owner = entry.get("owner") or "root"
            uid, _gid = _numbers(owner, "0")
            if (is_folder or entry.get("content") is None) and info.st_uid not in (0, uid):
                raise folder.refuse(name, info, f"{expected} owned by {owner}")
    except (FileNotFoundError, LookupError):
        return  # Folders and users may be still to come.


def clear(folder: paths.Folder, name: str, expected: int, keeps: bool = False) -> None:
    """Remove something of another type; refuse it where it may be somebody's."""
    info = folder.lstat(name)
    if info is None or paths.type_of(info) == expected:
        return
    if keeps or not folder.trusted:
        raise folder.refuse(name, info, "a folder" if expected == paths.FOLDER else "a file")
    folder.remove(name)


def _remove(path: str) -> None:
    try:
        with paths.opened_parent(path) as (folder, name):
            folder.remove(name)
        drop_ins = path.rpartition("/")[0]
        if drop_ins.startswith(SYSTEMD_FOLDER) and drop_ins.endswith(".d"):
            with paths.opened_parent(drop_ins) as (folder, name):
                folder.remove_empty(name)
    except FileNotFoundError:
        return


def _set_default_acl(folder: paths.Folder, name: str, mode: str) -> None:
    """Set what is made in a folder, and keep who is named in its default ACL."""
    with folder.entered(name) as opened:
        try:
            present = os.getxattr(opened.descriptor, acl.ATTRIBUTE).hex()
        except OSError:
            present = ""
        wanted = acl.wanted(mode, acl.parse(present))
        os.setxattr(opened.descriptor, acl.ATTRIBUTE, acl.packed(wanted))


def _numbers(owner: str, group: str) -> tuple[int, int]:
    """Return the numbers of an owner and a group, each a name, or a number in digits."""
    try:
        uid = int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise LookupError(f"no user {owner} or no group {group} on this host") from None
    return uid, gid
