#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.apt_keyring."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_keyring
short_description: Install the key of an apt repository, checked by its fingerprint
description:
  - Downloads an OpenPGP key and writes it for use as C(Signed-By) if it has the declared
    fingerprint. If the file already has a key with this fingerprint, nothing is downloaded.
  - Does not need GnuPG on the host.
options:
  path:
    description:
      - File to write. The key is written armoured if the name ends with C(.asc), and binary if it
        ends with C(.gpg), independent of the format of the download.
    type: path
    required: true
  url:
    description: Address of the key, http, https or file.
    type: str
    required: true
  fingerprint:
    description: Fingerprint of the primary key, 40 hex digits; spaces are ignored.
    type: str
    required: true
  timeout:
    description: Seconds to wait for the server.
    type: int
    default: 15
attributes:
  check_mode:
    description: In check mode the key is neither downloaded nor written.
    support: full
  diff_mode:
    description: Shows the fingerprints.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Install the key of Docker's repository
  slipway.host.apt_keyring:
    path: /etc/apt/keyrings/docker.asc
    url: https://download.docker.com/linux/ubuntu/gpg
    fingerprint: 9DC858229FC7DD38854AE2D88D81803C0EBFCD88
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the keys in the file before the task.
  returned: always
  type: list
  elements: str
"""

from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import paths

ARGUMENT_SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "url": {"type": "str", "required": True},
    "fingerprint": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 15},
}
MODE = 0o644


def keyring_bytes(content: bytes) -> bytes:
    """Return the binary keyring in the CONTENT of a key file, which may be armoured."""
    if content.lstrip().startswith(b"-----BEGIN"):
        return openpgp.from_text(content.decode("ascii", "replace"))
    return content


def present_fingerprints(path: Path) -> list[str]:
    """Return the fingerprints in the file at PATH; empty if it is missing or not a keyring."""
    try:
        return openpgp.fingerprints(keyring_bytes(paths.read_file(str(path))))
    except (OSError, ValueError):
        return []


def download(module: HostModule, url: str, expected: str) -> bytes:
    """Return the content for the key file; fail if the key at URL has another fingerprint."""
    try:
        with urlopen(url, timeout=module.params["timeout"]) as answer:
            content: bytes = answer.read(1 << 20)
    except (OSError, ValueError, HTTPException) as error:
        module.fail_json(
            msg=f"Cannot download the key {url}: {error}. Make the address reachable from the "
            "host, or use a mirror."
        )
    try:
        keyring = keyring_bytes(content)
        fingerprints = openpgp.fingerprints(keyring)
    except ValueError as error:
        module.fail_json(
            msg=f"{url}: {error}; expected an OpenPGP key. Correct the address. Nothing was "
            "written."
        )
    if expected not in fingerprints:
        module.fail_json(
            msg=f"{url}: the key has the fingerprint {', '.join(fingerprints)}; expected "
            f"{expected}. Nothing was written. If the vendor has a new key, confirm it on the "
            "vendor's own page and change the fingerprint variable."
        )
    if Path(module.params["path"]).suffix == ".gpg":
        return keyring
    return content if content != keyring else openpgp.to_text(keyring).encode()


def restrict_writing(path: Path, check: bool) -> bool:
    """Make root the owner and the only writer of a keyring; return whether this is a change."""
    with paths.opened_parent(str(path)) as (folder, name):
        info = folder.lstat(name)
        if info is None or (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (0, 0, MODE):
            return False
        if not check:
            folder.set_file(name, MODE, 0, 0)
        return True


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    path = Path(module.params["path"])
    expected = openpgp.normalize_fingerprint(module.params["fingerprint"])
    before = present_fingerprints(path)
    write = expected not in before
    if write and not module.check_mode:
        content = download(module, module.params["url"], expected)
        with paths.opened_parent(str(path), make=True) as (folder, name):
            folder.replace(name, content, MODE, 0, 0)
    repairs = not write and restrict_writing(path, module.check_mode)
    module.exit_json(
        changed=write or repairs,
        fingerprints=before,
        diff={
            "before_header": str(path),
            "after_header": str(path),
            "before": "\n".join(before) + "\n" if before else "",
            "after": expected + "\n" if write else "\n".join(before) + "\n",
        },
    )


if __name__ == "__main__":
    main()
