# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declared checksums of an archive, and of the files of a data set."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import trees

# Hexadecimal digits by algorithm.
CHECKSUMS = {"md5": 32, "sha1": 40, "sha256": 64, "sha512": 128}

# The longest name of a file, a limit of Linux, and the longest path in a tree; bytes.
MAX_NAME, MAX_PATH = 255, 1024


class DataError(ValueError):
    """A declaration cannot be applied; the message names the entry and the reason."""


def read_checksum(where: str, declared: str) -> str:
    """Return a checksum in lower case, empty if none is declared. WHERE names the entry."""
    if not declared:
        return ""
    kind, _separator, digits = declared.lower().partition(":")
    if CHECKSUMS.get(kind) != len(digits) or re.search(r"[^0-9a-f]", digits):
        raise DataError(
            f"{where}: checksum is {declared!r}; expected ALGORITHM:DIGITS with one of "
            f"{', '.join(sorted(CHECKSUMS))} and all its hexadecimal digits. Change checksum"
        )
    return f"{kind}:{digits}"


def join(folder: str, name: str) -> str:
    """Return the address of a file in a folder: a path or a URL."""
    return f"{folder.rstrip('/')}/{name}"


def read_files(where: str, item: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of the files of a data set by name; empty for an archive."""
    declared = item.get("files")
    if declared is None:
        return {}
    if not isinstance(declared, Mapping) or not declared:
        raise DataError(
            f"{where}: files is {declared!r}; expected at least one file and its checksum, such as "
            "config.json: sha256:DIGITS. Add the files, or remove the key files for an archive"
        )
    if item.get("checksum") or item.get("strip") or not item.get("unpack", True):
        raise DataError(
            f"{where}: files is set together with checksum, strip or unpack, which are for an "
            "archive; expected either. Remove the others, or files"
        )
    if re.search(r"[?#]", item.get("url") or ""):
        raise DataError(
            f"{where}: the URL of a folder contains ? or #; expected one to which /NAME can be "
            "added. Change url"
        )
    files = {str(name): _file_checksum(where, str(name), declared[name]) for name in declared}
    for name in files:
        parts = name.split("/")
        if not _is_file_name(name) or any(
            "/".join(parts[:count]) in files for count in range(1, len(parts))
        ):
            raise DataError(
                f"{where}: invalid name {name!r} in files; expected the path of a file in its "
                "folder, such as tokenizer/vocab.json, and no file with the name of a folder. "
                "Rename it"
            )
    return files


def _is_file_name(name: str) -> bool:
    """Return whether a name is the path of a file in a folder, and not in that of our records."""
    first = name.partition("/")[0]
    return (
        name.isprintable()
        and posixpath.normpath(name) == name
        and len(name.encode()) <= MAX_PATH
        and all(len(part.encode()) <= MAX_NAME for part in name.split("/"))
        and first not in ("", ".", "..", trees.TREE_RECORD.split("/")[1])
    )


def _file_checksum(where: str, name: str, declared: Any) -> str:
    checksum = read_checksum(f"{where}: {name}", str(declared or ""))
    if not checksum:
        raise DataError(
            f"{where}: {name} has no checksum; expected one, such as sha256:DIGITS. Add what "
            "`sha256sum` prints for the file"
        )
    return checksum
