# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive into an empty folder that only root can enter, which is the working folder.

Whatever is in it, nothing is written outside: names lead down, links are made when everything else
is there, so nothing is written through one, and none may lead out.  Only files, folders and links
are made; owners and modes of the archive do not count, but a program stays one.  What is written is
counted while it is written, see :mod:`bound`.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ansible_collections.slipway.host.plugins.module_utils.data.bound import Limit
from ansible_collections.slipway.host.plugins.module_utils.data.progress import Meter, WorkError
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

ZIP, ZSTD, GZIP, BZIP2, XZ, TAR = "zip", "zstd", "gzip", "bzip2", "xz", "tar"
# What a file begins with.
MAGIC = {
    b"PK\x03\x04": ZIP,
    b"PK\x05\x06": ZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"\x1f\x8b": GZIP,
    b"BZh": BZIP2,
    b"\xfd7zXZ": XZ,
    b"\x5d\x00\x00": XZ,
}
CHUNK = 1 << 20
ENCRYPTED = 1
# So many chunks are read after the end of a tar archive.
AFTER_END = 64
# Linux knows no longer path, and follows no more links.
LONGEST_PATH, MAX_LINKS = 4096, 40


@dataclass(frozen=True)
class Member:
    """One thing in an archive; NAME is what is left after stripping, empty for the top."""

    name: str
    kind: str
    size: int
    mtime: float
    program: bool
    target: str
    source: Any


@contextmanager
def _opened(archive: int) -> Iterator[IO[bytes]]:
    """Open the archive behind a descriptor from its beginning."""
    os.lseek(archive, 0, os.SEEK_SET)
    with open(archive, "rb", closefd=False) as file:
        yield file


def kind_of(archive: int) -> str:
    """Return what an opened archive is, by its content."""
    begins = os.pread(archive, 8, 0)
    return next((kind for magic, kind in MAGIC.items() if begins.startswith(magic)), TAR)


def size_of(archive: int) -> int | None:
    """Return how large an archive says it is unpacked, None where only unpacking would tell."""
    kind = kind_of(archive)
    if kind == ZIP:
        with _opened_zip(archive) as opened:
            return sum(info.file_size for info in opened.infolist())
    is_tar = kind == TAR and os.pread(archive, 5, 257) == b"ustar"
    return os.fstat(archive).st_size if is_tar else None


def unpack(archive: int, strip: int, name: str, limit: Limit, progress: Progress) -> None:
    """Unpack an opened archive into the working folder.

    Raise WorkError where it holds what it must not, OSError where the disk is full.
    """
    meter = Meter(progress, f"{name}: unpacked", size_of(archive))
    if kind_of(archive) == ZIP:
        with _opened_zip(archive) as opened:
            _write(_zip_members(opened, strip), opened.open, limit, meter)
        return
    with _opened_tar(archive, limit) as tar:
        _write(_tar_members(tar, strip), tar.extractfile, limit, meter)


@contextmanager
def _opened_zip(archive: int) -> Iterator[zipfile.ZipFile]:
    try:
        with _opened(archive) as file, zipfile.ZipFile(file) as opened:
            yield opened
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise WorkError(f"the archive cannot be read as zip: {error}") from error


class _Counted:
    """The uncompressed archive, each byte counted."""

    def __init__(self, stream: IO[bytes], limit: Limit) -> None:
        self.stream, self.limit = stream, limit

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        found = self.stream.read(size)
        self.limit.stream(len(found))
        return found


@contextmanager
def _opened_tar(archive: int, limit: Limit) -> Iterator[tarfile.TarFile]:
    try:
        with _opened(archive) as file, _uncompressed(file, kind_of(archive)) as stream:
            # A stream: a look for the next member would otherwise read everything twice.
            counted: Any = _Counted(stream, limit)
            with tarfile.open(fileobj=counted, mode="r|", bufsize=1 << 16) as tar:
                yield tar
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise WorkError(
            f"the archive cannot be read as tar: {error}; with 'unpack: false' it is put there as "
            "the file that it is"
        ) from error


@contextmanager
def _uncompressed(file: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    if kind == ZSTD:
        with _zstd(file) as stream:
            yield stream
        return
    opener: Any = {GZIP: gzip.open, BZIP2: bz2.open, XZ: lzma.open}.get(kind)
    if opener is None:
        yield file
        return
    with opener(file) as stream:
        yield stream


@contextmanager
def _zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if not shutil.which("zstd"):
        raise WorkError("the archive is compressed by zstd, which is not here: install zstd")
    with subprocess.Popen(["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
            # To its end, so that a damaged archive is seen; what comes after a tar may be endless.
            ends = any(not process.stdout.read(CHUNK) for _ in range(AFTER_END))
        except BaseException:
            process.kill()
            raise
        if not ends:
            process.kill()
    if ends and process.returncode:
        raise WorkError("zstd cannot read the archive to its end")


def _zip_members(archive: zipfile.ZipFile, strip: int) -> Iterator[Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = "link" if stat.S_ISLNK(mode) else "folder" if info.is_dir() else "file"
        if info.flag_bits & ENCRYPTED:
            raise WorkError(f"{info.filename} in the archive is encrypted")
        if kind == "link" and info.file_size > LONGEST_PATH:
            raise WorkError(f"{info.filename} in the archive is a link that is too long")
        try:
            mtime = time.mktime((*info.date_time, 0, 0, -1))
        except (ValueError, OverflowError):
            mtime = 0.0
        yield Member(
            _stripped(info.filename, strip, kind),
            kind,
            info.file_size,
            mtime,
            bool(mode & stat.S_IXUSR),
            os.fsdecode(archive.read(info)) if kind == "link" else "",
            info,
        )


def _tar_members(archive: tarfile.TarFile, strip: int) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        # It would remember each, and there may be millions.
        archive.members.clear()  # type: ignore[attr-defined]
        target = info.linkname
        if info.isdir():
            kind = "folder"
        elif info.issym():
            kind = "link"
        elif info.islnk():
            kind, target = "twin", _stripped(info.linkname, strip, "file")
        elif info.isfile():
            kind = "file"
        else:
            raise WorkError(
                f"{info.name} in the archive is a device or a pipe, which data has no use for"
            )
        name = _stripped(info.name, strip, kind)
        program = bool(info.mode & stat.S_IXUSR)
        # A time may be anything, also no number at all.
        mtime = info.mtime if 0 <= info.mtime < 1 << 34 else 0.0
        yield Member(name, kind, info.size, mtime, program, target, info)


def _stripped(name: str, strip: int, kind: str) -> str:
    """Return NAME without its first STRIP parts; raise WorkError where it would lead out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise WorkError(f"{name!r} in the archive would be written outside of its folder")
    if kind != "folder" and len(parts) <= strip:
        raise WorkError(
            f"{name} in the archive has {len(parts)} parts, of which 'strip: {strip}' leaves none"
        )
    return "/".join(parts[strip:])


def _write(members: Iterator[Member], read: Any, limit: Limit, meter: Meter) -> None:
    """Write the members below the working folder, links last."""
    later: list[Member] = []
    folders: dict[str, float] = {}
    for member in members:
        limit.entry(member.kind in ("link", "twin"))
        if not member.name:
            continue
        if member.kind in ("link", "twin"):
            later.append(member)
        elif member.kind == "folder":
            os.makedirs(member.name, 0o755, exist_ok=True)
            folders[member.name] = member.mtime
        else:
            _file(member, read, limit, meter)
    # A twin may be of a file alone, so before there is a link that it could be of.
    for member in sorted(later, key=lambda member: member.kind, reverse=True):
        _link(member)
    _refuse_ways_out({member.name: member.target for member in later if member.kind == "link"})
    # Deepest first, and at the end: whatever is made in a folder changes its time.
    for name in sorted(folders, reverse=True):
        os.utime(name, (folders[name], folders[name]))


def _file(member: Member, read: Any, limit: Limit, meter: Meter) -> None:
    _make_parent(member.name)
    # The last one of a name counts, as for tar.
    Path(member.name).unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(member.name, flags, 0o755 if member.program else 0o644)
    with open(descriptor, "wb") as file, read(member.source) as content:
        while chunk := content.read(CHUNK):
            limit.add(len(chunk))
            file.write(chunk)
            meter.add(len(chunk))
        file.flush()
        os.utime(file.fileno(), (member.mtime, member.mtime))


def _link(member: Member) -> None:
    _make_parent(member.name)
    try:
        if member.kind == "twin":
            os.link(member.target, member.name, follow_symlinks=False)
        else:
            os.symlink(member.target, member.name)
    except (FileExistsError, FileNotFoundError) as error:
        raise WorkError(
            f"{member.name} in the archive cannot be a link to {member.target}: {error.strerror}"
        ) from error


def _make_parent(name: str) -> None:
    parent = posixpath.dirname(name)
    if parent:
        os.makedirs(parent, 0o755, exist_ok=True)


def _refuse_ways_out(links: Mapping[str, str]) -> None:
    """Raise WorkError where a link leads out of the archive.

    Decided by the names alone: whoever can rename the working folder changes nothing of it.
    """
    for name, target in links.items():
        if _leads_out(name, links):
            raise WorkError(f"{name} in the archive is a link to {target}, outside of it")


def _leads_out(name: str, links: Mapping[str, str]) -> bool:
    left, way, followed, steps = name.split("/"), list[str](), 0, 0
    while left and followed <= MAX_LINKS:
        steps += 1
        if steps > LONGEST_PATH:
            # No path that Linux follows is as long.
            return True
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not way:
                return True
            way.pop()
            continue
        way.append(part)
        target = links.get("/".join(way))
        if target is not None:
            if target.startswith("/"):
                return True
            followed += 1
            way.pop()
            left = target.split("/") + left
    return False
