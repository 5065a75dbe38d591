# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The copy of the previous daemon.json, until Docker has started with the new one.

The module ``daemon_json`` writes the copy before it replaces the file. The module ``units``
restores the previous file if Docker does not start, and deletes the copy after a start. So the next
run finishes a run that was killed in between. The digest of content with which Docker did not start
is recorded.

Standard library only, for hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import DAEMON_JSON_RECORD
from ansible_collections.slipway.host.plugins.module_utils.state import paths

# Path of the copy, beside the record of the keys.
PREVIOUS = f"{DAEMON_JSON_RECORD}.previous"


def keep(file: str, path: str, text: str | None, record_path: str, record: str) -> None:
    """Write the TEXT and the RECORD of the daemon.json at PATH to FILE.

    TEXT is None and RECORD empty if they are missing. An existing FILE is not replaced: the engine
    still runs with its content.
    """
    if Path(file).exists():
        return
    mode = Path(path).stat().st_mode & 0o777 if text is not None else 0
    content = {"path": path, "text": text, "mode": mode, "record_path": record_path}
    _write(file, json.dumps({**content, "record": record}), 0o600)


def restore(file: str) -> str:
    """Restore the previous content and return its path, empty if there is no copy.

    The digest of the present content is recorded, see :func:`is_rejected`.
    """
    try:
        previous = json.loads(paths.read_file(file))
    except FileNotFoundError:
        return ""
    path = str(previous["path"])
    if Path(path).exists():
        _write(f"{file}.rejected", _digest(Path(path).read_bytes()), 0o600)
    for name, text, mode in (
        (path, previous["text"], previous["mode"]),
        (previous["record_path"], previous["record"] or None, 0o600),
    ):
        if text is None:
            Path(name).unlink(missing_ok=True)
        else:
            _write(name, text, mode)
    Path(file).unlink()
    return path


def delete(file: str) -> None:
    """Delete the copy, because Docker runs with the present content."""
    for name in (file, f"{file}.rejected"):
        Path(name).unlink(missing_ok=True)


def is_rejected(file: str, content: str) -> bool:
    """Return whether Docker did not start with this content before."""
    try:
        return paths.read_file(f"{file}.rejected").decode() == _digest(content.encode())
    except FileNotFoundError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: str, text: str, mode: int) -> None:
    with paths.opened_parent(path, make=True) as (folder, name):
        folder.replace(name, text.encode(), mode, os.geteuid(), os.getegid())
