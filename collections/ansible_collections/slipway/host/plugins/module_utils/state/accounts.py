# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users, groups and the members of groups.

Keys of an entry (``?``: optional):

groups: name, gid?.

users: name, uid?, comment?, shell?, home?, state?.

members: group, users, exclusive? (nobody else may be a member), foreign? (the group must exist
already), devices?: beginnings of paths; the users are members only where such a device belongs to
the group and is not open to everybody.

Accounts and groups of a directory service are those that NSS knows and that are not in /etc/passwd
and /etc/group. Slipway adds such accounts to groups, and does not change the accounts themselves.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]


def ask_users(names: list[str], file: str = "/etc/passwd") -> Json:
    """Return ``[uid, gid, home, shell, comment]`` of each user.

    For an account of a directory service, its own name follows: the service may know the account by
    several names.
    """
    import pwd

    found: Json = dict.fromkeys(names)
    local = _names_in(file) if names else set()
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        found[name] = [entry.pw_uid, entry.pw_gid, entry.pw_dir, entry.pw_shell, entry.pw_gecos]
        if entry.pw_name not in local:
            found[name].append(entry.pw_name)
    return found


def _names_in(file: str) -> set[str]:
    """Return the names in a FILE like /etc/passwd."""
    text = (reading.read_file(file) or b"").decode("utf-8", "surrogateescape")
    return {line.partition(":")[0] for line in text.splitlines()}


def ask_groups(names: list[str], file: str = "/etc/group") -> Json:
    """Return ``[gid, [members]]`` of each group, and ``True`` for one of a directory service."""
    import grp

    found: Json = dict.fromkeys(names)
    local = _names_in(file) if names else set()
    for name in names:
        try:
            entry = grp.getgrnam(name)
        except KeyError:
            continue
        found[name] = [entry.gr_gid, sorted(entry.gr_mem)]
        if entry.gr_name not in local:
            found[name].append(True)
    return found


def ask_devices(beginning: str) -> Json:
    """Return the groups that may open devices which not everybody may, each with one such path."""
    import grp
    import stat

    folder, _separator, start = beginning.rpartition("/")
    found: Json = {}
    for name in reading.list_names(folder) or []:
        if not name.startswith(start):
            continue
        try:
            info = os.lstat(f"{folder}/{name}")
            if stat.S_ISCHR(info.st_mode) and info.st_mode & 0o066 == 0o060:
                found.setdefault(grp.getgrgid(info.st_gid).gr_name, f"{folder}/{name}")
        except (OSError, KeyError):
            continue
    return found


def ask_uid(uid: str) -> str | None:
    """Return the user with a number, null without one."""
    import pwd

    try:
        return pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return None


def ask_gid(gid: str) -> str | None:
    """Return the group with a number, null without one."""
    import grp

    try:
        return grp.getgrgid(int(gid)).gr_name
    except KeyError:
        return None


def ask_home(path: str) -> str | None:
    """Return why root must not create or move a home folder at a path, null if it may.

    useradd and usermod work as root and follow links.
    """
    paths = reading.safe_paths()
    while path:
        try:
            _check_home(path)
        except FileNotFoundError:
            path = path.rstrip("/").rpartition("/")[0]
            continue
        except (paths.UnsafePathError, OSError) as error:
            return str(error)
        break
    return None


def _check_home(path: str) -> None:
    """Raise UnsafePathError for a link, and for a folder of others on the way to a home."""
    paths = reading.safe_paths()
    with paths.opened_parent(path) as (folder, name):
        if not folder.trusted:
            raise paths.UnsafePathError(
                path,
                f"a parent folder that others can write ({folder.path}, owned by "
                f"{paths.owner_name(folder.info())})",
                "parent folders that only root can write",
            )
        info = folder.lstat(name)
        if info is not None and paths.type_of(info) != paths.FOLDER:
            raise folder.refuse(name, info, "a folder or nothing")


ASKS = {
    "uids": reading.each(ask_uid),
    "gids": reading.each(ask_gid),
    "homes": reading.each(ask_home),
    "users": lambda names, _reply: ask_users(names),
    "groups": lambda names, _reply: ask_groups(names),
    "devices": reading.each(ask_devices),
}


# --- Nothing below is sent to hosts with the survey. ---
import re

from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)

# Names that every useradd and groupadd accepts: the default of NAME_REGEX, at most the 32 bytes of
# utmp. Only such accounts and groups are created.
LOCAL_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")


def directory_name(user: Any) -> str | None:
    """Return the own name of an account of a directory service, None for a local account.

    USER is an answer of :func:`ask_users`.
    """
    return str(user[5]) if user and len(user) > 5 else None


def own_name(name: str, user: Any) -> str:
    """Return the name by which groups list an account that is declared as NAME."""
    return directory_name(user) or name


def is_directory_group(group: Any) -> bool:
    """Return whether a group is of a directory service; GROUP is an answer of `ask_groups`."""
    return bool(group) and len(group) > 2


def compare_groups(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a group; raise ConflictError for a number of another group."""
    name, gid = entry["name"], entry.get("gid")
    found = answer["groups"][name]
    owner = None if gid is None else answer["gids"][str(gid)]
    if owner not in (None, name) and (found is None or found[0] != gid):
        raise ConflictError(
            f"group {name}: found gid {gid} of group {owner}; expected a gid that no group has. "
            "Change gid in user_access_groups"
        )
    if found is None:
        if not LOCAL_NAME.match(entry["name"]):
            raise ConflictError(_missing_name("group", entry["name"]))
        yield MISSING, "a group"
    elif gid is not None and found[0] != gid and is_directory_group(found):
        raise ConflictError(
            f"group {name} is of a directory service: found gid {found[0]}; expected {gid}. "
            "Remove gid from user_access_groups, or change it in the service"
        )
    elif gid is not None and found[0] != gid:
        yield f"gid {found[0]}", str(gid)


def _gid_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("gid") is not None:
        yield "gids", [str(entry["gid"])]


def compare_users(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a user."""
    found = answer["users"][entry["name"]]
    is_directory = directory_name(found) is not None
    if entry.get("state", "present") == "absent":
        if is_directory:
            raise ConflictError(
                f"user {entry['name']} is of a directory service; expected an account of this host "
                "to remove. Remove the entry from user_access_users, or the account from the "
                "service"
            )
        if found is not None:
            yield "present", "absent"
        return
    if found is None and not LOCAL_NAME.match(entry["name"]):
        raise ConflictError(_missing_name("user", entry["name"]))
    if not is_directory:
        _check_conflicts(entry, found, answer)
    if found is None:
        yield MISSING, "a user"
        return
    changes = [
        (f"{what} {was}", str(entry[what]))
        for what, was in zip(("uid", "comment", "home", "shell"), (found[i] for i in (0, 4, 2, 3)))
        if entry.get(what) is not None and entry[what] != was
    ]
    if changes and is_directory:
        raise ConflictError(
            f"user {entry['name']} is of a directory service: found {changes[0][0]}; expected "
            f"{changes[0][1]}. Change user_access_users, or change the account in the service"
        )
    yield from changes


def _missing_name(kind: str, name: str) -> str:
    """Return the conflict of a user or group that is neither there nor can be created."""
    return (
        f"{kind} {name}: found no such {kind}; expected one that exists, for example of a "
        f"directory service. Slipway creates a {kind} only if its name has at most 32 lower-case "
        "letters, digits, '_' and '-', with a letter or '_' first. Check the name: getent "
        f"{'passwd' if kind == 'user' else 'group'} '{name}'"
    )


def _check_conflicts(entry: Entry, found: Any, answer: Answer) -> None:
    """Raise ConflictError for a number of somebody else, and for a home that is not safe."""
    name, uid, home = entry["name"], entry.get("uid"), entry.get("home")
    owner = None if uid is None else answer["uids"][str(uid)]
    if owner not in (None, name) and (found is None or found[0] != uid):
        raise ConflictError(
            f"user {name}: found uid {uid} of user {owner}; expected a uid that nobody has. Change "
            "uid in user_access_users"
        )
    if home and answer["homes"][home]:
        raise ConflictError(f"home folder of {name}: {answer['homes'][home]}")


def _numbers_and_homes_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("state", "present") == "present":
        yield "uids", [str(entry["uid"])] if entry.get("uid") is not None else []
        yield "homes", [entry["home"]] if entry.get("home") else []


def compare_members(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the missing and undeclared members of a group."""
    found = answer["groups"][entry["group"]]
    if found is None and entry.get("foreign", False):
        raise ConflictError(missing_group(entry["group"], entry["users"]))
    members = set(found[1]) if found else set()
    if "devices" in entry and not any(
        entry["group"] in answer["devices"][beginning] for beginning in entry["devices"]
    ):
        return
    users = {user: answer["users"][user] for user in entry["users"]}
    wanted = {own_name(user, found): found for user, found in users.items()}
    # A missing user is a difference of its own.
    missing = sorted(name for name in set(wanted) - members if wanted[name] is not None)
    surplus = sorted(members - set(wanted)) if entry.get("exclusive", False) else []
    if is_directory_group(found) and (missing or surplus):
        raise ConflictError(directory_group(entry["group"], missing, surplus))
    for user in missing:
        yield f"{user} is not a member", "a member"
    for user in surplus:
        yield f"{user} is a member", "no member, because nobody listed it"


def directory_group(group: str, missing: Iterable[str], surplus: Iterable[str]) -> str:
    """Return the conflict of a GROUP of a directory service with other members than declared."""
    found = [f"{user} is not a member" for user in missing]
    found += [f"{user} is a member" for user in surplus]
    return (
        f"group {group} is of a directory service: found {', '.join(found)}; expected the declared "
        "members. Change the members in the service, or create a local group of another name"
    )


def missing_group(group: str, users: Iterable[str]) -> str:
    """Return the conflict of a group that is not there to add USERS to."""
    return (
        f"group {group}: found no such group for {', '.join(users)}; expected an existing group. "
        "Declare it in user_access_groups, or remove it from the groups of these users"
    )


def _devices_and_users_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "devices", entry.get("devices", ())
    yield "users", entry["users"]


def group_of(entry: Entry, _answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield the group that an entry with members needs."""
    yield "groups", str(entry["group"])


def owner_and_group(entry: Entry, _answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield the user and the group that an entry with an owner needs."""
    yield "users", str(entry.get("owner"))
    yield "groups", str(entry.get("group"))


def account_of(entry: Entry, _answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield the user that an entry of a user needs."""
    yield "users", str(entry.get("user"))


KINDS = (
    Kind("groups", "name", "groups", compare_groups, _gid_of),
    Kind("users", "name", "users", compare_users, _numbers_and_homes_of),
    Kind("members", "group", "groups", compare_members, _devices_and_users_of, needs=group_of),
)
