# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each role took on each host in the last runs, in a file of the controller."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.slipway.host.plugins.plugin_utils.live.view_state import RoleEnd

Times = dict[str, dict[str, float]]


def read(file: Path) -> Times:
    """Return the seconds by role and host; empty without a readable file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(role): {str(host): float(seconds) for host, seconds in hosts.items()}
            for role, hosts in content["roles"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(file: Path, ended: Iterable[RoleEnd]) -> None:
    """Add the roles that changed something to the file: only these take time worth to know."""
    changed = [role for role in ended if role.changed]
    if not changed:
        return
    times = read(file)
    for role in changed:
        times.setdefault(role.role, {})[role.host] = round(role.seconds, 1)
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"roles": times}, indent=1, sort_keys=True), encoding="utf-8")
    new.replace(file)
