# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The caller's account in a container.

Without an account, a prompt shows "I have no name!", and ssh and git fail.  So a container gets the
image's own /etc/passwd and /etc/group with the caller added.  Both files stay in the caller's cache
as long as image, name and groups are the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .caller import Caller, group_name, user_folder
from .errors import MlError, reason

FILES = ("passwd", "group")
SHELL = "/bin/bash"
KEEP_SECONDS = 30 * 24 * 3600


class Accounts(NamedTuple):
    """The lines to add to the account files of an image; ``image`` is the ID of the image."""

    image: str
    passwd: tuple[str, ...]
    group: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Return the folder of the merged files in the caller's cache."""
        key = "\n".join([self.image, *self.passwd, *self.group])
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:16]
        return user_folder("XDG_CACHE_HOME", ".cache") / "slipway" / "accounts" / name


def caller_accounts(image: str, image_home: str, caller: Caller) -> Accounts:
    """Return the account lines of the caller for an image (ID) and its home folder."""
    name, uid, gid = caller.name, caller.uid, caller.gid
    return Accounts(
        image=image,
        passwd=(f"{name}:x:{uid}:{gid}:{name}:{image_home or '/'}:{SHELL}",),
        group=tuple(f"{group_name(number)}:x:{number}:" for number in (gid, *caller.groups)),
    )


def merge_accounts(image_file: str, lines: Sequence[str]) -> str:
    """Return an account file of an image with LINES added.

    Lines of the image with the same name or number are left out.
    """
    replaced = {line.split(":")[0] for line in lines} | {line.split(":")[2] for line in lines}
    kept = [
        line
        for line in image_file.splitlines()
        if line.count(":") > 1 and not replaced & {line.split(":")[0], line.split(":")[2]}
    ]
    return "\n".join([*kept, *lines]) + "\n"


def write_accounts(
    accounts: Accounts, read_files: Callable[[str, Sequence[str]], dict[str, str]]
) -> None:
    """Write the merged files if they are missing; READ_FILES returns files of an image by path.

    Raise MlError if the files cannot be written.
    """
    folder = accounts.folder
    if all(os.path.isfile(folder / name) for name in FILES):
        return
    image_files = read_files(accounts.image, [f"/etc/{name}" for name in FILES])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, lines in (("passwd", accounts.passwd), ("group", accounts.group)):
            temporary = folder / f".{name}.{os.getpid()}"
            text = merge_accounts(image_files[f"/etc/{name}"], lines)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            temporary.replace(folder / name)
    except OSError as error:
        raise MlError(
            f"cannot write your account files to {folder}: {reason(error, folder)}"
        ) from error
    _remove_old(folder.parent)


def _remove_old(parent: Path) -> None:
    """Remove folders of old files.  Running containers keep their files.

    A folder that cannot be removed, because another start removes it or the user changed it, stays.
    """
    for folder in parent.iterdir():
        try:
            if time.time() - folder.stat().st_mtime > KEEP_SECONDS:
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
        except OSError:
            continue
