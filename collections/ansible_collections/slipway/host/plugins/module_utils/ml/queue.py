# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The output of ``ml queue`` and ``ml top``, and the end of a job by ``ml cancel``."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from . import containers, gpus, slurm
from .caller import user_name
from .engine import Docker
from .errors import MlError
from .listing import format_table
from .settings import Host
from .slurm import Job

NODE_FIELDS = "NodeHost:|,Gres:|,GresUsed:|,StateLong:|"


class Node(NamedTuple):
    """A host of the cluster: its GPUs for jobs, those that jobs have, and Slurm's state."""

    name: str
    model: str
    gpus: int
    used: int
    state: str


def run(docker: Docker, host: Host, arguments: argparse.Namespace) -> int:
    """Run ``ml queue``, ``top`` or ``cancel``.  Raise MlError on a host without Slurm."""
    if not host.slurm:
        raise MlError("this host belongs to no Slurm cluster, so it has no queue. See: ml list")
    if arguments.verb == "cancel":
        cancel(host.contact, arguments.jobs)
    elif arguments.verb == "queue":
        print(format_queue(slurm.list_jobs(host.contact)))
    else:
        query = gpus.Query()
        print("\n".join(format_top(list_nodes(host.contact), slurm.list_jobs(host.contact))))
        print("\n".join(["", *_list_local(docker, query)]))
    return 0


def _list_local(docker: Docker, query: gpus.Query) -> list[str]:
    """Return the table of the GPUs of this host: Slurm does not know services and others."""
    local = query.gpus()
    if not local:
        return ["no GPUs on this host"]
    claimed = containers.gpu_users_in_cluster(containers.list_all_running(docker))
    users = gpus.find_users(local, query.processes(), claimed)
    rows = [[gpu.id, gpu.name, users.get(gpu.id, "no container")] for gpu in local]
    return format_table(["GPU HERE", "MODEL", "USED BY"], rows)


def format_queue(jobs: Sequence[Job]) -> str:
    """Return the tables of running and waiting jobs."""
    waiting = sorted((job for job in jobs if job.state == slurm.WAITING), key=lambda job: job.order)
    active = [job for job in jobs if job.state != slurm.WAITING]
    places: dict[str, int] = {}
    rows = []
    for job in waiting:
        places[job.partition] = places.get(job.partition, 0) + 1
        rows.append([
            str(places[job.partition]),
            *(job.id, job.user, job.partition, _format_gpus(job)),
            *(_format_time(job.submitted), _format_time(job.start)),
            slurm.explain_reason(job.reason),
        ])  # fmt: skip
    blocks = [["no running jobs"], ["no waiting jobs"]]
    if active:
        head = ["RUNNING", "USER", "PARTITION", "GPUS", "HOST", "SINCE", "STATE"]
        blocks[0] = format_table(head, [
            [job.id, job.user, job.partition, _format_gpus(job), job.host_names,
             _format_time(job.start), job.state.lower()]
            for job in active
        ])  # fmt: skip
    if rows:
        head = ["PLACE", "WAITING", "USER", "PARTITION", "GPUS", "SINCE", "EXPECTED", "REASON"]
        blocks[1] = format_table(head, rows)
    return "\n\n".join("\n".join(block) for block in blocks)


def _format_gpus(job: Job) -> str:
    number = "?" if job.gpus < 0 else str(job.gpus)
    return f"{job.hosts} x {number}" if job.hosts > 1 else number


def _format_time(stamp: str) -> str:
    """Return a time of Slurm without its year and its seconds, ``-`` for none."""
    match = re.match(r"\d{4}-(\d\d-\d\d)T(\d\d:\d\d)", stamp, re.ASCII)
    return f"{match[1]} {match[2]}" if match else "-"


def parse_nodes(output: str) -> list[Node]:
    """Return the hosts in the output of sinfo, each once."""
    nodes: dict[str, Node] = {}
    for line in output.splitlines():
        fields = line.strip().split("|")
        if len(fields) >= 4:
            name, gres, used, state = fields[:4]
            model = re.match(r"gpu:([^:,()]+):\d", gres)
            gpus = slurm.parse_gres(gres)
            nodes[name] = Node(
                name, model[1] if model else "", max(gpus, 0), max(slurm.parse_gres(used), 0), state
            )
    return list(nodes.values())


def expand_names(names: str) -> list[str]:
    """Return the hosts in a list of Slurm such as ``gpu[01-03,7],head``."""
    expanded: list[str] = []
    for begin, ranges, end in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[]*)", names):
        if not ranges:
            expanded.append(begin + end)
        for part in filter(None, ranges.split(",")):
            first, _dash, last = part.partition("-")
            expanded += [
                f"{begin}{number:0{len(first)}}{end}"
                for number in range(int(first), int(last or first) + 1)
            ]
    return expanded


def format_top(nodes: Iterable[Node], jobs: Iterable[Job]) -> list[str]:
    """Return the table of the cluster's GPUs, one host a line."""
    users: dict[str, list[str]] = {}
    for job in jobs:
        if job.gpus and job.state != slurm.WAITING:
            for host in expand_names(job.host_names):
                users.setdefault(host, []).append(f"job {job.id} of {job.user}")
    rows = [
        [
            *(node.name, node.model or "-", str(node.gpus), str(max(node.gpus - node.used, 0))),
            *(node.state, ", ".join(users.get(node.name, ())) or "-"),
        ]
        for node in nodes
    ]
    return format_table(["HOST", "MODEL", "GPUS", "FREE", "STATE", "USED BY"], rows)


def list_nodes(contact: str) -> list[Node]:
    """Return the hosts of the cluster.  Raise MlError if Slurm fails."""
    words = ("sinfo", "--noheader", "--Node", f"--Format={NODE_FIELDS}")
    status, output, errors = slurm.run(words)
    if status:
        raise slurm.error(errors, contact)
    return parse_nodes(output)


def cancel(contact: str, numbers: Sequence[str]) -> None:
    """Cancel jobs of the caller.  Raise MlError for no such job, and for one of another user."""
    jobs = {job.id: job for job in slurm.list_jobs(contact)}
    me = user_name(os.getuid())
    for number in numbers:
        if number not in jobs:
            raise MlError(f"there is no job {number} in the queue. To list the jobs, run: ml queue")
        if os.getuid() != 0 and jobs[number].user != me:
            raise MlError(f"job {number} belongs to {jobs[number].user}; you cannot cancel it")
    status, _output, errors = slurm.run(("scancel", *numbers))
    if status:
        raise slurm.error(errors, contact)
