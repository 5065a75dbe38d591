#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.authorized_keys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: authorized_keys
short_description: Add SSH keys of users, with no more rights than the users have
description:
  - Adds missing lines to the C(authorized_keys) of each user and keeps all other lines.
  - The work in a home is done with the rights of its user, and no link there is followed. So a user
    cannot lead root to a file of somebody else, and homes on a network file system with
    C(root_squash) work.
  - A missing folder C(.ssh) is created with mode 0700, a missing file with mode 0600. Write
    permission of others is removed from both, and from the home.
  - Refuses a link, a file with several names (hard links), another type, and files or folders of
    another user. The keys of all other users are added, then the module fails.
options:
  keys:
    description: The users and their keys, as the C(lines) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      user:
        description: Name of the user.
        type: str
        required: true
      path:
        description: Path of the user's C(authorized_keys).
        type: path
        required: true
      lines:
        description: Lines that the file must contain.
        type: list
        elements: str
        required: true
      home:
        description: Home folder that I(path) was derived from; the user must not have another one.
        type: path
attributes:
  check_mode:
    description: Reports which files would change, also for users and homes that do not exist yet.
    support: full
  diff_mode:
    description: Shows each file before and after.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Add SSH keys
  slipway.host.authorized_keys:
    keys:
      - user: alice
        path: /home/alice/.ssh/authorized_keys
        lines: ["ssh-ed25519 AAAA... alice@desk"]
"""

RETURN = r"""
users:
  description: Users whose keys were changed.
  returned: always
  type: list
  elements: str
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: always
  type: list
  elements: dict
"""

import os
import pwd
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    lines,
    model,
    paths,
    user_rights,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "keys": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "no_log": False,
        "options": {
            "user": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "lines": {"type": "list", "elements": "str", "required": True},
            "home": {"type": "path"},
        },
    },
}
FOLDER_MODE = 0o700
FILE_MODE = 0o600
WRITABLE_BY_OTHERS = 0o022
# More than all keys of a person; sshd itself reads line by line, without a limit.
MAX_BYTES = 1 << 20
# A home may be writable by a group, which often has one member.
OPEN_TO_OTHERS = 0o002


class KeysError(Exception):
    """The keys of one user cannot be changed; the text says why and what to do."""


class KeyFile:
    """The ``authorized_keys`` of one user."""

    def __init__(self, entry: Mapping[str, Any], account: pwd.struct_passwd) -> None:
        self.path: str = entry["path"]
        self.folder = self.path.rpartition("/")[0]
        self.lines: list[str] = entry["lines"]
        self.user, self.uid, self.gid = account.pw_name, account.pw_uid, account.pw_gid
        self.owners = sorted({0, self.uid})
        self.before = ""
        self.mode: int | None = None
        self.repairs = False

    def differs(self) -> bool:
        """Read the file with the user's rights and return whether something must change."""
        with paths.opened_parent(self.folder, self.owners) as (home, name):
            info = home.lstat(name)
            if info is None:
                return True
            repairs = self._needs_repair(info, 0o100)
            if repairs and not info.st_mode & 0o100:
                return True  # The file cannot be reached before the folder is repaired.
            repairs = repairs or self._is_open_home(home.info())
        self._read()
        return repairs or self._needs_write()

    def _is_open_home(self, info: os.stat_result) -> bool:
        """Return whether others can write the user's home; sshd then ignores the keys."""
        return info.st_uid == self.uid and bool(info.st_mode & OPEN_TO_OTHERS)

    def make_folder_as_root(self) -> None:
        """Create the folder where the home is root's, so that the user cannot create it."""
        with (
            suppress(OSError, paths.UnsafePathError),
            paths.opened_parent(self.folder, self.owners) as (home, name),
        ):
            if home.trusted and home.lstat(name) is None:
                home.make_folder(name, FOLDER_MODE, self.uid, self.gid)

    def write(self) -> None:
        """Create or repair folder and file with the user's rights, and add missing lines."""
        with paths.opened_parent(self.folder, self.owners) as (home, name):
            if self._is_open_home(home.info()):
                home.set_mode(home.info().st_mode & 0o7777 & ~OPEN_TO_OTHERS)
            info = home.lstat(name)
            if info is None or self._needs_repair(info, FOLDER_MODE):
                home.make_folder(name, FOLDER_MODE, self.uid, self.gid)
        self._read()
        if not self._needs_write():
            return
        with paths.opened_parent(self.path, self.owners) as (folder, name):
            info = folder.info()
            if info.st_uid != self.uid:
                expected = f"a folder owned by {self.user}"
                raise paths.UnsafePathError(folder.path, paths.describe(info), expected)
            mode = FILE_MODE if self.mode is None else self.mode & ~WRITABLE_BY_OTHERS | FILE_MODE
            content = self.after().encode("utf-8", "surrogateescape")
            folder.replace(name, content, mode, self.uid, self.gid)

    def after(self) -> str:
        """Return the content with the missing lines."""
        missing = self._missing()
        newline = "\n" if missing and self.before and not self.before.endswith("\n") else ""
        return self.before + newline + "".join(f"{line}\n" for line in missing)

    def _read(self) -> None:
        with paths.opened_parent(self.path, self.owners) as (folder, name):
            info = folder.lstat(name)
            if info is None:
                return
            expected = f"a file that {self.user} owns and can read"
            if info.st_uid not in self.owners:
                raise folder.refuse(name, info, expected)
            try:
                content = folder.read(name, MAX_BYTES + 1) or b""
            except PermissionError:
                raise folder.refuse(name, info, expected) from None
        if len(content) > MAX_BYTES:
            found = f"a file of {info.st_size} bytes, owned by {paths.owner_name(info)}"
            raise paths.UnsafePathError(self.path, found, f"at most {MAX_BYTES} bytes of keys")
        self.before = content.decode("utf-8", "surrogateescape")
        self.mode = info.st_mode & 0o7777
        self.repairs = self._needs_repair(info, 0o400)

    def _needs_write(self) -> bool:
        return self.mode is None or self.repairs or bool(self._missing())

    def _missing(self) -> list[str]:
        present = set(self.before.splitlines())
        return [line for line in dict.fromkeys(self.lines) if line not in present]

    def _needs_repair(self, info: os.stat_result, least: int) -> bool:
        """Return whether the mode of the user's own file or folder must be repaired."""
        own = info.st_uid == self.uid and paths.type_of(info) != paths.LINK
        return own and (bool(info.st_mode & WRITABLE_BY_OTHERS) or info.st_mode & least != least)


def set_keys(entry: Mapping[str, Any], check: bool) -> dict[str, str] | None:
    """Add the missing keys of one user; return the diff, None if nothing differs.

    Raise KeysError if the keys cannot be changed.
    """
    user, path = entry["user"], entry["path"]
    headers = {"before_header": path, "after_header": path, "before": ""}
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        if check:
            return {**headers, "after": "".join(f"{line}\n" for line in entry["lines"])}
        raise KeysError(
            f"keys of {user}: found no user {user}; expected an account. Declare the user in "
            "user_access_users."
        ) from None
    if entry.get("home") not in (None, account.pw_dir):
        raise KeysError(f"{lines.home_conflict(entry, account.pw_dir)}.")
    keys = KeyFile(entry, account)
    result = _with_rights_of(user, keys, keys.differs, check)
    if result["differs"] and not check:
        keys.make_folder_as_root()
        result = _with_rights_of(user, keys, keys.write, check)
        result["differs"] = True
    return {**headers, **result["diff"]} if result["differs"] else None


def _with_rights_of(
    user: str, keys: KeyFile, work: Callable[[], bool | None], check: bool
) -> dict[str, Any]:
    """Call WORK with the rights of a user; return the diff, and whether anything differs."""
    try:
        result = user_rights.as_user(user, lambda: _call_work(keys, work, check))
    except OSError as error:
        result = {"refused": _describe_refusal(keys, error)}
    if "refused" in result:
        raise KeysError(f"keys of {user}: {result['refused']}")
    return dict(result)


def _call_work(keys: KeyFile, work: Callable[[], bool | None], check: bool) -> dict[str, Any]:
    try:
        differs = bool(work())
    except paths.UnsafePathError as error:
        return {"refused": str(error)}
    except FileNotFoundError:
        if not check:
            return {
                "refused": f"{keys.path}: found no home folder; expected a folder owned by "
                f"{keys.user}. Create the home folder, then run again."
            }
        differs = True
    except OSError as error:
        return {"refused": _describe_refusal(keys, error)}
    return {"differs": differs, "diff": {"before": keys.before, "after": keys.after()}}


def _describe_refusal(keys: KeyFile, error: OSError) -> str:
    return (
        f"{keys.path}: {error.strerror}; expected a folder and a file that {keys.user} can write. "
        "Correct their owner and mode, then run again."
    )


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    users: list[str] = []
    conflicts: list[model.Conflict] = []
    diff: list[dict[str, str]] = []
    for entry in module.params["keys"]:
        try:
            changes = set_keys(entry, module.check_mode)
        except KeysError as error:
            conflicts.append(model.Conflict("lines", entry["path"], str(error)))
            continue
        if changes is not None:
            users.append(entry["user"])
            diff.append(changes)
    module.finish(conflicts, changed=bool(users), users=users, diff=diff)


if __name__ == "__main__":
    main()
