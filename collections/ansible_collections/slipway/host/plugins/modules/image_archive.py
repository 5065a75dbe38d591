#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.image_archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_archive
short_description: Write images to an archive on the host
description:
  - Writes images to one archive, whole or not at all; layers that images share are written once.
  - Creates the folder of the archive if it is missing, and follows no link in a folder that others
    can write.
options:
  path:
    description: Path of the archive.
    type: path
    required: true
  references:
    description: Tags of images on the host.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    description: In check mode no archive is written.
    support: full
  diff_mode:
    description: Shows no content.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write an image to an archive
  slipway.host.image_archive:
    path: /srv/images.tar
    references: ["slipway/iris-api:cpu"]
"""

RETURN = r"""
path:
  description: Path of the archive.
  returned: always
  type: str
"""

import subprocess
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import paths

ARGUMENT_SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "references": {"type": "list", "elements": "str", "required": True},
}
MODE = 0o600


class ArchiveError(Exception):
    """Docker did not write the archive; the text says why."""


def write(path: str, references: list[str]) -> None:
    """Write the archive; raise ArchiveError, UnsafePathError or OSError where that fails."""
    with (
        paths.opened_parent(path, make=True) as (folder, name),
        folder.replacing(name, MODE, 0, 0) as descriptor,
    ):
        saved = subprocess.run(
            ["docker", "save", *references],
            stdout=descriptor,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if saved.returncode != 0:
            raise ArchiveError(saved.stderr.strip() or f"exit status {saved.returncode}")


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    path = module.params["path"]
    if not module.check_mode:
        try:
            write(path, module.params["references"])
        except ArchiveError as error:
            module.fail_json(msg=f"archive {path}: docker save failed: {error}")
        except (OSError, paths.UnsafePathError) as error:
            module.fail_json(msg=f"archive {path}: {error}")
    module.exit_json(changed=True, path=path)


if __name__ == "__main__":
    main()
