# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of slipway.host.datasets: starts the worker on the host and tells its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils import _owned, _probe, data
from ansible_collections.slipway.host.plugins.module_utils.data import (
    checkout,
    download,
    place,
    progress,
    record,
    standing,
    unpack,
    worker,
)
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.plugin_utils import _ask, _detached

ARGUMENT_SPEC: dict[str, Any] = {
    "trees": {"type": "list", "elements": "dict", "required": True},
    "owned": {"type": "dict", "required": True},
    "secrets": {"type": "dict", "required": True, "no_log": True},
    "environment": {"type": "dict", "default": {}, "no_log": True},
}
WORK = "/var/lib/slipway/data"
KINDS = ("folders", "datasets", "checkouts")
# What the worker consists of.
MODULES = (
    *(data, host_job, _probe),
    *(checkout, download, place, progress, record, standing, unpack, worker),
)

display = Display()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Settle what differs, see the documentation of slipway.host.datasets."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        owned = {kind: arguments["owned"].get(kind, []) for kind in KINDS}
        answer = _ask.ask(self, _owned.question([owned]))
        try:
            differing = _owned.differences(owned, answer)
        except _owned.ConflictError as error:
            raise AnsibleActionFail(f"{error}. Nothing was changed.") from error
        for sentence in _owned.left_out(answer):
            display.warning(f"{(task_vars or {}).get('inventory_hostname')}: {sentence}")
        paths = {difference.name for difference in differing}
        trees = [tree for tree in arguments["trees"] if tree["path"] in paths]
        result.update(changed=bool(differing), paths=sorted(paths))
        result["diff"] = [{"prepared": f"{difference}\n"} for difference in differing]
        if differing and not self._task.check_mode:
            outcome = _detached.carry_out(
                self, WORK, worker.__name__, job(trees, owned["folders"], arguments)
            )
            if outcome["failed"]:
                result["failed"] = True
                result["msg"] = "\n".join(
                    f"{name}: {why}" for name, why in outcome["failed"].items()
                )
        return result


def job(
    trees: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
) -> bytes:
    """Return the job for the worker: TREES to settle, and folders of unfinished ones."""
    names = {tree["name"] for tree in trees}
    description = {
        "trees": trees,
        "stages": stages,
        "secrets": {name: of for name, of in arguments["secrets"].items() if name in names},
        "environment": arguments["environment"],
    }
    # By way of str, since Ansible's strings are more than strings.
    return host_job.packed({"job.json": json.dumps(description, default=str).encode()}, MODULES)
