# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the packet filter of a host still has the rules that give containers a network.

A reload of a firewall (``nft flush ruleset``) removes the rules of the engine, which writes them
only when it starts or creates a network. Containers then have no network, while the engine and its
proxy on this host still answer.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.state import containers

DAEMON_JSON = "/etc/docker/daemon.json"
# iptables shows the rules of the iptables backend, nft those of both backends of the engine.
NETWORKS = "/networks?filters=%7B%22driver%22%3A%5B%22bridge%22%5D%7D"
LISTINGS = (("iptables", "-t", "nat", "-S", "POSTROUTING"), ("nft", "list", "ruleset"))


def check(settings: str = DAEMON_JSON) -> str:
    """Check that the filter translates the addresses of containers; return the result as text.

    Raise ValueError without such a rule for a network. SETTINGS is the path of daemon.json.
    """
    if _is_unmanaged(settings):
        return "not checked: the engine does not manage the packet filter (iptables: false)"
    subnets = bridge_subnets()
    if not any(shutil.which(command[0]) for command in LISTINGS):
        raise ValueError(
            "neither iptables nor nft found; expected the package iptables, with which Docker "
            "writes its rules. Install it: apt-get install iptables"
        )
    rules = "\n".join(map(_list_rules, LISTINGS))
    missing = [name for name, subnet in subnets.items() if not has_translation(rules, subnet)]
    if missing:
        raise ValueError(
            f"the packet filter has no rules for the networks {', '.join(missing)}: found none; "
            "expected the rules that Docker writes when it starts. Containers of these networks "
            "cannot reach other hosts. A reload of a firewall removed the rules. To restore them: "
            "systemctl restart docker. Containers keep running if live-restore is on"
        )
    return f"the packet filter translates addresses of {len(subnets)} container networks"


def bridge_subnets() -> dict[str, str]:
    """Return the IPv4 subnet of each bridge network whose containers reach other hosts."""
    subnets = {}
    for network in containers.ask_engine(NETWORKS):
        options = network.get("Options") or {}
        masquerade = options.get("com.docker.network.bridge.enable_ip_masquerade", "true")
        if network.get("Internal") or masquerade == "false":
            continue
        for configuration in (network.get("IPAM") or {}).get("Config") or ():
            subnet = configuration.get("Subnet", "")
            if subnet and ipaddress.ip_network(subnet, strict=False).version == 4:
                subnets[str(network["Name"])] = subnet
    return subnets


def has_translation(rules: str, subnet: str) -> bool:
    """Return whether a rule translates the addresses of a subnet."""
    return any(subnet in line and "masquerade" in line.lower() for line in rules.splitlines())


def _is_unmanaged(settings: str) -> bool:
    try:
        return json.loads(Path(settings).read_text(encoding="utf-8")).get("iptables") is False
    except (OSError, ValueError, AttributeError):
        return False


def _list_rules(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout
