# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which accounts reach the engine, tested with the rights of each account."""

from __future__ import annotations

import grp
import pwd
import socket
from collections.abc import Collection, Iterable

from ansible_collections.slipway.host.plugins.module_utils.state import containers, user_rights

SECONDS = 10
DOCKER_GROUP = "docker"


def check_users(declared: Collection[str] | None) -> str:
    """Return who reaches the engine; raise ValueError if others do than the DECLARED users.

    Without a declaration everybody may.
    """
    # Directory services do not list their accounts, but answer for each name.
    wanted = None if declared is None else {own_name(name) for name in declared}
    listed = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 0}
    accounts = sorted({*listed, *filter(exists, {*_members(), *(wanted or ())})} - {"root"})
    return judge(list_reaching(accounts), accounts, wanted)


def own_name(name: str) -> str:
    """Return the own name of the account that NSS knows as NAME, NAME itself for none."""
    return pwd.getpwnam(name).pw_name if exists(name) else name


def exists(name: str) -> bool:
    """Return whether NSS knows an account by this NAME."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _members() -> list[str]:
    try:
        return grp.getgrnam(DOCKER_GROUP).gr_mem
    except KeyError:
        return []


def list_reaching(accounts: Iterable[str]) -> list[str]:
    """Return the ACCOUNTS that can open the engine's socket."""
    return [name for name in accounts if user_rights.as_user(name, _connects, SECONDS)]


def _connects() -> bool:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(SECONDS)
        connection.connect(containers.DOCKER_SOCKET)
    except OSError:
        return False
    finally:
        connection.close()
    return True


def judge(
    reaching: Collection[str], accounts: Collection[str], declared: Collection[str] | None
) -> str:
    """Return a sentence about the users REACHING the engine; raise ValueError for wrong ones."""
    found = ", ".join(sorted(reaching)) or "nobody but root"
    if declared is None:
        return f"reached by {found}"
    wanted = {name for name in declared if name != "root"}
    problems = []
    if unlisted := sorted(set(reaching) - wanted):
        problems.append(
            f"the engine is reached by {', '.join(unlisted)}; expected no user without 'docker: "
            "true' in user_access_users, because such a user is equivalent to root. ./slipway plan "
            "lists the groups and files that give access"
        )
    if missing := sorted((wanted & set(accounts)) - set(reaching)):
        problems.append(
            f"the engine is not reached by {', '.join(missing)}; expected the users with 'docker: "
            "true'. Check group and mode of the socket: ls -l /run/docker.sock"
        )
    if problems:
        raise ValueError(". ".join(problems))
    return f"tested as {len(accounts)} users: reached by {found}"
