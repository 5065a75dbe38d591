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
  - A running service is restarted only if the content of a file that it reads changed after its
    start. The module records the digests of these files in C(/var/lib/slipway/started). So a new
    time of an unchanged file restarts nothing, and an old time of a changed file hides nothing.
  - Docker is also restarted if its rules are no longer in the packet filter of the host.
  - The next run also restarts the service if a run ended between the change and the restart.
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
      unit_files:
        description: Unit files and drop-ins of the unit itself outside the folders of packages.
        type: list
        elements: path
        default: []
      reads:
        description: Files that the service reads at its start, beside unit file and drop-ins.
        type: list
        elements: path
        default: []
        aliases: [since]
      packet_filter:
        description:
          - For the unit of Docker, whether its running service needs its rules for the networks of
            containers in the packet filter. Without them the service is restarted.
        type: bool
        default: false
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
  reloaded:
    description:
      - Changed files that the services apply on a reload. A service is reloaded if no other file
        that it has read changed.
    type: list
    elements: path
    default: []
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
        reads: [/etc/docker/daemon.json]
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
    waiting_result,
)
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    packet_filter,
    started,
    units,
)
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
            "unit_files": {"type": "list", "elements": "path", "default": []},
            "reads": {"type": "list", "elements": "path", "default": [], "aliases": ["since"]},
            "packet_filter": {"type": "bool", "default": False},
            "restart": {"type": "str", "choices": list(POLICIES), "default": "always"},
            "previous": {"type": "path"},
        },
    },
    "reloaded": {"type": "list", "elements": "path", "default": []},
}
HERE = Here(units, packet_filter)


def select_verbs(entry: Mapping[str, Any], state: dict[str, Any], restart: str) -> list[str]:
    """Return the verbs of systemctl that bring one unit to its declared state.

    STATE is the answer of the host. RESTART is ``restart`` or ``reload`` for a service that has not
    read the current files, else empty.
    """
    verbs = ["daemon-reload"] if state["reload"] else []
    for_this_boot = state["file"].endswith("-runtime")
    if entry["enabled"] and not units.is_enabled(state):
        if state["file"].startswith("masked"):
            verbs.append("unmask --runtime" if for_this_boot else "unmask")
        verbs.append("enable")
    elif entry["enabled"] is False and not units.is_disabled(state):
        verbs.append("disable --runtime" if for_this_boot else "disable")
    if not units.has_declared_activity(entry, state):
        # systemd refuses to start a unit that failed too often in a row, until it is reset.
        verbs += ["reset-failed", "start"] if entry["active"] else ["stop"]
    elif restart == "reload":
        verbs.append("reload")
    elif restart:
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


def delete_previous(entry: Mapping[str, Any]) -> None:
    """Delete the previous configuration of a unit that runs with the present one."""
    if entry["previous"]:
        daemon_json_previous.delete(entry["previous"])


class Unit:
    """One declared unit on this host."""

    def __init__(self, module: HostModule, entry: Mapping[str, Any]) -> None:
        self.module = module
        self.entry = entry
        self.name: str = entry["name"]
        self.owned = {"units": [entry]}
        self.answer = HERE.look(self.owned)
        self.differences = HERE.differences(self.owned, self.answer)

    def verbs(self) -> list[str]:
        """Return the verbs of systemctl that bring the unit to its declared state."""
        if not self.differences:
            return []
        restart = ""
        if units.needs_restart(self.entry, self.answer):
            others = set(units.unread_files(self.entry, self.answer))
            others.difference_update(self.module.params["reloaded"])
            lost = units.networks_without_rules(self.entry, self.answer)
            restart = "restart" if others or lost else "reload"
        return select_verbs(self.entry, units.state_of(self.entry, self.answer), restart)

    def run(self, verb: str) -> None:
        """Run one verb of systemctl; fail with the log of the unit."""
        names = [] if verb == "daemon-reload" else [self.name]
        status, out, err = self.module.run_command(["systemctl", *verb.split(), *names])
        if status == 0:
            return
        message = f"systemctl {verb} {self.name} failed: {(err or out).strip()}"
        log = self.log()
        if verb in ("start", "restart"):
            restored = restore_previous(self.module, self.name, self.entry["previous"])
            message = f"{message.rstrip('.')}. {restored}" if restored else message
        self.module.fail_json(msg=message, log=log)

    def log(self) -> str:
        """Return the last lines of the unit in the journal."""
        _status, log, _err = self.module.run_command(
            ["journalctl", "--no-pager", "--lines=15", "--output=cat", "--unit", self.name]
        )
        return str(log)

    def finish(self, verbs: list[str]) -> None:
        """Record what the service has read after VERBS; fail if the unit still differs."""
        delete_previous(self.entry)
        self.record(HERE.look(self.owned) if verbs else self.answer)
        if left := HERE.differences(self.owned) if verbs else []:
            differing = "; ".join(f"{one.found}; expected {one.expected}" for one in left)
            self.module.fail_json(
                msg=f"{self.name} after {', '.join(verbs)}: {differing}. See systemctl status "
                f"{self.name} and systemctl cat {self.name}.",
                log=self.log(),
            )

    def record(self, answer: Mapping[str, Any]) -> None:
        """Record the files that the service has read, with their digests of before its start."""
        earlier = {
            **units.state_of(self.entry, self.answer)["files"],
            **self.answer.get("reads", {}),
        }
        files = units.files_read(self.entry, answer)
        files.update((path, earlier[path]) for path in files if path in earlier)
        start = units.state_of(self.entry, answer)["start"]
        if files and start:
            started.write_record(self.name, start, started.digests(files))
        else:
            started.remove_record(self.name)


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    done: list[str] = []
    diff: list[dict[str, str]] = []
    waiting: list[str] = []
    for entry in module.params["units"]:
        unit = Unit(module, entry)
        if unit.differences:
            diff.append(diff_of(unit.differences))
        waiting_before = len(waiting)
        verbs = select_allowed(entry, unit.verbs(), waiting)
        done += [f"{verb} {unit.name}" for verb in verbs]
        if module.check_mode:
            continue
        for verb in verbs:
            unit.run(verb)
        if len(waiting) == waiting_before:
            unit.finish(verbs)
    result = waiting_result(module, waiting)
    module.exit_json(changed=bool(done), actions=done, diff=diff, **result)


if __name__ == "__main__":
    main()
