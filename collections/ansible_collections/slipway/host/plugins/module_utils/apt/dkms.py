# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why DKMS could not build a kernel module during an installation.

dpkg only reports that a package could not be configured. DKMS names its build log, which has the
cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_LOG = re.compile(r"/var/lib/dkms/(?:\w[\w.+~-]*/)+make\.log")
# The first such line is the cause; the others follow from it.
_CAUSES = (
    re.compile(r"\*\*\* Failed .*|.*real-time kernels.*"),
    re.compile(r".*(?::|\s)(?:fatal )?error: .*|.*: (?:command )?not found.*"),
    re.compile(r".*unrecognized command[- ]line option.*"),
    re.compile(r"make(?:\[\d+\])?: \*\*\* .*"),
    re.compile(r".*\berror\b.*", re.IGNORECASE),
)
LENGTH = 300


def explain(output: str, read: Callable[[str], bytes | None]) -> Iterator[str]:
    """Yield a sentence for each failed build that OUTPUT of apt names; READ returns a file."""
    for path in dict.fromkeys(_LOG.findall(output)):
        text = (read(path) or b"").decode("utf-8", "replace")
        cause = find_cause(text)
        found = f": {cause}" if cause else " failed"
        yield f"The build of a kernel module{found}. The complete log is {path}."


def find_cause(log: str) -> str:
    """Return the line of a build LOG that tells the cause, empty without one."""
    lines = [line.strip() for line in log.splitlines()]
    for pattern in _CAUSES:
        for line in lines:
            if pattern.fullmatch(line):
                return line[:LENGTH].rstrip(".")
    return ""
