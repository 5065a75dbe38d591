# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of a rolling run: ``slipway_serial`` and ``slipway_max_failures``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans

SERIAL, UPGRADE_SERIAL, FAILURES = (
    "slipway_serial",
    "slipway_upgrade_serial",
    "slipway_max_failures",
)
# Plays that prepare batches have this variable: the name of the variable with their size.
USED = "__slipway_serial_variable"
_EXPECTED = "expected a number of hosts such as 2, or a percentage such as '25%'"


def check(variables: Mapping[str, Any], template: Callable[[Any], Any]) -> None:
    """Raise AnsibleActionFail if a variable has a wrong value: Ansible fails without a sentence.

    All three variables are checked, their effect only for the command that runs: see USED.
    """
    values = {
        name: role_plans.evaluate(name, variables[name], template)
        for name in (SERIAL, UPGRADE_SERIAL, FAILURES)
        if name in variables
    }
    for name, value in values.items():
        sizes = value if isinstance(value, list) and value and name != FAILURES else [value]
        least = 0 if name == FAILURES else 1
        if not all(_is_share(size, least) for size in sizes):
            raise AnsibleActionFail(f"{name}: {value!r}; {_EXPECTED}. Nothing was changed.")
    hosts = list(variables.get("groups", {}).get("all", ()))
    if len(hosts) > 1:
        _check_first(values, variables, hosts[0])
        if USED in variables:
            _check_effect(values, variables[USED], len(hosts))


def _check_first(values: Mapping[str, Any], variables: Mapping[str, Any], first: str) -> None:
    """Raise AnsibleActionFail if a value differs from that of the FIRST host, which is used."""
    host = str(variables.get("inventory_hostname"))
    used = variables["hostvars"][first] if first != host else values
    for name in (SERIAL, UPGRADE_SERIAL, FAILURES):
        own, expected = (str(one.get(name, "not set")) for one in (values, used))
        if own != expected:
            raise AnsibleActionFail(
                f"{name}: {own} for {host}; expected {expected} as for {first}, the first host of "
                f"the inventory. Set {name} for the group all. Nothing was changed."
            )


def _check_effect(values: Mapping[str, Any], used: str, hosts: int) -> None:
    """Raise AnsibleActionFail if failures are allowed, but each batch has one host or all hosts.

    HOSTS is the number of hosts of the inventory: batches of a run have no more.
    """
    serial = values.get(SERIAL)
    if used == UPGRADE_SERIAL:
        serial = values.get(UPGRADE_SERIAL, 1 if serial in (None, "100%") else serial)
    sizes = serial if isinstance(serial, list) else [] if serial is None else [serial]
    allowed = _count(values.get(FAILURES, 0), hosts)
    if allowed and not any(_count(size, hosts) > 1 for size in sizes):
        raise AnsibleActionFail(
            f"{FAILURES}: {values[FAILURES]} without batches of several hosts; expected also "
            f"{used} of 2 or more. A batch of which all hosts fail always stops the run. Nothing "
            "was changed."
        )


def _count(value: Any, hosts: int) -> int:
    """Return the number of hosts that a value means, if the run has so many HOSTS."""
    return _number(value) * hosts // 100 if str(value).endswith("%") else _number(value)


def _is_share(value: Any, least: int) -> bool:
    """Return whether a value is a number of at least LEAST, or a percentage from LEAST to 100."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}%?", str(value), re.ASCII):
        return False
    return least <= _number(value) <= (100 if str(value).endswith("%") else 10**6)


def _number(value: Any) -> int:
    return int(str(value).rstrip("%"))
