# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The caller's name in a container, which knows no account of the caller's number.

Without one, a prompt says "I have no name!", and ssh, and so git, refuse to work at all.  So a
container gets the image's own /etc/passwd and /etc/group with the caller in them.  They are kept in
the caller's cache for as long as image, name and groups stay the same.
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
    """Which lines go into which file of an image, by its id, and the folder for the outcome."""

    image: str
    passwd: tuple[str, ...]
    group: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Return where the files are kept."""
        key = "\n".join([self.image, *self.passwd, *self.group])
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(root).expanduser() / "slipway" / "accounts" / name


def accounts_for(
    image: str, home: str, name: str, uid: int, gid: int, groups: Sequence[int]
) -> Accounts:
    """Return the caller's accounts for an image whose HOME is known."""
    return Accounts(
        image=image,
        passwd=(f"{name}:x:{uid}:{gid}:{name}:{home or '/'}:{SHELL}",),
        group=tuple(f"{group_name(number)}:x:{number}:" for number in (gid, *groups)),
    )


def group_name(gid: int) -> str:
    """Return the name of a group, made up where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group-{gid}"


def merge_accounts(own: str, lines: Sequence[str]) -> str:
    """Return an image's OWN file with LINES in place of those of the same name or number."""
    taken = {line.split(":")[0] for line in lines} | {line.split(":")[2] for line in lines}
    kept = [
        line
        for line in own.splitlines()
        if line.count(":") > 1 and not taken & {line.split(":")[0], line.split(":")[2]}
    ]
    return "\n".join([*kept, *lines]) + "\n"


def write_accounts(wanted: Accounts, read: Callable[[str, Sequence[str]], dict[str, str]]) -> None:
    """Make the files where they are missing; READ returns files of an image by path.

    Raise MlError where they cannot be written.
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
        raise MlError(f"{folder} cannot be written: {error}") from error


def _remove_old(root: Path) -> None:
    """Remove what was made long ago; containers that still have it keep it."""
    for file in root.glob("*/*"):
        if time.time() - file.stat().st_mtime > KEEP_SECONDS:
            file.unlink(missing_ok=True)
    for folder in root.iterdir():
        if not any(folder.iterdir()):
            folder.rmdir()
