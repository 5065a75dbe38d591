# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file with one line: what a program of Slipway does now. The controller reads it meanwhile.

See :mod:`plugin_utils.host_progress`. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from pathlib import Path

# A file in memory, in a folder of root: modules write it often.
PATH = "/run/slipway/progress"
# Seconds between two changes of the file.
INTERVAL = 0.3
MAX_TEXT = 300


class Status:
    """Writes the file; it has the process ID of the writer, because a killed one leaves it."""

    def __init__(self, path: str = PATH) -> None:
        self.path = Path(path)
        self._written = 0.0
        self._exists = False

    def show(self, text: str, force: bool = False) -> None:
        """Replace the line, at most every INTERVAL; FORCE: the start of a step is always shown.

        A host without space for the line goes on without it.
        """
        now = time.monotonic()
        if now - self._written < INTERVAL and not force:
            return
        self._written = now
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        line = " ".join(text.split())[:MAX_TEXT]
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(f"{os.getpid()} {line}\n", encoding="utf-8", errors="replace")
            new.replace(self.path)
            if not self._exists:
                self._exists = True
                atexit.register(self.remove)

    def remove(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()
