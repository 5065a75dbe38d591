#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.host_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Gather the host facts that owned state depends on
description:
  - Returns C(ansible_facts['slipway']), which the survey also sets. A role that runs without the
    survey uses this module.
  - Reads only.
options:
  reach:
    description:
      - URLs that a host without Docker Engine tries. C({distribution}) is replaced by C(debian) or
        C(ubuntu).
      - An URL is reachable if the server answers within I(timeout), with any status.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait for each URL.
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
          empty); docker_snap, systemd and root (booleans); reachable (URL to boolean);
          metrics_files (paths that the role host_metrics wrote); slurm (whether the role slurm
          manages the host); slurmdbd (managed if Slipway configures slurmdbd, foreign if somebody
          else does, or empty); front_door (the same of Caddy).
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
    host_facts = facts.ask_facts(module.params["reach"], module.params["timeout"])
    module.exit_json(changed=False, ansible_facts={"slipway": host_facts})


if __name__ == "__main__":
    main()
