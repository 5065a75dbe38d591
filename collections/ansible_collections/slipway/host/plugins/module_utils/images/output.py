# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of commands that the builder runs. Standard library of Python 3.10 only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from typing import IO, cast


def last_lines(output: str, count: int = 25) -> str:
    """Return the end of a command's output, which has the reason of a failure."""
    return "\n".join(output.strip().splitlines()[-count:])


def read_lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield the lines of PROCESS's output, and None from time to time while there is none."""
    stream = cast(IO[bytes], process.stdout)
    os.set_blocking(stream.fileno(), False)
    pending = b""
    while True:
        chunk = stream.read()
        if chunk == b"":
            break
        if chunk is None:
            yield None
            time.sleep(0.2)
            continue
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if pending:
        yield pending.decode("utf-8", "replace")
