# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the running engine in the packet filter of its host.

A reload of a firewall (``nft flush ruleset``) removes the rules of the engine, which writes them
only when it starts or creates a network. Containers then have no network, while the engine and its
proxy on this host still answer.

Sources of the rules: moby/moby, daemon/libnetwork/drivers/bridge (``iptabler``, ``nftabler``) of
August 2026, and engine 26.1.
"""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    Json = dict[str, Any]

# Modules that the survey sends along.
NEEDS = (containers.__name__,)
DAEMON_JSON = "/etc/docker/daemon.json"
PIDFILE = "/run/docker.pid"
NETWORKS = "/networks?filters=%7B%22driver%22%3A%5B%22bridge%22%5D%7D"
OPTION = "com.docker.network.bridge."
INTERFACES = "/sys/class/net"
# Where packages install iptables and nft; root's PATH may lack this folder.
PROGRAMS = "/usr/sbin"
# Listing a legacy table creates it, so only tables in this file are listed.
LEGACY_TABLES = "/proc/net/ip_tables_names"
# Values that dockerd reads as false.
FALSE = ("0", "f", "F", "FALSE", "false", "False")
UNMANAGED = "the engine does not manage the packet filter (iptables: false)"


def ask_rules(proc: str = "/proc") -> Json:
    """Return ``{networks, missing, unknown}``.

    networks: names of the networks whose containers reach other hosts; missing: those without
    rules; unknown: why the rules cannot be compared, else empty. Raise OSError or ValueError if
    the engine does not answer.
    """
    subnets = bridge_subnets()
    settings = _read_settings(proc)
    rules: list[str] = []
    unknown = ""
    if settings is None:
        unknown = f"the command line of dockerd is unknown: no process of {PIDFILE}"
    elif settings["iptables"] is False:
        unknown = UNMANAGED
    else:
        try:
            for listing in _listings(settings["firewall-backend"]):
                rules += listing
                if not missing_networks(subnets, rules):
                    break
        except OSError as error:
            unknown = f"the rules cannot be listed: {error}"
    missing = [] if unknown else missing_networks(subnets, rules)
    return {"networks": sorted(subnets), "missing": missing, "unknown": unknown}


def bridge_subnets() -> dict[str, str]:
    """Return the IPv4 subnet of each bridge network whose containers reach other hosts.

    The engine keeps a network whose interface it could not create, for example because another
    interface has its addresses. Such a network has no rules, also after a restart.
    """
    subnets = {}
    for network in containers.ask_engine(NETWORKS):
        options = network.get("Options") or {}
        interface = options.get(f"{OPTION}name") or f"br-{network.get('Id', '')[:12]}"
        if (
            not os.path.exists(f"{INTERFACES}/{interface}")
            or network.get("Internal")
            or network.get("ConfigOnly")
            or network.get("Scope", "local") != "local"
            or options.get(f"{OPTION}enable_ip_masquerade", "true") in FALSE
            or options.get(f"{OPTION}gateway_mode_ipv4") == "routed"
        ):
            continue
        for configuration in (network.get("IPAM") or {}).get("Config") or ():
            subnet = configuration.get("Subnet", "")
            if subnet and ":" not in subnet:
                subnets[str(network["Name"])] = mask(subnet)
    return subnets


def mask(subnet: str) -> str:
    """Return an IPv4 subnet with the bits of the host set to 0, as packet filters show it."""
    address, _separator, bits = subnet.partition("/")
    number = 0
    for part in address.split("."):
        number = number << 8 | int(part)
    number &= -1 << (32 - int(bits or 32))
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)) + f"/{bits or 32}"


def missing_networks(subnets: Mapping[str, str], rules: list[str]) -> list[str]:
    """Return the names of the networks without a rule that translates their addresses."""
    translating = [
        words
        for words in (rule.split() for rule in rules)
        if not {"MASQUERADE", "masquerade", "SNAT", "snat"}.isdisjoint(words)
    ]
    return sorted(
        name
        for name, subnet in subnets.items()
        if not any(subnet in words for words in translating)
    )


def _read_settings(proc: str) -> Json | None:
    """Return the settings of the running engine for the packet filter, None if unknown.

    Keys: ``iptables``, ``firewall-backend``. dockerd does not start with a key that is both in its
    file and on its command line.
    """
    try:
        settings = json.loads((reading.read_file(DAEMON_JSON) or b"{}").decode("utf-8-sig"))
    except ValueError:
        settings = {}
    if not isinstance(settings, dict):
        settings = {}
    pid = reading.read_word(settings.get("pidfile") or PIDFILE)
    words = reading.read_word(f"{proc}/{pid}/cmdline").split("\0") if pid.isdigit() else []
    if not words[0:1] or "dockerd" not in words[0]:
        return None
    found = {"iptables": True, "firewall-backend": "", **settings}
    for word, following in zip(words, [*words[1:], ""]):
        name, equals, value = word.partition("=")
        if name == "--iptables":
            found["iptables"] = value not in FALSE
        elif name == "--firewall-backend":
            found["firewall-backend"] = value if equals else following
    return found


def _listings(backend: str) -> Iterator[list[str]]:
    """Yield the rules of the filters that an engine with this BACKEND may have written.

    Raise OSError if a filter cannot be listed.
    """
    if backend == "nftables":
        yield _list_nftables()
        return
    try:
        yield _list_iptables("iptables-nft")
    except FileNotFoundError:
        if "nat" not in _legacy_tables():
            raise
    if "nat" in _legacy_tables():
        yield _list_iptables("iptables-legacy")


def _legacy_tables() -> list[str]:
    return reading.read_word(LEGACY_TABLES).split()


def _list_iptables(program: str) -> list[str]:
    """Return the rules that translate addresses; none if no packet reaches the engine's chains."""
    forward = _run(program, "-w", "5", "-S", "FORWARD")
    if "-j DOCKER" not in forward:
        return []
    return _run(program, "-w", "5", "-t", "nat", "-S", "POSTROUTING").splitlines()


def _list_nftables() -> list[str]:
    """Return the rules of the engine's own table, none without that table."""
    if "table ip docker-bridges" not in _run("nft", "list", "tables").splitlines():
        return []
    return _run("nft", "list", "table", "ip", "docker-bridges").splitlines()


def _run(program: str, *arguments: str) -> str:
    status, text = reading.run_for_status([f"{PROGRAMS}/{program}", *arguments])
    if status:
        raise OSError(f"{program} {' '.join(arguments)}: exit status {status}")
    return text


def _ask(names: list[str], reply: Json) -> Json:
    """Return what :func:`ask_rules` returns for each service that runs, None for the others.

    A question to a stopped engine would start it by its socket. Ask for ``units`` first.
    """
    found: Json = dict.fromkeys(names)
    for name in names:
        if ((reply.get("units") or {}).get(name) or {}).get("active") == "active":
            found[name] = containers.try_engine(ask_rules, reply)
    return found


ASKS = {"packet_filter": _ask}


# --- Nothing below is sent to hosts with the survey. ---
# It only answers questions of other kinds.
KINDS = ()
