# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to the engine beside the declared members of the docker group.

Keys of an entry:

engine_access: socket, users: the declared users of the engine.

All findings are information: an administrator may have set up each way on purpose. The acceptance
checks test as each user whether the engine answers.
"""

from __future__ import annotations

import json
import os
import re

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

GROUP = "docker"
DAEMON_JSON = "/etc/docker/daemon.json"
PID_FILE = "/run/docker.pid"
SUDOERS = "/etc/sudoers"
# Tags of an entry of a POSIX ACL with a name, see acl(5).
_ACL_USER, _ACL_GROUP = 2, 8


def ask_access(socket: str) -> Json | None:
    """Return what decides about access to the engine's SOCKET, None without a socket.

    ``socket`` is ``[mode, uid, gid, ACL in hexadecimal]``; ``groups`` maps each group that opens it
    to ``[gid, members, administrators, has a password]``; ``primary`` maps the same names to the
    users with that primary group; ``hosts`` are the engine's addresses; ``sudoers`` maps each file
    to its rules; ``sudo_groups`` maps each group in a rule to its members; ``root`` are the names
    of user ID 0.
    """
    import grp
    import pwd

    try:
        info = os.stat(socket)
        acl = os.getxattr(socket, "system.posix_acl_access").hex()
    except FileNotFoundError:
        return None
    except OSError:
        acl = ""
    rules = _read_sudoers()
    named = set(re.findall(r"%([^\s,:%#=()]+)", "\n".join(rules.values())))
    shadow = _read_gshadow()
    found: Json = {
        "socket": [f"{info.st_mode & 0o7777:04o}", info.st_uid, info.st_gid, acl],
        "groups": {},
        "primary": {},
        "sudo_groups": {},
        "root": [],
        "hosts": _engine_hosts(),
        "sudoers": rules,
    }
    by_gid: Any = {}
    for group in grp.getgrall():
        if group.gr_gid == info.st_gid or group.gr_name == GROUP:
            more = shadow.get(group.gr_name, [[], False])
            found["groups"][group.gr_name] = [group.gr_gid, sorted(group.gr_mem), *more]
            found["primary"][group.gr_name] = []
            by_gid.setdefault(group.gr_gid, []).append(group.gr_name)
        if group.gr_name in named:
            found["sudo_groups"][group.gr_name] = [group.gr_gid, sorted(group.gr_mem)]
    sudo_gids = dict(found["sudo_groups"].values())
    for user in pwd.getpwall():
        for name in by_gid.get(user.pw_gid, ())[:1]:
            found["primary"][name].append(user.pw_name)
        if user.pw_gid in sudo_gids:
            sudo_gids[user.pw_gid].append(user.pw_name)
        if user.pw_uid == 0:
            found["root"].append(user.pw_name)
    return found


def _read_gshadow() -> Json:
    """Return ``[administrators, has a password]`` of each group."""
    found: Json = {}
    for line in reading.read_word("/etc/gshadow").splitlines():
        fields = line.split(":")
        if len(fields) == 4:
            admins = sorted(filter(None, fields[2].split(",")))
            found[fields[0]] = [admins, fields[1][:1] not in ("", "!", "*", "x")]
    return found


def _engine_hosts() -> list[str]:
    """Return the addresses that the running engine was started with, and those in daemon.json."""
    pid = reading.read_word(PID_FILE)
    words = reading.read_word(f"/proc/{pid}/cmdline").split("\0") if pid.isdigit() else []
    found = []
    for word, following in zip(words, [*words[1:], ""]):
        if word in ("-H", "--host"):
            found.append(following)
        elif word.startswith(("-H", "--host=")):
            found.append(word.removeprefix("--host=").removeprefix("-H").lstrip("="))
    try:
        settings = json.loads(reading.read_file(DAEMON_JSON) or b"{}")
        hosts = settings.get("hosts", ())
        return [*found, *(host for host in hosts if isinstance(host, str))]
    except (ValueError, AttributeError, TypeError):
        return found


def _read_sudoers() -> Json:
    """Return the rules in each file of sudo, without comments and settings."""
    folder = f"{SUDOERS}.d"
    names = [name for name in reading.list_names(folder) or () if "." not in name]
    found: Json = {}
    for path in (SUDOERS, *(f"{folder}/{name}" for name in names if not name.endswith("~"))):
        text = reading.read_word(path).replace("\\\n", " ")
        lines = (line.strip() for line in text.splitlines())
        rules = [line for line in lines if line and not line.startswith(("#", "@", "Defaults"))]
        # "#1000" is a user ID.
        rules += [line for line in text.splitlines() if re.match(r"#\d+\s", line)]
        if rules:
            found[path] = "\n".join(rules)
    return found


ASKS = {"access": reading.each(ask_access)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state import accounts
from ansible_collections.slipway.host.plugins.module_utils.state.model import Kind

# Addresses that only the socket's own mode opens.
LOCAL_HOSTS = ("fd://", "unix:///var/run/docker.sock", "unix:///run/docker.sock")
ENGINE_COMMANDS = frozenset({"docker", "dockerd", "docker-compose", "ctr", "containerd", "nerdctl"})
_ALIAS = re.compile(r"(User|Runas|Host|Cmnd|Cmd)_Alias\s+(.*)")


def inform_access(entry: Entry, answer: Answer) -> Iterator[str]:
    """Yield a sentence for each way to the engine beside the declared users."""
    found = answer["access"][entry["socket"]]
    if found is None:
        return
    users = (accounts.own_name(name, answer["users"][name]) for name in entry["users"])
    listed = {*users, *found["root"], "root"}
    yield from _socket_ways(entry["socket"], found)
    for group, (_gid, members, admins, password) in sorted(found["groups"].items()):
        opens = "has the group ID of the engine's socket"
        for user in sorted({*members, *found["primary"][group]} - listed):
            how = "primary group" if user in found["primary"][group] else "member of"
            yield f"engine access: {user}, {how} {group}" + (
                "" if group == GROUP else f", which {opens}"
            )
        for user in sorted(set(admins) - listed):
            yield f"engine access: {user}, administrator of group {group} in /etc/gshadow"
        if password:
            yield f"engine access: everybody who knows the password of group {group}"
    for host in sorted(set(found["hosts"]) - set(LOCAL_HOSTS)):
        yield f"engine access: the engine listens on {host}"
    yield from _sudo_ways(found, listed)


def _socket_ways(path: str, found: Json) -> Iterator[str]:
    mode, uid, gid, acl = found["socket"]
    if int(mode, 8) & 0o002:
        yield f"engine access: everybody, by mode {mode} of {path}"
    if uid != 0:
        yield f"engine access: user ID {uid}, owner of {path}"
    if int(mode, 8) & 0o020 and gid != 0 and not found["groups"]:
        yield f"engine access: group ID {gid}, group of {path}"
    if GROUP in found["groups"] and gid not in (0, found["groups"][GROUP][0]):
        yield f"engine access: group ID {gid}, group of {path}, not group {GROUP}"
    for kind, number in named_acl_entries(acl):
        yield f"engine access: {kind} ID {number}, by an ACL of {path}"


def named_acl_entries(acl: str) -> Iterator[tuple[str, int]]:
    """Yield ``user`` or ``group`` and the ID of each named entry that may write, see acl(5)."""
    data = bytes.fromhex(acl)[4:]
    for start in range(0, len(data) - 7, 8):
        tag, permissions, number = (
            int.from_bytes(data[start + first : start + last], "little")
            for first, last in ((0, 2), (2, 4), (4, 8))
        )
        if tag in (_ACL_USER, _ACL_GROUP) and permissions & 2:
            yield "user" if tag == _ACL_USER else "group", number


def _sudo_ways(found: Json, listed: set[str]) -> Iterator[str]:
    aliases = _read_aliases("\n".join(found["sudoers"].values()).splitlines())
    for path, text in found["sudoers"].items():
        for line in text.splitlines():
            # Users, then hosts, then commands: "ada, %lab ALL = (root) ALL".
            subjects, _, commands = re.sub(r"\s*,\s*", ",", line).partition("=")
            names = subjects.split()[:1]
            allowed = "" if _ALIAS.match(line) else allowed_commands(commands, aliases)
            for name in dict.fromkeys(_expanded(",".join(names).split(","), aliases)):
                who = _unlisted(name, found["sudo_groups"], listed)
                if allowed and who:
                    yield f"engine access: {who} may run {allowed} as root by sudo, {path}"


def _unlisted(name: str, groups: Json, listed: set[str]) -> str:
    """Return the subject of a rule of sudo without LISTED users, empty if nobody is left."""
    if not name.startswith("%"):
        return "" if name in listed else name
    _gid, members = groups.get(name[1:], (0, ()))
    users = sorted(set(members) - listed)
    return f"{', '.join(users)} (group {name[1:]})" if users else ""


def _read_aliases(lines: Sequence[str]) -> dict[str, list[str]]:
    aliases = {}
    for line in lines:
        match = _ALIAS.match(line)
        for part in re.split(r"\s+:\s+", match[2]) if match else ():
            name, _, values = part.partition("=")
            aliases[name.strip()] = [value.strip() for value in values.split(",")]
    return aliases


def _expanded(names: Sequence[str], aliases: dict[str, list[str]], depth: int = 8) -> Iterator[str]:
    """Yield names with aliases replaced; an alias may name another one."""
    for name in names:
        if name in aliases and depth:
            yield from _expanded(aliases[name], aliases, depth - 1)
        else:
            yield name


def allowed_commands(text: str, aliases: dict[str, list[str]]) -> str:
    """Return ``everything`` or the command of the engine that a rule of sudo allows as root.

    TEXT is the part of the rule after the hosts. The result is empty for other commands, and where
    the rule allows only other users than root.
    """
    as_root = True
    found: list[str] = []
    for part in re.split(r",(?![^(]*\))", text):
        match = re.match(r"\s*\(([^)]*)\)\s*(.*)", part)
        if match:
            as_root = _is_root(match[1])
        command = re.sub(r"^(\s*[A-Z_]+:)+", "", match[2] if match else part).strip()
        for name in _expanded([command], aliases) if as_root else ():
            program = (name.split() or [""])[0]
            if program == "ALL":
                return "everything"
            if program.rpartition("/")[2] in ENGINE_COMMANDS:
                found.append(program)
    return ", ".join(dict.fromkeys(found))


def _is_root(run_as: str) -> bool:
    """Return whether a list of users and groups lets a command run as root or group docker."""
    users, _, groups = run_as.partition(":")
    user_names = {name.strip() for name in users.split(",")}
    group_names = {name.strip() for name in groups.split(",")}
    return bool(user_names & {"ALL", "root", "#0"} or group_names & {GROUP, "root", "ALL"})


def compare_access(_entry: Entry, _answer: Answer) -> Iterator[Change]:
    """Yield nothing: other ways to the engine are information."""
    return iter(())


def _users_of(entry: Entry) -> Iterator[tuple[str, Sequence[str]]]:
    yield "users", entry["users"]


KINDS = (
    Kind("engine_access", "socket", "access", compare_access, _users_of, inform=inform_access),
)
