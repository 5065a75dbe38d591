# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of modules whose work may take long: run the module, show its progress meanwhile."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action.normal import ActionModule as Normal
from ansible_collections.slipway.host.plugins.plugin_utils import host_progress


class ActionModule(Normal):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the module."""
        with host_progress.watch(self):
            result: dict[str, Any] = super().run(tmp, task_vars)
        return result
