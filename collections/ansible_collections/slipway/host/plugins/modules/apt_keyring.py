#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.apt_keyring."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_keyring
short_description: An apt repository's key, checked by its fingerprint
description:
  - Fetches an OpenPGP key and writes it for use as C(Signed-By), only if it has the given
    fingerprint. A key that is there and has it is not fetched again.
  - Needs no GnuPG on the host.
options:
  path:
    description:
      - File to write; the key is armoured where it ends with C(.asc), and binary with C(.gpg),
        whatever the address gives.
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
    description: In check mode the key is neither fetched nor written.
    support: full
  diff_mode:
    description: Shows the fingerprints.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Docker's key
  slipway.host.apt_keyring:
    path: /etc/apt/keyrings/docker.asc
    url: https://download.docker.com/linux/ubuntu/gpg
    fingerprint: 9DC858229FC7DD38854AE2D88D81803C0EBFCD88
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the keys that the file held before.
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
    """Return binary keyring bytes from a key file's CONTENT, armoured or not."""
    if content.lstrip().startswith(b"-----BEGIN"):
        return openpgp.from_text(content.decode("ascii", "replace"))
    return content


def present_fingerprints(path: Path) -> list[str]:
    """Return the fingerprints in the file at PATH, none where it is missing or no keyring."""
    try:
        return openpgp.fingerprints(keyring_bytes(paths.read_file(str(path))))
    except (OSError, ValueError):
        return []


def fetch(module: HostModule, url: str, wanted: str) -> bytes:
    """Return what to write of the key at URL, or fail the module where it is not WANTED."""
    try:
        with urlopen(url, timeout=module.params["timeout"]) as answer:
            content: bytes = answer.read(1 << 20)
    except (OSError, ValueError, HTTPException) as error:
        module.fail_json(
            msg=f"could not fetch the key {url}: {error}. Make it reachable from the host, or "
            "name a mirror."
        )
    try:
        keyring = keyring_bytes(content)
        found = openpgp.fingerprints(keyring)
    except ValueError as error:
        module.fail_json(msg=f"what {url} gives is no OpenPGP key: {error}. Nothing was written.")
    if wanted not in found:
        module.fail_json(
            msg=f"the key at {url} has the fingerprint {', '.join(found)}, expected {wanted}. "
            "Nothing was written. If the vendor has a new key, confirm it on the vendor's own "
            "page and change the fingerprint variable."
        )
    if Path(module.params["path"]).suffix == ".gpg":
        return keyring
    return content if content != keyring else openpgp.to_text(keyring).encode()


def close(path: Path, check: bool) -> bool:
    """Make a keyring root's, and let nobody else write it; return whether that differed."""
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
    wanted = openpgp.spelled(module.params["fingerprint"])
    before = present_fingerprints(path)
    write = wanted not in before
    if write and not module.check_mode:
        content = fetch(module, module.params["url"], wanted)
        with paths.opened_parent(str(path), make=True) as (folder, name):
            folder.replace(name, content, MODE, 0, 0)
    repairs = not write and close(path, module.check_mode)
    module.exit_json(
        changed=write or repairs,
        fingerprints=before,
        diff={
            "before_header": str(path),
            "after_header": str(path),
            "before": "\n".join(before) + "\n" if before else "",
            "after": wanted + "\n" if write else "\n".join(before) + "\n",
        },
    )


if __name__ == "__main__":
    main()
