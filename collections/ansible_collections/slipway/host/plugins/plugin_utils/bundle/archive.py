# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tar archive of a bundle, in one form only: the manifest decides every byte of its headers.

The first two members are the manifest and its signature. The others follow in the order of their
paths. A reader computes each header from the signed manifest and compares the bytes. So the names,
types and links of an archive are never used. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ansible_collections.slipway.host.plugins.plugin_utils.bundle import manifest

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
BLOCK = 512
END = bytes(2 * BLOCK)
CHUNK = 1 << 20
# Read into memory before the signature is checked.
MAX_BYTES = {MANIFEST: 64 << 20, SIGNATURE: 64 << 10}


def header(path: str, size: int) -> bytes:
    """Return the only valid header of a member: owner root, mode 0644, time 0."""
    member = tarfile.TarInfo(path)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def padding(size: int) -> bytes:
    """Return the zero bytes between a content of SIZE bytes and the next header."""
    return bytes(-size % BLOCK)


def write(target: Path, parts: Iterable[tuple[str, bytes | Path]]) -> None:
    """Write an archive of (path, content) in this order; a content is bytes or a file."""
    with target.open("xb") as output:
        for path, content in parts:
            if isinstance(content, bytes):
                output.write(header(path, len(content)) + content + padding(len(content)))
                continue
            size = content.stat().st_size
            output.write(header(path, size))
            with content.open("rb") as source:
                copy(source, size, output.write)
            output.write(padding(size))
        output.write(END)
        output.flush()
        os.fsync(output.fileno())


def copy(source: BinaryIO, size: int, write: Callable[[bytes], object]) -> str:
    """Copy SIZE bytes; return their SHA-256 in hexadecimal digits. Fewer bytes: other digest."""
    digest = hashlib.sha256()
    while size:
        content = source.read(min(size, CHUNK))
        if not content:
            break
        digest.update(content)
        write(content)
        size -= len(content)
    return digest.hexdigest()


def open_file(path: Path) -> BinaryIO:
    """Open a regular file; raise BundleError for anything else."""
    try:
        # A FIFO in the place of the file would block.
        opened = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise manifest.BundleError(
            f"cannot open {path}: {error.strerror}; expected a bundle. Check its path."
        ) from None
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise manifest.BundleError(f"{path}: not a file; expected a bundle. Check its path.")
    return opened


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_start(source: BinaryIO, name: str) -> bytes:
    """Return the content of the manifest or its signature at the position of SOURCE."""
    found = source.read(BLOCK)
    try:
        size = int(found[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BYTES[name] or found != header(name, size):
        raise unexpected(source, found, name)
    content = source.read(size)
    if source.read(len(padding(size))) != padding(size):
        raise manifest.BundleError(
            f"{source.name}: {name} is incomplete; expected {size} bytes. Copy the bundle again."
        )
    return content


def unexpected(source: BinaryIO, found: bytes, path: str) -> manifest.BundleError:
    """Return the error about a header that is not that of PATH."""
    description = "no header"
    with suppress(tarfile.HeaderError):
        member = tarfile.TarInfo.frombuf(found[:BLOCK], "utf-8", "backslashreplace")
        kinds = {tarfile.REGTYPE: "file", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "link"}
        kind = kinds.get(member.type, "folder" if member.isdir() else "special file")
        description = f"{kind} {member.name!r}, {member.size} bytes"
    return manifest.BundleError(
        f"{source.name}: {description} in the place of {path}; expected the file that the "
        "manifest lists. Do not use this bundle; copy it again from its source."
    )
