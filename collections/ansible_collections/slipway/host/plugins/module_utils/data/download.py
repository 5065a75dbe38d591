# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download a file, and continue an interrupted download of the same version.

The downloaded part is the file ``PART`` in the working folder. The file ``RECORD`` has the tag or
the time by which the server recognises the version of this part.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import disk, limit, staging
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    Meter,
    TreeError,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

PART, RECORD = staging.PART, staging.PART_RECORD
CHUNK = 1 << 20
# Seconds without data after which a connection counts as lost.
TIMEOUT = 60
# Number of tries without a new byte before the download fails, and seconds between two tries.
MAX_TRIES, PAUSE = 3, 2.0
# Status codes of a server that may answer later.
BUSY = (429, 500, 502, 503, 504)
INTERRUPTED = (http.client.HTTPException, ConnectionError, TimeoutError)


class UnreachableError(TreeError):
    """A server does not answer at present."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but sends the declared headers only to the declared host."""

    def redirect_request(self, req: Any, *rest: Any, **more: Any) -> Any:
        new = super().redirect_request(req, *rest, **more)
        if new and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            allowed = {"range", "if-range", "user-agent"}
            new.headers = {k: v for k, v in new.headers.items() if k.lower() in allowed}
        return new


class Source:
    """An URL and the headers for it; SHOWN is the URL without secrets, for messages."""

    def __init__(self, url: str, headers: Mapping[str, str], shown: str) -> None:
        self.url, self.headers, self.shown = url, headers, shown
        self._opener = urllib.request.build_opener(_SameHost)

    def open(self, extra: Mapping[str, str] | None = None) -> Any:
        """Return the answer, whose status may be 416 (range not satisfiable).

        Raise UnreachableError if the server does not answer, TreeError for another error status.
        """
        # Content-Length of a compressed answer would not be the size of the file.
        headers = {"Accept-Encoding": "identity", **self.headers, **(extra or {})}
        request = urllib.request.Request(self.url, headers=headers)
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error
            if error.code in BUSY:
                raise UnreachableError(f"{self.shown} answered {error.code}. Try later.") from None
            raise TreeError(
                f"{self.shown} answered {error.code} {error.reason}. Check 'url', and 'headers' if "
                "the server requires a login."
            ) from None
        except (urllib.error.URLError, *INTERRUPTED, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(
                f"cannot reach {self.shown}: {reason}. Run again to continue, or set a proxy in "
                "the environment of the role."
            ) from None

    def size(self) -> int | None:
        """Return the size of the file, None if the server does not send it."""
        with self.open() as answer:
            return _length(answer)


def fetch(source: Source, name: str, declared: int, progress: Progress) -> None:
    """Download the file to ``PART`` in the working folder, and continue an earlier download.

    DECLARED is the declared unpacked size in bytes, 0 if none is declared. The download stops if it
    exceeds this size or the size that the server announced, and before the disk is full.

    Raise TreeError if the download fails, OSError if the disk is full.
    """
    failed_tries = 0
    while not _is_complete(source):
        before = _size(PART)
        try:
            if _continue(source, name, declared, progress):
                return
            reason = "connection lost"
        except (UnreachableError, *INTERRUPTED) as error:
            reason = str(error).rstrip(".") or type(error).__name__
        size = _size(PART)
        failed_tries = 0 if size > before else failed_tries + 1
        if failed_tries == MAX_TRIES:
            raise TreeError(
                f"the download of {source.shown} was interrupted after {format_size(size)}: "
                f"{reason}. Run again to continue the download."
            )
        progress.say(f"{name}: interrupted after {format_size(size)} ({reason}), trying again")
        time.sleep(PAUSE * failed_tries)


def _continue(source: Source, name: str, declared: int, progress: Progress) -> bool:
    """Request the missing part and write it; return whether the file is complete."""
    done = _size(PART)
    version = _read_record(source).get("version")
    headers = {"Range": f"bytes={done}-", "If-Range": version} if done and version else {}
    with source.open(headers) as answer:
        start, total = _span(answer)
        if answer.status == 416 and total == done:
            return True
        if answer.status == 416 or (answer.status == 206 and start != done):
            Path(PART).unlink()
            return False
        if answer.status == 206:
            progress.say(f"{name}: continuing at {format_size(done)} of {format_size(total or 0)}")
        else:
            # Download the complete file: no part of it is here, or the server has another file now.
            done, total = 0, _length(answer)
            _write_record(source, answer, total)
            progress.say(f"{name}: downloading {format_size(total) if total else ''}".rstrip())
        meter = Meter(progress, f"{name}: downloaded", total, done)
        size_limit = _limit(name, declared, total, done)
        with Path(PART).open("ab" if done else "wb") as file:
            while True:
                chunk = answer.read(CHUNK)
                if not chunk:
                    break
                size_limit.add(len(chunk))
                file.write(chunk)
                meter.add(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    # Without a known size, only the checksum can show whether the file is complete.
    return total is None or meter.done == total


class _Limit(limit.Limit):
    """Counts the bytes that a server sends."""

    def _exceeded(self, found: str) -> TreeError:
        discard()
        return TreeError(
            f"cannot download {self.name}: found {found}; expected at most "
            f"{format_size(self.max_bytes)}, because {self.reason}. The download was deleted. If "
            f"the file is correct, {limit.DECLARE_SIZE}."
        )


def _limit(name: str, declared: int, total: int | None, done: int) -> _Limit:
    """Return the limit of a download: the announced size, the declared size, or the free space."""
    free = disk.free_bytes(".") + done
    result = _Limit(name, free, f"the disk has {format_size(free)} free")
    if declared:
        # An archive of files that do not compress is slightly larger than its content.
        max_bytes = int(declared * limit.ROUNDED) + limit.PADDING
        result = _Limit(name, max_bytes, f"its declared size is {format_size(declared)}")
    if total is not None and total <= result.max_bytes:
        result = _Limit(name, total, f"the server announced {format_size(total)}")
    result.written = done
    return result


def _length(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _span(answer: Any) -> tuple[int | None, int | None]:
    """Return the first byte of an answer and the size of the complete file, None if unknown."""
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range") or ""
    )
    if not match:
        return None, None
    start, total = match.groups()
    return (
        int(start) if start is not None else None,
        int(total) if total.isdigit() else None,
    )


def _write_record(source: Source, answer: Any, total: int | None) -> None:
    """Record the version of the file: its strong entity tag, or else its time of change."""
    tag = answer.headers.get("ETag") or ""
    is_strong = tag and not tag.startswith("W/")
    version = tag if is_strong else answer.headers.get("Last-Modified") or ""
    record = {"url": _digest(source.url), "version": version, "total": total}
    Path(RECORD).write_text(json.dumps(record), encoding="utf-8")


def _read_record(source: Source) -> dict[str, Any]:
    """Return the record of the downloaded part, empty if the part is from another URL."""
    try:
        record: dict[str, Any] = json.loads(Path(RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if record["url"] == _digest(source.url) else {}


def has_begun(source: Source) -> bool:
    """Return whether a part of this file is in the working folder."""
    return bool(_read_record(source)) and _size(PART) > 0


def _is_complete(source: Source) -> bool:
    total = _read_record(source).get("total")
    return bool(total) and total == _size(PART)


def _digest(url: str) -> str:
    """Return the digest of an URL for the record; the URL itself may contain a secret."""
    return hashlib.sha256(url.encode()).hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def discard() -> None:
    """Delete the downloaded part and its record."""
    for path in (PART, RECORD):
        Path(path).unlink(missing_ok=True)


def digest(archive: int, algorithm: str, name: str, progress: Progress) -> str:
    """Return the hexadecimal digest of an opened file."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    meter = Meter(progress, f"{name}: checked", os.fstat(archive).st_size)
    os.lseek(archive, 0, os.SEEK_SET)
    with open(archive, "rb", closefd=False) as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            meter.add(len(chunk))
    return hasher.hexdigest()
