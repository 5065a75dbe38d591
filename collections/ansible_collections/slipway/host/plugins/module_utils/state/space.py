# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Free space in the folders that every change of a host writes to; size of disks, last boot."""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

# Folders in which Ansible unpacks its modules; Python takes the first one that it can write to.
TEMPORARY = ("/tmp", "/var/tmp")
# Folders of configuration, packages and records.
WRITTEN = ("/etc", "/var/lib")
# Folders of which people see the size of the disk.
DISKS = ("/", "/var/lib/docker", "/srv")
NEEDED_BYTES = 16 << 20
READ_ONLY = 1


def ask_space(folder: str) -> int | None:
    """Return how many bytes root can write to a folder, None if there is no folder."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    has_no_inodes = disk.f_files > 0 and disk.f_ffree == 0
    if disk.f_flag & READ_ONLY or has_no_inodes:
        return 0
    return disk.f_bfree * disk.f_frsize


def ask_disk(folder: str) -> list[int] | None:
    """Return free and total bytes of the disk of a folder, None if there is no folder."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return [disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize]


def ask_boot(_names: list[str], _reply: object) -> str:
    """Return the ID that the kernel made at its boot."""
    return reading.read_word("/proc/sys/kernel/random/boot_id")


ASKS = {"space": reading.each(ask_space), "disks": reading.each(ask_disk), "boot": ask_boot}


# --- Nothing below is sent to hosts with the survey. ---
from collections.abc import Mapping

# It only answers a question of the survey.
KINDS = ()


def find_full(space: Mapping[str, int | None]) -> str:
    """Return which folder has too little space for any change and what to do, empty if none."""
    temporary = [folder for folder in TEMPORARY if space.get(folder) is not None]
    usable = [folder for folder in temporary if space[folder]] or temporary
    for folder in (*usable[:1], *WRITTEN):
        free = space.get(folder)
        if free is not None and free < NEEDED_BYTES:
            return (
                f"no space left in {folder}: found {free >> 20} MiB free; expected at least "
                f"{NEEDED_BYTES >> 20} MiB, free inodes and a file system that is not read-only. "
                "Free some space, then run again"
            )
    return ""
