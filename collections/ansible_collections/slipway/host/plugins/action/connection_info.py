# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.connection_info: return how Ansible connects to a host."""

from __future__ import annotations

import json
import re
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
NAME = re.compile(r"[A-Za-z_]\w*")


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
            # Arguments of ssh may have secrets, and Ansible prints results with -v.
            del found["connection"]
        return {**result, **found, "changed": False}

    def _read(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of the connection; raise AnsibleActionFail if one is encrypted."""
        transport = str(self._connection.transport)
        if transport != hosts.SSH:
            return {"transport": transport}
        # The options of the connection do not show whether a value was encrypted.
        for name in VARIABLES:
            value = variables.get(name)
            result = self._templar.template(value)
            if is_encrypted(value, variables) or is_encrypted(result, {}):
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


def is_encrypted(
    value: object,
    variables: Mapping[str, Any],
    names: frozenset[str] = frozenset(),
    seen: frozenset[str] = frozenset(),
) -> bool:
    """Return whether a value is encrypted with Ansible Vault, or a template that names such values.

    VARIABLES of the host. NAMES: of a template, by which it reads keys of VALUE. SEEN: variables
    that lead to VALUE.
    """
    if VaultHelper.get_ciphertext(value, with_tags=False):
        return True
    if isinstance(value, str) and "{" in value:
        names = frozenset(NAME.findall(value))
        return any(
            is_encrypted(variables[name], variables, names, seen | {name})
            for name in names - seen
            if name in variables
        )
    if isinstance(value, Mapping):
        return any(
            is_encrypted(value[key], variables, names, seen) for key in names if key in value
        )
    if isinstance(value, list | tuple):
        return any(is_encrypted(one, variables, names, seen) for one in value)
    return False
