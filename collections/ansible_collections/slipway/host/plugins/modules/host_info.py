#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.host_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: The few facts that owned state depends on
description:
  - Returns C(ansible_facts['slipway']), which the survey sets as well. A role that runs without the
    survey asks for it by this module.
  - Reads only.
options:
  reach:
    description:
      - Addresses to try from the host where no Docker Engine is installed yet; C({distribution})
        stands for C(debian) or C(ubuntu).
      - Any answer of the server counts as reached, within I(timeout).
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for each address.
    type: int
    default: 5
attributes:
  check_mode:
    description: Reads only, so check mode makes no difference.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Gather host facts
  slipway.host.host_info:
"""

RETURN = r"""
ansible_facts:
  description: The facts, under C(slipway).
  returned: always
  type: dict
  contains:
    slipway:
      description:
        - distribution, distribution_version, distribution_major_version, distribution_release,
          architecture and kernel as Ansible spells them; docker_package (docker-ce, docker.io or
          empty); docker_snap, systemd and root (booleans); reachable (address to boolean).
      type: dict
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import facts

ARGUMENT_SPEC: dict[str, Any] = {
    "reach": {"type": "list", "elements": "str", "default": []},
    "timeout": {"type": "int", "default": 5},
}


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    known = facts.ask_facts(module.params["reach"], module.params["timeout"])
    module.exit_json(changed=False, ansible_facts={"slipway": known})


if __name__ == "__main__":
    main()
