# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's GPUs: lists them and their users, and chooses GPUs for a container."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import MlError


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of a partitioned GPU (MIG).

    id: its ID in docker and the toolkit, ``0`` or, for a part, ``0:1``.
    """

    id: str
    name: str
    uuid: str


@dataclass(frozen=True)
class Choice:
    """The GPUs for a container, with a note or a warning for the person."""

    ids: tuple[str, ...]
    note: str = ""
    warning: str = ""


def parse_gpus(said: str) -> list[Gpu]:
    """Return the GPUs that ``nvidia-smi -L`` lists; a partitioned GPU is listed as its parts."""
    parts_by_gpu: dict[str, list[Gpu]] = {}
    index = ""
    for line in said.splitlines():
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


def _run_nvidia_smi(*words: str) -> str:
    """Return the output of nvidia-smi; empty without nvidia-smi or without a driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def list_gpus() -> list[Gpu]:
    """Return the GPUs of this host that a container can use."""
    return parse_gpus(_run_nvidia_smi("-L"))


def list_processes() -> dict[str, str]:
    """Return the process that computes on each GPU, by UUID, as text."""
    processes: dict[str, str] = {}
    said = _run_nvidia_smi("--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader")
    for line in said.splitlines():
        uuid, _, pid = (word.strip() for word in line.partition(","))
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
    """Return the user of each GPU, by ID: a container that has the GPU, else a process.

    COMPUTING is from :func:`list_processes`, CLAIMED are the GPUs of running containers by name.
    """
    busy = {gpu.id: computing[gpu.uuid] for gpu in gpus if gpu.uuid in computing}
    for container, ids in claimed.items():
        busy.update(dict.fromkeys(ids, container))
    return busy


def choose_gpus(
    wanted: str,
    variant: str,
    gpus: Sequence[Gpu],
    busy: Mapping[str, str],
    take: Callable[[str], bool],
) -> Choice:
    """Return the GPUs for the setting WANTED among the host's GPUS.

    VARIANT is the image's; BUSY are the users by GPU; TAKE reserves a GPU and returns success.
    Raise MlError for a GPU that does not exist.
    """
    if wanted == "none":
        return Choice(())
    if not gpus:
        return Choice((), note="no GPU on this host; the container runs without one")
    if variant != "gpu":
        return Choice((), note="the image has no gpu variant; the container runs without a GPU")
    ids = [gpu.id for gpu in gpus]
    if wanted == "all":
        return Choice(tuple(ids))
    if wanted != "free":
        return Choice(
            _named_gpus(wanted.split(","), ids), warning=_warn_shared(wanted.split(","), busy)
        )
    free = tuple(gpu for gpu in ids if gpu not in busy and take(gpu))
    if free:
        return Choice(free)
    taken = ", ".join(f"{gpu}: {busy.get(gpu, 'starting')}" for gpu in ids)
    return Choice(
        (),
        warning=f"all GPUs are in use ({taken}); the container runs without one. To share a GPU, "
        "add: --gpus 0",
    )


def _named_gpus(wanted: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Return the IDs for indexes; the index of a partitioned GPU means all its parts."""
    chosen: list[str] = []
    for index in wanted:
        matching = [gpu for gpu in ids if gpu == index or gpu.startswith(f"{index}:")]
        if not matching:
            raise MlError(f"no GPU {index} on this host; expected one of: {', '.join(ids)}")
        chosen += matching
    return tuple(dict.fromkeys(chosen))


def _warn_shared(wanted: Sequence[str], busy: Mapping[str, str]) -> str:
    taken = [f"{gpu} with {busy[gpu]}" for gpu in wanted if gpu in busy]
    return f"the container shares GPU {', '.join(taken)}" if taken else ""


def gpu_options(ids: Sequence[str], cdi: bool) -> list[str]:
    """Return the options of docker run for GPUs, by CDI or by NVIDIA's runtime."""
    if not ids:
        return []
    if cdi:
        return [f"--device=nvidia.com/gpu={gpu}" for gpu in ids]
    # The inner quotes are for docker, which reads the value as comma-separated fields.
    return [f'--gpus="device={",".join(ids)}"']
