# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserves the GPUs of a host for projects, and writes the reservation for compose.

PRIVATE to the collection. Each GPU is reserved for one project unless the host shares GPUs: two
programs on one GPU fill its memory until one of them fails.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALL = "all"
# A GPU by its number, or a part of one (MIG) as `0:1`, as in CDI names.
_GPU_ID = re.compile(r"\d+(:\d+)?")


class GpuError(ValueError):
    """A service requests GPUs that it cannot get; the text says what to change."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a host: how many, whether projects share them, whether its engine has CDI.

    Without CDI the engine uses NVIDIA's own runtime.
    """

    count: int = 0
    shared: bool = False
    cdi: bool = True

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the number of each GPU, as the driver and the toolkit count."""
        return tuple(map(str, range(self.count)))


@dataclass(frozen=True)
class GpuRequest:
    """The key ``gpus`` of a project, as the inventory has it, or None.

    usable: whether the project's image is a gpu build.
    """

    project: str
    gpus: Any
    usable: bool

    def error(self, text: str) -> GpuError:
        """Return an error of this request."""
        return GpuError(f"service {self.project}: gpus: {text}")


def reserve_gpus(requests: Sequence[GpuRequest], host: Gpus) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each project that gets some.

    Named GPUs are reserved first; a project that requests a number of GPUs gets free ones, in
    order. ``all`` on a host without GPUs is none, so that one inventory serves both kinds of hosts.
    Raise GpuError for GPUs that do not exist or are reserved by another project.
    """
    reserved: dict[str, tuple[str, ...]] = {}
    counted: list[tuple[GpuRequest, int]] = []
    for request in requests:
        count = _requested_count(request.gpus)
        if count is not None:
            counted += [(request, count)] if count else []
        elif request.gpus not in (None, "none"):
            reserved[request.project] = _named_gpus(request, host)
    if not host.shared:
        _refuse_sharing(reserved)
    for request, count in counted:
        reserved[request.project] = _free_gpus(request, count, reserved, host)
    return {project: ids for project, ids in reserved.items() if ids}


def _requested_count(gpus: Any) -> int | None:
    """Return the number of GPUs requested, None for a request of another form."""
    if isinstance(gpus, bool):
        return None
    if isinstance(gpus, int):
        return gpus if gpus >= 0 else None
    return int(gpus) if isinstance(gpus, str) and gpus.isdigit() else None


def _named_gpus(request: GpuRequest, host: Gpus) -> tuple[str, ...]:
    if request.gpus == ALL:
        return host.ids if request.usable else ()
    if not isinstance(request.gpus, Sequence) or isinstance(request.gpus, str):
        raise request.error(
            f"{request.gpus!r}; expected all, none, a number of GPUs, or a list such as [0, 1] or, "
            'with parts of GPUs, ["0:1"]. Change the value.'
        )
    ids = tuple(dict.fromkeys(map(str, request.gpus)))
    for gpu in ids:
        if not _GPU_ID.fullmatch(gpu) or gpu.partition(":")[0] not in host.ids:
            raise request.error(f"GPU {gpu} does not exist; {_expect_ids(host)} Change the list.")
    _refuse_unusable(request)
    return ids


def _free_gpus(
    request: GpuRequest, count: int, reserved: Mapping[str, Sequence[str]], host: Gpus
) -> tuple[str, ...]:
    """Return GPUs without a reservation, then, where projects share, those with the fewest."""
    _refuse_unusable(request)
    users = {
        gpu: sum(any(_overlap(gpu, taken) for taken in ids) for ids in reserved.values())
        for gpu in host.ids
    }
    free = sorted((gpu for gpu in host.ids if host.shared or not users[gpu]), key=users.__getitem__)
    if len(free) < count:
        raise request.error(
            f"{count} requested, {len(free)} of this host's {host.count} GPUs are free; expected "
            "at most the free ones. Request fewer GPUs, or set ml_services_share_gpus: true."
        )
    return tuple(sorted(free[:count], key=int))


def _refuse_unusable(request: GpuRequest) -> None:
    if not request.usable:
        raise request.error("the image has no gpu build; expected no GPUs. Remove the key gpus.")


def _refuse_sharing(reserved: Mapping[str, Sequence[str]]) -> None:
    owners: list[tuple[str, str]] = []
    for project, ids in reserved.items():
        for gpu in ids:
            for other, owner in owners:
                if owner != project and _overlap(gpu, other):
                    raise GpuError(
                        f"services {owner} and {project}: both reserve GPU {gpu}; expected one "
                        "service for each GPU. Choose another GPU, or set "
                        "ml_services_share_gpus: true."
                    )
            owners.append((gpu, project))


def _overlap(gpu: str, other: str) -> bool:
    """Whether two GPUs, or parts, are the same or one is a part of the other."""
    return gpu == other or other == gpu.partition(":")[0] or gpu == other.partition(":")[0]


def _expect_ids(host: Gpus) -> str:
    return f"expected one of: {', '.join(host.ids)}." if host.ids else "this host has no GPUs."


def compose_reservation(ids: Sequence[str], host: Gpus) -> dict[str, Any]:
    """Return the part of a compose service that reserves GPUs.

    With CDI the engine knows the devices, and a container keeps them when systemd reloads.
    """
    if not ids:
        return {}
    if host.cdi:
        device = {"driver": "cdi", "device_ids": [f"nvidia.com/gpu={gpu}" for gpu in ids]}
    else:
        device = {"driver": "nvidia", "device_ids": list(ids)}
    device["capabilities"] = ["gpu"]
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
