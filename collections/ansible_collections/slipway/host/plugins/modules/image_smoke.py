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
  - With O(record), an image that passed counts as an image of this host from then on, as if it had
    been built there. So images can be accepted that came by C(docker load) or C(docker pull).
options:
  references:
    description: Tags of images on the host.
    type: list
    elements: str
    required: true
  record:
    description: Whether to record the content of images that passed.
    type: bool
    default: false
  timeout:
    description: Seconds after which a smoke test has failed.
    type: int
    default: 1800
attributes:
  check_mode:
    description: Runs the smoke tests, records nothing.
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

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.images import record, smoke

ARGUMENT_SPEC: dict[str, Any] = {
    "references": {"type": "list", "elements": "str", "required": True},
    "record": {"type": "bool", "default": False},
    "timeout": {"type": "int", "default": 1800},
}


def inspect_image(reference: str) -> record.Content:
    """Return an image of the host; raise SmokeError if there is none."""
    content = record.inspect_image(reference)
    if content is None:
        raise smoke.SmokeError("image not found on the host. Build or load it first.")
    return content


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    proven, failed, changed = {}, [], False
    for reference in module.params["references"]:
        module.status.show(f"smoke test of {reference}", force=True)
        try:
            content = inspect_image(reference)
            proven[reference] = smoke.test_content(content, module.params["timeout"])
            if module.params["record"] and not record.is_recorded(
                reference, content.digest, content
            ):
                changed = True
                if not module.check_mode:
                    record.write_record(
                        reference,
                        content,
                        content.digest,
                        record.ACCEPTED,
                        proven=proven[reference],
                    )
        except (smoke.SmokeError, OSError, ValueError) as error:
            failed.append(f"{reference}: {error}")
    if failed:
        module.fail_json(msg="\n".join(failed), proven=proven, changed=changed)
    module.exit_json(changed=changed, proven=proven)


if __name__ == "__main__":
    main()
