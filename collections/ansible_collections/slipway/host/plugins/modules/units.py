#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.units."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: The systemd units that a role owns
description:
  - Enables, starts, stops and, where it must be, restarts units as a role's owned state declares
    them.
  - A running unit is restarted only when a file that it has read changed after it was started or
    reloaded. So a run that was interrupted between the file and the restart is finished by the
    next one, and no other restarts anything.
  - Whether a unit is as declared is decided by the same comparison as in the survey.
options:
  units:
    description: The units, as the C(units) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit with its suffix.
        type: str
        required: true
      enabled:
        description: Whether it starts at boot; without it, that is left alone.
        type: bool
      active:
        description: Whether it runs; without it, that is left alone.
        type: bool
      since:
        description: Files that the running unit has read.
        type: list
        elements: path
        default: []
attributes:
  check_mode:
    description: Says what would be enabled, started, stopped and restarted.
    support: full
  diff_mode:
    description: Shows what differs.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Start Docker, restart after configuration changes
  slipway.host.units:
    units:
      - name: docker.service
        enabled: true
        active: true
        since: [/etc/docker/daemon.json]
"""

RETURN = r"""
actions:
  description: What systemctl was told, in order.
  returned: always
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import units
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "units": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "enabled": {"type": "bool"},
            "active": {"type": "bool"},
            "since": {"type": "list", "elements": "path", "default": []},
        },
    },
}


def actions(entry: Mapping[str, Any], state: Any, stale: bool) -> list[str]:
    """Return the verbs that make one unit as declared.

    STATE is the probe's answer; STALE says that a file it has read changed since it was started.
    """
    _load, unit_file, active, needs_reload, _changed = state or ("", "", "", False, 0.0)
    running = active in ("active", "activating", "reloading")
    found = ["daemon-reload"] if needs_reload else []
    disabled = unit_file in ("disabled", "masked", "")
    if entry["enabled"] is not None and entry["enabled"] == disabled:
        found += ["unmask"] if unit_file == "masked" else []
        found.append("enable" if entry["enabled"] else "disable")
    if entry["active"] is not None and entry["active"] != running:
        # A unit that was started too often in a row is refused until that is forgotten.
        found += ["reset-failed", "start"] if entry["active"] else ["stop"]
    elif stale:
        found += ["reset-failed", "restart"]
    return found


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    done: list[str] = []
    diff: list[dict[str, str]] = []
    here = Here(units)
    for entry in module.params["units"]:
        owned = {"units": [entry]}
        answer = here.look(owned)
        found = here.differences(owned, answer)
        if not found:
            continue
        name = entry["name"]
        state = answer["units"][name]
        diff.append(diff_of(found))
        stale = any((answer["mtimes"][path] or 0) > (state or [0])[-1] for path in entry["since"])
        for verb in actions(entry, state, stale):
            done.append(f"{verb} {name}")
            command = ["systemctl", verb] + ([name] if verb != "daemon-reload" else [])
            if not module.check_mode:
                status, out, err = module.run_command(command)
                if status != 0:
                    _status, log, _err = module.run_command(
                        ["journalctl", "--no-pager", "--lines=15", "--output=cat", "--unit", name]
                    )
                    said = (err or out).strip()
                    module.fail_json(msg=f"systemctl {verb} {name} failed: {said}", log=log)
    module.exit_json(changed=bool(diff), actions=done, diff=diff)


if __name__ == "__main__":
    main()
