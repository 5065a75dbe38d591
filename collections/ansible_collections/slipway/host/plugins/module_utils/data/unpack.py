# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpack an archive into the working folder, which is empty and which only root can enter.

Nothing is written outside of this folder: names that lead out are refused, and links are created
after all files and must not lead out. Only files, folders and links are created. Owners and modes
of the archive are ignored, except that executable files remain executable. Written bytes are
limited, see :mod:`limit`.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
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
from typing import IO, Any, cast

from ansible_collections.slipway.host.plugins.module_utils.data.limit import Limit
from ansible_collections.slipway.host.plugins.module_utils.data.progress import Meter, TreeError
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

ZIP, ZSTD, GZIP, BZIP2, XZ, TAR = "zip", "zstd", "gzip", "bzip2", "xz", "tar"
# Format of a file by its first bytes.
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
LINK_KINDS = ("link", "hard link")
# Number of chunks to read after the end of a tar archive, at most.
CHUNKS_AFTER_END = 64
# Linux supports no longer path, and follows no more links.
MAX_PATH, MAX_LINKS = 4096, 40


@dataclass(frozen=True)
class Member:
    """An entry of an archive; ``name`` is its name after stripping, empty for the top folder."""

    name: str
    kind: str
    size: int
    mtime: float
    executable: bool
    target: str
    source: Any


@contextmanager
def _opened(archive: int) -> Iterator[IO[bytes]]:
    """Open the archive behind a descriptor from its beginning."""
    os.lseek(archive, 0, os.SEEK_SET)
    with open(archive, "rb", closefd=False) as file:
        yield file


def detect_format(archive: int) -> str:
    """Return the format of an opened archive, from its content."""
    start = os.pread(archive, 8, 0)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), TAR)


def unpacked_size(archive: int) -> int | None:
    """Return the unpacked size of an archive, None if it is known only after unpacking."""
    archive_format = detect_format(archive)
    if archive_format == ZIP:
        with _opened_zip(archive) as opened:
            return sum(info.file_size for info in opened.infolist())
    is_tar = archive_format == TAR and os.pread(archive, 5, 257) == b"ustar"
    return os.fstat(archive).st_size if is_tar else None


def unpack(
    archive: int, strip: int, name: str, limit: Limit, progress: Progress
) -> dict[str, bytes]:
    """Unpack an opened archive into the working folder; return the SHA-256 digest of each file.

    Raise TreeError if an entry of the archive is not allowed, OSError if the disk is full.
    """
    meter = Meter(progress, f"{name}: unpacked", unpacked_size(archive))
    if detect_format(archive) == ZIP:
        with _opened_zip(archive) as opened:
            return _write(_zip_members(opened, strip), opened.open, limit, meter)
    with _opened_tar(archive, limit) as tar:
        return _write(_tar_members(tar, strip), tar.extractfile, limit, meter)


@contextmanager
def _opened_zip(archive: int) -> Iterator[zipfile.ZipFile]:
    try:
        with _opened(archive) as file, zipfile.ZipFile(file) as opened:
            yield opened
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise TreeError(f"cannot read the archive as zip: {error}. Check 'url'.") from error


class _Counted:
    """Counts the bytes that are read from the uncompressed archive."""

    def __init__(self, stream: IO[bytes], limit: Limit) -> None:
        self.stream, self.limit = stream, limit

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        content = self.stream.read(size)
        self.limit.add_streamed(len(content))
        return content


@contextmanager
def _opened_tar(archive: int, limit: Limit) -> Iterator[tarfile.TarFile]:
    try:
        with _opened(archive) as file, _uncompressed(file, detect_format(archive)) as stream:
            # As a stream, because seeking to the next entry would decompress everything twice.
            counted: Any = _Counted(stream, limit)
            with tarfile.open(fileobj=counted, mode="r|", bufsize=1 << 16) as tar:
                yield tar
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise TreeError(
            f"cannot read the archive as tar: {error}. If the file is not an archive, set "
            "'unpack: false'."
        ) from error


@contextmanager
def _uncompressed(file: IO[bytes], archive_format: str) -> Iterator[IO[bytes]]:
    if archive_format == ZSTD:
        with _zstd(file) as stream:
            yield stream
        return
    opener: Any = {GZIP: gzip.open, BZIP2: bz2.open, XZ: lzma.open}.get(archive_format)
    if opener is None:
        yield file
        return
    with opener(file) as stream:
        yield stream


@contextmanager
def _zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if not shutil.which("zstd"):
        raise TreeError(
            "cannot unpack the archive: the program zstd is missing on the host. Install zstd."
        )
    with subprocess.Popen(["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE) as process:
        output = cast("IO[bytes]", process.stdout)
        try:
            yield output
            # Read to the end to detect a damaged archive, but data after a tar may be endless.
            ended = any(not output.read(CHUNK) for _number in range(CHUNKS_AFTER_END))
        except BaseException:
            process.kill()
            raise
        if not ended:
            process.kill()
    if ended and process.returncode:
        raise TreeError("the archive is damaged: zstd cannot read it to its end. Check 'url'.")


def _zip_members(archive: zipfile.ZipFile, strip: int) -> Iterator[Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = "link" if stat.S_ISLNK(mode) else "folder" if info.is_dir() else "file"
        if info.flag_bits & ENCRYPTED:
            raise TreeError(f"{info.filename} in the archive is encrypted; expected no encryption")
        if kind == "link" and info.file_size > MAX_PATH:
            raise TreeError(f"{info.filename} in the archive is a link with a too long target")
        try:
            mtime = time.mktime((*info.date_time, 0, 0, -1))
        except (ValueError, OverflowError):
            mtime = 0.0
        yield Member(
            _strip(info.filename, strip, kind),
            kind,
            info.file_size,
            mtime,
            bool(mode & stat.S_IXUSR),
            os.fsdecode(archive.read(info)) if kind == "link" else "",
            info,
        )


def _tar_members(archive: tarfile.TarFile, strip: int) -> Iterator[Member]:
    while (info := archive.next()) is not None:
        # tarfile would keep all entries in memory, and there may be millions.
        archive.members.clear()  # type: ignore[attr-defined]
        target = info.linkname
        if info.isdir():
            kind = "folder"
        elif info.issym():
            kind = "link"
        elif info.islnk():
            kind, target = "hard link", _strip(info.linkname, strip, "file")
        elif info.isfile():
            kind = "file"
        else:
            raise TreeError(
                f"{info.name} in the archive is a device or a pipe; expected only files and links"
            )
        name = _strip(info.name, strip, kind)
        executable = bool(info.mode & stat.S_IXUSR)
        # The time in an archive may be any value, even not a number.
        mtime = info.mtime if 0 <= info.mtime < 1 << 34 else 0.0
        yield Member(name, kind, info.size, mtime, executable, target, info)


def _strip(name: str, strip: int, kind: str) -> str:
    """Return NAME without its first STRIP parts; raise TreeError if it leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise TreeError(f"{name!r} in the archive would be written outside of its folder")
    if kind != "folder" and len(parts) <= strip:
        raise TreeError(
            f"{name} in the archive: 'strip: {strip}' removes the complete name. Reduce 'strip'."
        )
    return "/".join(parts[strip:])


def _write(members: Iterator[Member], read: Any, limit: Limit, meter: Meter) -> dict[str, bytes]:
    """Write the members below the working folder, links last; return the digests of files."""
    digests: dict[str, bytes] = {}
    links: list[Member] = []
    folders: dict[str, float] = {}
    for member in members:
        limit.add_entry(member.kind in LINK_KINDS)
        if not member.name:
            continue
        if member.kind in LINK_KINDS:
            links.append(member)
        elif member.kind == "folder":
            os.makedirs(member.name, 0o755, exist_ok=True)
            folders[member.name] = member.mtime
        else:
            digests[member.name] = _write_file(member, read, limit, meter)
    # Hard links first: they must lead to files, and there are no symbolic links yet.
    for member in sorted(links, key=lambda member: member.kind):
        _create_link(member)
    _refuse_links_outside({member.name: member.target for member in links if member.kind == "link"})
    # At the end and deepest first, because a new entry in a folder changes its time.
    for name in sorted(folders, reverse=True):
        os.utime(name, (folders[name], folders[name]))
    return digests


def _write_file(member: Member, read: Any, limit: Limit, meter: Meter) -> bytes:
    """Write a file; return its digest."""
    digest = hashlib.sha256()
    _make_parent(member.name)
    # The last entry with a name counts, as in tar.
    Path(member.name).unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(member.name, flags, 0o755 if member.executable else 0o644)
    with open(descriptor, "wb") as file, read(member.source) as content:
        while chunk := content.read(CHUNK):
            limit.add(len(chunk))
            file.write(chunk)
            digest.update(chunk)
            meter.add(len(chunk))
        file.flush()
        os.utime(file.fileno(), (member.mtime, member.mtime))
    return digest.digest()


def _create_link(member: Member) -> None:
    _make_parent(member.name)
    try:
        if member.kind == "hard link":
            os.link(member.target, member.name, follow_symlinks=False)
        else:
            os.symlink(member.target, member.name)
    except (FileExistsError, FileNotFoundError) as error:
        raise TreeError(
            f"cannot create {member.name} of the archive as a link to {member.target}: "
            f"{error.strerror}"
        ) from error


def _make_parent(name: str) -> None:
    parent = posixpath.dirname(name)
    if parent:
        os.makedirs(parent, 0o755, exist_ok=True)


def _refuse_links_outside(links: Mapping[str, str]) -> None:
    """Raise TreeError if a link leads out of the archive.

    Only the names are compared, so that a rename of the working folder has no influence.
    """
    for name, target in links.items():
        if _leads_out(name, links):
            raise TreeError(f"{name} in the archive is a link to {target}, outside of the archive")


def _leads_out(name: str, links: Mapping[str, str]) -> bool:
    """Return whether a link leads out of the archive, directly or by other links."""
    left, path, followed, steps = name.split("/"), list[str](), 0, 0
    while left and followed <= MAX_LINKS:
        steps += 1
        if steps > MAX_PATH:
            # Linux does not follow a path of this length.
            return True
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            if not path:
                return True
            path.pop()
            continue
        path.append(part)
        target = links.get("/".join(path))
        if target is not None:
            if target.startswith("/"):
                return True
            followed += 1
            path.pop()
            left = target.split("/") + left
    return False
