# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Default ACLs of folders, as the kernel keeps them: no package is needed to read or write one.

The extended attribute is a version and then entries of a tag, permissions and a number, all little
endian (linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

ATTRIBUTE = "system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NOBODY = 0xFFFFFFFF
_OWNER, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20
_RIGHTS = ("---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx")
_WORDS = {_OWNER: "owner", _GROUP: "group", _MASK: "mask", _OTHER: "others"}

Entries: TypeAlias = Mapping[tuple[int, int], int]


def parse(text: str) -> dict[tuple[int, int], int]:
    """Return the permissions by tag and number of an ACL in hexadecimal, none where it is empty.

    Raise ValueError where it is no ACL.
    """
    data = bytes.fromhex(text)
    if not data:
        return {}
    if data[:4] != _VERSION.pack(2) or (len(data) - _VERSION.size) % _ENTRY.size:
        raise ValueError(f"not an ACL of version 2: {text}")
    return {
        (tag, number): permissions
        for tag, permissions, number in _ENTRY.iter_unpack(data[_VERSION.size :])
    }


def wanted(mode: str, found: Entries) -> dict[tuple[int, int], int]:
    """Return the ACL that gives what is new in a folder MODE, and keeps named entries of FOUND."""
    bits = int(mode, 8)
    entries = {
        (_OWNER, _NOBODY): bits >> 6 & 7,
        (_GROUP, _NOBODY): bits >> 3 & 7,
        (_OTHER, _NOBODY): bits & 7,
    }
    named = {key: value for key, value in found.items() if key[0] not in _WORDS}
    # The kernel demands a mask where somebody is named; it must not take from the group.
    mask = {(_MASK, _NOBODY): 7} if named else {}
    return {**entries, **named, **mask}


def difference(mode: str, text: str) -> tuple[str, str] | None:
    """Return in words what an ACL in hexadecimal gives and what MODE wants, None where equal."""
    found = parse(text)
    should = wanted(mode, found)
    if found == should:
        return None
    return describe(found) if found else "no default ACL", describe(should)


def describe(entries: Entries) -> str:
    """Return an ACL in words, without those that name a person or a group."""
    said = (
        f"{_WORDS[tag]} {_RIGHTS[value]}"
        for (tag, _number), value in sorted(entries.items())
        if tag in _WORDS
    )
    return f"new files: {', '.join(said)}"


def packed(entries: Entries) -> bytes:
    """Return an ACL as the kernel takes it: in the order of tags and numbers."""
    return _VERSION.pack(2) + b"".join(
        _ENTRY.pack(tag, value, number) for (tag, number), value in sorted(entries.items())
    )
