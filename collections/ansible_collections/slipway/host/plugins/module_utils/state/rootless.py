# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rootless engines: Docker Engines that run as one user.

Keys of an entry of rootless (``?``: optional): user, reads?: files that the engine has read.
"""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import files, reading

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

# Modules that the survey sends along.
NEEDS = (files.__name__,)
# Where the docker command keeps the context of this name: the folder is the name's SHA-256.
CONTEXT = "rootless"
CONTEXT_FILE = (
    ".docker/contexts/meta/"
    "12b961af5feb3e9d39f93b2cefb9a1a944f18d02cca0cac2f04f5a982240605f/meta.json"
)


def _count_subordinate_ids(path: str, name: str, uid: int) -> int:
    """Return how many numbers a file such as /etc/subuid gives a user."""
    lines = (line.split(":") for line in reading.read_word(path).splitlines())
    return sum(
        int(line[2])
        for line in lines
        if len(line) == 3 and line[0] in (name, str(uid)) and line[2].isdigit()
    )


def _answering_since(path: str) -> float:
    """Return the change time of a socket that a program listens on, 0 without a program."""
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(2)
        connection.connect(path)
        return os.lstat(path).st_ctime
    except OSError:
        return 0.0
    finally:
        connection.close()


def ask_rootless(name: str) -> list[Any] | None:
    """Return what a user's own engine stands on, null without a user."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    try:
        context = json.loads(files.ask_text(f"{entry.pw_dir}/{CONTEXT_FILE}") or "{}")
        address = str(context["Endpoints"]["docker"]["Host"])
    except (ValueError, LookupError, TypeError):
        address = ""
    return [
        os.path.exists(f"/var/lib/systemd/linger/{name}"),
        _count_subordinate_ids("/etc/subuid", name, entry.pw_uid),
        _count_subordinate_ids("/etc/subgid", name, entry.pw_uid),
        address,
        _answering_since(f"/run/user/{entry.pw_uid}/docker.sock"),
    ]


ASKS = {"rootless": reading.each(ask_rootless)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless
from ansible_collections.slipway.host.plugins.module_utils.state import accounts, started
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind


def compare_rootless(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a rootless engine."""
    found = answer["rootless"][entry["user"]]
    if found is None:
        yield MISSING, "a user with an engine"
        return
    state = rootless.State(*found)
    yield from rootless.differences(state, answer["users"][entry["user"]][0])
    for path in unread_files(entry, answer):
        yield f"started before {path} changed", "started after it"


def record_name(entry: Entry) -> str:
    """Return the name of the engine's record, see state.started."""
    return f"rootless-{entry['user']}"


def files_read(entry: Entry, answer: Answer) -> dict[str, Any]:
    """Return the files that a running engine has read, see started.changed_files."""
    return {path: answer["reads"][path] for path in entry.get("reads") or ()}


def unread_files(entry: Entry, answer: Answer) -> list[str]:
    """Return the files that changed after the running engine read them."""
    began = rootless.State(*answer["rootless"][entry["user"]]).began
    record = answer["starts"][record_name(entry)]
    # A socket is made at each start.
    files = files_read(entry, answer) if began else {}
    return started.changed_files(files, began, str(began), record)


def _further(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "users", [entry["user"]]
    yield "starts", [record_name(entry)]
    yield "reads", entry.get("reads") or ()


KINDS = (
    Kind("rootless", "user", "rootless", compare_rootless, _further, needs=accounts.account_of),
)
