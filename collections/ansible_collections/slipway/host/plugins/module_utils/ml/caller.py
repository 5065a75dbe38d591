# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user who runs a command on the host: names, groups and folders."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import NamedTuple


class Caller(NamedTuple):
    """The person who starts a container; ``folder`` is the working folder."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path
    folder: Path


def current_caller() -> Caller:
    """Return the user of this process and its working folder, ``/`` if it cannot be read."""
    uid, gid = os.getuid(), os.getgid()
    try:
        folder = Path.cwd()
    except OSError:
        folder = Path("/")
    return Caller(
        name=user_name(uid),
        uid=uid,
        gid=gid,
        groups=tuple(sorted(set(os.getgroups()) - {gid})),
        home=home_folder(),
        folder=folder,
    )


def user_name(uid: int) -> str:
    """Return the login name of a uid, the number if the uid has no account."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or group-GID for a group without a name."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group-{gid}"


def home_folder() -> Path:
    """Return HOME, else the home folder of the account, else ``/``; always an absolute path."""
    folder = os.environ.get("HOME", "")
    if not folder.startswith("/"):
        try:
            folder = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            folder = "/"
    return Path(folder if folder.startswith("/") else "/")


def expand_home(path: str) -> Path:
    """Return a path in which a leading ``~`` is the caller's home folder."""
    if path == "~" or path.startswith("~/"):
        return home_folder() / path[2:].lstrip("/")
    return Path(path)


def user_folder(variable: str, default: str) -> Path:
    """Return the folder in an XDG variable, else DEFAULT below the caller's home folder.

    A relative path in the variable is ignored, as the XDG specification demands.
    """
    folder = os.environ.get(variable, "")
    return Path(folder) if folder.startswith("/") else home_folder() / default
