# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines in a file that others own too: SSH keys.

Keys of an entry of lines (``?``: optional): path, lines, user?, home?: the home that the path was
derived from; the user must not have another one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import accounts, files
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
    user = answer["users"][entry["user"]] if entry.get("home") else None
    if user and user[2] != entry["home"]:
        raise ConflictError(
            f"user_access_users: user {entry['user']} has home {user[2]}, but keys would go to "
            f"{entry['path']}. Set 'home: {user[2]}'"
        )
    for path in _key_paths(entry):
        yield from _keys_mode(entry["user"], path, answer.get("files", {}).get(path))
    present = set(_text_lines(answer["texts"][entry["path"]] or ""))
    missing = sum(line not in present for line in entry["lines"])
    if missing:
        yield f"{missing} of {len(entry['lines'])} lines {MISSING}", "all there"


def _key_paths(entry: Entry) -> tuple[str, ...]:
    """Return the file of a user's keys and its folder: sshd refuses keys that others can change."""
    path = str(entry["path"])
    return (path.rpartition("/")[0], path) if entry.get("user") else ()


def _keys_mode(user: str, path: str, found: Any) -> Iterator[Change]:
    if not found or found[2] != user:
        return
    mode, needed = int(found[1], 8), 0o100 if found[0] == "directory" else 0o400
    if mode & 0o022 or not mode & needed:
        yield f"{path} has mode {found[1]}", "readable by its owner and not writable by others"


def _text_lines(text: str) -> list[str]:
    """Return the lines of a text as the probe spells it, in any encoding."""
    if text.startswith("base64:"):
        text = base64.b64decode(text[7:]).decode("utf-8", "surrogateescape")
    return text.splitlines()


def _files_and_user_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "files", _key_paths(entry)
    if entry.get("home"):
        yield "users", [entry["user"]]


KINDS = (Kind("lines", "path", "texts", compare_lines, _files_and_user_of),)
