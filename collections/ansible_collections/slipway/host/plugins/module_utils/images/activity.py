# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the builder does now, and how much the host receives meanwhile.

Standard library of Python 3.10 only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.data.progress import format_size
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

COUNTERS = "/proc/net/dev"
# Interfaces whose traffic stays on the host, or is counted by another interface too.
INNER = ("lo", "veth", "br-", "docker")
INTERVAL = 1.0
# Bytes; less is not worth a word.
LEAST = 1_000_000


def received(counters: str) -> int:
    """Return how many bytes the host has received, from the text of /proc/net/dev."""
    total = 0
    for line in counters.splitlines():
        name, colon, numbers = line.partition(":")
        if colon and not name.strip().startswith(INNER):
            total += int(numbers.split()[0])
    return total


def describe(seconds: float, usual: float | None, size: int, rate: float) -> str:
    """Return how long a build takes, how long it takes as a rule, and what the host received."""
    parts = [f"{seconds:.0f} s"]
    if usual:
        parts[0] += f" (as a rule {usual:.0f} s)"
    if size >= LEAST:
        parts.append(f"received {format_size(size)}, now {format_size(rate)}/s")
    return ", ".join(parts)


class Activities:
    """The builds that run now; a thread shows them once a second."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._texts: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._usual: dict[str, float | None] = {}
        self._first = self._last = self._read()
        self._rate = 0.0

    def begin(self, name: str, usual: float | None) -> None:
        """Begin a build that took USUAL seconds the last time."""
        self._began[name], self._usual[name] = time.monotonic(), usual
        self._texts[name] = "starting"

    def set(self, name: str, text: str) -> None:
        """Set what a build does now."""
        self._texts[name] = text

    def end(self, name: str) -> None:
        """End a build."""
        for values in (self._texts, self._began, self._usual):
            values.pop(name, None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the activities while the block runs."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(INTERVAL):
                self.show()

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def show(self) -> None:
        """Show the activities once."""
        now = self._read()
        self._rate, self._last = (now - self._last) / INTERVAL, now
        texts = [f"{name}: {self.state(name)}: {text}" for name, text in [*self._texts.items()]]
        if texts:
            self.progress.now("; ".join(texts))

    def state(self, name: str) -> str:
        """Return the time of a build, and what the host received since the builder began."""
        seconds = time.monotonic() - self._began.get(name, time.monotonic())
        return describe(seconds, self._usual.get(name), self._last - self._first, self._rate)

    @staticmethod
    def _read() -> int:
        try:
            return received(Path(COUNTERS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
