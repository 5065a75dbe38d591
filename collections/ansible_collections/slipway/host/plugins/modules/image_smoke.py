#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.image_smoke."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_smoke
short_description: Run the smoke tests of images on the host
description:
  - Runs the smoke test of each image in a container without network, on a read-only file system, as
    a user that the image does not know. A C(gpu) variant gets the host's GPUs, if there are any.
  - All smoke tests are run; the module fails at the end if one of them failed.
options:
  references:
    description: Tags of images on the host.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds after which a smoke test has failed.
    type: int
    default: 1800
attributes:
  check_mode:
    description: Changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Test an image that was loaded by docker load
  slipway.host.image_smoke:
    references: ["slipway/iris-api:cpu"]
"""

RETURN = r"""
proven:
  description: The lines of each image's smoke test, by the image's tag.
  returned: always
  type: dict
  sample: {"slipway/iris-api:cpu": ["smoke: 4 predictions right, 20 bad requests refused"]}
"""

import json
import subprocess
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.images import smoke

ARGUMENT_SPEC: dict[str, Any] = {
    "references": {"type": "list", "elements": "str", "required": True},
    "timeout": {"type": "int", "default": 1800},
}


def prove(reference: str, timeout: int) -> list[str]:
    """Run one image's smoke test; return its lines or raise SmokeError."""
    inspected = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", reference],
        capture_output=True,
        text=True,
        check=False,
    )
    if inspected.returncode != 0:
        raise smoke.SmokeError(f"image not found on the host: {inspected.stderr.strip()}")
    command = (json.loads(inspected.stdout) or {}).get(labels.SMOKE)
    if command is None:
        raise smoke.SmokeError(
            f"no smoke test: label {labels.SMOKE} is missing. Choose an image of the catalogue"
        )
    return smoke.test(reference, json.loads(command), timeout)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    proven, failed = {}, []
    for reference in module.params["references"]:
        try:
            proven[reference] = prove(reference, module.params["timeout"])
        except (smoke.SmokeError, OSError) as error:
            failed.append(f"{reference}: {error}")
    if failed:
        module.fail_json(msg="\n".join(failed), proven=proven)
    module.exit_json(changed=False, proven=proven)


if __name__ == "__main__":
    main()
