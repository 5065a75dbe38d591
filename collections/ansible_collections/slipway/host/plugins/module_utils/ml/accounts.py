# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The caller's account in a container.

Without an account, a prompt shows "I have no name!", and ssh and git fail.  So a container gets the
image's own /etc/passwd and /etc/group with the caller added.  Both files stay in the caller's cache
as long as image, name and groups are the same.
"""

from __future__ import annotations

import grp
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import MlError

FILES = ("passwd", "group")
SHELL = "/bin/bash"
KEEP_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Accounts:
    """The lines to add to the account files of an image, which is given by its ID."""

    image: str
    passwd: tuple[str, ...]
    group: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Return the folder of the merged files in the caller's cache."""
        key = "\n".join([self.image, *self.passwd, *self.group])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(root).expanduser() / "slipway" / "accounts" / name


def accounts_for(
    image: str, home: str, name: str, uid: int, gid: int, groups: Sequence[int]
) -> Accounts:
    """Return the account lines of the caller; HOME is the image's."""
    return Accounts(
        image=image,
        passwd=(f"{name}:x:{uid}:{gid}:{name}:{home or '/'}:{SHELL}",),
        group=tuple(f"{group_name(number)}:x:{number}:" for number in (gid, *groups)),
    )


def group_name(gid: int) -> str:
    """Return the name of a group, or group-GID for a group without a name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group-{gid}"


def merge_accounts(own: str, lines: Sequence[str]) -> str:
    """Return an image's OWN file with LINES instead of the lines with the same name or number."""
    taken = {line.split(":")[0] for line in lines} | {line.split(":")[2] for line in lines}
    kept = [
        line
        for line in own.splitlines()
        if line.count(":") > 1 and not taken & {line.split(":")[0], line.split(":")[2]}
    ]
    return "\n".join([*kept, *lines]) + "\n"


def write_accounts(wanted: Accounts, read: Callable[[str, Sequence[str]], dict[str, str]]) -> None:
    """Write the merged files if they are missing; READ returns files of an image by path.

    Raise MlError where the files cannot be written.
    """
    folder = wanted.folder
    if all((folder / name).is_file() for name in FILES):
        return
    own = read(wanted.image, [f"/etc/{name}" for name in FILES])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, lines in (("passwd", wanted.passwd), ("group", wanted.group)):
            fresh = folder / f".{name}.{os.getpid()}"
            fresh.write_text(merge_accounts(own[f"/etc/{name}"], lines), encoding="utf-8")
            fresh.replace(folder / name)
        _remove_old(folder.parent)
    except OSError as error:
        raise MlError(f"cannot write your account files to {folder}: {error}") from error


def _remove_old(root: Path) -> None:
    """Remove old files; running containers keep theirs."""
    for file in root.glob("*/*"):
        if time.time() - file.stat().st_mtime > KEEP_SECONDS:
            file.unlink(missing_ok=True)
    for folder in root.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
