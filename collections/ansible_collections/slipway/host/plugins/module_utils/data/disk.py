# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space on the disks of a host. A part of each disk is reserved for other programs."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Mapping, Sequence

from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    TreeError,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.state import paths

# Reserved are one part in RESERVED_SHARE of a disk, at most RESERVED_BYTES.
RESERVED_SHARE, RESERVED_BYTES = 20, 1 << 30
REMEDY = "Free some space, or add a folder on a larger disk to ml_data_disks."


def available_bytes(path: str) -> int:
    """Return how many bytes can be written below a folder that may not exist yet."""
    while True:
        try:
            with paths.opened_folder(path) as folder:
                return free_bytes(folder.descriptor)
        except FileNotFoundError:
            path = posixpath.dirname(path)


def free_bytes(folder: int | str) -> int:
    """Return how many bytes can be written to the disk of a folder."""
    disk = os.statvfs(folder)
    reserved = min(RESERVED_BYTES, disk.f_blocks * disk.f_frsize // RESERVED_SHARE)
    return max(0, disk.f_bavail * disk.f_frsize - reserved)


def free_inodes(folder: int | str) -> int | None:
    """Return how many files can be created on a disk, None if its file system has no limit."""
    disk = os.statvfs(folder)
    return max(0, disk.f_favail - disk.f_files // RESERVED_SHARE) if disk.f_files else None


def select_folder(folders: Sequence[str], needed: int, present: Mapping[str, int]) -> str:
    """Return the first of FOLDERS with room for NEEDED bytes; PRESENT are bytes already there.

    Raise TreeError if none has.
    """
    for folder in folders:
        if available_bytes(folder) + present.get(folder, 0) >= needed:
            return folder
    free = ", ".join(f"{format_size(available_bytes(folder))} in {folder}" for folder in folders)
    raise too_small(free, needed)


def too_small(free: str, needed: int) -> TreeError:
    """Return the error that a disk is too small."""
    return TreeError(
        f"not enough disk space: found {free}; expected {format_size(needed)}. {REMEDY}"
    )


def is_full(error: OSError) -> bool:
    """Return whether an error means that a disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
