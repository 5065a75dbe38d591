# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The previous daemon.json, kept until Docker started with the new one.

The module ``daemon_json`` keeps it before it replaces the file, the module ``units`` restores it
where Docker does not start, and deletes it after a start. So a run that is killed in between is
finished by the next one. Content with which Docker did not start is remembered by its digest.

Standard library only, for hosts.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import DAEMON_JSON_RECORD
from ansible_collections.slipway.host.plugins.module_utils.state import paths

# Beside the record of the keys; see keep() for the content.
PREVIOUS = f"{DAEMON_JSON_RECORD}.previous"


def keep(file: str, path: str, text: str | None, record_path: str, record: str) -> None:
    """Keep the TEXT and the RECORD of the daemon.json at PATH in FILE.

    TEXT is None and RECORD empty where there is none. An earlier FILE stays: the engine still runs
    with what is in it.
    """
    if Path(file).exists():
        return
    mode = Path(path).stat().st_mode & 0o777 if text is not None else 0
    content = {"path": path, "text": text, "mode": mode, "record_path": record_path}
    _write(file, json.dumps({**content, "record": record}), 0o600)


def restore(file: str) -> str:
    """Put the previous content back and return its path, empty where none was kept.

    The digest of the present content is remembered, see :func:`is_rejected`.
    """
    try:
        kept = json.loads(paths.read_file(file))
    except FileNotFoundError:
        return ""
    path = str(kept["path"])
    if Path(path).exists():
        _write(f"{file}.rejected", _digest(Path(path).read_bytes()), 0o600)
    for name, text, mode in (
        (path, kept["text"], kept["mode"]),
        (kept["record_path"], kept["record"] or None, 0o600),
    ):
        if text is None:
            Path(name).unlink(missing_ok=True)
        else:
            _write(name, text, mode)
    Path(file).unlink()
    return path


def forget(file: str) -> None:
    """Delete the previous content: Docker runs with the present one."""
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
