# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host builds the images of another host, from what the run knows of all hosts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.images import delivery
from ansible_collections.slipway.host.plugins.plugin_utils import holds

# Connections over which images are delivered.
SSH = ("ssh", "ansible.builtin.ssh", "smart")
Vars = Mapping[str, Any]


def choose(
    wanted: Sequence[str], own: delivery.Candidate, variables: Vars, failed: Collection[str] = ()
) -> str | None:
    """Return the host that builds for the host of VARIABLES, None if that host builds.

    WANTED and OWN: see :func:`delivery.choose_builder`. FAILED are the hosts that failed in this
    run. Raise AnsibleActionFail if no host of WANTED can build.
    """

    def look(name: str) -> delivery.Candidate | None:
        other = variables["hostvars"][name]
        surveyed = other.get("__slipway_survey") or {}
        if (
            other.get("ansible_connection", "ssh") not in SSH
            or name in failed
            or surveyed.get("failed")
            or surveyed.get("unreachable")
        ):
            return None
        architecture = other.get("ansible_facts", {}).get("slipway", {}).get("architecture")
        hold = str(other.get(holds.OPTION) or "")
        return delivery.Candidate(architecture, surveyed.get("images"), hold)

    host = str(variables.get("inventory_hostname"))
    later = find_later(variables)
    everyone = [name for name in variables.get("groups", {}).get("all", ()) if name not in later]
    try:
        return delivery.choose_builder(wanted, host, own, everyone, look)
    except ValueError as error:
        raise AnsibleActionFail(str(error)) from None


def find_later(variables: Vars) -> set[str]:
    """Return the hosts of later batches of a rolling run: nothing is built on them yet."""
    hosts = list(variables.get("ansible_play_hosts_all", ()))
    batch = {*variables.get("ansible_play_batch", ())}
    ends = [number for number, name in enumerate(hosts, start=1) if name in batch]
    return {*hosts[max(ends) :]} if ends else set()


def without_held(wanted: Sequence[str], own: delivery.Candidate, variables: Vars) -> list[str]:
    """Return the declared builders of a host that lacks images, without those that are held.

    Raise AnsibleActionFail if no other one can build. Other reasons are found when the images are
    built: before that, a builder may still get its declared state.
    """
    hosts = variables.get("hostvars", {})
    held = [name for name in wanted if name in hosts and hosts[name].get(holds.OPTION)]
    if held:
        choose(wanted, own, variables)
    return [name for name in wanted if name not in held]
