# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of single services: the others are still applied."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# Lines of `docker compose --progress=plain` about its steps: " Network lab_default  Created".
_STEP = re.compile(
    r"\s*(Network|Volume|Container|Image)\s+\S+\s+"
    r"(Creat|Start|Stopp|Remov|Recreat|Wait|Runn|Healthy|Exited|Pull|Kill|Skipp)\w*.*"
)
_PREFIX = re.compile(r"(Error response from daemon|Error|dependency failed to start): ")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONGEST_CAUSE = 800


class ServiceFailure(Exception):
    """A service cannot be as declared; the text says why.

    logs: the last lines that its containers printed.
    """

    def __init__(self, message: str, logs: str = "") -> None:
        super().__init__(message)
        self.logs = logs


def find_cause(output: str) -> str:
    """Return why compose failed: the last error of its output, or else the last line.

    Lines about steps do not count. The error of another program may have several lines.
    """
    lines = [line.strip() for line in plain_text(output).splitlines() if line.strip()]
    causes = [line for line in lines if not _STEP.fullmatch(line)] or lines or ["no output"]
    errors = [number for number, line in enumerate(causes) if _PREFIX.match(line)]
    cause = " ".join(causes[errors[-1] if errors else -1 :])
    while match := _PREFIX.match(cause):
        cause = cause[match.end() :]
    return cause[-LONGEST_CAUSE:]


def plain_text(output: str) -> str:
    """Return output without the codes that move the cursor of a terminal or set colours."""
    return _TERMINAL_CODE.sub("", output)


def last_line(text: str) -> str:
    """Return the last line that is not blank, empty if there is none."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line[-LONGEST_CAUSE:] for line in reversed(lines) if line), "")


@contextmanager
def collected(failures: list[ServiceFailure], name: str) -> Iterator[None]:
    """Add a failure of the service NAME to the list, and continue after the block."""
    try:
        yield
    except ServiceFailure as error:
        failures.append(error)
    except (OSError, LookupError, ValueError) as error:
        failures.append(ServiceFailure(f"service {name}: {error}"))
