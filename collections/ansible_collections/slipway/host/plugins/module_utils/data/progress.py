# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the person who waits is told, and the errors that are for a person."""

from __future__ import annotations

import time

from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

# Work that takes longer tells from time to time how far it is; seconds.
HEARTBEAT = 15


class WorkError(Exception):
    """A tree could not be made as declared; the message says why and what to do."""


def amount(size: float) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


class Meter:
    """Tells from time to time how far one piece of work is."""

    def __init__(self, progress: Progress, doing: str, total: int | None, done: int = 0) -> None:
        self.progress, self.doing, self.total = progress, doing, total
        self.done, self.begun = done, done
        self.started = self.told = time.monotonic()

    def add(self, size: int) -> None:
        """Note SIZE more bytes."""
        self.done += size
        now = time.monotonic()
        if now - self.told < HEARTBEAT:
            return
        self.told = now
        rate = (self.done - self.begun) / (now - self.started)
        of = f" of {amount(self.total)}" if self.total else ""
        left = ""
        if self.total and rate:
            left = f", {max(0, self.total - self.done) / rate / 60:.0f} min left"
        self.progress.say(f"{self.doing}: {amount(self.done)}{of}, {amount(rate)}/s{left}")
