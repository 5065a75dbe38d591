# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An archive into an empty folder that only root can enter.

Whatever is in it, nothing is written outside: names lead down, links are made when everything else
is there, so nothing is written through one, and none may lead out.  Only files, folders and links
are made; owners and modes of the archive do not count, but a program stays one.
"""

from __future__ import annotations

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ansible_collections.slipway.host.plugins.module_utils.data.progress import Meter, WorkError
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

ZIP, ZSTD, TAR = "zip", "zstd", "tar"
# What a file begins with; everything else is left to tarfile, which knows gzip, bzip2 and xz.
MAGIC = {b"PK\x03\x04": ZIP, b"PK\x05\x06": ZIP, b"\x28\xb5\x2f\xfd": ZSTD}
CHUNK = 1 << 20
ENCRYPTED = 1


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


def kind_of(path: str) -> str:
    """Return what an archive is, by its content."""
    with Path(path).open("rb") as file:
        return MAGIC.get(file.read(4), TAR)


def size_of(path: str) -> int | None:
    """Return how large an archive is when unpacked, None where only unpacking would tell."""
    kind = kind_of(path)
    if kind == ZIP:
        with _opened_zip(path) as archive:
            return sum(info.file_size for info in archive.infolist())
    with Path(path).open("rb") as file:
        file.seek(257)
        return os.stat(path).st_size if kind == TAR and file.read(5) == b"ustar" else None


def unpack(path: str, strip: int, name: str, progress: Progress) -> None:
    """Unpack an archive into the working folder.

    Raise WorkError where it holds what it must not, OSError where the disk is full.
    """
    meter = Meter(progress, f"{name}: unpacked", size_of(path))
    if kind_of(path) == ZIP:
        with _opened_zip(path) as archive:
            _write(_zip_members(archive, strip), archive.open, meter)
        return
    with _opened_tar(path) as tar:
        _write(_tar_members(tar, strip), tar.extractfile, meter)


@contextmanager
def _opened_zip(path: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise WorkError(f"the archive cannot be read as zip: {error}") from error


@contextmanager
def _opened_tar(path: str) -> Iterator[tarfile.TarFile]:
    try:
        if kind_of(path) == ZSTD:
            with _zstd(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                yield archive
        else:
            # A stream: a look for the next member would otherwise read everything twice.
            with tarfile.open(path, mode="r|*") as archive:
                yield archive
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise WorkError(
            f"the archive cannot be read as tar: {error}; with 'unpack: false' it is put there as "
            "the file that it is"
        ) from error


@contextmanager
def _zstd(path: str) -> Iterator[IO[bytes]]:
    if not shutil.which("zstd"):
        raise WorkError("the archive is compressed by zstd, which is not here: install zstd")
    with subprocess.Popen(["zstd", "-dcq", "--", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.read()
    if process.returncode:
        raise WorkError("zstd cannot read the archive to its end")


def _zip_members(archive: zipfile.ZipFile, strip: int) -> Iterator[Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = "link" if stat.S_ISLNK(mode) else "folder" if info.is_dir() else "file"
        if info.flag_bits & ENCRYPTED:
            raise WorkError(f"{info.filename} in the archive is encrypted")
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
            archive.read(info).decode() if kind == "link" else "",
            info,
        )


def _tar_members(archive: tarfile.TarFile, strip: int) -> Iterator[Member]:
    for info in archive:
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
        yield Member(name, kind, info.size, info.mtime, program, target, info)


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


def _write(members: Iterator[Member], read: Any, meter: Meter) -> None:
    """Write the members below the working folder, links last."""
    later: list[Member] = []
    folders: dict[str, float] = {}
    for member in members:
        if not member.name:
            continue
        if member.kind in ("link", "twin"):
            later.append(member)
        elif member.kind == "folder":
            os.makedirs(member.name, 0o755, exist_ok=True)
            folders[member.name] = member.mtime
        else:
            _file(member, read, meter)
    # A twin may be of a file alone, so before there is a link that it could be of.
    for member in sorted(later, key=lambda member: member.kind, reverse=True):
        _link(member)
    _refuse_ways_out(member for member in later if member.kind == "link")
    # Deepest first, and at the end: whatever is made in a folder changes its time.
    for name in sorted(folders, reverse=True):
        os.utime(name, (folders[name], folders[name]))


def _file(member: Member, read: Any, meter: Meter) -> None:
    _make_parent(member.name)
    # The last one of a name counts, as for tar.
    Path(member.name).unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(member.name, flags, 0o755 if member.program else 0o644)
    with open(descriptor, "wb") as file, read(member.source) as content:
        while chunk := content.read(CHUNK):
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


def _refuse_ways_out(links: Iterator[Member]) -> None:
    top = os.getcwd()
    for member in links:
        leads = os.path.realpath(member.name)
        if os.path.isabs(member.target) or not f"{leads}/".startswith(f"{top}/"):
            raise WorkError(
                f"{member.name} in the archive is a link to {member.target}, outside of it"
            )
