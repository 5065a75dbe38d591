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
            does not start, that is restored and the unit is started with it.
        type: path
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


def allowed_actions(entry: Mapping[str, Any], verbs: list[str], waiting: list[str]) -> list[str]:
    """Return the VERBS that may be done now; add a sentence to WAITING for those that may not."""
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
        said = (err or out).strip()
        return f"The previous {path} is restored, but {name} does not start with it either: {said}"
    return (
        f"The previous {path} is restored, and {name} runs with it. Correct the settings, then "
        "run again."
    )


def forget_previous(module: HostModule, entry: Mapping[str, Any]) -> None:
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
        found = here.differences(owned, answer)
        if not found:
            forget_previous(module, entry)
            continue
        name = entry["name"]
        state = answer["units"][name]
        diff.append(diff_of(found))
        stale = any((answer["mtimes"][path] or 0) > (state or [0])[-1] for path in entry["since"])
        for verb in allowed_actions(entry, actions(entry, state, stale), waiting):
            done.append(f"{verb} {name}")
            command = ["systemctl", verb] + ([name] if verb != "daemon-reload" else [])
            if not module.check_mode:
                status, out, err = module.run_command(command)
                if status != 0:
                    _status, log, _err = module.run_command(
                        ["journalctl", "--no-pager", "--lines=15", "--output=cat", "--unit", name]
                    )
                    said = f"systemctl {verb} {name} failed: {(err or out).strip()}"
                    if verb in ("start", "restart"):
                        restored = restore_previous(module, name, entry["previous"])
                        said = f"{said.rstrip('.')}. {restored}" if restored else said
                    module.fail_json(msg=said, log=log)
        if not waiting:
            forget_previous(module, entry)
    result: dict[str, Any] = {"slipway_waiting": waiting} if waiting else {}
    module.exit_json(changed=bool(done), actions=done, diff=diff, **result)


if __name__ == "__main__":
    main()
