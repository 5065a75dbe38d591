#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.bundle_packages: download packages; its action plugin copies them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_packages
short_description: Copy the packages that roles install to a folder on the controller
description:
  - Downloads packages and everything that they depend on, from the apt sources of the host, whose
    signatures apt checks. Copies them to a folder on the controller, from which a bundle is made.
  - The packages, sources and package lists of the host stay as they are.
  - The packages are those of a fresh host without a network. Run this on one host at a time.
options:
  roles:
    description: Roles whose packages are copied; set on the controller only.
    type: list
    elements: str
  folder:
    description: Folder on the controller. It is created. Set on the controller only.
    type: path
  names:
    description: Packages to download. Set by the action plugin, from O(roles).
    type: list
    elements: str
  optional:
    description: Packages to download if a source has them. Set by the action plugin.
    type: list
    elements: str
    default: []
  work:
    description: New folder on the host, which the action plugin removes. Set by the action plugin.
    type: path
attributes:
  check_mode:
    description: Copies nothing.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the packages of Docker Engine to the controller
  slipway.host.bundle_packages:
    roles: [docker_engine]
    folder: /srv/packages
"""

RETURN = r"""
received:
  description: Bytes that the controller received.
  returned: always
  type: int
"""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import bundle_source, changes
from ansible_collections.slipway.host.plugins.module_utils.apt.run import Apt, AptError
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "list", "elements": "str"},
    "folder": {"type": "path"},
    "names": {"type": "list", "elements": "str"},
    "optional": {"type": "list", "elements": "str", "default": []},
    "work": {"type": "path"},
}
LOCK_TIMEOUT = 300
CHUNK = 1 << 20


def download(apt: Apt, names: list[str], optional: list[str]) -> None:
    """Download packages with all dependencies, as for a host without any package."""
    apt.refresh()
    if apt.unusable:
        # Other sources may have the same packages in older versions.
        errors = " ".join(changes.merge_sources(apt.unusable))
        raise AptError(f"Cannot find the newest versions. {errors}")
    names = [*names, *apt.available(optional)]
    install = ["apt-get", *changes.OPTIONS, "install", "--", *names]
    apt.change(changes.dry_run(install, "--download-only"), activity="the download of the packages")


def describe(file: Path) -> dict[str, Any]:
    """Return name, size, SHA-256 and control fields of a package file; anybody may read it then."""
    command = ["dpkg-deb", "--field", str(file)]
    control = subprocess.run(command, capture_output=True, check=True).stdout
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    file.chmod(0o644)
    return {
        "file": file.name,
        "size": file.stat().st_size,
        "sha256": digest.hexdigest(),
        "control": control.decode("utf-8", "replace"),
    }


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    work = Path(module.params["work"])
    archives = work / "archives"
    (archives / "partial").mkdir(parents=True)
    (work / "status").touch()
    # The connecting user reads the packages, which are no secret.
    for folder in (work, archives):
        folder.chmod(0o755)
    settings = (
        f"Dir::State::Lists={work}/lists",
        f"Dir::State::status={work}/status",
        f"Dir::State::extended_states={work}/extended",
        f"Dir::Cache::archives={archives}",
        *bundle_source.WITHOUT_CACHE,
    )
    (work / "lists/partial").mkdir(parents=True)
    apt = Apt(module, LOCK_TIMEOUT, [f"--option={setting}" for setting in settings])
    try:
        download(apt, module.params["names"], module.params["optional"])
    except AptError as error:
        module.fail_json(msg=str(error), output=error.output)
    module.exit_json(changed=False, packages=[*map(describe, sorted(archives.glob("*.deb")))])


if __name__ == "__main__":
    main()
