#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.units."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Enable, start, stop and restart the systemd units of a role
description:
  - Enables, starts and stops units as a role's owned state declares them, and restarts them if
    necessary.
  - A running unit is restarted only if a file that it reads changed after its start or reload. So
    the next run also restarts the unit if a run ended between the change and the restart.
  - Compares units with the host in the same way as the survey.
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
        description: Whether the unit starts at boot. By default this is not changed.
        type: bool
      active:
        description: Whether the unit runs. By default this is not changed.
        type: bool
      since:
        description: Files that the unit reads at its start or reload.
        type: list
        elements: path
        default: []
      restart:
        description:
          - For the unit of Docker, when it may be restarted or stopped; see the option of the same
            name of M(slipway.host.daemon_json). By default, always.
        type: str
        choices: [idle, always, never]
        default: always
      previous:
        description:
          - File in which M(slipway.host.daemon_json) keeps the previous configuration. If the unit
            does not start, the module restores this file and starts the unit again.
        type: path
attributes:
  check_mode:
    description: Reports which units would be enabled, started, stopped and restarted.
    support: full
  diff_mode:
    description: Shows the differences.
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
  description: The verbs and units that systemctl was called with, in order.
  returned: always
  type: list
  elements: str
slipway_waiting:
  description: Which restarts wait, why, and what to do.
  returned: when a restart waits
  type: list
  elements: str
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json_previous
from ansible_collections.slipway.host.plugins.module_utils.docker.restart_consent import (
    POLICIES,
    ask_obstacle,
)
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
            "restart": {"type": "str", "choices": list(POLICIES), "default": "always"},
            "previous": {"type": "path"},
        },
    },
}


def select_verbs(entry: Mapping[str, Any], state: Any, stale: bool) -> list[str]:
    """Return the verbs of systemctl that bring one unit to its declared state.

    STATE is the answer of the host; STALE says that a file of the unit changed after its start.
    """
    _load, unit_file, active, needs_reload, _changed = state or ("", "", "", False, 0.0)
    running = active in ("active", "activating", "reloading")
    verbs = ["daemon-reload"] if needs_reload else []
    disabled = unit_file in ("disabled", "masked", "")
    if entry["enabled"] is not None and entry["enabled"] == disabled:
        verbs += ["unmask"] if unit_file == "masked" else []
        verbs.append("enable" if entry["enabled"] else "disable")
    if entry["active"] is not None and entry["active"] != running:
        # systemd refuses to start a unit that failed too often in a row, until it is reset.
        verbs += ["reset-failed", "start"] if entry["active"] else ["stop"]
    elif stale:
        verbs += ["reset-failed", "restart"]
    return verbs


def select_allowed(entry: Mapping[str, Any], verbs: list[str], waiting: list[str]) -> list[str]:
    """Return the VERBS that are allowed now; add a sentence to WAITING for the others."""
    disturbing = [verb for verb in verbs if verb in ("restart", "stop")]
    obstacle = ask_obstacle(entry["restart"]) if disturbing else ""
    if not obstacle:
        return verbs
    waiting.append(f"{disturbing[0]} of {entry['name']} waits: {obstacle}.")
    return [verb for verb in verbs if verb not in ("reset-failed", *disturbing)]


def restore_previous(module: HostModule, name: str, file: str | None) -> str:
    """Start a unit with its previous configuration; return a sentence, empty without one."""
    path = daemon_json_previous.restore(file) if file else ""
    if not path:
        return ""
    module.run_command(["systemctl", "reset-failed", name])
    status, out, err = module.run_command(["systemctl", "restart", name])
    if status != 0:
        output = (err or out).strip()
        return (
            f"The previous {path} is restored, but {name} does not start with it either: {output}"
        )
    return (
        f"The previous {path} is restored, and {name} runs with it. Correct the settings, then "
        "run again."
    )


def delete_previous(module: HostModule, entry: Mapping[str, Any]) -> None:
    """Delete the previous configuration of a unit that runs with the present one."""
    if entry["previous"] and not module.check_mode:
        daemon_json_previous.forget(entry["previous"])


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    done: list[str] = []
    diff: list[dict[str, str]] = []
    waiting: list[str] = []
    here = Here(units)
    for entry in module.params["units"]:
        owned = {"units": [entry]}
        answer = here.look(owned)
        differences = here.differences(owned, answer)
        if not differences:
            delete_previous(module, entry)
            continue
        name = entry["name"]
        state = answer["units"][name]
        diff.append(diff_of(differences))
        stale = any((answer["mtimes"][path] or 0) > (state or [0])[-1] for path in entry["since"])
        for verb in select_allowed(entry, select_verbs(entry, state, stale), waiting):
            done.append(f"{verb} {name}")
            command = ["systemctl", verb] + ([name] if verb != "daemon-reload" else [])
            if not module.check_mode:
                status, out, err = module.run_command(command)
                if status != 0:
                    _status, log, _err = module.run_command(
                        ["journalctl", "--no-pager", "--lines=15", "--output=cat", "--unit", name]
                    )
                    message = f"systemctl {verb} {name} failed: {(err or out).strip()}"
                    if verb in ("start", "restart"):
                        restored = restore_previous(module, name, entry["previous"])
                        message = f"{message.rstrip('.')}. {restored}" if restored else message
                    module.fail_json(msg=message, log=log)
        if not waiting:
            delete_previous(module, entry)
    result: dict[str, Any] = {"slipway_waiting": waiting} if waiting else {}
    module.exit_json(changed=bool(done), actions=done, diff=diff, **result)


if __name__ == "__main__":
    main()
