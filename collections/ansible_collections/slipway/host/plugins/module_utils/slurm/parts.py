# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a Slurm cluster own: the controller, its backup, and the nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.slurm import config
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state
from ansible_collections.slipway.host.plugins.module_utils.state.containers import DOCKER_SOCKET

Owned = dict[str, Any]

FILES = {
    **{name: f"/etc/slurm/{name}.conf" for name in ("slurm", "gres", "cgroup")},
    config.EPILOG: f"/etc/slurm/{config.EPILOG}",
}
MODES = {config.EPILOG: {"mode": "0755"}}
CONTROLLER, NODE = "controller", "node"
DAEMONS = {CONTROLLER: "slurmctld", NODE: "slurmd"}
# What the packages leave when they are purged.
LEFT = (
    *config.DROP_INS.values(),
    *("/etc/slurm", "/etc/munge", "/var/lib/slurm"),
    *("/var/log/slurm", "/var/lib/munge", "/var/log/munge", state.STATE_FOLDER),
)
KINDS = (
    *("munge_keys", "files", "packages", "units", "slurm_accounts", "derived"),
    "gpu_containers",
)


@dataclass(frozen=True)
class Cluster:
    """A declared cluster: OPTIONS of the role, and NODES, the facts of its hosts by their names.

    HOSTS run jobs, the first of CONTROLLERS is the primary one. RELEASE is the codename of the
    host in question. It has the facts of HOSTS only if it is a controller.
    """

    options: Mapping[str, Any]
    nodes: Mapping[str, Mapping[str, Any]]
    hosts: Sequence[str]
    controllers: Sequence[str]
    release: str

    @property
    def members(self) -> dict[str, Mapping[str, Any]]:
        """The facts of the hosts that run jobs."""
        return {host: self.nodes[host] for host in self.hosts}

    @property
    def servers(self) -> list[Mapping[str, Any]]:
        """The facts of the controllers."""
        return [self.nodes[host] for host in self.controllers]


def controller(cluster: Cluster) -> Owned:
    """Return what the primary controller owns."""
    options = cluster.options
    recorded = {
        host: {**{key: cluster.nodes[host][key] for key in state.RECORDED}, "runs_jobs": runs_jobs}
        for hosts, runs_jobs in ((cluster.controllers[1:], False), (cluster.hosts, True))
        for host in hosts
    }
    record = {"path": state.NODES, "content": json.dumps(recorded, indent=1, sort_keys=True) + "\n"}
    restart = "systemctl restart slurmctld && " if cluster.release in config.OLD_RELEASES else ""
    accounts = {"cluster": options["slurm_cluster_name"], "accounts": options["slurm_accounts"]}
    files = " ".join(FILES.values())
    return {
        "files": [*_controller_files(cluster, is_primary=True), record],
        **_daemon(CONTROLLER),
        "slurm_accounts": [accounts] if options["slurm_accounting"] else [],
        "derived": [{"path": state.APPLIED, "since": list(FILES.values()), "required": True}],
        "apply": ["sh", "-c", f"{restart}scontrol reconfigure && cat {files} >{state.APPLIED}"],
    }


def node(cluster: Cluster, name: str) -> Owned:
    """Return what host NAME owns as a node, and as the backup controller.

    A host that is no controller any more must not run slurmctld: it would take the cluster over.
    """
    owned = []
    if name in cluster.controllers[1:]:
        owned.append(_backup(cluster))
    elif name not in cluster.controllers:
        paths = (config.DROP_INS["slurmctld"], *FILES.values())
        owned.append(
            {
                "files": [{"path": path, "state": "absent"} for path in paths],
                "packages": [{"name": DAEMONS[CONTROLLER], "state": "absent"}],
            }
        )
    if name in cluster.hosts:
        drop_in = config.daemon_drop_in(cluster.servers)
        owned.append(
            {
                "files": [_folder(), {"path": config.DROP_INS["slurmd"], "content": drop_in}],
                **_daemon(NODE),
                "gpu_containers": [{"socket": DOCKER_SOCKET}],
            }
        )
    key, source = (cluster.nodes[host]["munge_key"] for host in (name, cluster.controllers[0]))
    return {**merge(owned), "fetches_key": key != source != ""}


def _backup(cluster: Cluster) -> Owned:
    """Return what the backup controller owns. It reads a changed configuration when it starts."""
    owned = _daemon(CONTROLLER)
    owned["units"][-1]["reads"] = list(FILES.values())
    return {"files": _controller_files(cluster, is_primary=False), **owned}


def _controller_files(cluster: Cluster, is_primary: bool) -> list[dict[str, Any]]:
    members = cluster.members
    contents = {
        "slurm": config.slurm_conf(cluster.options, cluster.servers, members, cluster.release),
        "gres": config.gres_conf(members),
        "cgroup": config.cgroup_conf(members, cluster.release),
        config.EPILOG: config.epilog_program(),
    }
    drop_in = config.controller_drop_in(cluster.options, is_primary)
    return [
        _folder(),
        {"path": config.DROP_INS["slurmctld"], "content": drop_in},
        *(
            {"path": path, "content": contents[name], **MODES.get(name, {})}
            for name, path in FILES.items()
        ),
    ]


def _folder() -> dict[str, Any]:
    return {"path": state.STATE_FOLDER, "state": "directory", "mode": "0700"}


def _daemon(part: str) -> Owned:
    """Return the packages and units of a part."""
    units = [
        {
            "name": f"{name}.service",
            "enabled": True,
            "active": True,
            # A node that had a wrong key answers again when slurmd starts, else minutes later.
            "reads": [state.MUNGE_KEY] if name in ("munge", "slurmd") else [],
            **({"unit_files": [config.DROP_INS[name]]} if name in config.DROP_INS else {}),
        }
        for name in ("munge", DAEMONS[part])
    ]
    packages = [{"name": name} for name in ("munge", DAEMONS[part], "slurm-client")]
    return {"packages": packages, "units": units}


def merge(parts: Sequence[Mapping[str, Any]]) -> Owned:
    """Return the owned state of several parts, each entry once."""
    return {
        kind: list({json.dumps(one): one for part in parts for one in part.get(kind, ())}.values())
        for kind in KINDS
    }


def removal(facts: Mapping[str, Any], shared: Sequence[str]) -> Owned:
    """Return what is absent on a host without Slurm, with the SHARED folders that it removes."""
    # slurmdbd cannot stay without munge.
    daemon = ["slurmdbd"] if facts.get("slurmdbd") == "managed" else []
    names = ("munge", *DAEMONS.values(), "slurm-client", *daemon)
    return {
        "packages": [{"name": name, "state": "absent"} for name in names],
        # The record of the role is removed last.
        "files": [{"path": path, "state": "absent"} for path in (*shared, *LEFT)],
    }
