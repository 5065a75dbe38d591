# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files slurm.conf, gres.conf and cgroup.conf of a cluster.

PRIVATE to the collection. A node is a mapping as :func:`state.slurm.ask_node` returns it, with
``address`` and ``reserved`` (numbers of GPUs that services reserve, counted from 0 in the order of
``gpus``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.state.slurm import LOCAL_STATE

Node: TypeAlias = Mapping[str, Any]

WRITTEN_BY = "# Written by Slipway's role slurm.\n"
PORT = 6817
# Slurm drains a node that has less memory than declared. The rest is for the system, and kernels
# differ in what they keep for themselves.
OFFERED_PERCENT, MEMORY_STEP = 95, 256
# Releases of distributions whose Slurm is older than 23.11: it needs a restart for added nodes, and
# has no setting for hosts without control groups.
OLD_RELEASES = ("jammy", "bookworm")
# The same on every cluster. Jobs keep running while a daemon restarts. Reasons: `enable_configless`
# gives the nodes their configuration, `ReturnToService=2` takes a rebooted node back.
COMMON = """SlurmUser=slurm
AuthType=auth/munge
SlurmctldParameters=enable_configless
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=/var/log/slurm/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
EnforcePartLimits=ALL
"""
# In the folder of slurm.conf: nodes get it together with slurm.conf. An absolute path would drain
# nodes that do not have the file yet.
EPILOG = "epilog"
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStorageTRES=gres/gpu
PriorityType=priority/multifactor
PriorityDecayHalfLife={half_life}
PriorityWeightFairshare={weight}
PriorityWeightAge={age_weight}
"""
# Limits of accounts hold, and a user without an account is refused.
ENFORCE = "AccountingStorageEnforce=associations,limits\n"
FAIR_SHARE = {"half_life": "7-00:00:00", "weight": 100000, "age_weight": 1000}


def offered_memory(node: Node) -> int:
    """Return the memory of a node for jobs, in MiB."""
    offered: int = node["memory"] * OFFERED_PERCENT // 100
    return max(offered // MEMORY_STEP * MEMORY_STEP, 1)


def gpu_type(model: str) -> str:
    """Return the type of a GPU model, such as ``h100_pcie`` of ``NVIDIA H100 PCIe``."""
    return re.sub(r"[^a-z0-9.-]+", "_", model.lower().removeprefix("nvidia ")).strip("_")


def offered_gpus(node: Node) -> dict[str, list[int]]:
    """Return the device numbers of the GPUs for jobs by their type, which may be empty."""
    offered: dict[str, list[int]] = {}
    for number, (minor, model) in enumerate(node["gpus"]):
        if number not in node["reserved"]:
            offered.setdefault(gpu_type(model), []).append(minor)
    return offered


def node_line(node: Node) -> str:
    """Return the line of a node in slurm.conf."""
    words = [f"NodeName={node['hostname']}", f"NodeAddr={node['address']}", f"CPUs={node['cpus']}"]
    if node["sockets"]:
        words += [
            f"Sockets={node['sockets']}",
            f"CoresPerSocket={node['cores']}",
            f"ThreadsPerCore={node['threads']}",
        ]
    words.append(f"RealMemory={offered_memory(node)}")
    counts = [
        ":".join(filter(None, ("gpu", type_, str(len(minors)))))
        for type_, minors in offered_gpus(node).items()
    ]
    return " ".join([*words, *([f"Gres={','.join(counts)}"] if counts else [])])


def partition_line(partition: Mapping[str, Any], nodes: Mapping[str, Node]) -> str:
    """Return the line of a partition in slurm.conf; NODES are all nodes by their hosts."""
    hosts = partition.get("nodes") or list(nodes)
    words = [
        f"PartitionName={partition['name']}",
        f"Nodes={','.join(nodes[host]['hostname'] for host in hosts)}",
        f"Default={'YES' if partition.get('default') else 'NO'}",
        f"DefaultTime={partition['default_time']}",
        f"MaxTime={partition['max_time']}",
    ]
    groups = partition.get("groups")
    return " ".join([*words, *([f"AllowGroups={','.join(groups)}"] if groups else [])])


def slurm_conf(
    options: Mapping[str, Any],
    controllers: Sequence[Node],
    nodes: Mapping[str, Node],
    release: str = "",
) -> str:
    """Return slurm.conf for the OPTIONS of the role; NODES are by the names of their hosts.

    The first of the CONTROLLERS is the primary one. RELEASE is the codename of their distribution.
    """
    cgroup = uses_cgroup(nodes)
    per_cpu = min(offered_memory(node) // node["cpus"] for node in nodes.values())
    lines = [
        f"ClusterName={options['slurm_cluster_name']}",
        *(f"SlurmctldHost={host['hostname']}({host['address']})" for host in controllers),
        f"StateSaveLocation={jobs_folder(options)}",
        f"ProctrackType=proctrack/{'cgroup' if cgroup else 'linuxproc'}",
        f"TaskPlugin={'task/cgroup,' if cgroup else ''}task/affinity",
        f"DefMemPerCPU={max(per_cpu, 1)}",
        *_gpu_share(nodes),
        *([] if release in OLD_RELEASES else [f"Epilog={EPILOG}"]),
        *(node_line(node) for node in nodes.values()),
        *(partition_line(partition, nodes) for partition in options["slurm_partitions"]),
    ]
    accounting = accounting_settings(options, controllers[0])
    return WRITTEN_BY + COMMON + accounting + "".join(f"{line}\n" for line in lines)


def accounting_settings(options: Mapping[str, Any], controller: Node) -> str:
    """Return the settings of slurm.conf for the database on the controller, if it has one."""
    if not options["slurm_accounting"]:
        return ""
    values = {**FAIR_SHARE, **options["slurm_fair_share"]}
    settings = ACCOUNTING.format(address=controller["address"], **values)
    return settings + (ENFORCE if options["slurm_accounts"] else "")


def jobs_folder(options: Mapping[str, Any]) -> str:
    """Return where slurmctld keeps its jobs: with a shared folder, one of the cluster in it."""
    shared = options["slurm_state_folder"]
    return f"{shared}/{options['slurm_cluster_name']}" if shared else LOCAL_STATE


def _gpu_share(nodes: Mapping[str, Node]) -> Iterator[str]:
    """Yield the setting with the CPUs that a job gets for each GPU, if a node has GPUs."""
    shares = [
        node["cpus"] // number
        for node in nodes.values()
        if (number := sum(map(len, offered_gpus(node).values())))
    ]
    if shares:
        yield f"DefCpuPerGPU={max(min(shares), 1)}"


def uses_cgroup(nodes: Mapping[str, Node]) -> bool:
    """Return whether control groups limit jobs: all nodes must have them."""
    return all(node["cgroup"] for node in nodes.values())


def gres_conf(nodes: Mapping[str, Node]) -> str:
    """Return gres.conf: the device files of the GPUs of each node."""
    return WRITTEN_BY + "".join(f"{line}\n" for line in _gres_lines(nodes))


def _gres_lines(nodes: Mapping[str, Node]) -> Iterator[str]:
    for node in nodes.values():
        for type_, minors in offered_gpus(node).items():
            type_word = f" Type={type_}" if type_ else ""
            for minor in minors:
                yield f"NodeName={node['hostname']} Name=gpu{type_word} File=/dev/nvidia{minor}"


def cgroup_conf(nodes: Mapping[str, Node], release: str) -> str:
    """Return cgroup.conf; RELEASE is the codename of the controller's distribution."""
    if uses_cgroup(nodes):
        return f"{WRITTEN_BY}ConstrainCores=yes\nConstrainDevices=yes\nConstrainRAMSpace=yes\n"
    return WRITTEN_BY + ("" if release in OLD_RELEASES else "CgroupPlugin=disabled\n")


def epilog_program() -> str:
    """Return the program that removes the containers of a job on its nodes."""
    source = Path(__file__).with_name("epilog.py").read_text(encoding="utf-8")
    # -I, -S, -B: Python ignores folders of users and compiles nothing.
    return f"#!/usr/bin/python3 -ISB\n{WRITTEN_BY}{source}"


DROP_INS = {
    name: f"/etc/systemd/system/{name}.service.d/slipway.conf" for name in ("slurmctld", "slurmd")
}
# The package does not start slurmctld again after a crash. One that always crashes stays failed.
CONTROLLER_DROP_IN = (
    f"{WRITTEN_BY}[Unit]\nStartLimitIntervalSec=300\nStartLimitBurst=10\n%s"
    "[Service]\nRestart=on-failure\nRestartSec=10\n"
)
# The number of the cluster comes from the database. A cluster that ran without it has another one,
# with which slurmctld would not start. The name of the cluster is checked before.
NEW_NUMBER = "ExecStartPre=+-/bin/rm -f {jobs}/clustername\n"
# The first start makes the folder, with the jobs of a cluster that ran without it. A copy that was
# interrupted begins again. Where nothing is mounted, slurmctld must not start without its jobs.
NEW_FOLDER = (
    "ExecStartPre=+/bin/sh -euc '"
    'test "$$(stat --format=%%d {shared})" != "$$(stat --format=%%d /)"; '
    "if test ! -e {jobs}; then rm -rf {jobs}.part; cp -a {local} {jobs}.part; "
    "mv -T {jobs}.part {jobs}; fi'\n"
)


def controller_drop_in(options: Mapping[str, Any], is_primary: bool) -> str:
    """Return the drop-in of slurmctld.service, on the primary or on the backup controller."""
    shared = options["slurm_state_folder"]
    paths = {"shared": shared, "jobs": jobs_folder(options), "local": LOCAL_STATE}
    settings = CONTROLLER_DROP_IN % (f"RequiresMountsFor={shared}\n" if shared else "")
    if is_primary and shared:
        settings += NEW_FOLDER.format(**paths)
    if is_primary and options["slurm_accounting"]:
        settings += NEW_NUMBER.format(**paths)
    return settings


def daemon_drop_in(controllers: Sequence[Node]) -> str:
    """Return the drop-in of slurmd.service: its configuration comes from the CONTROLLERS.

    The empty condition clears that of older packages, which wait for a local slurm.conf. Without a
    limit for starts, a node waits until its controller runs.
    """
    servers = ",".join(f"{controller['address']}:{PORT}" for controller in controllers)
    return (
        f"{WRITTEN_BY}[Unit]\nConditionPathExists=\nStartLimitIntervalSec=0\n[Service]\n"
        f'Environment="SLURMD_OPTIONS=--conf-server {servers}"\n'
        "Restart=on-failure\nRestartSec=10\n"
    )
