# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH host keys and CA certificates that throwaway hosts and this machine share.

This machine identifies its hosts by their public SSH keys. A host trusts every CA that this machine
trusts beyond the distribution's CAs, such as the CA of a company's inspecting proxy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
DISTRIBUTION = Path("/usr/share/ca-certificates")

PEM_PATTERN = re.compile(
    r"-----BEGIN CERTIFICATE-----(?P<body>[A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----"
)


def known_hosts_with(text: str, name: str, address: str, keys: Iterable[str]) -> str:
    """Return a known_hosts text where `name` and `address` have exactly these public keys."""
    lines = known_hosts_without(text, {name, address}).splitlines()
    lines += [f"{name},{address} {' '.join(key.split()[:2])}" for key in keys]
    return "".join(f"{line}\n" for line in lines)


def known_hosts_without(text: str, removed: set[str]) -> str:
    """Return a known_hosts text without the lines of these names and addresses."""
    return "".join(
        f"{line}\n"
        for line in text.splitlines()
        if not removed.intersection(line.partition(" ")[0].split(","))
    )


def certificates(text: str) -> dict[str, str]:
    """Return the certificates of a PEM text by the hexadecimal SHA-256 of their DER form."""
    by_digest = {}
    for match in PEM_PATTERN.finditer(text):
        try:
            der = base64.b64decode("".join(match["body"].split()), validate=True)
        except binascii.Error:
            continue
        by_digest[hashlib.sha256(der).hexdigest()] = match[0]
    return by_digest


def own_certificates(trusted: Iterable[str], distribution: Iterable[str]) -> dict[str, str]:
    """Return the certificates of the PEM texts `trusted` that `distribution` lacks."""
    public = {digest for text in distribution for digest in certificates(text)}
    return {
        digest: pem
        for text in trusted
        for digest, pem in certificates(text).items()
        if digest not in public
    }


def controller_certificates(environment: Mapping[str, str], host_bundle: str) -> dict[str, str]:
    """Return the certificates that this machine trusts and a host lacks.

    environment: variables that may name further bundles. host_bundle: the host's CA bundle as PEM
    text. Returns PEM texts by digest, see `certificates`.
    """
    bundles = {Path(environment[name]) for name in BUNDLE_VARIABLES if environment.get(name)}
    trusted = [read_text(path) for path in sorted({*bundles, BUNDLE})]
    public = [read_text(path) for path in sorted(DISTRIBUTION.rglob("*.crt"))]
    return own_certificates(trusted, [*public, host_bundle])


def certificates_tar(certificates_by_digest: Mapping[str, str]) -> bytes:
    """Return a tar archive with one file per certificate, named by digest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for digest, pem in certificates_by_digest.items():
            content = f"{pem}\n".encode()
            member = tarfile.TarInfo(f"controller-{digest[:12]}.crt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_text(path: Path) -> str:
    """Return a file's text, empty when the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
