# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Standard output and standard error of a run: text goes to the terminal and to a log.

Ansible starts its workers by a fork while this process has several threads. So each write holds the
lock that Ansible holds during a fork: no worker inherits a half-written line.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from ansible_collections.slipway.host.plugins.module_utils.state import report

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Control characters of hosts: who shows the log in a terminal sees only text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
KEPT_LOGS = 20
LOG, SCREEN = "log", "screen"


class View(Protocol):
    """What stands below the text on a terminal, see :class:`view_terminal.Region`."""

    def draw(self) -> None:
        """Draw the view."""

    def erase(self) -> None:
        """Remove the view."""


class Log:
    """A new file with everything that an ordinary run prints; only its owner can read it."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        began = time.strftime("%Y-%m-%dT%H-%M-%S")
        self.path = folder / f"{began}-{name}-{os.getpid()}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o600)
        for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Add text without colours, escaped; a full disk does not stop the run."""
        with contextlib.suppress(OSError):
            plain = _CONTROL.sub(_escape, _COLOUR.sub("", text))
            os.write(self._file, plain.encode("utf-8", "replace"))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class Output:
    """Text and view of a run; LOCK is the lock of Ansible's display."""

    def __init__(self, lock: Any, log: Log | None) -> None:
        self.lock = lock
        self.log = log
        self.view: View | None = None
        # Whether lines of text break between words at the width of the terminal.
        self.is_wrapped = False
        # Whether the last text had no end of line: a question that waits for its answer.
        self.is_open = False
        # Whether Ansible asks a question now.
        self.is_paused = False
        self._thread = threading.local()
        self.terminal = sys.stdout

    def install(self) -> None:
        """Put this output in the place of the standard streams."""
        self.terminal = sys.stdout
        sys.stdout = Stream(self, sys.stdout)
        sys.stderr = Stream(self, sys.stderr)

    @contextmanager
    def only(self, *targets: str) -> Iterator[None]:
        """Write what this thread prints only to TARGETS: LOG, SCREEN or both."""
        before = self._targets()
        self._thread.targets = targets
        try:
            yield
        finally:
            self._thread.targets = before

    def _targets(self) -> tuple[str, ...]:
        targets: tuple[str, ...] = getattr(self._thread, "targets", (LOG, SCREEN))
        return targets

    def write(self, stream: TextIO, text: str) -> None:
        """Write text above the view."""
        targets = self._targets()
        if self.log and LOG in targets:
            self.log.write(text)
        if SCREEN not in targets or not text:
            return
        # Lines with colours are those of Ansible, which breaks them by itself.
        if self.is_wrapped and "\x1b" not in text:
            text = report.wrap(text, shutil.get_terminal_size().columns)
        with self.lock:
            if self.view:
                self.view.erase()
            stream.write(text)
            self.is_open = not text.endswith("\n")
            if self.view:
                stream.flush()
                self.draw()

    def draw(self) -> None:
        """Draw the view, unless a question waits for its answer."""
        if self.view and not self.is_open and not self.is_paused:
            with self.lock:
                self.view.draw()

    def remove_view(self) -> None:
        """Remove the view for good."""
        with self.lock:
            if self.view:
                self.view.erase()
            self.view = None


class Stream:
    """A standard stream whose text goes to an output; everything else is that of the original."""

    def __init__(self, output: Output, original: TextIO) -> None:
        self._output = output
        self._original = original

    def write(self, text: str) -> int:
        """Write text."""
        self._output.write(self._original, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
