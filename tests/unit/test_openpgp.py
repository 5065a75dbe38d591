# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of keyrings, against those that GnuPG tells of the same keys."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp

# A made-up version 4 key, by RFC 4880 section 5.5.2: creation time, algorithm 1 (RSA), two numbers.
BODY = (
    b"\x04" + (1700000000).to_bytes(4, "big") + b"\x01" + b"\x00\x08\xff" + b"\x00\x11\x01\x00\x01"
)
FINGERPRINT = hashlib.sha1(b"\x99" + len(BODY).to_bytes(2, "big") + BODY).hexdigest().upper()
SIZE = len(BODY)
LONG = BODY + b"\x00" * 300
LONG_FINGERPRINT = hashlib.sha1(b"\x99" + len(LONG).to_bytes(2, "big") + LONG).hexdigest().upper()
USER_ID = bytes([0xC0 | 13, 4]) + b"Test"


def old(body: bytes, width: int) -> bytes:
    """Return a packet with an old header whose length takes 1, 2 or 4 bytes."""
    return bytes([0x80 | 6 << 2 | width.bit_length() - 1]) + len(body).to_bytes(width, "big") + body


def armour(keyring: bytes, end: str = "\n") -> str:
    """Return a keyring as armoured text."""
    body = base64.b64encode(keyring).decode()
    lines = [
        openpgp.ARMOUR,
        "Comment: a test",
        "",
        body,
        "=abcd",
        "-----END PGP PUBLIC KEY BLOCK-----",
    ]
    return end.join(lines) + end


@pytest.mark.parametrize(
    ("keyring", "expected"),
    [
        pytest.param(old(BODY, 1), [FINGERPRINT], id="old header, one byte"),
        pytest.param(old(BODY, 2), [FINGERPRINT], id="old header, two bytes"),
        pytest.param(old(BODY, 4), [FINGERPRINT], id="old header, four bytes"),
        pytest.param(bytes([0xC6, SIZE]) + BODY, [FINGERPRINT], id="new header, one byte"),
        pytest.param(
            bytes([0xC6, 192 + (len(LONG) - 192 >> 8), len(LONG) - 192 & 0xFF]) + LONG,
            [LONG_FINGERPRINT],
            id="new header, two bytes",
        ),
        pytest.param(
            b"\xc6\xff" + SIZE.to_bytes(4, "big") + BODY, [FINGERPRINT], id="new header, five bytes"
        ),
        pytest.param(
            old(BODY, 2) + USER_ID + old(LONG, 2), [FINGERPRINT, LONG_FINGERPRINT], id="two keys"
        ),
    ],
)
def test_every_form_of_a_packet_is_read(keyring: bytes, expected: list[str]) -> None:
    assert openpgp.fingerprints(keyring) == expected


@pytest.mark.parametrize(
    ("keyring", "problem"),
    [
        (b"", "has no version 4 public key"),
        (USER_ID, "has no version 4 public key"),
        (old(b"\x03" + BODY[1:], 2), "has no version 4 public key"),
        (b"<html>", "not an OpenPGP keyring"),
        (old(BODY, 2)[:-1], "ends within a packet"),
        (b"\xc6", "ends within a packet"),
        (b"\xc6\xff\x00\x00", "ends within a packet"),
        (b"\xc6\xe0" + BODY, "partial packets"),
        (b"\x9b" + BODY, "packets of unknown length"),
    ],
)
def test_other_files_than_keyrings_are_refused(keyring: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        openpgp.fingerprints(keyring)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "dos"])
def test_armour_is_taken_off(end: str) -> None:
    assert openpgp.from_text(armour(old(BODY, 2), end)) == old(BODY, 2)


def test_armour_is_put_on() -> None:
    assert openpgp.from_text(openpgp.to_text(old(LONG, 2))) == old(LONG, 2)


def test_blocks_after_one_another_are_one_keyring() -> None:
    text = armour(old(BODY, 2)) + armour(old(LONG, 2))
    assert openpgp.fingerprints(openpgp.from_text(text)) == [FINGERPRINT, LONG_FINGERPRINT]


def test_binary_keyrings_come_marked() -> None:
    text = "base64:" + base64.b64encode(old(BODY, 2)).decode()
    assert openpgp.from_text(text) == old(BODY, 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<html>Not found</html>", "no armour"),
        ("", "no armour"),
        (f"{openpgp.ARMOUR}\n\n!!!\n-----END", "broken armour"),
        (f"{openpgp.ARMOUR}\n\nabc\n-----END", "broken armour"),
    ],
)
def test_other_packets_than_keys_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        openpgp.from_text(text)


@pytest.mark.skipif(not shutil.which("gpg"), reason="gpg, which makes the keys, is not installed")
@pytest.mark.parametrize("algorithm", ["rsa2048", "ed25519"])
def test_gnupg_tells_the_same(tmp_path: Path, algorithm: str) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", "--homedir", str(home)]
    new = ["--passphrase", "", "--quick-generate-key", "Test <test@example.org>", algorithm]
    subprocess.run([*gpg, *new], check=True)
    try:
        listed = subprocess.check_output([*gpg, "--with-colons", "--list-keys"], text=True)
        fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line[:3] == "fpr")
        armoured = subprocess.check_output([*gpg, "--armor", "--export"], text=True)
        binary = subprocess.check_output([*gpg, "--export"])
        ours = openpgp.to_text(binary).encode()
        assert subprocess.check_output([*gpg, "--dearmor"], input=ours) == binary
    finally:
        # The agent would outlive the test.
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False)
    assert openpgp.fingerprints(binary) == [fingerprint]
    assert openpgp.from_text(armoured) == binary
