#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.image_archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_archive
short_description: Write images to an archive on the host, or load them from it
description:
  - Writes images to one archive, whole or not at all; layers that images share are written once.
  - Writes a record beside the archive, with the name of the archive and C(.json). It holds the
    digest of the archive and the context digests of the images. Both files belong together.
  - Refuses images whose content the host did not record.
  - With O(state=loaded), loads the images of which the host has no record. An archive that differs
    from its record is refused. The tag moves after the smoke test of the image passed on this host.
  - Creates the folder of the archive if it is missing, and follows no link in a folder that others
    can write.
options:
  path:
    description: Path of the archive.
    type: path
    required: true
  references:
    description: Tags of images on the host; required to write an archive.
    type: list
    elements: str
  state:
    description: Whether to write the archive or to load its images.
    type: str
    choices: [saved, loaded]
    default: saved
  timeout:
    description: Seconds after which the smoke test of a loaded image has failed.
    type: int
    default: 1800
attributes:
  check_mode:
    description: In check mode no archive is written and no image is loaded.
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
loaded:
  description: Tags of the images that were loaded.
  returned: when O(state=loaded)
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.images import archive
from ansible_collections.slipway.host.plugins.module_utils.state import paths

ARGUMENT_SPEC: dict[str, Any] = {
    "path": {"type": "path", "required": True},
    "references": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": ["saved", "loaded"], "default": "saved"},
    "timeout": {"type": "int", "default": 1800},
}


def load(module: HostModule, path: str) -> list[str]:
    """Load the images of an archive; fail with the images that were not accepted."""
    if module.check_mode:
        return archive.missing_images(archive.read_archive_record(path))
    loaded, failed = archive.load_images(path, module.params["timeout"])
    if failed:
        module.fail_json(
            msg="\n".join(f"{reference}: {reason}" for reference, reason in failed.items()),
            changed=bool(loaded),
            loaded=loaded,
        )
    return loaded


def main() -> None:
    """Run the module."""
    module = HostModule(
        argument_spec=ARGUMENT_SPEC,
        required_if=[("state", "saved", ["references"])],
        supports_check_mode=True,
    )
    path = module.params["path"]
    try:
        if module.params["state"] == "loaded":
            loaded = load(module, path)
            module.exit_json(changed=bool(loaded), path=path, loaded=loaded)
        if not module.check_mode:
            archive.save_images(path, module.params["references"])
    except (archive.ArchiveError, OSError, paths.UnsafePathError) as error:
        module.fail_json(msg=f"archive {path}: {error}")
    module.exit_json(changed=True, path=path)


if __name__ == "__main__":
    main()
