# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Download the OpenPGP key of an apt repository, and compare its fingerprint."""

from __future__ import annotations

from http.client import HTTPException
from urllib.request import urlopen

from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp

TIMEOUT = 15
MAX_KEY = 1 << 20


class KeyDownloadError(Exception):
    """A key could not be downloaded, or is not the expected one."""


def download(url: str, expected: str, timeout: int = TIMEOUT) -> bytes:
    """Return the packets of the key with the fingerprint EXPECTED; raise KeyDownloadError."""
    try:
        with urlopen(url, timeout=timeout) as answer:
            content: bytes = answer.read(MAX_KEY)
    except (OSError, ValueError, HTTPException) as error:
        raise KeyDownloadError(
            f"Cannot download the key {url}: {error}. Make the address reachable from the host, or "
            "use a mirror."
        ) from None
    try:
        keyring = _keyring_bytes(content)
        fingerprints = openpgp.fingerprints(keyring)
    except ValueError as error:
        raise KeyDownloadError(
            f"{url}: {error}; expected an OpenPGP key. Correct the address. Nothing was written."
        ) from None
    if expected not in fingerprints:
        raise KeyDownloadError(
            f"{url}: the key has the fingerprint {', '.join(fingerprints)}; expected {expected}. "
            "Nothing was written. If the vendor has a new key, confirm it on the vendor's own page "
            "and change the fingerprint variable."
        )
    return openpgp.extract(keyring, expected)


def _keyring_bytes(content: bytes) -> bytes:
    """Return the binary keyring in the CONTENT of a key file, which may be armoured."""
    if content.lstrip().startswith(b"-----BEGIN"):
        return openpgp.from_text(content.decode("ascii", "replace"))
    return content
