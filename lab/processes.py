# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identify processes of this machine, wait for conditions, and hold lock files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.errors import LabError

LOCK_SECONDS = 900.0


def process_name(pid: int) -> str | None:
    """Return the name of a live process of this machine, None when there is none.

    Processes of containers do not count: engines inside throwaway hosts are visible here too.
    """
    try:
        same_namespace = (
            Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        )
    except OSError:
        return None
    stat = _process_stat(pid) if same_namespace else None
    return stat[0] if stat else None


def process_start(pid: int) -> str | None:
    """Return the start time of a live process, in clock ticks since boot (proc_pid_stat(5))."""
    stat = _process_stat(pid)
    return stat[1] if stat else None


def _process_stat(pid: int) -> tuple[str, str] | None:
    """Return name and start time of a live process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may contain any character.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] == "Z" else (name, fields[19])


def wait_until(test: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Call `test` repeatedly; return whether it became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not test():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def runtime_folder() -> Path:
    """Return the folder that all checkouts share until this machine restarts."""
    if os.geteuid() == 0:
        return Path("/run/slipway")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "slipway"


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock file `path` until the block or the process ends.

    Raises LabError when another process holds the lock for longer than `seconds`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as handle:
        if not wait_until(lambda: _try_lock(handle.fileno()), seconds, pause=0.5):
            raise LabError(
                f"cannot lock {path}: another process has held the lock for {seconds:g} s."
                f" End that process (see `fuser {path}`), then run again."
            )
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
