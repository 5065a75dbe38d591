# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.slurm_node: read a host as a node of a Slurm cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

# Must be the first import: it loads the modules below from byte code.
from ansible_collections.slipway.host.plugins.plugin_utils import bytecode_cache  # noqa: F401

# isort: split
from ansible_collections.slipway.host.plugins.module_utils.roles import slurm
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    holds,
    role_plans,
    roles,
)

ARGUMENT_SPEC: dict[str, Any] = {"check_clock": {"type": "bool", "default": True}}
ROLE, SERVICES = "slurm", "ml_services"
# munge accepts five minutes. Of two hosts, one may be ahead of this machine and one behind.
MAX_SKEW_SECONDS = 120
# Slurm 21.08 knows control groups of version 1 only: slurmd would not start.
NO_CGROUP_V2 = ("jammy",)


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Read one host, see the documentation of slipway.host.slurm_node."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        variables = task_vars or {}
        template = role_plans.role_template(self._templar, ROLE, variables, None)
        options = role_plans.read_options(roles.load(ROLE), variables, template)
        is_declared = options["slurm_controller"] and options["slurm_state"] != "absent"
        if not is_declared or holds.find_reason(variables, self._templar.template):
            return {**result, "changed": False}
        folder = options["slurm_state_folder"]
        folders = [folder] if folder else []
        answer = ask_host.ask(self, {"slurm_nodes": ["/"], "slurm_folders": folders})
        release = answer["facts"].get("distribution_release", "")
        node = check_answer(answer["slurm_nodes"]["/"], release)
        if folder:
            node["folder"] = answer["slurm_folders"][folder]
        skew = node.pop("time") - time.time()
        if arguments["check_clock"]:
            refuse_skew(skew)
        address = variables.get("ansible_host") or variables["inventory_hostname"]
        node["address"] = options["slurm_address"] or role_plans.evaluate(
            "ansible_host", address, template
        )
        template = role_plans.role_template(self._templar, SERVICES, variables, answer["facts"])
        services = role_plans.plan(SERVICES, variables, template, answer["facts"])
        # A part of a GPU reserves all of it: Slurm has whole GPUs.
        node["reserved"] = sorted({int(gpu.split(":")[0]) for gpu in services["reserved_gpus"]})
        return {**result, "changed": False, "ansible_facts": {slurm.FACT_OF_HOSTS: node}}


def check_answer(answer: Mapping[str, Any], release: str) -> dict[str, Any]:
    """Return the answer of a host; fail if no host has such hardware.

    The plan of the controller checks it again, because any module can set facts. RELEASE is the
    codename of the host.
    """
    if not slurm.has_possible_hardware(answer):
        raise AnsibleActionFail(
            "The host described its hardware with values that are no counts; expected numbers. "
            "Check the host: somebody may have replaced its Python. Nothing was changed."
        )
    cgroup = answer["cgroup"] is True and release not in NO_CGROUP_V2
    return {**answer, "cgroup": cgroup, "time": float(answer["time"])}


def refuse_skew(seconds: float) -> None:
    """Fail if the clock of a host is so far from that of this machine that munge refuses it."""
    if abs(seconds) > MAX_SKEW_SECONDS:
        direction = "ahead of" if seconds > 0 else "behind"
        raise AnsibleActionFail(
            f"The clock of the host is {abs(seconds):.0f} s {direction} that of this machine; "
            f"expected at most {MAX_SKEW_SECONDS} s, because munge refuses messages of the past. "
            "Install a time service such as systemd-timesyncd on the host. Nothing was changed."
        )
