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
  - The file contains this key alone, belongs to root and has mode 0644. Other keys are removed.
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

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import key_download, openpgp
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import apply_files, keyrings, paths
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "url": {"type": "str", "required": True},
    "fingerprint": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 15},
}
MODE = 0o644


def present_key(text: str | None, expected: str) -> tuple[list[str], bytes]:
    """Return the fingerprints in a keyring, and the packets of the expected key in it."""
    try:
        keyring = openpgp.from_text(text or "")
        return openpgp.fingerprints(keyring), openpgp.extract(keyring, expected)
    except ValueError:
        return [], b""


def write(path: str, key: bytes) -> None:
    """Write a key in the form that the name of the file demands; raise UnsafePathError, OSError."""
    content = openpgp.to_text(key).encode() if path.endswith(".asc") else key
    apply_files.secure_parents(path)
    with paths.opened_parent(path, make=True) as (folder, name):
        apply_files.clear(folder, name, paths.FILE)
        folder.replace(name, content, MODE, 0, 0)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    path: str = module.params["path"]
    expected = openpgp.normalize_fingerprint(module.params["fingerprint"])
    owned = {"keyrings": [{"path": path, "fingerprint": expected}]}
    here = Here(keyrings)
    answer = here.look(owned)
    comparison = here.compare(owned, answer)
    if comparison.conflicts:
        module.finish(comparison.conflicts, changed=False)
    differences = comparison.differences
    before, key = present_key(answer["texts"][path], expected)
    if differences and not module.check_mode:
        try:
            parameters = module.params
            write(
                path,
                key or key_download.download(parameters["url"], expected, parameters["timeout"]),
            )
        except key_download.KeyDownloadError as error:
            module.fail_json(msg=str(error))
        except (OSError, paths.UnsafePathError) as error:
            module.fail_json(msg=f"the keyring {path} was not written: {error}")
    module.exit_json(
        changed=bool(differences),
        fingerprints=before,
        diff={
            "before_header": path,
            "after_header": path,
            "before": "".join(f"{line}\n" for line in before),
            "after": f"{expected}\n",
            "prepared": diff_of(differences)["prepared"],
        },
    )


if __name__ == "__main__":
    main()
