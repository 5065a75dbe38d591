# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much an archive may become: an archive can grow a thousandfold, and a server never end."""

from __future__ import annotations

import errno
import os

from ansible_collections.slipway.host.plugins.module_utils.data import place
from ansible_collections.slipway.host.plugins.module_utils.data.progress import WorkError, amount

# A declared size is rounded by whoever declared it.
ROUNDED, SMALL = 1.1, 1 << 20
# Without a declared size: text and labels shrink to a fiftieth, and small archives vary.
RATIO, FLOOR = 100, 32 << 20
ENTRIES, LINKS = 20_000_000, 1_000_000
# A stream holds headers and padding beside the files.
HEADERS, PADDING = 4096, 64 << 20
# The disk is looked at after so many bytes or entries.
BYTES_PER_LOOK, ENTRIES_PER_LOOK = 1 << 20, 500


def of_archive(name: str, declared: int, archive: int) -> Limit:
    """Return how much an archive may hold, from its declared size or that of the archive."""
    if declared:
        most = int(declared * ROUNDED) + SMALL
        return Limit(name, most, f"its declared size is {amount(declared)}")
    most = max(FLOOR, RATIO * archive)
    return Limit(name, most, f"its archive has {amount(archive)} and no size is declared")


class Limit:
    """Counts what is unpacked into the working folder; raises WorkError where it is too much."""

    def __init__(self, name: str, most: int, reason: str) -> None:
        self.name, self.most, self.reason = name, most, reason
        self.written = self.streamed = self.entries = self.links = 0
        self._looked_at = 0

    def add(self, size: int) -> None:
        """Count SIZE bytes before they are written.

        Raise OSError, as a full disk does, before the disk is full.
        """
        self.written += size
        if self.written > self.most:
            raise self._too_much(f"more than {amount(self.most)}")
        if self.written - self._looked_at >= BYTES_PER_LOOK:
            self._looked_at = self.written
            if place.free_bytes(".") < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stream(self, size: int) -> None:
        """Count SIZE bytes of the uncompressed archive, whatever they are."""
        self.streamed += size
        if self.streamed > self.most + HEADERS * self.entries + PADDING:
            raise self._too_much(f"more than {amount(self.streamed)} in the archive")

    def entry(self, link: bool = False) -> None:
        """Count one entry of the archive."""
        self.entries += 1
        self.links += link
        if self.entries > ENTRIES or self.links > LINKS:
            raise WorkError(
                f"cannot unpack {self.name}: found more than {ENTRIES} entries or {LINKS} links; "
                "expected fewer. Split the archive, or use 'unpack: false'."
            )
        if self.entries % ENTRIES_PER_LOOK == 0 and place.free_names(".") == 0:
            raise OSError(errno.ENOSPC, "No room for more files on device")

    def _too_much(self, found: str) -> WorkError:
        return WorkError(
            f"cannot unpack {self.name}: found {found}; expected at most {amount(self.most)}, "
            f"because {self.reason}. If the archive is right, declare what it takes unpacked, such "
            "as 'size: 30G'."
        )
