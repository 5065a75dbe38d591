# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of the keys in an OpenPGP keyring, armoured or binary, without GnuPG.

Supports only what is necessary to check the key of a repository: packets and version 4 fingerprints
of RFC 4880 (sections 4.2 and 12.2). apt checks signatures.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator

PUBLIC_KEY = 6
# Packets that belong to the primary key before them: signatures, user names, subkeys, trust.
PARTS = frozenset({2, 12, 13, 14, 17})
ARMOUR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


def from_text(text: str) -> bytes:
    """Return the keyring's bytes from armoured text, or from text marked ``base64:``.

    Raise ValueError if the text is neither.
    """
    if text.startswith("base64:"):
        return base64.b64decode(text[len("base64:") :])
    if ARMOUR not in text:
        raise ValueError("not an OpenPGP key (no armour)")
    keyring = b""
    # apt decodes every block, also blocks with another label.
    if text.count("-----BEGIN") != text.count(ARMOUR):
        raise ValueError("a block that is not a public key")
    for block in text.split(ARMOUR)[1:]:
        # Headers end at the first empty line, the checksum line begins with "=".
        body = block.split("-----END", 1)[0].replace("\r\n", "\n").partition("\n\n")[2]
        lines = [line for line in body.split("\n") if line and not line.startswith("=")]
        try:
            keyring += base64.b64decode("".join(lines), validate=True)
        except binascii.Error as error:
            raise ValueError(f"broken armour: {error}") from error
    return keyring


def to_text(keyring: bytes) -> str:
    """Return a keyring as armoured text, the format of apt for files with the suffix .asc."""
    body = base64.b64encode(keyring).decode("ascii")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "\n".join([ARMOUR, "", *lines, ARMOUR.replace("BEGIN", "END"), ""])


def normalize_fingerprint(fingerprint: str) -> str:
    """Return a fingerprint without spaces and in upper case."""
    return "".join(fingerprint.split()).upper()


def _packets(keyring: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the tag, the body and the complete bytes of each packet."""
    at = 0
    while at < len(keyring):
        start = at
        head = keyring[at]
        if not head & 0x80:
            raise ValueError("not an OpenPGP keyring")
        try:
            if head & 0x40:  # new format
                tag, at = head & 0x3F, at + 1
                first = keyring[at]
                if first < 192:
                    size, at = first, at + 1
                elif first < 224:
                    size, at = ((first - 192) << 8) + keyring[at + 1] + 192, at + 2
                elif first == 255:
                    size, at = int.from_bytes(keyring[at + 1 : at + 5], "big"), at + 5
                else:
                    raise ValueError("partial packets do not occur in a keyring")
            else:  # old format
                tag, width = (head >> 2) & 0x0F, 1 << (head & 3)
                if width == 8:
                    raise ValueError("packets of unknown length do not occur in a keyring")
                size, at = int.from_bytes(keyring[at + 1 : at + 1 + width], "big"), at + 1 + width
        except IndexError as error:
            raise ValueError("the keyring ends within a packet") from error
        if at + size > len(keyring):
            raise ValueError("the keyring ends within a packet")
        yield tag, keyring[at : at + size], keyring[start : at + size]
        at += size


def _fingerprint(body: bytes) -> str:
    """Return the fingerprint of a primary key; keys of other versions are described."""
    if body[:1] != b"\x04":
        return f"a key of version {body[0] if body else '?'}"
    framed = b"\x99" + len(body).to_bytes(2, "big") + body
    # RFC 4880 defines the fingerprint as SHA-1.
    return hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper()


def fingerprints(keyring: bytes) -> list[str]:
    """Return the fingerprints of the keyring's primary keys, 40 upper-case hex digits each.

    Keys of other versions and packets without a key are described instead, so the result is one
    fingerprint only if the keyring contains exactly this key. Raise ValueError if the bytes are not
    a keyring or have no version 4 key.
    """
    result = []
    for tag, body, _packet in _packets(keyring):
        if tag == PUBLIC_KEY:
            result.append(_fingerprint(body))
        elif tag not in PARTS:
            result.append(f"a packet of type {tag}")
    if not any(" " not in fingerprint for fingerprint in result):
        raise ValueError("the keyring has no version 4 public key")
    return result


def extract(keyring: bytes, fingerprint: str) -> bytes:
    """Return the packets of one primary key of a keyring, empty if the keyring has no such key."""
    packets: list[bytes] = []
    is_inside = False
    for tag, body, packet in _packets(keyring):
        if tag == PUBLIC_KEY:
            is_inside = not packets and _fingerprint(body) == fingerprint
        if is_inside and tag in PARTS | {PUBLIC_KEY}:
            packets.append(packet)
    return b"".join(packets)
