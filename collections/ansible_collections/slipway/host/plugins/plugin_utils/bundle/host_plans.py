# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plans of roles on a host that may get packages and data sets from a bundle.

With packages in the bundle, apt uses nothing else, so the roles declare no apt source and no key. A
data set in the bundle needs no server, so the survey asks none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils import role_plans
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    data,
    declared,
    packages,
)

SOURCES, KEYRINGS = "/etc/apt/sources.list.d/", "/etc/apt/keyrings/"


def plan(
    name: str, variables: Mapping[str, Any], template: role_plans.Template, facts: Any
) -> role_plans.Vars:
    """Return the plan of a role for one host, see :func:`role_plans.plan`."""
    result = role_plans.plan(name, variables, template, facts)
    owned = result["owned"]
    if not (has_source(owned) or has_offer(owned)):
        return result
    manifest = declared.read_named(variables, template)
    if manifest and has_source(owned) and packages.list_releases(manifest):
        owned = without_sources(owned)
    if manifest and has_offer(owned):
        owned = without_offers(owned, data.find(manifest, owned["datasets"]))
    return {**result, "owned": owned}


def has_source(owned: Mapping[str, Any]) -> bool:
    """Return whether the owned state of a role has an apt source."""
    return any(
        entry["path"].startswith(SOURCES) and entry.get("state") != "absent"
        for entry in owned.get("files", ())
    )


def without_sources(owned: Mapping[str, Any]) -> dict[str, Any]:
    """Return owned state without apt sources and keys.

    Files of others that a source would replace stay too.
    """
    files = [one for one in owned["files"] if not one["path"].startswith((SOURCES, KEYRINGS))]
    return {**owned, "keyrings": [], "files": files}


def has_offer(owned: Mapping[str, Any]) -> bool:
    """Return whether the survey would ask a server for a data set."""
    return any("offer" in entry for entry in owned.get("datasets", ()))


def without_offers(owned: Mapping[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Return owned state without requests for the data sets in PATHS."""
    datasets = [
        {key: value for key, value in entry.items() if key != "offer"}
        if entry["path"] in paths
        else entry
        for entry in owned["datasets"]
    ]
    return {**owned, "datasets": datasets}
