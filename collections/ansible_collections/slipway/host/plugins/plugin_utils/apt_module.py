# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of modules that use apt: give them the packages of a bundle, show their progress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils import watched_module
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import delivery, packages


class ActionModule(watched_module.ActionModule):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the module."""
        if not may_install(self._task.args):
            return dict(super().run(tmp, task_vars))
        with delivery.apt_source(self, task_vars or {}) as bundle:
            if bundle:
                self._task.args = {**self._task.args, "bundle": bundle}
            return dict(super().run(tmp, task_vars))


def may_install(arguments: Mapping[str, Any]) -> bool:
    """Return whether a module with these ARGUMENTS may install packages."""
    if "state" in arguments:
        return arguments["state"] in ("upgraded", "rolled_back")
    return bool(packages.list_present(arguments))
