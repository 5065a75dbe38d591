# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role slurm: controllers, nodes, and the munge key that they share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.slurm import config, parts
from ansible_collections.slipway.host.plugins.module_utils.slurm.declaration import (
    NAME,
    RESERVED,
    SlurmError,
    check_folder,
    check_names,
    check_options,
)
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state

# The fact of each host of the cluster, which the plan gets of all hosts: see role_plans.
FACT_OF_HOSTS = "slipway_slurm_node"
# The group of the inventory whose hardware a run reads before the survey.
GROUP = "slurm"
# Slurm takes the part behind the first colon for a port.
_ADDRESS = re.compile(r"[A-Za-z0-9._-]+")
_REMEDY = "Change it back, or remove the cluster first with slurm_state: absent"
_LAYOUT = ("hostname", "cpus", "sockets", "cores", "threads", "gpus", "reserved")
_COUNTS = ("cpus", "sockets", "cores", "threads", "memory")
# Far above any host; Slurm has 16 bits for the number of CPUs.
_MAX_CPUS, _MAX_GPUS, _MAX_MEMORY = 65000, 256, 1 << 30


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role, and its ``parts``: those of controller and node.

    The backup controller has the part of a node, with files and units of a controller. FACTS is
    ``ansible_facts['slipway']`` with ``inventory_name`` and ``fact_of_hosts``. ``leaves`` are the
    host names of nodes that leave the cluster or change their hardware, ``partitions`` the removed
    ones, ``remove`` says whether this host leaves the cluster, and ``ends_cluster`` whether all
    jobs end then. Raise SlurmError for a declaration that cannot be applied.
    """
    controller, name = options["slurm_controller"], facts["inventory_name"]
    declared = options["slurm_nodes"] or facts.get("groups", {}).get(GROUP, ())
    hosts = list(dict.fromkeys(declared))
    controllers = [*filter(None, (controller, options["slurm_backup_controller"]))]
    if options["slurm_state"] == "absent" or (controller and name not in (*controllers, *hosts)):
        return _removal(facts, options)
    if not controller:
        return _plan()
    known: Mapping[str, Any] = facts["fact_of_hosts"]
    check_options(options, hosts)
    nodes = {host: _find_node(host, known, controller) for host in (name, *controllers)}
    if nodes[name]["foreign"]:
        return _plan(owned={"obstacles": [_foreign(nodes[name]["foreign"])]})
    _check_cluster_name(nodes[controller], options)
    _check_move(name, hosts, nodes, controller, facts)
    _check_hosts({host: nodes[host] for host in controllers})
    check_folder(options, {host: nodes[host] for host in controllers}, _REMEDY)
    if nodes[controller]["foreign"]:
        # The run of the controller reports the conflict.
        return _plan()
    if name == controller and options["slurm_accounting"] and facts.get("slurmdbd") == "foreign":
        # The role slurmdbd reports the conflict.
        return _plan()
    key = _key(nodes[name], nodes[controller], controller, is_controller=name == controller)
    if key["foreign"]:
        return _plan(owned={"munge_keys": [key["entry"]]})
    if name in controllers:
        nodes.update({host: _find_node(host, known, controller) for host in hosts})
        _check_hosts({host: nodes[host] for host in (*hosts, *controllers)})
    release, roles = facts.get("distribution_release", ""), {}
    cluster = parts.Cluster(options, nodes, hosts, controllers, release)
    if name == controller:
        roles[parts.CONTROLLER] = parts.controller(cluster)
    if name != controller or name in hosts:
        roles[parts.NODE] = parts.node(cluster, name)
    return _plan(
        owned=parts.merge([{"munge_keys": [key["entry"]]}, *roles.values()]),
        parts=roles,
        leaves=_find_leaving(nodes[name]["nodes"], nodes, hosts),
        partitions=_find_removed(nodes[name].get("partitions", ()), options),
    )


def _plan(
    owned: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    leaves: Sequence[str] = (),
    partitions: Sequence[str] = (),
    remove: bool = False,
    ends_cluster: bool = False,
) -> dict[str, Any]:
    return {
        "owned": {"refused": [], **(owned or {})},
        "parts": parts or {},
        "leaves": [*leaves],
        "partitions": [*partitions],
        "remove": remove,
        "ends_cluster": ends_cluster,
    }


def _removal(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a host without Slurm.

    The primary controller removes the jobs of its cluster from the shared folder. A backup that
    leaves a cluster keeps them, and all jobs run on.
    """
    if not facts.get("slurm"):
        return _plan(remove=True)
    check_names(options)
    name, is_absent = facts["inventory_name"], options["slurm_state"] == "absent"
    own = {} if is_absent else facts["fact_of_hosts"].get(name) or {}
    jobs = config.jobs_folder(options)
    is_shared = is_absent and options["slurm_state_folder"] and name == options["slurm_controller"]
    return _plan(
        owned=parts.removal(facts, [jobs, f"{jobs}.part"] if is_shared else []),
        remove=True,
        ends_cluster=is_absent or bool(own.get("nodes")),
    )


def _find_node(host: str, known: Mapping[str, Any], controller: str) -> Mapping[str, Any]:
    """Return a host as a node; raise SlurmError if nothing is known about its hardware."""
    recorded = (known.get(controller) or {}).get("nodes", {})
    node: Mapping[str, Any] | None = known.get(host) or recorded.get(host)
    if node is None:
        raise SlurmError(
            f"the hardware of host {host} is unknown; expected facts of each host of the cluster. "
            f"Add {host} to the group slurm, make it reachable, and run './slipway plan' once "
            "without --limit. Hosts whose inventory has no slurm_controller do not need it"
        )
    return node


def _find_leaving(
    recorded: Mapping[str, Any], nodes: Mapping[str, Any], hosts: Sequence[str]
) -> list[str]:
    """Return the recorded host names of nodes that leave, or that Slurm knows otherwise.

    Slurm ends the jobs of a node that has another name or other CPUs than before.
    """
    return [
        node["hostname"]
        for host, node in recorded.items()
        if node.get("runs_jobs", True)
        and (host not in hosts or any(node[key] != nodes[host][key] for key in _LAYOUT))
    ]


def _find_removed(running: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
    """Return the RUNNING partitions that are not declared any more: Slurm ends their jobs."""
    declared = {partition["name"] for partition in options["slurm_partitions"]}
    names = [name for name in running if isinstance(name, str) and NAME.fullmatch(name)]
    return [name for name in names if name not in declared]


def _check_move(
    name: str, hosts: Sequence[str], nodes: Mapping[str, Any], controller: str, facts: Any
) -> None:
    """Raise SlurmError if another host than the controller has jobs of this host or its nodes.

    A node that fetched the configuration of a new controller would end its jobs. The facts of other
    hosts are read only where a host has a past and its controller does not know it.
    """
    own, others, members = nodes[name], [*hosts, *facts.get("groups", {}).get(GROUP, ())], {name}
    if name == controller:
        others, members = ([] if own["nodes"] else others), {name, *hosts}
    elif own["nodes"]:
        others, members = [name], {*own["nodes"]}
    elif not own["managed"] or name in nodes[controller]["nodes"]:
        return
    for host in dict.fromkeys(others):
        recorded = (facts["fact_of_hosts"].get(host) or {}).get("nodes", {})
        if host != controller and members.intersection(recorded):
            raise SlurmError(
                f"slurm_controller: found {controller}; expected {host}, which has the jobs of the "
                f"cluster. {_REMEDY}"
            )


def _check_cluster_name(node: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise SlurmError if the controller NODE has the jobs of a cluster of another name."""
    cluster = options["slurm_cluster_name"]
    if node["cluster"] not in ("", cluster):
        raise SlurmError(
            f"slurm_cluster_name: found {cluster!r}; expected {node['cluster']!r}, the name in the "
            f"records of jobs. {_REMEDY}"
        )


def _key(
    node: Mapping[str, Any], source: Mapping[str, Any], key_host: str, is_controller: bool
) -> dict[str, Any]:
    """Return the ``entry`` of the munge key, and whether it is the ``foreign`` key of others."""
    entry = {
        "path": state.MUNGE_KEY,
        "digest": source["munge_key"],
        "managed": is_controller or node["managed"],
        "key_host": key_host,
    }
    differs = node["munge_key"] not in ("", source["munge_key"])
    return {"entry": entry, "foreign": differs and not entry["managed"]}


def _foreign(path: str) -> dict[str, Any]:
    # The host names the path.
    if path not in state.CONFIGURATIONS:
        path = state.DAEMON_OPTIONS
        remedy = "Remove the line from the file"
        found, holds = (
            "SLURMD_OPTIONS, which replaces the options of Slipway",
            r"^\s*SLURMD_OPTIONS=",
        )
    else:
        remedy = "Remove that Slurm from the host, or remove the host from the cluster"
        found, holds = "the configuration of a Slurm that Slipway did not install", r"\A"
    why = f"{path}: found {found}; expected none. {remedy}, then run again"
    return {"path": path, "holds": holds, "why": why}


def _check_hosts(nodes: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise SlurmError for names and addresses that slurm.conf cannot have."""
    owners: dict[str, str] = {}
    for host, node in nodes.items():
        # A host can set this fact with the answer of any module.
        if not has_possible_hardware(node):
            raise SlurmError(
                f"host {host}: its hardware has values that are no counts; expected numbers of "
                "CPUs, memory and GPUs. Check the host: somebody may have replaced its Python"
            )
        hostname, address = node["hostname"], str(node["address"])
        if not NAME.fullmatch(hostname) or hostname.lower() in (RESERVED, "all"):
            raise SlurmError(
                f"host {host}: its host name is {hostname!r}; expected letters, digits and '-'. "
                "Set another one with hostnamectl"
            )
        if not _ADDRESS.fullmatch(address):
            raise SlurmError(
                f"host {host}: slurm_address is {address!r}; expected an IPv4 address or a name. "
                "Change the address"
            )
        # Slurm compares host names without regard to case.
        if owners.setdefault(hostname.lower(), host) != host:
            raise SlurmError(
                f"hosts {owners[hostname.lower()]} and {host} have the host name {hostname}; "
                "expected one name for each host. Set another one with hostnamectl"
            )


def has_possible_hardware(node: Mapping[str, Any]) -> bool:
    """Return whether a host can have this hardware: its values become words of slurm.conf."""
    gpus = node["gpus"] if isinstance(node["gpus"], list) else [None]
    pairs = [gpu for gpu in gpus if isinstance(gpu, list) and len(gpu) == 2]
    numbers = [*(node[key] for key in _COUNTS), *(minor for minor, _model in pairs)]
    return (
        all(type(number) is int and 0 <= number <= _MAX_MEMORY for number in numbers)
        and 0 < node["cpus"] <= _MAX_CPUS
        and node["sockets"] * node["cores"] * node["threads"] in (0, node["cpus"])
        and not (node["sockets"] and not node["cores"] * node["threads"])
        and len(pairs) == len(gpus) <= _MAX_GPUS
        and isinstance(node["hostname"], str)
        and all(isinstance(model, str) for _minor, model in pairs)
    )
