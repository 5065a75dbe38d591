# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role user_access, from the people that the inventory names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# What useradd accepts everywhere: its NAME_REGEX default, and the kernel's utmp field of 32.
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
DOCKER_GROUP = "docker"


class UserAccessError(ValueError):
    """The inventory names people in a way that cannot be carried out."""


def _check(users: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    for what, entries in (("user", users), ("group", groups)):
        names = [entry["name"] for entry in entries]
        for name in names:
            if not NAME.match(name):
                raise UserAccessError(
                    f"'{name}' cannot be a {what} name: at most 32 lower-case letters, digits, "
                    "'_' and '-', not beginning with a digit or '-'"
                )
            if names.count(name) > 1:
                raise UserAccessError(f"the {what} {name} is declared {names.count(name)} times")
    for user in users:
        if DOCKER_GROUP in user.get("groups", ()):
            raise UserAccessError(
                f"user {user['name']}: membership in '{DOCKER_GROUP}' is as good as root, so it is "
                "asked for by name: write 'docker: true' instead of listing it in groups"
            )
        if user["name"] == "root" and user.get("state") == "absent":
            raise UserAccessError("root cannot be removed")


def owned(
    users: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    docker_exclusive: bool,
) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state for USERS and GROUPS as ``user_access`` declares them.

    DOCKER_EXCLUSIVE says that nobody but the users with ``docker: true`` may be in the docker
    group.  Raise UserAccessError where a declaration cannot be carried out.
    """
    _check(users, groups)
    present = [user for user in users if user.get("state", "present") == "present"]
    members: dict[str, list[str]] = {group["name"]: [] for group in groups}
    for user in present:
        for group in user.get("groups", ()):
            members.setdefault(group, []).append(user["name"])
    docker_users = [user["name"] for user in present if user.get("docker", False)]
    entries: list[dict[str, Any]] = [
        {"group": group, "users": names} for group, names in members.items() if names
    ]
    entries.append({"group": DOCKER_GROUP, "users": docker_users, "exclusive": docker_exclusive})
    return {
        "groups": [{k: g[k] for k in ("name", "gid") if g.get(k) is not None} for g in groups],
        "users": [
            {k: u[k] for k in ("name", "uid", "home", "shell", "state") if u.get(k) is not None}
            for u in users
        ],
        "members": entries,
        "lines": [
            {
                "user": user["name"],
                "path": f"{user.get('home') or '/home/' + user['name']}/.ssh/authorized_keys",
                "lines": list(user["keys"]),
            }
            for user in present
            if user.get("keys")
        ],
    }
