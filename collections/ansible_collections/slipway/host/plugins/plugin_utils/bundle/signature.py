# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures of bundles by ``ssh-keygen -Y``, and the keys that a controller trusts."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError

# One for each kind of signed content: a signature of one kind is invalid for the other.
NAMESPACE, PROJECT_NAMESPACE = "slipway-bundle", "slipway-project"
IDENTITY = "slipway-bundle"
KIND = re.compile(r"[a-z0-9@.-]+")
PUBLIC_KEY = re.compile(r"([a-z0-9@.-]+) ([A-Za-z0-9+/]+={0,2})( .*)?")
ARMOR = b"-----BEGIN SSH SIGNATURE-----\n%s\n-----END SSH SIGNATURE-----\n"
ARMOR_WIDTH = 70


def own_key() -> Path:
    """Return the path of this user's key for bundles, whether it exists or not."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "slipway/bundle-key"


def make_own_key() -> Path:
    """Return the path of this user's key for bundles; make it the first time, mode 0600."""
    key = own_key()
    if key.exists():
        return key
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=key.parent) as folder:
        made = Path(folder) / key.name
        _run(["-q", "-t", "ed25519", "-N", "", "-C", IDENTITY, "-f", str(made)])
        # The public key first: a killed run leaves no private key without it.
        Path(f"{made}.pub").replace(f"{key}.pub")
        made.replace(key)
    return key


def sign(content: bytes, key: Path, namespace: str = NAMESPACE) -> bytes:
    """Return the signature of a content. KEY: a private key, or a public key of ssh-agent."""
    return _run(["-q", "-Y", "sign", "-f", str(key), "-n", namespace], content).stdout


def public_key(signature: bytes) -> str:
    """Return the public key in a signature, as ``TYPE BASE64``."""
    try:
        blob = base64.b64decode(b"".join(signature.split(b"\n")[1:-2]), validate=True)
        if blob[:6] != b"SSHSIG" or _armored(blob) != signature:
            raise ValueError
        return _as_text(_string(blob, 10))
    except ValueError:
        raise BundleError(
            "invalid signature of the bundle: no signature of OpenSSH; expected one of "
            "ssh-keygen -Y sign. Do not use this bundle."
        ) from None


def _as_text(blob: bytes) -> str:
    """Return a public key as ``TYPE BASE64``; raise ValueError if its type is not a word."""
    kind = _string(blob, 0).decode("ascii")
    if not KIND.fullmatch(kind):
        raise ValueError
    return f"{kind} {base64.b64encode(blob).decode()}"


def _armored(blob: bytes) -> bytes:
    """Return the only text of a signature that is accepted."""
    text = base64.b64encode(blob)
    lines = (text[start : start + ARMOR_WIDTH] for start in range(0, len(text), ARMOR_WIDTH))
    return ARMOR % b"\n".join(lines)


def _string(blob: bytes, start: int) -> bytes:
    size = int.from_bytes(blob[start : start + 4], "big")
    content = blob[start + 4 : start + 4 + size]
    if len(content) != size or not size:
        raise ValueError
    return content


def fingerprint(key: str) -> str:
    """Return the fingerprint of a public key, as ``ssh-keygen -l`` prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _allowed_signers(key: str) -> str:
    """Return the line of a file with allowed signers, see ssh-keygen(1)."""
    return f"{IDENTITY} {key}\n"


def read_key(path: Path) -> str:
    """Return the public key in a file, as ``TYPE BASE64``.

    The file has one line only: the key that a person compares is the key that is trusted.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeError) as error:
        raise BundleError(
            f"cannot read {path}: {error}; expected a public key. Check its path."
        ) from None
    line = text.removesuffix("\n")
    match = PUBLIC_KEY.fullmatch(line)
    try:
        # ssh-keygen -l would read another file if the line has the words PRIVATE KEY.
        if match is None or not line.isprintable() or "PRIVATE KEY" in line:
            raise ValueError
        key = _as_text(base64.b64decode(match[2], validate=True))
        if not key.startswith(f"{match[1]} "):
            raise ValueError
    except ValueError:
        raise BundleError(
            f"{path}: not one line with a public key; expected a line such as 'ssh-ed25519 "
            "AAAA...' and no other. Name the file BUNDLE.pub."
        ) from None
    return key


def verify(content: bytes, signature: bytes, signer: Path | None, name: str) -> str:
    """Check the signature of bundle NAME; return the fingerprint of the key that made it.

    SIGNER is a file with a public key; without it, only this user's own key is trusted.
    """
    key = public_key(signature)
    own = Path(f"{own_key()}.pub")
    trusted = read_key(signer or own) if signer or own.exists() else None
    if key != trusted:
        expected = fingerprint(trusted) if trusted else "a key that you name"
        raise BundleError(
            f"{name}: signed with key {fingerprint(key)}; expected {expected}. Compare the "
            "fingerprint with the person who made the bundle, then add --signer BUNDLE.pub."
        )
    with tempfile.TemporaryDirectory() as folder:
        signers, made = Path(folder) / "signers", Path(folder) / "signature"
        signers.write_text(_allowed_signers(key), encoding="ascii")
        made.write_bytes(signature)
        command = ["-Y", "verify", "-f", str(signers), "-I", IDENTITY, "-n", NAMESPACE]
        if _start([*command, "-s", str(made)], content).returncode:
            raise BundleError(
                f"{name}: manifest.json was changed after it was signed; expected the signed "
                "content. Do not use this bundle; copy it again from its source."
            )
    return fingerprint(key)


def _start(words: list[str], content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    command = ["ssh-keygen", *words]
    try:
        return subprocess.run(command, input=content, capture_output=True, check=False)
    except OSError as error:
        raise BundleError(
            f"cannot run ssh-keygen: {error.strerror}; expected OpenSSH 8.1 or newer. Install "
            "openssh-client."
        ) from None


def _run(words: list[str], content: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    done = _start(words, content)
    if done.returncode:
        output = (done.stderr or done.stdout).decode(errors="backslashreplace").split("\n")
        reason = " ".join(filter(None, map(str.strip, output))).rstrip(".")
        raise BundleError(
            f"ssh-keygen: {reason}; expected a key that can be used. Check the path "
            "of the key and its passphrase, then run again."
        )
    return done
