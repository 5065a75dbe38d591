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
_EXPECTED = "expected a number of hosts such as 2, or a percentage such as '25%'"


def check(variables: Mapping[str, Any], template: Callable[[Any], Any]) -> None:
    """Raise AnsibleActionFail if a variable has a wrong value: Ansible fails without a sentence."""
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
    batches = values.get(UPGRADE_SERIAL, values.get(SERIAL, 1))
    if _number(values.get(FAILURES, 0)) and batches in (1, "1", [1], ["1"]):
        raise AnsibleActionFail(
            f"{FAILURES}: {values[FAILURES]} without batches of several hosts; expected also "
            f"{SERIAL} of 2 or more. A batch of which all hosts fail always stops the run. Nothing "
            "was changed."
        )


def _is_share(value: Any, least: int) -> bool:
    """Return whether a value is a number of at least LEAST, or a percentage from LEAST to 100."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,6}%?", str(value), re.ASCII):
        return False
    return least <= _number(value) <= (100 if str(value).endswith("%") else 10**6)


def _number(value: Any) -> int:
    return int(str(value).rstrip("%"))
