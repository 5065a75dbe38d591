# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tasks of roles registered in this run, for a survey after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import model
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils import roles


def find_waiting(variables: Mapping[str, Any]) -> set[str]:
    """Return the roles whose tasks reported in this run that a change waits."""
    return {
        role
        for role in roles.all_names()
        for name, value in variables.items()
        if name.startswith(f"__{role}_") and isinstance(value, Mapping)
        # A loop has a result for each item.
        for part in (value, *(value.get("results") or ()))
        if isinstance(part, Mapping) and part.get("slipway_waiting")
    }


def conflicts(names: Sequence[str], variables: Mapping[str, Any]) -> list[model.Conflict]:
    """Return the conflicts that the tasks of roles met in this run."""
    prefixes = tuple(f"__{name}_" for name in names)
    registered = [value for name, value in variables.items() if name.startswith(prefixes)]
    results = [value for value in registered if isinstance(value, Mapping)]
    return [
        model.Conflict(str(one["kind"]), str(one["name"]), escape_control(str(one["reason"])))
        for result in results
        # A loop has a result for each item.
        for part in (result, *result.get("results", ()))
        for one in part.get("conflicts", ())
    ]
