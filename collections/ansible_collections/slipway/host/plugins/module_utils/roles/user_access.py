# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role user_access, from the people that the inventory names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.docker import rootless as docker_rootless
from ansible_collections.slipway.host.plugins.module_utils.gpu import host
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit as _toolkit,
)

Entry: TypeAlias = Mapping[str, Any]

# What useradd accepts everywhere: its NAME_REGEX default, and the kernel's utmp field of 32.
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
DOCKER_GROUP = "docker"
ROOTLESS = "rootless"

# Where a shared folder is if nobody says: the one that ml_aliases mounts.
SHARED = "/srv/shared"
LIMITS = "/etc/security/limits.d/slipway.conf"
# fs.nr_open of the kernel. Where a higher limit cannot be set, nobody can log in any more.
MOST_FILES = 1048576
UNLIMITED = "unlimited"

# Nothing in these folders is a team's, and these themselves are not.
SYSTEMS_OWN = (
    *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys"),
    "usr",
)
SYSTEMS = ("home", "opt", "srv", "tmp", "var")
# One less than what the kernel takes for nobody.
HIGHEST_ID = 2**32 - 2
# Options may come before the type; what comes after it is read by sshd alone.
KEY = re.compile(r"(^|\s)(ssh-|ecdsa-|sk-ssh-|sk-ecdsa-)\S+\s+AAAA[A-Za-z0-9+/]*={0,3}(\s|$)")

# Devices that some drivers' settings open to a group alone, and that group.
DEVICES = {"render": ["/dev/dri/renderD"], "video": ["/dev/nvidia"]}


class UserAccessError(ValueError):
    """The inventory names people in a way that cannot be carried out."""


def _check_names(what: str, entries: Sequence[Entry]) -> None:
    names = [entry["name"] for entry in entries]
    for name in names:
        if not NAME.match(name):
            raise UserAccessError(
                f"'{name}' cannot be a {what} name: at most 32 lower-case letters, digits, "
                "'_' and '-', not beginning with a digit or '-'"
            )
        if names.count(name) > 1:
            raise UserAccessError(f"the {what} {name} is declared {names.count(name)} times")


def _check_user(user: Entry) -> None:
    if DOCKER_GROUP in (user.get("groups") or ()):
        raise UserAccessError(
            f"user {user['name']}: membership in '{DOCKER_GROUP}' is as good as root, so it is "
            "asked for by name: write 'docker: true' instead of listing it in groups"
        )
    if user["name"] == "root" and user.get("state") == "absent":
        raise UserAccessError("root cannot be removed")
    if user["name"] == "root" and user.get("docker") == ROOTLESS:
        raise UserAccessError("root cannot have an engine without root")
    # Numbers may be spelled as text in an inventory.
    uid = None if user.get("uid") is None else int(user["uid"])
    if uid is not None and user["name"] != "root" and not 0 < uid <= HIGHEST_ID:
        raise UserAccessError(
            f"user {user['name']}: uid is {uid}, must be a number from 1 to {HIGHEST_ID}"
        )
    for key in ("home", "shell"):
        if user.get(key) and not user[key].startswith("/"):
            raise UserAccessError(
                f"user {user['name']}: {key} is '{user[key]}', must be an absolute path"
            )
    if re.search(r"[:\n]", str(user.get("comment") or "")):
        raise UserAccessError(f"user {user['name']}: a comment is one line without ':'")
    for number, key in enumerate(user.get("keys") or ()):
        if not all(KEY.search(line) for line in _key_lines(key)):
            raise UserAccessError(
                f"user {user['name']}: keys[{number}] is no SSH public key, such as the line of "
                "~/.ssh/id_ed25519.pub"
            )


def _key_lines(key: str) -> list[str]:
    """Return the keys in what may be a whole file, with comments and more than one."""
    lines = (line.strip() for line in key.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _check_shared(shared: Sequence[Entry], groups: Sequence[Entry]) -> None:
    paths = [entry.get("path") or SHARED for entry in shared]
    for entry in shared:
        path = entry.get("path") or SHARED
        if not path.startswith("/"):
            raise UserAccessError(f"the shared folder {path} has to be an absolute path")
        if _is_systems(path):
            raise UserAccessError(
                f"the shared folder {path} is the system's; its owner and mode are not for a team. "
                "Name one that is the team's alone, such as /srv/shared"
            )
        if paths.count(path) > 1:
            raise UserAccessError(f"the shared folder {path} is declared {paths.count(path)} times")
        if entry["group"] not in [group["name"] for group in groups]:
            raise UserAccessError(
                f"the shared folder {path} is of the group {entry['group']}, which has to be in "
                "user_access_groups"
            )


def _is_systems(path: str) -> bool:
    clean = re.sub(r"/(\./)*/*", "/", path + "/").rstrip("/")
    top, *below = clean.split("/")[1:] or [""]
    return ".." in below or not top or top in SYSTEMS_OWN or (top in SYSTEMS and not below)


def _check_limit(limit: Entry) -> None:
    who = limit["applies_to"]
    if who != "*" and not NAME.match(who.removeprefix("@")):
        raise UserAccessError(
            f"the limits of '{who}' are of nobody: name a user, a group as '@lab', or everybody "
            "but root as '*'"
        )
    memlock, nofile = limit.get("memlock"), limit.get("nofile")
    if memlock is not None and memlock != UNLIMITED and not _is_count(memlock):
        raise UserAccessError(f"memlock of {who} is {memlock}; it is KiB, or '{UNLIMITED}'")
    if nofile is not None and not (_is_count(nofile) and 1024 <= nofile <= MOST_FILES):
        raise UserAccessError(
            f"nofile of {who} is {nofile}; it is a number from 1024 to {MOST_FILES}, since nobody "
            "can log in where the kernel refuses it"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _given(entry: Entry, *keys: str) -> dict[str, Any]:
    """Return what an entry says of KEYS; numbers may be spelled as text in an inventory."""
    found = {key: entry[key] for key in keys if entry.get(key) is not None}
    return {key: int(value) if key in ("uid", "gid") else value for key, value in found.items()}


def _members(
    users: Sequence[Entry], groups: Sequence[Entry], docker_exclusive: bool, facts: Entry
) -> Iterator[dict[str, Any]]:
    members: dict[str, list[str]] = {group["name"]: [] for group in groups}
    for user in users:
        for group in user.get("groups") or ():
            members.setdefault(group, []).append(user["name"])
    # Who gets an account gets a group of the same name with it.
    made = {entry["name"] for entry in (*groups, *users)}
    for group, names in members.items():
        if names:
            foreign = {} if group in made else {"foreign": True}
            yield {"group": group, "users": names, **foreign}
    docker_users = [user["name"] for user in users if user.get("docker") is True]
    yield {"group": DOCKER_GROUP, "users": docker_users, "exclusive": docker_exclusive}
    # Whoever may use Docker may use the devices anyway.
    names = [u["name"] for u in users if u.get("gpu", u.get("docker") is True)]
    if names and facts and host.has_gpu(facts):
        for group, devices in DEVICES.items():
            yield {"group": group, "users": names, "devices": devices}


def _keys(user: Entry) -> Iterator[dict[str, Any]]:
    """Yield which lines of authorized_keys are a user's, if any."""
    lines = [line for key in user.get("keys") or () for line in _key_lines(key)]
    usual = "/root" if user["name"] == "root" else f"/home/{user['name']}"
    home = user.get("home") or usual
    if lines:
        found = {"user": user["name"], "path": f"{home}/.ssh/authorized_keys", "lines": lines}
        yield found if user.get("home") else {**found, "home": home}


def _shared_folder(entry: Entry) -> dict[str, Any]:
    others = 5 if entry.get("readable") else 0
    folder = {
        "path": entry.get("path") or SHARED,
        "state": "directory",
        "group": entry["group"],
        # With setgid, what is made there is the group's and not its maker's.
        "mode": f"277{others}",
    }
    return folder if entry.get("acl") is False else {**folder, "default_acl": f"077{others}"}


def _limits_file(limits: Sequence[Entry]) -> dict[str, Any]:
    set_limits = [
        (limit["applies_to"], what, limit[what])
        for limit in limits
        for what in ("memlock", "nofile")
        if limit.get(what) is not None
    ]
    if not set_limits:
        return {"path": LIMITS, "state": "absent"}
    lines = "".join(f"{who} - {what} {value}\n" for who, what, value in set_limits)
    highest: dict[str, float] = {}
    for _who, what, value in set_limits:
        highest[what] = max(highest.get(what, 0), _for_prlimit(what, value))
    options = [f"--{what}={most}:{most}" for what, most in sorted(highest.items())]
    return {
        "path": LIMITS,
        "content": f"# Written by Slipway's role user_access.\n{lines}",
        # A limit that cannot be set locks everybody out whom it is for.
        "validate": ["prlimit", *(o.replace("inf", UNLIMITED) for o in options), "true"],
    }


def _for_prlimit(what: str, value: Any) -> float:
    """Return a limit as prlimit counts: in bytes, where limits.conf counts memory in KiB."""
    if value == UNLIMITED:
        return float("inf")
    return int(value) * 1024 if what == "memlock" else int(value)


def _engine_files(names: Sequence[str], settings: Entry, facts: Entry) -> list[dict[str, Any]]:
    if not names:
        return [{"path": path, "state": "absent"} for path in docker_rootless.FILES]
    for_rootful = _toolkit.engine_settings(facts) if facts else {}
    config = json.dumps(
        docker_rootless.engine_settings(for_rootful, settings), indent=4, sort_keys=True
    )
    return [
        *({"path": path, **file} for path, file in docker_rootless.FILES.items()),
        *({"path": path, "state": "directory"} for path in docker_rootless.CDI_FOLDERS),
        *({"path": docker_rootless.config_file(name), "content": f"{config}\n"} for name in names),
    ]


def plan(facts: Entry | None, options: Entry) -> dict[str, Any]:
    """Return the ``owned`` state of the role.

    FACTS is ``ansible_facts['slipway']``; without facts, no GPU and no engine is assumed. OPTIONS
    are the role's options. Raise UserAccessError for a declaration that cannot be applied.
    """
    users, groups = options["user_access_users"], options["user_access_groups"]
    shared, limits = options["user_access_shared_folders"], options["user_access_limits"]
    _check_names("user", users)
    _check_names("group", groups)
    for user in users:
        _check_user(user)
    _check_shared(shared, groups)
    for limit in limits:
        _check_limit(limit)
    known = facts or {}
    docker_exclusive = options["user_access_docker_exclusive"]
    rootless_settings = options["user_access_rootless_settings"]
    present = [user for user in users if user.get("state", "present") == "present"]
    rootless = [user["name"] for user in present if user.get("docker") == ROOTLESS]
    packages = docker_rootless.packages(known.get("docker_package", "")) if rootless else []
    owned = {
        "obstacles": [dict(obstacle) for obstacle in docker_rootless.OBSTACLES] if rootless else [],
        "groups": [_given(group, "name", "gid") for group in groups],
        "users": [
            _given(user, "name", "uid", "comment", "home", "shell", "state") for user in users
        ],
        "members": list(_members(present, groups, docker_exclusive, known)),
        "lines": [lines for user in present for lines in _keys(user)],
        "files": [
            *map(_shared_folder, shared),
            _limits_file(limits),
            *_engine_files(rootless, rootless_settings or {}, known),
        ],
        "folders": [
            {"path": docker_rootless.FOLDER, "entries": [f"{name}.json" for name in rootless]}
        ],
        "left_by_root": [{"user": user["name"]} for user in present],
        "packages": [{"name": name} for name in packages],
        "rootless": [
            {
                "user": name,
                "since": [
                    docker_rootless.UNIT,
                    docker_rootless.DOCKERD,
                    docker_rootless.config_file(name),
                ],
            }
            for name in rootless
        ],
    }
    return {"owned": owned}
