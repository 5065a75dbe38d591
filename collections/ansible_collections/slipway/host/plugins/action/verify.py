# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.verify: run the module, show its progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils import role_plans, watched_module
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared


class ActionModule(watched_module.ActionModule):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the module."""
        self._task.args = with_bundle(self._task.args, task_vars or {}, self._templar.template)
        return dict(super().run(tmp, task_vars))


def with_bundle(
    arguments: dict[str, Any], variables: Mapping[str, Any], template: role_plans.Template
) -> dict[str, Any]:
    """Return the ARGUMENTS of the module with the fact that packages come from a bundle.

    Not a result of the survey: a rollback, and roles in other playbooks, have none.
    """
    if not declared.open_packages(variables, template):
        return arguments
    return {**arguments, "declared": {**(arguments.get("declared") or {}), "bundle": True}}
