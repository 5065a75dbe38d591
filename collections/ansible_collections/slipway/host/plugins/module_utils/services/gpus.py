# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which project has which GPUs of a host, and how compose is told.

PRIVATE to the collection. A GPU is one project's alone unless the host says that they share: two
programs that do not know of each other fill its memory until one of them fails.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALL = "all"
# A GPU by its number, or a part of one (MIG) as `0:1`, as in CDI names.
_NAMED = re.compile(r"\d+(:\d+)?")


class GpuError(ValueError):
    """A project asks for GPUs that it cannot have."""


@dataclass(frozen=True)
class Gpus:
    """What a host has: how many GPUs, whether projects may share them, whether its engine has CDI.

    Without CDI the engine goes by NVIDIA's own runtime.
    """

    count: int = 0
    shared: bool = False
    cdi: bool = True

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the number of each GPU, as the driver and the toolkit count."""
        return tuple(map(str, range(self.count)))


@dataclass(frozen=True)
class Wish:
    """What one project asks for; ``wanted`` is as the inventory says it, or None.

    usable: whether its image is a build for GPUs.
    """

    project: str
    wanted: Any
    usable: bool


def reserve(wishes: Sequence[Wish], host: Gpus) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each project that has some.

    Those that are named go first; a project that wants a number of them gets what is left, in
    order. ``all`` is all there are, which on a host without GPUs is none: the same inventory may
    serve both kinds. Raise GpuError for GPUs that are not there or are another project's.
    """
    found: dict[str, tuple[str, ...]] = {}
    counted: list[tuple[Wish, int]] = []
    for wish in wishes:
        number = _number(wish.wanted)
        if number is not None:
            counted += [(wish, number)] if number else []
        elif wish.wanted not in (None, "none"):
            found[wish.project] = _named(wish, host)
    if not host.shared:
        _refuse_sharing(found)
    for wish, number in counted:
        found[wish.project] = _left(wish, number, found, host)
    return {project: ids for project, ids in found.items() if ids}


def _number(wanted: Any) -> int | None:
    """Return how many GPUs are wanted, None where that is not what was said."""
    if isinstance(wanted, bool):
        return None
    if isinstance(wanted, int):
        return wanted if wanted >= 0 else None
    return int(wanted) if isinstance(wanted, str) and wanted.isdigit() else None


def _named(wish: Wish, host: Gpus) -> tuple[str, ...]:
    if wish.wanted == ALL:
        return host.ids if wish.usable else ()
    if not isinstance(wish.wanted, Sequence) or isinstance(wish.wanted, str):
        raise GpuError(
            f"project {wish.project}: gpus is {wish.wanted!r}, must be all, none, how many, or a "
            'list such as [0, 1] or, with parts of GPUs, ["0:1"]'
        )
    ids = tuple(dict.fromkeys(str(one) for one in wish.wanted))
    for one in ids:
        if not _NAMED.fullmatch(one) or one.partition(":")[0] not in host.ids:
            raise GpuError(f"project {wish.project}: there is no GPU {one}; {_has(host)}")
    _refuse_unusable(wish)
    return ids


def _left(
    wish: Wish, number: int, found: Mapping[str, Sequence[str]], host: Gpus
) -> tuple[str, ...]:
    """Return GPUs that nobody has, then, where projects share, those that the fewest have."""
    _refuse_unusable(wish)
    users = {
        one: sum(any(_overlap(one, taken) for taken in ids) for ids in found.values())
        for one in host.ids
    }
    fit = sorted((one for one in host.ids if host.shared or not users[one]), key=users.__getitem__)
    if len(fit) < number:
        left = f"{len(fit)} not reserved by others" if found else _has(host)
        raise GpuError(f"project {wish.project}: wants {number} GPUs; {left}")
    return tuple(sorted(fit[:number], key=int))


def _refuse_unusable(wish: Wish) -> None:
    if not wish.usable:
        raise GpuError(f"project {wish.project}: its image has no build for GPUs; leave out gpus")


def _refuse_sharing(found: Mapping[str, Sequence[str]]) -> None:
    owners: list[tuple[str, str]] = []
    for project, ids in found.items():
        for one in ids:
            for other, owner in owners:
                if owner != project and _overlap(one, other):
                    raise GpuError(
                        f"projects {owner} and {project} both reserve GPU {one}; give one of them "
                        "another, or set ml_services_share_gpus: true"
                    )
            owners.append((one, project))


def _overlap(one: str, other: str) -> bool:
    """Whether two GPUs, or parts, have something in common: a GPU and any of its parts do."""
    return one == other or other == one.partition(":")[0] or one == other.partition(":")[0]


def _has(host: Gpus) -> str:
    return f"this host has {', '.join(host.ids) or 'none'}"


def compose(ids: Sequence[str], host: Gpus) -> dict[str, Any]:
    """Return the part of a compose service that reserves GPUs.

    By CDI the engine knows the devices, and a container keeps them when systemd reloads.
    """
    if not ids:
        return {}
    if host.cdi:
        device = {"driver": "cdi", "device_ids": [f"nvidia.com/gpu={one}" for one in ids]}
    else:
        device = {"driver": "nvidia", "device_ids": list(ids)}
    device["capabilities"] = ["gpu"]
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}
