# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines in a file that others own too: SSH keys.

Keys of an entry of lines (``?``: optional): path, lines, user?, home?: the home that the path was
derived from; the user must not have another one. All other lines belong to the user.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import accounts, attributes, files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    ConflictError,
    Entry,
    Kind,
)

ASKS = {**files.ASKS, **accounts.ASKS}


def compare_lines(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield missing lines, and files that others can write."""
    user = answer["users"][entry["user"]] if entry.get("user") else None
    if user and entry.get("home") not in (None, user[2]):
        raise ConflictError(home_conflict(entry, user[2]))
    for path, expected in _key_paths(entry, accounts.own_name(entry.get("user", ""), user)):
        state = answer.get("files", {}).get(path)
        if state is None or (path == _home_of(entry) and state[0] == "link"):
            continue  # A home may be a link of root's.
        for found, should in attributes.compare(state, expected):
            yield f"{path}: {found}", should
    present = set(_text_lines(answer["texts"][entry["path"]] or ""))
    missing = sum(line not in present for line in entry["lines"])
    if missing:
        yield f"{missing} of {len(entry['lines'])} lines {MISSING}", "all there"


def home_conflict(entry: Entry, home: str) -> str:
    """Return the conflict of a user whose HOME is not the one that the path was derived from."""
    return (
        f"user_access_users: user {entry['user']} has home {home}, but keys would go to "
        f"{entry['path']}; expected the same home. Set 'home: {home}'"
    )


def _key_paths(entry: Entry, owner: str) -> Iterator[tuple[str, attributes.Attributes]]:
    """Yield the file of a user's keys, its folder and the home, each with what it must be.

    OWNER is the user's own name.

    sshd refuses keys that others can change, and a folder of somebody else is not the user's. A
    group of one member may write a home. A file or a folder of root is accepted.
    """
    if not entry.get("user"):
        return
    path, home = str(entry["path"]), _home_of(entry)
    folder = path.rpartition("/")[0]
    for part, type_, least, surplus in (
        (home, attributes.FOLDER, 0, 0o002),
        (folder, attributes.FOLDER, 0o100, attributes.WRITABLE),
        (path, attributes.FILE, 0o400, attributes.WRITABLE),
    ):
        owners = (owner, "root")
        yield part, attributes.Attributes(type_, owners, None, least, 0o7777 & ~surplus)


def _home_of(entry: Entry) -> str:
    """Return the folder that holds the folder of a user's keys."""
    return str(entry["path"]).rpartition("/")[0].rpartition("/")[0]


def _text_lines(text: str) -> list[str]:
    """Return the lines of a text as the probe spells it, in any encoding."""
    if text.startswith("base64:"):
        text = base64.b64decode(text[7:]).decode("utf-8", "surrogateescape")
    return text.splitlines()


def _files_and_user_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "files", [path for path, _expected in _key_paths(entry, "")]
    if entry.get("user"):
        yield "users", [entry["user"]]


KINDS = (
    Kind("lines", "path", "texts", compare_lines, _files_and_user_of, needs=accounts.account_of),
)
