# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role user_access: groups, users, their access and shared folders."""

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
from ansible_collections.slipway.host.plugins.module_utils.state import accounts

Entry: TypeAlias = Mapping[str, Any]

# What no name in /etc/passwd or /etc/group can have. Directory services allow everything else, such
# as LAB\anna, anna.muster@corp.example and "domain users".
_NO_NAME = re.compile(r"[-+~%#@\s]|.*[:,/\x00-\x1f\x7f]|.*\s\Z|.{257}|\Z", re.DOTALL)
DOCKER_GROUP = "docker"
ENGINE_SOCKET = "/run/docker.sock"
ROOTLESS = "rootless"

# The default shared folder; ml_aliases mounts it.
DEFAULT_SHARED_FOLDER = "/srv/shared"
LIMITS = "/etc/security/limits.d/slipway.conf"
# The default of the kernel's fs.nr_open. Nobody can log in with a limit that the kernel refuses.
MAX_OPEN_FILES = 1048576
UNLIMITED = "unlimited"

# System folders: no shared folder may be one of these or below one of these.
SYSTEM_TREES = (
    *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "root", "run", "sbin", "sys"),
    "usr",
)
# Shared folders may be below these folders, but not one of them.
SYSTEM_PARENTS = ("home", "opt", "srv", "tmp", "var")
# The kernel uses the next number for "no user".
MAX_ID = 2**32 - 2
# Options may precede the type of a key. sshd checks the rest of the line.
PUBLIC_KEY = re.compile(
    r"(^|\s)(ssh-|ecdsa-|sk-ssh-|sk-ecdsa-)\S+\s+AAAA[A-Za-z0-9+/]*={0,3}(\s|$)"
)

# What a removed role declares: accounts, groups, homes and shared folders are not touched.
NOTHING: Mapping[str, Any] = {
    f"user_access_{name}": [] for name in ("users", "groups", "shared_folders", "limits")
}

# By group, the GPU devices that some drivers make accessible only to this group.
DEVICES = {"render": ["/dev/dri/renderD"], "video": ["/dev/nvidia"]}


class UserAccessError(ValueError):
    """A declaration of groups, users, shared folders or limits cannot be applied."""


def _check_names(kind: str, entries: Sequence[Entry]) -> None:
    names = [entry["name"] for entry in entries]
    for name in names:
        _check_name(kind, name)
        if names.count(name) > 1:
            raise UserAccessError(
                f"{kind} {name} is declared {names.count(name)} times; expected one entry. "
                "Merge the entries"
            )


def _check_name(kind: str, name: str) -> None:
    if _NO_NAME.match(name):
        raise UserAccessError(
            f"invalid {kind} name '{name}'; expected the name of a {kind}, without ':', ',', '/' "
            f"and control characters. Correct the name of the {kind}"
        )


def _check_access(user: Entry) -> None:
    """Raise UserAccessError for groups or an engine that the user cannot have."""
    for group in user.get("groups") or ():
        try:
            _check_name("group", group)
        except UserAccessError as error:
            raise UserAccessError(f"user {user['name']}: {error}") from None
    if DOCKER_GROUP in (user.get("groups") or ()):
        raise UserAccessError(
            f"user {user['name']}: groups contains '{DOCKER_GROUP}', which gives access equivalent "
            "to root; expected the key docker. Set 'docker: true' and remove the group"
        )
    if user["name"] == "root" and user.get("docker") == ROOTLESS:
        raise UserAccessError(
            "user root: docker is rootless; expected another user. Root has no rootless engine"
        )
    if user.get("docker") == ROOTLESS and not accounts.LOCAL_NAME.match(user["name"]):
        raise UserAccessError(
            f"user {user['name']}: docker is rootless; expected a name of lower-case letters, "
            "digits, '_' and '-', because the engine's subordinate IDs and files have that name. "
            "Set docker to true or false"
        )


def _check_user(user: Entry) -> None:
    _check_access(user)
    if user["name"] == "root" and user.get("state") == "absent":
        raise UserAccessError(
            "user root: state is absent; expected present. Root cannot be removed"
        )
    # Templates return numbers as text.
    uid = None if user.get("uid") is None else int(user["uid"])
    if uid is not None and user["name"] != "root" and not 0 < uid <= MAX_ID:
        raise UserAccessError(
            f"user {user['name']}: uid is {uid}; expected a number from 1 to {MAX_ID}. Change uid"
        )
    for key in ("home", "shell"):
        if user.get(key) and not user[key].startswith("/"):
            raise UserAccessError(
                f"user {user['name']}: {key} is '{user[key]}'; expected an absolute path. "
                f"Change {key}"
            )
    if re.search(r"[:\n]", str(user.get("comment") or "")):
        raise UserAccessError(
            f"user {user['name']}: comment contains ':' or a line break; expected one line without "
            "':'. Change comment"
        )
    for number, key in enumerate(user.get("keys") or ()):
        if not all(PUBLIC_KEY.search(line) for line in _key_lines(key)):
            raise UserAccessError(
                f"user {user['name']}: keys[{number}] is not an SSH public key; expected a line "
                "such as that of ~/.ssh/id_ed25519.pub. Change the key"
            )


def _key_lines(key: str) -> list[str]:
    """Return the keys of a text, which may be a whole file with comments and several keys."""
    lines = (line.strip() for line in key.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _check_shared(shared: Sequence[Entry], groups: Sequence[Entry]) -> None:
    paths = [entry.get("path") or DEFAULT_SHARED_FOLDER for entry in shared]
    for entry in shared:
        path = entry.get("path") or DEFAULT_SHARED_FOLDER
        if not path.startswith("/"):
            raise UserAccessError(
                f"user_access_shared_folders: path is '{path}'; expected an absolute path. "
                "Change path"
            )
        if _is_system_folder(path):
            raise UserAccessError(
                f"user_access_shared_folders: {path} is a system folder; expected a folder that "
                "only the team uses, such as /srv/shared. Change path"
            )
        if paths.count(path) > 1:
            raise UserAccessError(
                f"user_access_shared_folders: {path} is declared {paths.count(path)} times; "
                "expected one entry. Merge the entries"
            )
        if entry["group"] not in [group["name"] for group in groups]:
            raise UserAccessError(
                f"user_access_shared_folders: group {entry['group']} of folder {path} is not in "
                "user_access_groups. Add the group there"
            )


def _is_system_folder(path: str) -> bool:
    clean = re.sub(r"/(\./)*/*", "/", path + "/").rstrip("/")
    top, *below = clean.split("/")[1:] or [""]
    return ".." in below or not top or top in SYSTEM_TREES or (top in SYSTEM_PARENTS and not below)


def _check_limit(limit: Entry) -> None:
    subject = limit["applies_to"]
    name = subject.removeprefix("@")
    # Fields of limits.conf have no quotes.
    if subject != "*" and (_NO_NAME.match(name) or re.search(r"[\s\"#]", name)):
        raise UserAccessError(
            f"user_access_limits: applies_to is '{subject}'; expected a user, '@group', or '*' for "
            "all users except root. Change applies_to"
        )
    memlock, nofile = limit.get("memlock"), limit.get("nofile")
    if memlock is not None and memlock != UNLIMITED and not _is_count(memlock):
        raise UserAccessError(
            f"user_access_limits: memlock of {subject} is {memlock}; expected a number of KiB or "
            f"'{UNLIMITED}'. Change memlock"
        )
    if nofile is not None and not (_is_count(nofile) and 1024 <= nofile <= MAX_OPEN_FILES):
        raise UserAccessError(
            f"user_access_limits: nofile of {subject} is {nofile}; expected a number from 1024 to "
            f"{MAX_OPEN_FILES}. Change nofile: a limit that the kernel refuses blocks logins"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _select_keys(entry: Entry, *keys: str) -> dict[str, Any]:
    """Return the KEYS that an entry sets; IDs as numbers, which templates return as text."""
    selected = {key: entry[key] for key in keys if entry.get(key) is not None}
    return {key: int(value) if key in ("uid", "gid") else value for key, value in selected.items()}


def _members(
    users: Sequence[Entry], groups: Sequence[Entry], docker_exclusive: bool, facts: Entry
) -> Iterator[dict[str, Any]]:
    members: dict[str, list[str]] = {group["name"]: [] for group in groups}
    for user in users:
        for group in user.get("groups") or ():
            members.setdefault(group, []).append(user["name"])
    # Each created user gets a group of the same name.
    created = {entry["name"] for entry in (*groups, *users)}
    for group, names in members.items():
        if names:
            foreign = {} if group in created else {"foreign": True}
            yield {"group": group, "users": names, **foreign}
    docker_users = [user["name"] for user in users if user.get("docker") is True]
    yield {"group": DOCKER_GROUP, "users": docker_users, "exclusive": docker_exclusive}
    # Default: users of the host's engine, who can access the devices by a container anyway.
    gpu_users = [u["name"] for u in users if u.get("gpu", u.get("docker") is True)]
    if gpu_users and facts and host.has_gpu(facts):
        for group, devices in DEVICES.items():
            yield {"group": group, "users": gpu_users, "devices": devices}


def _keys(user: Entry) -> Iterator[dict[str, Any]]:
    """Yield the lines of authorized_keys that the role owns for a user, if any."""
    lines = [line for key in user.get("keys") or () for line in _key_lines(key)]
    default_home = "/root" if user["name"] == "root" else f"/home/{user['name']}"
    home = user.get("home") or default_home
    if lines:
        entry = {"user": user["name"], "path": f"{home}/.ssh/authorized_keys", "lines": lines}
        yield entry if user.get("home") else {**entry, "home": home}


def _shared_folder(entry: Entry) -> dict[str, Any]:
    others = 5 if entry.get("readable") else 0
    folder = {
        "path": entry.get("path") or DEFAULT_SHARED_FOLDER,
        "state": "directory",
        "group": entry["group"],
        # setgid: new files get the group of the folder, not the group of their creator.
        "mode": f"277{others}",
    }
    return folder if entry.get("acl") is False else {**folder, "default_acl": f"077{others}"}


def _limits_file(limits: Sequence[Entry]) -> dict[str, Any]:
    set_limits = [
        (limit["applies_to"], item, limit[item])
        for limit in limits
        for item in ("memlock", "nofile")
        if limit.get(item) is not None
    ]
    if not set_limits:
        return {"path": LIMITS, "state": "absent"}
    lines = "".join(f"{subject} - {item} {value}\n" for subject, item, value in set_limits)
    highest: dict[str, float] = {}
    for _subject, item, value in set_limits:
        highest[item] = max(highest.get(item, 0), _prlimit_value(item, value))
    options = [f"--{item}={limit}:{limit}" for item, limit in sorted(highest.items())]
    return {
        "path": LIMITS,
        "content": f"# Written by Slipway's role user_access.\n{lines}",
        # A limit that the kernel refuses locks out every user whom the limit applies to.
        "validate": ["prlimit", *(o.replace("inf", UNLIMITED) for o in options), "true"],
    }


def _prlimit_value(item: str, value: Any) -> float:
    """Return a limit in the unit of prlimit: bytes for memory, where limits.conf uses KiB."""
    if value == UNLIMITED:
        return float("inf")
    return int(value) * 1024 if item == "memlock" else int(value)


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
        *(
            {
                "path": docker_rootless.config_file(name),
                "content": f"{config}\n",
                # The engine would start at the next login.
                "needs": [["obstacles", item["path"]] for item in docker_rootless.OBSTACLES],
            }
            for name in names
        ),
    ]


def _check_declarations(
    users: Sequence[Entry],
    groups: Sequence[Entry],
    shared: Sequence[Entry],
    limits: Sequence[Entry],
) -> None:
    """Raise UserAccessError for a declaration that cannot be applied."""
    _check_names("user", users)
    _check_names("group", groups)
    for user in users:
        _check_user(user)
    _check_shared(shared, groups)
    for limit in limits:
        _check_limit(limit)


def _rootless_engine(name: str) -> dict[str, Any]:
    """Return the rootless engine of a user."""
    return {
        "user": name,
        "needs": [["obstacles", item["path"]] for item in docker_rootless.OBSTACLES],
        "reads": [
            docker_rootless.UNIT,
            docker_rootless.DOCKERD,
            docker_rootless.config_file(name),
        ],
    }


def plan(facts: Entry | None, options: Entry) -> dict[str, Any]:
    """Return the ``owned`` state of the role.

    FACTS is ``ansible_facts['slipway']``; without facts, no GPU and no engine is assumed. OPTIONS
    are the role's options. Raise UserAccessError for a declaration that cannot be applied.
    """
    if options["user_access_state"] == "absent":
        options = {**options, **NOTHING}
    users, groups = options["user_access_users"], options["user_access_groups"]
    shared, limits = options["user_access_shared_folders"], options["user_access_limits"]
    _check_declarations(users, groups, shared, limits)
    known = facts or {}
    docker_exclusive = options["user_access_docker_exclusive"]
    rootless_settings = options["user_access_rootless_settings"]
    present = [user for user in users if user.get("state", "present") == "present"]
    rootless = [user["name"] for user in present if user.get("docker") == ROOTLESS]
    packages = docker_rootless.packages(known.get("docker_package", "")) if rootless else []
    owned = {
        "obstacles": [dict(obstacle) for obstacle in docker_rootless.OBSTACLES] if rootless else [],
        "groups": [_select_keys(group, "name", "gid") for group in groups],
        "users": [
            _select_keys(user, "name", "uid", "comment", "home", "shell", "state") for user in users
        ],
        "members": list(_members(present, groups, docker_exclusive, known)),
        "engine_access": [
            {
                "socket": ENGINE_SOCKET,
                "users": [user["name"] for user in present if user.get("docker") is True],
            }
        ],
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
        "rootless": [_rootless_engine(name) for name in rootless],
    }
    return {"owned": owned}
