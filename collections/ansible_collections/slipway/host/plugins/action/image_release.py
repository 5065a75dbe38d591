# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.image_release: end the offer of images to a host."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.images import registry
from ansible_collections.slipway.host.plugins.plugin_utils import host_command, ssh_forward

display = Display()

ARGUMENT_SPEC: dict[str, Any] = {"host": {"type": "str", "required": True}}


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """End an offer, see the documentation of slipway.host.image_release."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        if self._task.check_mode:
            return result
        builder = str(self._task.delegate_to)
        script = registry.release_script(ssh_forward.lease_of(arguments["host"]))
        try:
            if host_command.run(self, script).output.strip():
                ssh_forward.close_socket(self, builder)
        except AnsibleConnectionFailure as error:
            # The images are there: the host of the task goes on. The registry ends by itself.
            display.warning(f"{builder}: cannot end the offer of images: {error}")
            ssh_forward.close_socket(self, builder)
        return result
