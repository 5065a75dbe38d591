# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts per branch of the NVIDIA driver: support for a new branch is one new row of ``_ROWS``.

Also check the first branches of new architectures in ``gpu.tables``, and add the branch to the
packages of simulated hosts in ``lab/nvidia_packages/versions.py``. ``SOURCES`` in ``gpu.tables``
lists the documents that the field ``source`` names.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# Flavours of the kernel modules.
OPEN = "open"
PROPRIETARY = "proprietary"

# Package sources.
UBUNTU = "ubuntu"
DEBIAN = "debian"
CUDA = "cuda"

_RESTRICTED = ("restricted",)
_MULTIVERSE = ("restricted", "multiverse")
_EVERY_UBUNTU = ("22.04", "24.04", "26.04")
_CUDA_RELEASES = (
    *(("ubuntu", "22.04"), ("ubuntu", "24.04"), ("ubuntu", "26.04")),
    *(("debian", "12"), ("debian", "13")),
)
# Reported once: the repository for 26.04 has no branch older than 595.
_CUDA_BEFORE_2604 = tuple(row for row in _CUDA_RELEASES if row[1] != "26.04")


@dataclass(frozen=True)
class Branch:
    """A driver branch: NVIDIA's support for it, its kernel modules, and where its packages are.

    ``cuda`` is its newest CUDA major version. ``until`` is the end of NVIDIA's maintenance, if
    published; ``ended`` means that maintenance has ended.

    ``flavours`` are its kernel module flavours, the preferred one first. ``prebuilt`` means that
    Ubuntu builds and signs its modules.

    ``ubuntu`` maps an Ubuntu release to the archive areas with the branch's packages;
    ``ubuntu_successor`` is the branch that empty packages of this one install instead. ``debian``
    are Debian releases, ``cuda_repository`` distributions and releases with its packages.
    """

    number: int
    support: str
    cuda: int
    source: str = "nvidia-branches"
    until: str = ""
    ended: bool = False
    flavours: tuple[str, ...] = (OPEN, PROPRIETARY)
    prebuilt: bool = False
    ubuntu: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ubuntu_successor: int | None = None
    debian: tuple[str, ...] = ()
    cuda_repository: tuple[tuple[str, str], ...] = ()


# In the order in which `auto` prefers branches. 580 is first: it has long-term support and is the
# only branch for all GPUs from Maxwell to Blackwell.
# Flavours: open modules exist since 515. They are of beta quality on workstation cards before 560,
# and NVIDIA's default since then (nvidia-open-blog). Proprietary ones end with 610: Ubuntu has only
# open modules of 615, and NVIDIA's guide to 620 says 'Proprietary Kernel Modules Removed' (ubuntu).
_ROWS = (
    Branch(
        *(580, "long-term support", 13),
        until="June 2028",
        prebuilt=True,
        ubuntu=dict.fromkeys(_EVERY_UBUNTU, _RESTRICTED),
        cuda_repository=_CUDA_BEFORE_2604,
    ),
    Branch(
        *(595, "production", 13),
        until="March 2027",
        prebuilt=True,
        ubuntu={"22.04": _MULTIVERSE, "24.04": _MULTIVERSE, "26.04": _RESTRICTED},
        cuda_repository=_CUDA_RELEASES,
    ),
    Branch(
        *(615, "new-feature", 13),
        flavours=(OPEN,),
        prebuilt=True,
        ubuntu=dict.fromkeys(_EVERY_UBUNTU, _MULTIVERSE),
        cuda_repository=_CUDA_RELEASES,
    ),
    Branch(
        *(610, "new-feature", 13),
        until="August 2026",
        ended=True,
        ubuntu_successor=615,
        cuda_repository=_CUDA_RELEASES,
    ),
    Branch(
        *(590, "new-feature", 13),
        ended=True,
        ubuntu_successor=595,
        cuda_repository=_CUDA_BEFORE_2604,
    ),
    Branch(575, "new-feature", 12, ended=True, ubuntu_successor=580),
    Branch(570, "production", 12, ended=True, ubuntu_successor=580),
    Branch(565, "new-feature", 12, ended=True, ubuntu_successor=580),
    Branch(
        *(550, "production", 12),
        ended=True,
        flavours=(PROPRIETARY, OPEN),
        ubuntu_successor=580,
        debian=("13", "sid"),
    ),
    Branch(
        *(535, "long-term support", 12),
        until="June 2026",
        ended=True,
        flavours=(PROPRIETARY, OPEN),
        ubuntu_successor=580,
        debian=("12",),
    ),
    Branch(
        *(470, "legacy", 11),
        ended=True,
        flavours=(PROPRIETARY,),
        # The area of 470-server was not checked, so both are enabled.
        ubuntu={"22.04": _MULTIVERSE, "24.04": _MULTIVERSE},
        debian=("12", "sid"),
    ),
)

BRANCHES: Mapping[int, Branch] = MappingProxyType({row.number: row for row in _ROWS})
NEWEST_BRANCH = max(BRANCHES)
# A card that is newer than the tables is most likely supported by this branch.
NEWEST_PRODUCTION = max(row.number for row in _ROWS if row.support == "production")
PREBUILT_BRANCHES = frozenset(row.number for row in _ROWS if row.prebuilt)

# NVIDIA's CUDA repository: from these branches on, package names do not contain the branch.
CUDA_FABRIC_UNSUFFIXED_SINCE = 580
CUDA_UNSUFFIXED_SINCE = 590


@dataclass(frozen=True)
class Offer:
    """The branches of one package source for one release.

    ``branches`` are in order of preference; ``replaced`` maps a branch with empty packages to the
    branch that these install. ``components`` are the archive areas that a branch needs beyond the
    source's own.
    """

    branches: tuple[int, ...]
    source: str
    replaced: Mapping[int, int] = field(default_factory=dict)
    components: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def _ubuntu_offer(release: str) -> Offer:
    rows = [row for row in _ROWS if release in row.ubuntu]
    return Offer(
        tuple(row.number for row in rows),
        "ubuntu",
        {row.number: row.ubuntu_successor for row in _ROWS if row.ubuntu_successor},
        {row.number: row.ubuntu[release] for row in rows},
    )


def _offers() -> Iterator[tuple[tuple[str, str, str], Offer]]:
    for release in _EVERY_UBUNTU:
        yield (UBUNTU, "ubuntu", release), _ubuntu_offer(release)
    for distribution, release in _CUDA_RELEASES:
        numbers = (row.number for row in _ROWS if (distribution, release) in row.cuda_repository)
        yield (CUDA, distribution, release), Offer(tuple(numbers), "cuda-repo")
    for release in sorted({release for row in _ROWS for release in row.debian}):
        numbers = (row.number for row in _ROWS if release in row.debian)
        yield (DEBIAN, "debian", release), Offer(tuple(numbers), "debian")


# Keys: source, distribution, release.
OFFERS: Mapping[tuple[str, str, str], Offer] = MappingProxyType(dict(_offers()))


def module_flavours(number: int) -> tuple[str, ...]:
    """Return the kernel module flavours of a branch, the preferred one first.

    A branch without a row has those of the next newer row, or of the newest one.
    """
    newer = [row for row in BRANCHES if row >= number]
    return BRANCHES[min(newer, default=NEWEST_BRANCH)].flavours
