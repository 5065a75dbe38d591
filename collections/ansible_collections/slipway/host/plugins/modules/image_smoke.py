#!/usr/bin/python
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.image_smoke."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_smoke
short_description: Run the smoke tests of images on the host
description:
  - Runs the smoke test that lies in each image, in a container of its own without network, on a
    read-only file system, as a user that the image does not know; with the host's GPUs where the
    image is a C(gpu) variant and there are any.
  - All are run, and the module fails at the end where one failed.
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
  - Slipway contributors
"""

EXAMPLES = r"""
- name: Prove an image that came by docker load
  slipway.host.image_smoke:
    references: ["slipway/iris-api:cpu"]
"""

RETURN = r"""
proven:
  description: What each image's smoke test proved, by its tag.
  returned: always
  type: dict
  sample: {"slipway/iris-api:cpu": ["smoke: 4 predictions right, 20 bad requests refused"]}
"""

import json
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import smoke

ARGUMENT_SPEC: dict[str, Any] = {
    "references": {"type": "list", "elements": "str", "required": True},
    "timeout": {"type": "int", "default": 1800},
}


def prove(reference: str, timeout: int) -> list[str]:
    """Run one image's smoke test; return what it proved or raise SmokeError."""
    asked = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", reference],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise smoke.SmokeError(f"is not on the host: {asked.stderr.strip()}")
    command = (json.loads(asked.stdout) or {}).get(labels.SMOKE)
    if command is None:
        raise smoke.SmokeError(f"has no smoke test: it lacks the label {labels.SMOKE}")
    return smoke.test(reference, json.loads(command), timeout)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
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
