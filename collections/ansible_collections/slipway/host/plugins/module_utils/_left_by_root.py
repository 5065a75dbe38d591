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

NAME = ".docker"
# buildx keeps its records three folders down.
DEEPEST = 8
# A pipe would be waited for.
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def give_back(home: str, uid: int, gid: int) -> None:
    """Make everything of root's in HOME's ``.docker`` the user's, if the home is."""
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid == uid:
            _give(folder, NAME, uid, gid, DEEPEST)
    finally:
        os.close(folder)


def _give(folder: int, name: str, uid: int, gid: int, depth: int) -> None:
    try:
        opened = os.open(name, FLAGS, dir_fd=folder)
    except OSError:
        return  # a link, a socket, or gone
    try:
        info = os.fstat(opened)
        if info.st_dev != os.fstat(folder).st_dev:
            return
        if info.st_mode & 0o170000 == 0o040000 and depth:
            # First, while the user cannot yet change what is in a folder of root's.
            with os.scandir(opened) as entries:
                for entry in entries:
                    _give(opened, entry.name, uid, gid, depth - 1)
        if _probe.is_left(info):
            os.fchown(opened, uid, gid)
    finally:
        os.close(opened)
