# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of installed packages that were changed or removed, by ``dpkg --verify``."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

DPKG = Path("/etc/dpkg")
TIMEOUT = 300
# More names do not help anybody.
MAX_SHOWN = 5
# "??5?????? c /etc/x" or "missing   c /etc/x (Permission denied)"; c marks a configuration file.
_LINE = re.compile(r"(?P<what>missing|[?.M5-]{9}|\S{9})\s+(?P<kind>[a-z] )?(?P<path>/.*)")


def check_files(packages: Sequence[str]) -> str:
    """Return a sentence; raise ValueError with the package and each file that differs."""
    installed = _installed(packages)
    if not installed:
        return "not applicable: no declared package is installed"
    done = _run(["dpkg", "--verify", *installed])
    if done.returncode != 0 and not done.stdout.strip():
        raise ValueError(f"dpkg --verify failed: {done.stderr.strip() or done.returncode}")
    differences = list(parse(done.stdout, _exclusions()))
    if not differences:
        return f"all files of {len(installed)} packages are as installed"
    owners = _owners([path for path, _what in differences])
    found = [f"{owners.get(path, '?')}: {path} {what}" for path, what in differences]
    more = len(found) - MAX_SHOWN
    shown = "; ".join(found[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    names = sorted({owners[path] for path, _what in differences if path in owners})
    raise ValueError(
        f"{shown}; expected the files as installed. Reinstall: apt-get install --reinstall "
        f"--allow-change-held-packages {' '.join(names)}"
    )


def parse(output: str, exclusions: Sequence[tuple[bool, str]]) -> Iterator[tuple[str, str]]:
    """Yield path and difference of each file that ``dpkg --verify`` prints.

    Configuration files are left out, because an administrator may change them, and so are missing
    files that EXCLUSIONS keep from being installed.
    """
    for line in output.splitlines():
        match = _LINE.match(line)
        if match is None or (match["kind"] or "").strip() == "c":
            continue
        path = re.sub(r" \([^()]*\)$", "", match["path"])
        if match["what"] != "missing":
            yield path, "was changed"
        elif not is_excluded(path, exclusions):
            yield path, "is missing"


def is_excluded(path: str, exclusions: Sequence[tuple[bool, str]]) -> bool:
    """Return whether dpkg does not install a path; the last matching pattern decides."""
    decisions = [excluded for excluded, pattern in exclusions if fnmatch(path, pattern)]
    return bool(decisions) and decisions[-1]


def read_exclusions(texts: Iterable[str]) -> list[tuple[bool, str]]:
    """Return the patterns of ``path-exclude`` (true) and ``path-include`` in dpkg's settings."""
    return [
        (match[1] == "exclude", match[2].strip("\"'"))
        for text in texts
        for line in text.splitlines()
        if (match := re.match(r"\s*path-(exclude|include)[=\s]\s*(\S+)", line))
    ]


def _exclusions() -> list[tuple[bool, str]]:
    files = [DPKG / "dpkg.cfg", *sorted((DPKG / "dpkg.cfg.d").glob("*"))]
    return read_exclusions(file.read_text("utf-8", "replace") for file in files if file.is_file())


def _installed(packages: Sequence[str]) -> list[str]:
    if not packages:
        return []
    form = "--showformat=${db:Status-Status} ${binary:Package}\n"
    lines = _run(["dpkg-query", "--show", form, *packages]).stdout.splitlines()
    return sorted(line.split(" ", 1)[1] for line in lines if line.startswith("installed "))


def _owners(paths: Sequence[str]) -> dict[str, str]:
    """Return the package of each path."""
    found = {}
    for line in _run(["dpkg-query", "--search", *paths]).stdout.splitlines():
        names, _, path = line.partition(": /")
        if path and not names.startswith("diversion by"):
            found[f"/{path}"] = names.split(", ")[0]
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
    )
