# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the packet filter of a host still has the rules that give containers a network."""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import packet_filter


def check() -> str:
    """Check that the filter translates the addresses of containers; return the result as text.

    Raise ValueError without such a rule for a network.
    """
    found = packet_filter.ask_rules()
    if found["unknown"]:
        return f"not checked: {found['unknown']}"
    if found["missing"]:
        raise ValueError(
            f"the packet filter has no rules for the networks {', '.join(found['missing'])}; "
            "expected the rules that Docker writes when it starts. Containers of these networks "
            "cannot reach other hosts. A reload of a firewall removed the rules. To restore them: "
            "systemctl restart docker. Containers keep running if live-restore is on"
        )
    return f"the packet filter translates addresses of {len(found['networks'])} container networks"
