# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of reports on the controller: a JSON file for each host, and index.html."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible_collections.slipway.host.plugins.plugin_utils.fleet import form, history

PAGE = "index.html"
SUFFIX = ".json"
# Longer names of files are shortened: file systems allow 255 bytes.
MAX_NAME = 200
Warn = Callable[[str], None]


def file_name(host: str) -> str:
    """Return the name of the file of a HOST; no name leaves the folder or is hidden in it."""
    name = quote(host, safe="")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}~{hashlib.sha256(host.encode()).hexdigest()[:16]}"
    return name + SUFFIX


def parse(text: str) -> dict[str, Any]:
    """Return the report in a TEXT; raise ValueError with the reason if it is damaged."""
    try:
        report = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(report, dict) or report.get("schema") != history.SCHEMA:
        raise ValueError(f"no report; expected the schema {history.SCHEMA}")
    if report.get("version") != history.VERSION:
        raise ValueError(f"version {report.get('version')!r}; expected {history.VERSION}")
    if mismatch := form.find_mismatch(report, form.REPORT):
        raise ValueError(f"another form of {mismatch}")
    return report


def replace_file(path: Path, text: str, mode: int) -> None:
    """Write a file at once: a reader sees the old or the new one. Raise OSError.

    The name of the temporary file is short: that of the file may be as long as names can be.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".slipway.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(descriptor, mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Store:
    """A folder of reports. WARN gets a sentence for each file that cannot be used."""

    def __init__(self, folder: Path, warn: Warn) -> None:
        self.folder = folder
        self.warn = warn

    @property
    def page(self) -> Path:
        """Return the path of the page."""
        return self.folder / PAGE

    def read(self, name: str) -> dict[str, Any]:
        """Return the report in a file, empty if there is none; warn if it is damaged."""
        file = self.folder / name
        try:
            return parse(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.warn(
                f"report {file}: cannot be used: {error}; expected the report of a host. The next "
                "run on the host replaces the file; the history of the host begins again."
            )
            return {}

    def read_all(self) -> list[dict[str, Any]]:
        """Return the reports of all hosts, by the names of their files."""
        names = sorted(file.name for file in self.folder.glob(f"*{SUFFIX}"))
        return [report for name in names if (report := self.read(name))]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder if it is missing; let no other process write to it meanwhile."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.folder / ".lock"
        lock.touch(mode=0o600)
        with lock.open("a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder at once: a reader sees the old or the new one.

        A user who can read the folder can read the file.
        """
        mode = self.folder.stat().st_mode & 0o644 | 0o600
        replace_file(self.folder / name, text, mode)

    def update(self, host: str, run: Mapping[str, Any], now: datetime) -> None:
        """Write the report of a HOST after a RUN, see :func:`history.update`."""
        name = file_name(host)
        report = history.update(self.read(name), host, run, now)
        text = json.dumps(report, ensure_ascii=False, separators=(",", ":"))
        self.write(name, text + "\n")
