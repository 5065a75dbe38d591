# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a role as its plan gets them: its defaults, with changes."""

from __future__ import annotations

from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils import role_plans

from tests.contract.tree import ROOT, load

CATALOGUE = ROOT / "images"


def options(role: str, **changes: Any) -> dict[str, Any]:
    """Return a role's default options; CHANGES are named without the role's name in front.

    Defaults that are templates are left out: a test that needs one gives it.
    """
    folder = ROOT / "roles" / role
    found: dict[str, Any] = {}
    for dependency in load(folder / "meta/main.yml")["dependencies"]:
        found |= options(dependency["role"])
    defaults = load(folder / "defaults/main.yml")
    found |= {
        name: value
        for name, value in defaults.items()
        if not (isinstance(value, str) and "{{" in value)
    }
    if role == "ml_catalogue":
        found["ml_catalogue_folder"] = str(CATALOGUE)
    else:
        found |= dict.fromkeys(getattr(role_plans.load_module(role), "SHARED_OPTIONS", ()))
    return found | {
        name if name.startswith(("ml_catalogue_", "ml_data_disks")) else f"{role}_{name}": value
        for name, value in changes.items()
    }
