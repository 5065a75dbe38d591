# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The progress of apt: what it writes to the file descriptor of ``APT::Status-Fd``."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# dlstatus:3:25.1:Retrieving file 3 of 12 (4s remaining)
# pmstatus:docker.io:45.2:Unpacking docker.io (amd64)
_LINE = re.compile(r"(?:dl|pm)status:[^:]*(?::\w+)?:(?P<percent>\d+(?:\.\d+)?):(?P<text>.+)")
# Seconds between two looks whether apt has ended: a service that it starts may keep its end open.
PAUSE = 0.2


def parse(line: str) -> str:
    """Return a line as a text for people, empty for a line without progress."""
    match = _LINE.fullmatch(line.strip())
    return f"apt: {match['text']}, {float(match['percent']):.0f} %" if match else ""


@contextmanager
def follow(show: Callable[[str], None]) -> Iterator[int]:
    """Yield a file descriptor for apt; call SHOW with each progress that apt writes there."""
    reading, writing = os.pipe()
    ended = threading.Event()

    def read() -> None:
        pending = b""
        while not ended.is_set():
            if not select.select([reading], [], [], PAUSE)[0]:
                continue
            chunk = os.read(reading, 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            texts = [parse(line.decode("utf-8", "replace")) for line in lines]
            for text in list(filter(None, texts))[-1:]:
                show(text)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        ended.set()
        os.close(writing)
        thread.join()
        os.close(reading)
