# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role slurm: a controller, nodes, and the munge key that they share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.slurm import config
from ansible_collections.slipway.host.plugins.module_utils.slurm.declaration import (
    NAME,
    RESERVED,
    SlurmError,
    check_options,
)
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state
from ansible_collections.slipway.host.plugins.module_utils.state.containers import DOCKER_SOCKET

# The fact of each host of the cluster, which the plan gets of all hosts: see role_plans.
FACT_OF_HOSTS = "slipway_slurm_node"
FILES = {
    **{name: f"/etc/slurm/{name}.conf" for name in ("slurm", "gres", "cgroup")},
    config.EPILOG: f"/etc/slurm/{config.EPILOG}",
}
MODES = {config.EPILOG: {"mode": "0755"}}
CONTROLLER, NODE = "controller", "node"
PACKAGES = {
    CONTROLLER: ("munge", "slurmctld", "slurm-client"),
    NODE: ("munge", "slurmd", "slurm-client"),
}
UNITS = {CONTROLLER: ("munge", "slurmctld"), NODE: ("munge", "slurmd")}
# The group of the inventory whose hardware a run reads before the survey.
GROUP = "slurm"
# What the packages leave when they are purged.
LEFT = (
    *config.DROP_INS.values(),
    *("/etc/slurm", "/etc/munge", "/var/lib/slurm"),
    *("/var/log/slurm", "/var/lib/munge", "/var/log/munge", state.STATE_FOLDER),
)
_FOLDER = {"path": state.STATE_FOLDER, "state": "directory", "mode": "0700"}
# Slurm takes the part behind the first colon for a port.
_ADDRESS = re.compile(r"[A-Za-z0-9._-]+")
_REMEDY = "Change it back, or remove the cluster first with slurm_state: absent"
_LAYOUT = ("hostname", "cpus", "sockets", "cores", "threads", "gpus", "reserved")
_COUNTS = ("cpus", "sockets", "cores", "threads", "memory")
# Far above any host; Slurm has 16 bits for the number of CPUs.
_MAX_CPUS, _MAX_GPUS, _MAX_MEMORY = 65000, 256, 1 << 30


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role, and its ``parts``: those of controller and node.

    FACTS is ``ansible_facts['slipway']`` with ``inventory_name`` and ``fact_of_hosts``. ``leaves``
    are the host names of nodes that leave the cluster or change their hardware, ``remove`` says
    whether this host leaves it.
    Raise SlurmError for a declaration that cannot be applied.
    """
    controller, name = options["slurm_controller"], facts["inventory_name"]
    declared = options["slurm_nodes"] or facts.get("groups", {}).get(GROUP, ())
    hosts = list(dict.fromkeys(declared))
    is_member = name == controller or name in hosts
    if options["slurm_state"] == "absent" or (controller and not is_member):
        return _plan(remove=True, owned=_removal(facts) if facts.get("slurm") else {})
    if not controller:
        return _plan()
    known: Mapping[str, Any] = facts["fact_of_hosts"]
    check_options(options, hosts)
    nodes = {host: _find_node(host, known, controller) for host in (name, controller)}
    if nodes[name]["foreign"]:
        return _plan(owned={"obstacles": [_foreign(nodes[name]["foreign"])]})
    _check_cluster_name(nodes[controller], options)
    _check_move(name, hosts, nodes, controller, facts)
    _check_hosts({controller: nodes[controller]})
    if nodes[controller]["foreign"]:
        # The run of the controller reports the conflict.
        return _plan()
    if name == controller and options["slurm_accounting"] and facts.get("slurmdbd") == "foreign":
        # The role slurmdbd reports the conflict.
        return _plan()
    key = _key(nodes[name], nodes[controller], controller, is_controller=name == controller)
    if key["foreign"]:
        return _plan(owned={"munge_keys": [key["entry"]]})
    parts: dict[str, Any] = {}
    if name == controller:
        nodes.update({host: _find_node(host, known, controller) for host in hosts})
        parts[CONTROLLER] = _controller(facts, options, nodes, hosts)
    if name in hosts:
        parts[NODE] = _node(nodes[name], nodes[controller])
    owned = _merge([{"munge_keys": [key["entry"]]}, *parts.values()])
    return _plan(
        owned=owned,
        parts=parts,
        leaves=_find_leaving(nodes[name]["nodes"], nodes, hosts),
    )


def _plan(
    owned: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    leaves: Sequence[str] = (),
    remove: bool = False,
) -> dict[str, Any]:
    return {
        "owned": {"refused": [], **(owned or {})},
        "parts": parts or {},
        "leaves": [*leaves],
        "remove": remove,
    }


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
        if host not in hosts or any(node[key] != nodes[host][key] for key in _LAYOUT)
    ]


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


def _controller(
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    nodes: Mapping[str, Any],
    hosts: Sequence[str],
) -> dict[str, Any]:
    """Return what the controller owns."""
    members = {host: nodes[host] for host in hosts}
    controller = nodes[options["slurm_controller"]]
    _check_hosts({**members, options["slurm_controller"]: controller})
    release = facts.get("distribution_release", "")
    accounting, accounts = options["slurm_accounting"], options["slurm_accounts"]
    settings = config.accounting_settings(controller, options["slurm_fair_share"], bool(accounts))
    contents = {
        "slurm": config.slurm_conf(
            options["slurm_cluster_name"],
            controller,
            members,
            options["slurm_partitions"],
            release,
            settings if accounting else "",
        ),
        "gres": config.gres_conf(members),
        "cgroup": config.cgroup_conf(members, release),
        config.EPILOG: config.epilog_program(),
    }
    recorded = {host: {key: node[key] for key in state.RECORDED} for host, node in members.items()}
    restart = "systemctl restart slurmctld && " if release in config.OLD_RELEASES else ""
    files = " ".join(FILES.values())
    return {
        "files": [
            _FOLDER,
            {
                "path": config.DROP_INS["slurmctld"],
                "content": config.CONTROLLER_DROP_IN + (config.NEW_NUMBER if accounting else ""),
            },
            {"path": state.NODES, "content": json.dumps(recorded, indent=1, sort_keys=True) + "\n"},
            *(
                {"path": path, "content": contents[name], **MODES.get(name, {})}
                for name, path in FILES.items()
            ),
        ],
        "packages": [{"name": name} for name in PACKAGES[CONTROLLER]],
        "units": _units(CONTROLLER),
        "slurm_accounts": _accounts(options) if accounting else [],
        "derived": [{"path": state.APPLIED, "since": list(FILES.values()), "required": True}],
        "apply": ["sh", "-c", f"{restart}scontrol reconfigure && cat {files} >{state.APPLIED}"],
    }


def _accounts(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"cluster": options["slurm_cluster_name"], "accounts": options["slurm_accounts"]}]


def _node(node: Mapping[str, Any], controller: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a node owns, and whether it fetches the key of the controller."""
    return {
        "fetches_key": node["munge_key"] != controller["munge_key"] != "",
        "files": [
            _FOLDER,
            {"path": config.DROP_INS["slurmd"], "content": config.daemon_drop_in(controller)},
        ],
        "packages": [{"name": name} for name in PACKAGES[NODE]],
        "units": _units(NODE),
        "gpu_containers": [{"socket": DOCKER_SOCKET}],
    }


def _units(part: str) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name}.service",
            "enabled": True,
            "active": True,
            # A node that had a wrong key answers again when slurmd starts, else minutes later.
            "reads": [state.MUNGE_KEY] if name in ("munge", "slurmd") else [],
            **({"unit_files": [config.DROP_INS[name]]} if name in config.DROP_INS else {}),
        }
        for name in UNITS[part]
    ]


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the owned state of several parts, each entry once."""
    kinds = ("munge_keys", "files", "packages", "units", "slurm_accounts", "derived")
    return {
        kind: list({json.dumps(one): one for part in parts for one in part.get(kind, ())}.values())
        for kind in (*kinds, "gpu_containers")
    }


def _removal(facts: Mapping[str, Any]) -> dict[str, Any]:
    # slurmdbd cannot stay without munge.
    daemon = ["slurmdbd"] if facts.get("slurmdbd") == "managed" else []
    names = dict.fromkeys((*PACKAGES[CONTROLLER], *PACKAGES[NODE], *daemon))
    return {
        "packages": [{"name": name, "state": "absent"} for name in names],
        "files": [{"path": path, "state": "absent"} for path in LEFT],
    }


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
