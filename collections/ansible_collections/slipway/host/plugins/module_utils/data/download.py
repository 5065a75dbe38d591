# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file from an address: continued where it was cut, and never glued from two versions.

What there is of it lies in ``PART``, in the working folder, with ``PART.json`` beside it, which
tells by what the server recognises the version that it is of.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import bound, place
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    Meter,
    WorkError,
    amount,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

PART, NOTE = place.PART, place.PART_NOTE
CHUNK = 1 << 20
# Seconds without a byte until a connection counts as dead.
SILENCE = 60
# How often a download is taken up again without having brought a byte, and the pause between.
FRUITLESS_TRIES, PAUSE = 3, 2.0
# Answers of a server that may give it in a moment.
BUSY = (429, 500, 502, 503, 504)
CUT = (http.client.HTTPException, ConnectionError, socket.timeout, TimeoutError)


class UnreachableError(WorkError):
    """Nobody answers at an address, now."""


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but tells our headers to the host alone that they are for."""

    def redirect_request(self, req: Any, *rest: Any, **more: Any) -> Any:
        new = super().redirect_request(req, *rest, **more)
        if new and urlsplit(new.full_url)[:2] != urlsplit(req.full_url)[:2]:
            keep = {"range", "if-range", "user-agent"}
            new.headers = {k: v for k, v in new.headers.items() if k.lower() in keep}
        return new


class Source:
    """An address with what is sent to it; SHOWN is what people may read of it."""

    def __init__(self, url: str, headers: Mapping[str, str], shown: str) -> None:
        self.url, self.headers, self.shown = url, headers, shown
        self._opener = urllib.request.build_opener(_SameHost)

    def open(self, extra: Mapping[str, str] | None = None) -> Any:
        """Return the answer, which may be the refusal 416.

        Raise UnreachableError where there is none, WorkError for another refusal.
        """
        # Without compression on the way, which would have a length of its own.
        wanted = {"Accept-Encoding": "identity", **self.headers, **(extra or {})}
        request = urllib.request.Request(self.url, headers=wanted)
        try:
            return self._opener.open(request, timeout=SILENCE)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                return error
            if error.code in BUSY:
                raise UnreachableError(f"{self.shown} answers {error.code}; try later") from None
            raise WorkError(
                f"{self.shown} answers {error.code} {error.reason}; look at the address, and at "
                "headers where it wants to know who asks"
            ) from None
        except (urllib.error.URLError, *CUT, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(
                f"{self.shown} is out of reach: {reason}; run again to go on, or give the role an "
                "environment with a proxy"
            ) from None

    def size(self) -> int | None:
        """Return how large the file is, None where the server does not say."""
        with self.open() as answer:
            return _length(answer)


def fetch(source: Source, name: str, declared: int, progress: Progress) -> None:
    """Bring the file to ``PART`` in the working folder, going on where an earlier try ended.

    DECLARED is the declared unpacked size in bytes, 0 if none is declared. The download stops if it
    exceeds this size or the size that the server announced, and before the disk is full.

    Raise WorkError where it does not come, OSError where the disk is full.
    """
    fruitless = 0
    while not _is_complete(source):
        before = _size(PART)
        try:
            if _continue(source, name, declared, progress):
                return
            why = "the connection was cut"
        except (UnreachableError, *CUT) as error:
            why = str(error) or type(error).__name__
        got = _size(PART)
        fruitless = 0 if got > before else fruitless + 1
        if fruitless == FRUITLESS_TRIES:
            raise WorkError(
                f"the download of {source.shown} was cut after {amount(got)}: {why}; the next run "
                "goes on from there"
            )
        progress.say(f"{name}: cut after {amount(got)} ({why}), going on")
        time.sleep(PAUSE * fruitless)


def _continue(source: Source, name: str, declared: int, progress: Progress) -> bool:
    """Ask for what is missing and write it; return whether all is there."""
    done = _size(PART)
    known = _noted(source).get("known")
    asked = {"Range": f"bytes={done}-", "If-Range": known} if done and known else {}
    with source.open(asked) as answer:
        start, total = _span(answer)
        if answer.status == 416 and total == done:
            return True
        if answer.status == 416 or (answer.status == 206 and start != done):
            Path(PART).unlink()
            return False
        if answer.status == 206:
            progress.say(f"{name}: going on at {amount(done)} of {amount(total or 0)}")
        else:
            # The whole of it, since there was nothing yet, or the file is another by now.
            done, total = 0, _length(answer)
            _note(source, answer, total)
            progress.say(f"{name}: downloading {amount(total) if total else ''}".rstrip())
        meter = Meter(progress, f"{name}: downloaded", total, done)
        limit = _limit(name, declared, total, done)
        with Path(PART).open("ab" if done else "wb") as file:
            while True:
                chunk = answer.read(CHUNK)
                if not chunk:
                    break
                limit.add(len(chunk))
                file.write(chunk)
                meter.add(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    # A length that nobody told cannot be checked; the checksum will tell.
    return total is None or meter.done == total


class _Limit(bound.Limit):
    """Counts what a server sends."""

    def _too_much(self, found: str) -> WorkError:
        discard()
        return WorkError(
            f"cannot download {self.name}: found {found}; expected at most {amount(self.most)}, "
            f"because {self.reason}. What was written is removed again. If the file is right, "
            "declare what it takes unpacked, such as 'size: 30G'."
        )


def _limit(name: str, declared: int, total: int | None, done: int) -> _Limit:
    """Return how much may come: as much as the server said, and not more than is declared."""
    free = place.free_bytes(".") + done
    limit = _Limit(name, free, f"{amount(free)} are free on the disk")
    if declared:
        # An archive of files that do not shrink is a little larger than what is in it.
        most = int(declared * bound.ROUNDED) + bound.PADDING
        limit = _Limit(name, most, f"its declared size is {amount(declared)}")
    if total is not None and total <= limit.most:
        limit = _Limit(name, total, f"the server said that it has {amount(total)}")
    limit.written = done
    return limit


def _length(answer: Any) -> int | None:
    length = answer.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None


def _span(answer: Any) -> tuple[int | None, int | None]:
    """Return where an answer begins and how large the whole is, None where it does not say."""
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


def _note(source: Source, answer: Any, total: int | None) -> None:
    """Note what the server recognises this version by: a strong tag, else the time."""
    tag = answer.headers.get("ETag") or ""
    known = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or ""
    note = {"url": _digest(source.url), "known": known, "total": total}
    Path(NOTE).write_text(json.dumps(note), encoding="utf-8")


def _noted(source: Source) -> dict[str, Any]:
    """Return what was noted of the part, empty where it is of another address."""
    try:
        note: dict[str, Any] = json.loads(Path(NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if note["url"] == _digest(source.url) else {}


def _is_complete(source: Source) -> bool:
    total = _noted(source).get("total")
    return bool(total) and total == _size(PART)


def _digest(url: str) -> str:
    """Return what stands for an address on disk, since there may be a key in it."""
    return hashlib.sha256(url.encode()).hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def discard() -> None:
    """Remove what there is of a download."""
    for path in (PART, NOTE):
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


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk, or what somebody may use of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
