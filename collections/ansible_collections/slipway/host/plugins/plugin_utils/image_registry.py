# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The registry that the variables of a host declare, by which images are delivered.

No task has the registry as an argument: the output of tasks shows their arguments, and it has a
password.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import own_registry
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import Registry
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    host_command,
    role_plans,
)

Vars = Mapping[str, Any]


def read(variables: Vars, template: role_plans.Template) -> Registry | None:
    """Return the registry for deliveries to a host, None for deliveries over SSH.

    Raise AnsibleActionFail for a wrong value.
    """
    option = own_registry.OPTION
    value = role_plans.evaluate(option, variables.get(option) or "", template)
    try:
        return own_registry.read_option(value)
    except ValueError as error:
        raise AnsibleActionFail(str(error)) from None


def read_of_builder(
    builder: str, variables: Vars, template: role_plans.Template
) -> Registry | None:
    """Return the registry as the builder of a host uses it: its login may have more rights.

    VARIABLES: those of the host that gets the images.
    """
    own = read(variables, template)
    option = own_registry.OPTION
    hosts: Any = variables["hostvars"]
    if own is None or builder not in hosts or not hosts[builder].get(option):
        return own
    of_builder = read(hosts[builder], template)
    if of_builder is None or of_builder.prefix != own.prefix:
        found = of_builder.prefix if of_builder else "no mapping"
        raise AnsibleActionFail(
            f"{option} of {builder}: {found}; expected {own.prefix} as on the host that gets the "
            "images. Set the same address for both."
        )
    return of_builder


def check_declared(
    action: ActionBase,
    builder: Sequence[str],
    variables: Vars,
    template: role_plans.Template,
    end: str,
) -> str:
    """Return the server of the registry for deliveries to a host, empty for none; see `check`.

    BUILDER: see :func:`image_source.read_builder`.
    """
    own = read(variables, template) if builder else None
    # A single host gets no images from a registry.
    if own and len(variables["groups"]["all"]) > 1:
        check(action, own, end)
    return own.server if own else ""


def check(action: ActionBase, registry: Registry, end: str = ".") -> None:
    """Fail unless the host of ACTION can use the registry; END is the end of the message.

    The password is in the standard input of the command, which no list of processes shows.
    """
    command = f"{ask_host.interpreter(action)} -I -S -"
    reply = host_command.run(action, command, own_registry.check_script(registry).encode())
    try:
        fault = json.loads(reply.output)
    except ValueError:
        fault = f"the check of the registry {registry.server} failed: exit status {reply.status}"
    if fault:
        raise AnsibleActionFail(f"{fault.rstrip('.')}{end}")
