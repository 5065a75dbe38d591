# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variable ``slipway_hold``: why a person keeps a host out of all runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans

OPTION = "slipway_hold"
# The group of held hosts, which the later plays of a run leave out.
GROUP = "slipway_held"
# The group of the other hosts, if their check did not fail: a play of this group does not count
# earlier failures.
READY = "slipway_ready"
PREFIX, WORD = "slipway_", "hold"
# So similar to OPTION is a name with one or two wrong letters, or with a short word too much.
SIMILAR = 0.88


def find_reason(variables: Mapping[str, Any], template: Callable[[Any], Any]) -> str:
    """Return why a host is held, empty if it is not held; TEMPLATE evaluates the variable.

    Raise AnsibleActionFail if the variable has no reason or its name is mistyped: the host would be
    changed against the will of its owner.
    """
    if OPTION not in variables:
        names = {name.lower(): name for name in sorted(variables)}
        likely = [name for name in names if name.startswith(PREFIX) or WORD in name]
        if near := difflib.get_close_matches(OPTION, likely, n=1, cutoff=SIMILAR):
            raise AnsibleActionFail(
                f"{names[near[0]]}: unknown variable; did you mean {OPTION}? Correct or remove it. "
                "Nothing was changed on the host."
            )
        return ""
    reason = role_plans.evaluate(OPTION, variables[OPTION], template)
    if not isinstance(reason, str) or not reason.strip():
        raise AnsibleActionFail(
            f"{OPTION}: {reason!r}; expected a text with the reason. Set a reason, or remove "
            f"{OPTION} to let runs change the host. Nothing was changed on the host."
        )
    return " ".join(reason.split())
