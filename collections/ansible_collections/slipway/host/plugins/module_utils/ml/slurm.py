# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slurm as the commands need it: requests for jobs, their states, and the place in the queue.

Only fields that users cannot write are read of the jobs of others: a name or a comment may contain
line breaks, and would look like the line of another job.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .errors import MlError, reason
from .settings import Layer

# The state of a job in words, and whether the job has ended.
WAITING, RUNNING = "PENDING", "RUNNING"
ENDS = {
    "BOOT_FAIL": "its host did not start",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "",
    "DEADLINE": "its deadline is over",
    "FAILED": "",
    "NODE_FAIL": "its host failed",
    "OUT_OF_MEMORY": "it used more memory than it asked for",
    "PREEMPTED": "another job needed its place",
    "TIMEOUT": "its time limit is over. Ask for more with --time",
}
# Slurm's reasons why a job waits, in words. The first that a reason begins with counts.
REASONS = {
    "Resources": "next in the queue; no host has the free GPUs, CPUs and memory yet",
    "Priority": "other jobs are before it",
    "None": "Slurm has not looked at it yet",
    "BeginTime": "it starts at a later time, or again after its host failed",
    "Dependency": "it waits for another job",
    "JobHeldUser": "its owner holds it",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "its start failed on a host, and Slurm holds it",
    "PartitionDown": "the partition is closed",
    "PartitionTimeLimit": "it asks for more time than the partition permits",
    "PartitionNodeLimit": "it asks for more hosts than the partition permits",
    "BadConstraints": "no host can ever run it",
    "ReqNodeNotAvail": "the hosts that it needs are reserved, drained or down",
    "Nodes required for job are DOWN": "the hosts that it needs are reserved, drained or down",
    "QOS": "a limit for its owner is reached",
    "Assoc": "a limit for its owner is reached",
    "Reservation": "the hosts that it needs are reserved",
}
DISTRUST = (
    "the controller of the cluster does not accept messages of this host: its munge key or its "
    "clock differs. Tell {contact}"
)
# Slurm's reasons why it refuses a job.
REFUSALS = {
    "Requested node configuration is not available": (
        "no host of the cluster has {request}. Ask for less; the GPUs of the hosts: ml top"
    ),
    "Node count specification invalid": (
        "{partition} does not have {request}. Ask for less; the hosts of the cluster: ml top"
    ),
    "Invalid partition name": "there is no {partition}. The partitions of the cluster: sinfo",
    "group not permitted to use this partition": (
        "your groups may not use {partition}. Choose another one with --partition"
    ),
    "Requested time limit is invalid": (
        "{partition} does not permit a time of {time}. Ask for less with --time"
    ),
    "Invalid account": "{user} has no account on the controller of the cluster. Ask {contact}",
    "Invalid user id": "{user} has no account on the controller of the cluster. Ask {contact}",
    "User not found": "{user} has no account on the controller of the cluster. Ask {contact}",
    "Unable to contact slurm controller": (
        "the controller of the cluster does not answer. Running jobs go on. Tell {contact}"
    ),
    "Zero Bytes were transmitted": DISTRUST,
    "Protocol authentication error": DISTRUST,
    "Could not establish a configuration source": (
        "slurmd does not run on this host, so that Slurm does not know its cluster. Tell {contact}"
    ),
}
JOB_FIELDS = "%i|%T|%u|%P|%Q|%b|%D|%N|%S|%V|%r"
FIELD_COUNT = 11


class Job(NamedTuple):
    """A job of the cluster. GPUS is the number on each host, -1 if it is unknown.

    start: when it started, or is expected to start; ``N/A`` if nobody knows.
    """

    id: str
    state: str
    user: str
    partition: str
    priority: int
    gpus: int
    hosts: int
    host_names: str
    start: str
    submitted: str
    reason: str

    @property
    def order(self) -> tuple[int, int]:
        """Return the order of a waiting job in the queue of its partition."""
        return -self.priority, int(re.split(r"\D", self.id, maxsplit=1)[0])


class Request(NamedTuple):
    """The part of a cluster that a job asks for; empty texts leave the default to Slurm."""

    gpus: int
    hosts: int = 1
    cpus: str = ""
    memory: str = ""
    partition: str = ""
    time: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options of srun and sbatch."""
        values = {
            "--cpus-per-task": self.cpus,
            "--mem": self.memory,
            "--partition": self.partition,
            "--time": self.time,
        }
        return (
            f"--nodes={self.hosts}",
            f"--ntasks={self.hosts}",
            "--ntasks-per-node=1",
            f"--gres=gpu:{self.gpus}",
            *(f"{option}={value}" for option, value in values.items() if value),
        )

    def describe(self) -> str:
        """Return the request in words."""
        words = count(self.gpus, "GPU")
        words += f" on each of {self.hosts} hosts" if self.hosts > 1 else ""
        more = [(self.cpus, f"{self.cpus} CPUs"), (self.memory, f"{self.memory} of memory")]
        return " and ".join([words, *(text for value, text in more if value)])


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count_gpus(setting: str) -> int:
    """Return the number of GPUs in the setting ``gpus``.  Raise MlError for chosen GPUs."""
    named = {"none": 0, "free": 1}
    if setting in named:
        return named[setting]
    if not setting.isdecimal() or setting == "0":
        raise MlError(
            f"gpus is {setting!r}; expected a number of GPUs such as 2, or none, because Slurm "
            "chooses the GPUs on this host. Change --gpus or your settings"
        )
    return int(setting)


def make_request(merged: Layer, hosts: int = 1) -> Request:
    """Return the request of a start with MERGED settings.  Raise MlError for impossible ones."""
    cpus, memory = merged.get("cpus", ""), merged.get("memory", "")
    return Request(
        gpus=count_gpus(merged["gpus"]),
        hosts=hosts,
        cpus=str(-int(-float(cpus) // 1)) if cpus else "",
        memory=convert_size(memory) if memory else "",
        partition=merged.get("partition", ""),
        time=merged.get("time", ""),
    )


def convert_size(size: str) -> str:
    """Return a size of docker as Slurm reads it: docker knows bytes, Slurm begins with KiB."""
    if size[-1] in "bB" or size.isdecimal():
        return f"{-(-int(size.rstrip('bB')) // 1024)}K"
    return size.upper()


def run(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command of Slurm; return its status, output and errors.  Raise MlError without it."""
    import subprocess

    try:
        done = subprocess.run(
            list(words), capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, ValueError) as error:
        raise MlError(f"cannot run {words[0]}: {reason(error, words[0])}") from error
    return (
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


def list_jobs(contact: str, *options: str) -> list[Job]:
    """Return the jobs of the cluster that have not ended.  Raise MlError if Slurm fails."""
    status, output, errors = run(("squeue", "--noheader", f"--format={JOB_FIELDS}", *options))
    if status:
        raise error(errors, contact)
    return parse_jobs(output)


def parse_jobs(output: str) -> list[Job]:
    """Return the jobs in the output of squeue."""
    jobs = []
    for line in output.splitlines():
        fields = line.strip().split("|")
        if len(fields) == FIELD_COUNT:
            identifier, state, user, partition, priority, gres, hosts, *rest = fields
            jobs.append(
                Job(identifier, state, user, partition, _number(priority), parse_gres(gres),
                    _number(hosts), *rest)
            )  # fmt: skip
    return jobs


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def parse_gres(gres: str) -> int:
    """Return the number of GPUs in resources such as ``gres/gpu:h100:2``, -1 if it is unknown."""
    numbers = [
        int(entry.rpartition(":")[2]) if entry[-1:].isdecimal() and ":" in entry else 1
        for entry in (re.sub(r"\(.*\)", "", text) for text in gres.split(","))
        if re.match(r"(gres[/:])?gpu\b", entry)
    ]
    return sum(numbers) if numbers else -1 if gres not in ("N/A", "", "(null)") else 0


def explain_reason(text: str) -> str:
    """Return Slurm's reason why a job waits in words; unknown ones as they are."""
    return next((words for begin, words in REASONS.items() if text.startswith(begin)), text)


def explain_refusal(errors: str, request: Request, user: str, contact: str) -> str:
    """Return the sentence for the error output of srun, empty for unknown errors."""
    values: Mapping[str, Any] = {
        "request": request.describe(),
        "partition": f"partition {request.partition}"
        if request.partition
        else "the default partition",
        "time": request.time or "default length",
        "user": user,
        "contact": contact,
    }
    return next((words.format(**values) for text, words in REFUSALS.items() if text in errors), "")


def error(errors: str, contact: str) -> MlError:
    """Return the error for the error output of a command of Slurm."""
    return MlError(explain_refusal(errors, Request(0), "", contact) or last_line(errors))


def last_line(errors: str) -> str:
    """Return the last line of an error output."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else "Slurm failed without a message"


def describe_place(jobs: Sequence[Job], job_id: str, request: Request) -> str:
    """Return the sentence about a waiting job, empty for a job that does not wait."""
    waiting = sorted((job for job in jobs if job.state == WAITING), key=lambda job: job.order)
    mine = next((job for job in waiting if job.id == job_id), None)
    if mine is None:
        return ""
    queue = [job for job in waiting if job.partition == mine.partition]
    text = (
        f"job {job_id} waits for {request.describe()}: place {queue.index(mine) + 1} of "
        f"{len(queue)} in partition {mine.partition} ({explain_reason(mine.reason)})"
    )
    return (
        f"{text}; expected start {mine.start.replace('T', ' ')}" if mine.start[:1] == "2" else text
    )
