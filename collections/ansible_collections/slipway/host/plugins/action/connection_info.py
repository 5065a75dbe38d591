# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.connection_info: return how Ansible connects to a host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import VaultHelper
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.plugin_utils import holds
from ansible_collections.slipway.host.plugins.plugin_utils.export import hosts
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import store

ARGUMENT_SPEC: dict[str, Any] = {"folder": {"type": "path"}}
# The options of the connection plugin by key of the result.
OPTIONS = {
    "address": "host",
    "port": "port",
    "user": "remote_user",
    "key": "private_key_file",
}
# In the order in which Ansible passes them to ssh.
ARGUMENTS = ("ssh_args", "ssh_common_args", "ssh_extra_args")
# The variables that set these options.
VARIABLES = (
    *("ansible_host", "ansible_ssh_host", "ansible_port", "ansible_ssh_port", "ansible_user"),
    *("ansible_ssh_user", "ansible_private_key_file", "ansible_ssh_private_key_file"),
    *(f"ansible_{name}" for name in ARGUMENTS),
)


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the connection, see the documentation of slipway.host.connection_info."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        variables = task_vars or {}
        hold = holds.find_reason(variables, self._templar.template)
        found = {"hold": hold, "connection": {} if hold else self._read(variables)}
        if arguments["folder"]:
            name = str(variables["inventory_hostname"])
            file = Path(arguments["folder"]) / store.file_name(name)
            position = list(variables["ansible_play_hosts_all"]).index(name)
            entry = {"host": name, "position": position, **found}
            file.write_text(json.dumps(entry), encoding="utf-8")
        return {**result, **found, "changed": False}

    def _read(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the connection; raise AnsibleActionFail if one is encrypted."""
        transport = str(self._connection.transport)
        if transport != hosts.SSH:
            return {"transport": transport}
        # The options of the connection do not show whether a value was encrypted.
        for name in VARIABLES:
            value = self._templar.template(variables.get(name))
            if VaultHelper.get_ciphertext(value, with_tags=False):
                raise AnsibleActionFail(
                    f"{name}: found a value encrypted with Ansible Vault; expected a value that "
                    "other tools may read. Set the variable without encryption."
                )
        words = map(self._connection.get_option, ARGUMENTS)
        return {
            "transport": transport,
            **{key: self._connection.get_option(option) for key, option in OPTIONS.items()},
            "arguments": " ".join(str(word) for word in words if word),
        }
