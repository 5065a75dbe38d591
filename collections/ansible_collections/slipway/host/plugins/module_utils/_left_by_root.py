# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give a user back what root left in ``~/.docker``, in a folder where the user may do anything.

The user may replace any name there at any moment, so nothing is reached by a path from the outside:
each step opens a name within the folder before it, without following links, and what is given away
is what was opened and looked at. A file with further names is left alone, since those may be
anywhere, and so is everything that belongs to somebody else.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.state import paths

NAME = ".docker"
# buildx keeps its records three folders down.
DEEPEST = 8


def give_back(home: str, uid: int, gid: int) -> None:
    """Make everything of root's in HOME's ``.docker`` the user's, if the home is."""
    try:
        with paths.opened_folder(home, owners=(0, uid)) as folder:
            if folder.info().st_uid == uid:
                _give(folder, NAME, uid, gid, DEEPEST)
    except paths.UnsafePathError:
        return


def _give(folder: paths.Folder, name: str, uid: int, gid: int, depth: int) -> None:
    device = folder.info().st_dev
    try:
        info = folder.lstat(name)
        if info is None or info.st_dev != device:
            return
        if paths.type_of(info) == paths.FOLDER:
            with folder.entered(name) as inner:
                if inner.info().st_dev != device:
                    return
                # First, while the user cannot yet change what is in a folder of root's.
                for child in inner.names() if depth else ():
                    _give(inner, child, uid, gid, depth - 1)
                _set_owner(inner.descriptor, uid, gid)
        elif paths.type_of(info) == paths.FILE:
            with folder.opened(name) as descriptor:
                if os.fstat(descriptor).st_dev == device:
                    _set_owner(descriptor, uid, gid)
    except (OSError, paths.UnsafePathError):
        return  # a link, a file with several names, or gone


def _set_owner(descriptor: int, uid: int, gid: int) -> None:
    if _probe.is_left(os.fstat(descriptor)):
        paths.set_owner(descriptor, uid, gid)
