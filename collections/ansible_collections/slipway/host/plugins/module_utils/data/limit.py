# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits for unpacking: an archive can expand a thousandfold, and a download may never end."""

from __future__ import annotations

import errno
import os

from ansible_collections.slipway.host.plugins.module_utils.data import disk
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    TreeError,
    format_size,
)

# Tolerance for a declared size, which may be rounded.
ROUNDED, SMALL = 1.1, 1 << 20
# Without a declared size: text and labels shrink to a fiftieth, and small archives vary.
RATIO, FLOOR = 100, 32 << 20
ENTRIES, LINKS = 20_000_000, 1_000_000
# Bytes of headers and padding in an uncompressed archive, in addition to the files.
HEADERS, PADDING = 4096, 64 << 20
# Numbers of bytes and entries between two checks of the free space.
BYTES_PER_CHECK, ENTRIES_PER_CHECK = 1 << 20, 500
DECLARE_SIZE = "declare its unpacked size, such as 'size: 30G'"


class Limit:
    """Counts what is written into the working folder; raises TreeError above the limit."""

    def __init__(self, name: str, max_bytes: int, reason: str) -> None:
        self.name, self.max_bytes, self.reason = name, max_bytes, reason
        self.written = self.streamed = self.entries = self.links = 0
        self._checked_at = 0

    def add(self, size: int) -> None:
        """Count SIZE bytes before they are written.

        Raise OSError, as a full disk does, before the disk is full.
        """
        self.written += size
        if self.written > self.max_bytes:
            raise self._exceeded(f"more than {format_size(self.max_bytes)}")
        if self.written - self._checked_at >= BYTES_PER_CHECK:
            self._checked_at = self.written
            if disk.free_bytes(".") < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def add_streamed(self, size: int) -> None:
        """Count SIZE bytes of the uncompressed archive, including headers and padding."""
        self.streamed += size
        if self.streamed > self.max_bytes + HEADERS * self.entries + PADDING:
            raise self._exceeded(f"more than {format_size(self.streamed)} in the archive")

    def add_entry(self, is_link: bool = False) -> None:
        """Count one entry of the archive."""
        self.entries += 1
        self.links += is_link
        if self.entries > ENTRIES or self.links > LINKS:
            raise TreeError(
                f"cannot unpack {self.name}: found more than {ENTRIES} entries or {LINKS} links; "
                "expected fewer. Split the archive, or use 'unpack: false'."
            )
        if self.entries % ENTRIES_PER_CHECK == 0 and disk.free_inodes(".") == 0:
            raise OSError(errno.ENOSPC, "No space for more files on device")

    def _exceeded(self, found: str) -> TreeError:
        return TreeError(
            f"cannot unpack {self.name}: found {found}; expected at most "
            f"{format_size(self.max_bytes)}, because {self.reason}. If the archive is correct, "
            f"{DECLARE_SIZE}."
        )


def for_archive(name: str, declared: int, archive_size: int) -> Limit:
    """Return the limit for the content of an archive, from its declared or its own size."""
    if declared:
        max_bytes = int(declared * ROUNDED) + SMALL
        return Limit(name, max_bytes, f"its declared size is {format_size(declared)}")
    max_bytes = max(FLOOR, RATIO * archive_size)
    reason = f"its archive has {format_size(archive_size)} and no size is declared"
    return Limit(name, max_bytes, reason)
