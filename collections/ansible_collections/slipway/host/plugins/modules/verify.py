#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.verify."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify
short_description: Ask a finished host to do the real thing
description:
  - Asks the Docker Engine, runs the smoke test of each catalogue image on the host, and sends each
    service the request that its image declares, expecting the declared answer.
  - On a host with NVIDIA GPUs, lists them with C(nvidia-smi) and computes on each one, on the
    host and in a container that gets the GPUs as the engine is configured. Then systemd reloads its
    units, which takes the GPUs from containers that got them without the engine's knowledge, and
    the same container must still list the GPUs.
  - Changes nothing; what is tried runs in containers of their own that are removed.
options:
  smoke:
    description: Run the images' smoke tests.
    type: bool
    default: true
  daemon_reload:
    description:
      - Tell systemd to read its units anew while a container holds the GPUs. It is left out where a
        running container would lose its GPUs by it, and the report names that container.
    type: bool
    default: true
attributes:
  check_mode:
    description: Changes nothing; in check mode systemd is not told anything either.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Run acceptance checks
  slipway.host.verify:
"""

RETURN = r"""
checks:
  description: What was tried, in order.
  returned: always
  type: list
  elements: dict
  contains:
    what:
      description: What was tried.
      type: str
    ok:
      description: Whether it went well.
      type: bool
    seen:
      description: What was seen.
      type: str
report:
  description: The checks as lines for a person.
  returned: on success
  type: list
  elements: str
slipway_note:
  description: What a container saw of the GPUs, for the table that ends a run.
  returned: on success, on a host with GPUs and an engine
  type: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import verify
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule

ARGUMENT_SPEC: dict[str, Any] = {
    "smoke": {"type": "bool", "default": True},
    "daemon_reload": {"type": "bool", "default": True},
}


def line(check: Mapping[str, Any]) -> str:
    """Return a check as one line for a person."""
    return f"{'ok' if check['ok'] else 'FAILED'}  {check['what']}: {check['seen']}"


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    reload = module.params["daemon_reload"] and not module.check_mode
    checks = verify.run_checks(module.params["smoke"], reload)
    wrong = [f"{check['what']}: {check['seen']}" for check in checks if not check["ok"]]
    if wrong:
        module.fail_json(msg="; ".join(wrong), checks=checks)
    notes = [check["seen"] for check in checks if check["what"] == verify.GPUS_IN_CONTAINERS]
    module.exit_json(
        changed=False,
        checks=checks,
        report=[line(check) for check in checks],
        **({"slipway_note": f"GPUs: {notes[0]}"} if notes else {}),
    )


if __name__ == "__main__":
    main()
