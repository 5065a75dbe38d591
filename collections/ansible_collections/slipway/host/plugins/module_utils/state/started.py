# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that a running program has read, compared with the files of now.

The record of a program (RECORDS) holds which start it belongs to, and the digest of each file at
that start. Without a record of the current start, the change time (ctime) of a file decides: unlike
the modification time, nobody can set it.
"""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Json = dict[str, Any]

# A folder that only root can read. One file per program: {"start": text, "files": {path: digest}}.
RECORDS = "/var/lib/slipway/started"


def ask_read(path: str) -> list[Any] | None:
    """Return ``[ctime, SHA-256]`` of a file that programs read, None without a regular file."""
    import hashlib

    try:
        changed = os.stat(path).st_ctime
    except OSError:
        return None
    content = reading.read_file(path)
    return None if content is None else [changed, hashlib.sha256(content).hexdigest()]


def ask_start(name: str) -> Json | None:
    """Return the record of a program, None without a valid one."""
    try:
        record = json.loads(reading.read_file(f"{RECORDS}/{name}.json") or b"null")
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


ASKS = {"reads": reading.each(ask_read), "starts": reading.each(ask_start)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state import paths

# It only answers questions of other kinds.
KINDS = ()


def changed_files(
    files: Mapping[str, Sequence[Any] | None], began: float, start: str, record: Json | None
) -> list[str]:
    """Return the FILES whose content changed after a program read them.

    FILES maps each path to ``[ctime, digest]``. The program started at BEGAN, in seconds since
    1970; START identifies that start.
    """
    recorded = record["files"] if record and start and record.get("start") == start else {}
    changed = []
    for path, found in files.items():
        ctime, digest = found or (0.0, None)
        if recorded[path] != digest if path in recorded else ctime > began:
            changed.append(path)
    return changed


def digests(files: Mapping[str, Sequence[Any] | None]) -> dict[str, str | None]:
    """Return the digest of each file as :func:`write_record` takes it."""
    return {path: found[1] if found else None for path, found in files.items()}


def write_record(name: str, start: str, read: Mapping[str, str | None]) -> None:
    """Record the digests of the files that a program has READ at a start; only root can read it."""
    content = json.dumps({"start": start, "files": dict(read)}, sort_keys=True).encode()
    with paths.opened_folder(RECORDS, make=True) as folder:
        if folder.read(f"{name}.json") != content:
            folder.replace(f"{name}.json", content, 0o600, os.geteuid(), os.getegid())


def remove_record(name: str) -> None:
    """Remove the record of a program that no longer runs."""
    try:
        with paths.opened_folder(RECORDS) as folder:
            folder.remove(f"{name}.json")
    except FileNotFoundError:
        return
