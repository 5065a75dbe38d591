# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make owned files and folders as declared, each replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.state import acl

FILE_MODE, FOLDER_MODE = "0644", "0755"


def settle(entry: Mapping[str, Any]) -> None:
    """Make one entry of owned ``files`` true; see :mod:`_owned` for its keys.

    Raise OSError where the host refuses, LookupError for an unknown owner or group.
    """
    path = Path(entry["path"])
    state = entry.get("state") or "file"
    is_folder = path.is_dir() and not path.is_symlink()
    if state == "absent" or is_folder != (state == "directory"):
        _remove(path, is_folder)
    if state == "absent":
        return
    mode = int(entry.get("mode") or (FOLDER_MODE if state == "directory" else FILE_MODE), 8)
    owner, group = entry.get("owner") or "root", entry.get("group") or "root"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if state == "directory":
        path.mkdir(exist_ok=True)
    elif entry.get("content") is not None:
        _replace(path, entry["content"].encode(), mode, owner, group)
    elif not path.exists():
        path.touch()
    _chown(path, owner, group)
    # After the owner: the kernel clears setuid and setgid bits when that changes.
    path.chmod(mode)
    if entry.get("default_acl"):
        found = acl.parse(_probe.default_acl(str(path)) or "")
        os.setxattr(path, acl.ATTRIBUTE, acl.packed(acl.wanted(entry["default_acl"], found)))


def _chown(path: Path, owner: str, group: str) -> None:
    """Give a file to an owner and a group, each a name, or a number in digits."""
    user, members = (int(one) if one.isdigit() else one for one in (owner, group))
    shutil.chown(path, user, members)


def _remove(path: Path, is_folder: bool) -> None:
    if is_folder:
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _replace(path: Path, content: bytes, mode: int, owner: str, group: str) -> None:
    # In the same folder, since only there the rename is atomic; mkstemp makes it 0600, so that a
    # secret is never readable by others, not even for a moment.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        _chown(temporary, owner, group)
        temporary.chmod(mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
