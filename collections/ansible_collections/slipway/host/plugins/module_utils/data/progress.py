# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress lines and error messages of the worker for data sets and repositories."""

from __future__ import annotations

import time

from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

# Seconds between two progress lines of one step.
INTERVAL = 15
# Seconds between two texts for the view of a run.
SHOWN_INTERVAL = 0.5


class TreeError(Exception):
    """A tree could not be installed, updated or removed; the message says why and what to do."""


def format_size(size: float) -> str:
    """Return a number of bytes with a decimal unit, such as ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def escape(text: str, limit: int = 2000) -> str:
    """Return text for a terminal: control characters escaped, at most LIMIT characters.

    Names in archives, in repositories and on disks may have any character but a slash and a zero.
    """
    return escape_control(text if len(text) <= limit else text[:limit] + " ...")


class EscapedProgress(Progress):
    """Progress whose lines may contain names from archives and disks, see :func:`escape`."""

    def say(self, line: str) -> None:
        """Write a line, escaped, and flush it."""
        super().say(escape(line))


class Meter:
    """Reports at intervals how much of a step is done."""

    def __init__(self, progress: Progress, activity: str, total: int | None, done: int = 0) -> None:
        self.progress, self.activity, self.total = progress, activity, total
        self.done, self.done_before = done, done
        self.started = self.reported = self.shown = time.monotonic()

    def add(self, size: int) -> None:
        """Count SIZE more bytes."""
        self.done += size
        now = time.monotonic()
        if now - self.shown < min(SHOWN_INTERVAL, INTERVAL):
            return
        self.shown = now
        line = self._describe(now)
        self.progress.now(line)
        if now - self.reported >= INTERVAL:
            self.reported = now
            self.progress.say(line)

    def _describe(self, now: float) -> str:
        rate = (self.done - self.done_before) / (now - self.started)
        of_total = f" of {format_size(self.total)}" if self.total else ""
        time_left = ""
        if self.total and rate:
            time_left = f", {max(0, self.total - self.done) / rate / 60:.0f} min left"
        done = format_size(self.done)
        return f"{self.activity}: {done}{of_total}, {format_size(rate)}/s{time_left}"
