# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.datasets: run the worker on the host, show its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.data import worker
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds, model
from ansible_collections.slipway.host.plugins.module_utils.state import trees as state_trees
from ansible_collections.slipway.host.plugins.plugin_utils import ask_host, detached_job
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import delivery

ARGUMENT_SPEC: dict[str, Any] = {
    "trees": {"type": "list", "elements": "dict", "required": True},
    "owned": {"type": "dict", "required": True},
    "secrets": {"type": "dict", "required": True, "no_log": True},
    "environment": {"type": "dict", "default": {}, "no_log": True},
}
WORK = "/var/lib/slipway/data"
KINDS = ("datasets", "checkouts", "folders")

display = Display()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Install, update and remove trees, see the documentation of slipway.host.datasets."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        owned = {kind: arguments["owned"].get(kind, []) for kind in KINDS}
        answer = ask_host.ask(self, engine.question([owned], kinds.ALL))
        comparison = engine.compare({"": owned}, answer, kinds.ALL)[""]
        differing, conflicts = comparison.differences, comparison.conflicts
        for sentence in state_trees.skipped_trees(answer):
            display.warning(f"{(task_vars or {}).get('inventory_hostname')}: {sentence}")
        paths = {difference.name for difference in differing}
        trees = [tree for tree in arguments["trees"] if tree["path"] in paths]
        result.update(changed=bool(differing), paths=sorted(paths))
        result["diff"] = [{"prepared": f"{difference}\n"} for difference in differing]
        if differing and not self._task.check_mode:
            with delivery.data_source(self, trees, task_vars or {}) as addresses:
                job = pack_job(trees, owned["folders"], use_bundle(arguments, addresses))
                outcome = detached_job.run_job(self, WORK, worker.__name__, job)
            conflicts = [*conflicts, *failures(trees, outcome["failed"])]
        result["conflicts"] = [vars(conflict) for conflict in conflicts]
        if conflicts:
            result.update(failed=True, msg="\n".join(conflict.reason for conflict in conflicts))
        return result


def failures(
    trees: Sequence[Mapping[str, Any]], reasons: Mapping[str, str]
) -> list[model.Conflict]:
    """Return a conflict for each tree that the worker could not make, from REASONS by name."""
    by_name = {tree["name"]: tree for tree in trees}
    return [
        # Work beside the trees has a path as its name.
        model.Conflict(by_name[name]["kind"], by_name[name]["path"], f"{name}: {why}")
        if name in by_name
        else model.Conflict("folders", name, f"{name}: {why}")
        for name, why in reasons.items()
    ]


def use_bundle(arguments: Mapping[str, Any], addresses: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the arguments of the module with the ADDRESSES of archives in a bundle, by tree."""
    if not addresses:
        return arguments
    environment = arguments["environment"]
    bypassed = [environment[name] for name in ("no_proxy", "NO_PROXY") if name in environment]
    return {
        **arguments,
        "secrets": {
            **arguments["secrets"],
            **{name: {"url": url, "headers": {}} for name, url in addresses.items()},
        },
        "environment": {**environment, "no_proxy": ",".join([*bypassed[:1], "127.0.0.1"])},
    }


def pack_job(
    trees: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> bytes:
    """Return the job archive for the worker: TREES to change, and the folders of STAGES."""
    names = {tree["name"] for tree in trees}
    description = {
        "trees": trees,
        "stages": stages,
        "secrets": {name: secret for name, secret in arguments["secrets"].items() if name in names},
        "environment": arguments["environment"],
    }
    # default=str converts the string types of Ansible.
    return host_job.pack({"job.json": json.dumps(description, default=str).encode()}, worker)
