# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's GPUs: lists them and their users, and chooses GPUs for a container."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .errors import MlError

if TYPE_CHECKING:
    import subprocess

NVIDIA_SMI = "nvidia-smi"
LIST = ("-L",)
PROCESSES = ("--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader")
# nvidia-smi can hang for minutes if a GPU is faulty.
TIMEOUT_SECONDS = 30


class Gpu(NamedTuple):
    """A GPU, or a part of a partitioned GPU (MIG).

    id: its ID in docker and the toolkit, ``0`` or, for a part, ``0:1``.
    """

    id: str
    name: str
    uuid: str


class Choice(NamedTuple):
    """The GPUs for a container, with a note or a warning for the person."""

    ids: tuple[str, ...]
    note: str = ""
    warning: str = ""


class Query:
    """The GPUs of this host and their processes, read by nvidia-smi in the background."""

    def __init__(self) -> None:
        """Start nvidia-smi, if the host has it."""
        folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
        installed = any(os.access(Path(folder, NVIDIA_SMI), os.X_OK) for folder in folders)
        self._listing = _start_nvidia_smi(*LIST) if installed else None
        self._processes = _start_nvidia_smi(*PROCESSES) if installed else None

    def gpus(self) -> list[Gpu]:
        """Return the GPUs of this host that a container can use."""
        return parse_gpus(_output(self._listing))

    def processes(self) -> dict[str, str]:
        """Return the process that computes on each GPU, by UUID, as text."""
        return parse_processes(_output(self._processes))


def _start_nvidia_smi(*words: str) -> subprocess.Popen[bytes] | None:
    import subprocess

    try:
        return subprocess.Popen(
            [NVIDIA_SMI, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, ValueError):
        return None


def _output(process: subprocess.Popen[bytes] | None) -> str:
    """Return the output of nvidia-smi; empty without nvidia-smi or without a driver."""
    import subprocess

    if process is None:
        return ""
    try:
        output, _error = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return ""
    return output.decode("utf-8", "replace") if process.returncode == 0 else ""


def parse_gpus(listing: str) -> list[Gpu]:
    """Return the GPUs that ``nvidia-smi -L`` lists; a partitioned GPU is listed as its parts."""
    parts_by_gpu: dict[str, list[Gpu]] = {}
    index = ""
    for line in listing.splitlines():
        whole = re.match(r"GPU (\d+): (.+) \(UUID: (\S+)\)", line)
        part = re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (\S+)\)", line)
        if whole:
            index = whole[1]
            parts_by_gpu[index] = [Gpu(index, whole[2], whole[3])]
        elif part and index:
            parent = parts_by_gpu[index][0].name.partition(", MIG")[0]
            parts = [gpu for gpu in parts_by_gpu[index] if ":" in gpu.id]
            parts_by_gpu[index] = [
                *parts,
                Gpu(f"{index}:{part[2]}", f"{parent}, MIG {part[1]}", part[3]),
            ]
    return [gpu for group in parts_by_gpu.values() for gpu in group]


def parse_processes(listing: str) -> dict[str, str]:
    """Return the process that computes on each GPU, by UUID, from the output of nvidia-smi."""
    processes: dict[str, str] = {}
    for line in listing.splitlines():
        uuid, _separator, pid = (field.strip() for field in line.partition(","))
        processes.setdefault(uuid, _describe_process(pid))
    return processes


def _describe_process(pid: str) -> str:
    try:
        return f"{Path('/proc', pid).owner()}'s process {pid}"
    except (OSError, KeyError):
        return f"process {pid}"


def find_users(
    gpus: Sequence[Gpu], computing: Mapping[str, str], claimed: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the users of each GPU, by ID: containers that have the GPU, else a process.

    COMPUTING is from :meth:`Query.processes`, CLAIMED are the GPUs of running containers by name.
    """
    users = {gpu.id: computing[gpu.uuid] for gpu in gpus if gpu.uuid in computing}
    containers: dict[str, list[str]] = {}
    for container, ids in claimed.items():
        for gpu_id in [gpu.id for gpu in gpus] if "all" in ids else ids:
            containers.setdefault(gpu_id, []).append(container)
    users.update({gpu_id: ", ".join(names) for gpu_id, names in containers.items()})
    return users


def choose_gpus(
    setting: str,
    variant: str,
    gpus: Sequence[Gpu],
    users: Mapping[str, str],
    reserve: Callable[[str], bool],
) -> Choice:
    """Return the GPUs for the setting ``gpus`` among the host's GPUS.

    VARIANT is the image's; USERS are by GPU; RESERVE reserves a GPU and returns success.
    Raise MlError for a GPU that does not exist.
    """
    if setting == "none":
        return Choice(())
    if not gpus:
        return Choice((), note="no GPU on this host; the container runs without one")
    if variant != "gpu":
        return Choice((), note="the image has no gpu variant; the container runs without a GPU")
    ids = [gpu.id for gpu in gpus]
    if setting == "all":
        return Choice(tuple(ids))
    if setting != "free":
        indexes = setting.split(",")
        return Choice(_select_gpus(indexes, ids), warning=_warn_shared(indexes, users))
    free = tuple(gpu for gpu in ids if gpu not in users and reserve(gpu))
    if free:
        return Choice(free)
    in_use = ", ".join(f"{gpu}: {users.get(gpu, 'starting')}" for gpu in ids)
    return Choice(
        (),
        warning=f"all GPUs are in use ({in_use}); the container runs without one. To share a GPU, "
        "add: --gpus 0",
    )


def _select_gpus(indexes: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Return the IDs for indexes; the index of a partitioned GPU means all its parts."""
    selected: list[str] = []
    for index in indexes:
        matching = [gpu for gpu in ids if gpu == index or gpu.startswith(f"{index}:")]
        if not matching:
            raise MlError(f"no GPU {index} on this host; expected one of: {', '.join(ids)}")
        selected += matching
    return tuple(dict.fromkeys(selected))


def _warn_shared(indexes: Sequence[str], users: Mapping[str, str]) -> str:
    shared = [f"{gpu} with {users[gpu]}" for gpu in indexes if gpu in users]
    return f"the container shares GPU {', '.join(shared)}" if shared else ""


def gpu_options(ids: Sequence[str], cdi: bool) -> list[str]:
    """Return the options of docker run for GPUs, by CDI or by NVIDIA's runtime."""
    if not ids:
        return []
    if cdi:
        return [f"--device=nvidia.com/gpu={gpu}" for gpu in ids]
    # The inner quotes are for docker, which reads the value as comma-separated fields.
    return [f'--gpus="device={",".join(ids)}"']
