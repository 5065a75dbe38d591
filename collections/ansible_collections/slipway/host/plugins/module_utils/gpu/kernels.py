# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of Linux kernels, known by their release (``uname -r``), and what the driver needs on each.

A kernel belongs to a kind only if its whole release matches. Each row names its document in
``SOURCES``. Support for a new kind or flavour is a new row.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ansible_collections.slipway.host.plugins.module_utils.gpu.model import HostFacts, Refusal

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "ubuntu": "package indexes of jammy, noble and resolute, read 2026-11-20",
        "driver-container": "NVIDIA/gpu-driver-container of 2026-08-17: kernel flavours in"
        " .common-ci.yml and .github/precompiled-matrix-config.json; azure-fde only for amd64, and"
        " not for 22.04",
        "ubuntu-docs": "Ubuntu Server documentation, table of kernel flavours for DOCA-OFED on"
        " 26.04, read 2026-11",
        "mainline": "releases of Ubuntu's mainline builds (6.15.4-061504-generic,"
        " 6.16.0-061600rc3-generic) and daily builds (6.16.0-999-generic) in public reports, as of"
        " 2026-11",
        "preempt-rt": "NVIDIA/open-gpu-kernel-modules#1240 (2026-07) and xanmod/linux#65: the"
        " driver refuses to build for PREEMPT_RT",
        "proxmox": "Proxmox VE: packages proxmox-kernel-* and proxmox-headers-* since kernel 6.5,"
        " pve-headers-* before",
        "third-party": "releases of kernel packages of XanMod, Liquorix and System76 in public"
        " reports, as of 2026-11; not tried with their archives",
        "tegra": "NVIDIA Jetson Linux: the driver is part of its kernel packages (nvidia-l4t-*)",
    }
)

_BOTH = ("amd64", "arm64")
_ARM = ("arm64",)


@dataclass(frozen=True)
class Flavour:
    """A kernel flavour of Ubuntu's archive with prebuilt, signed modules of the driver.

    ``since`` is the first release with such modules. ``hwe`` means that kernels newer than the
    release's own belong to the meta package ``FLAVOUR-hwe-RELEASE``.
    """

    name: str
    source: str = "ubuntu"
    architectures: tuple[str, ...] = _BOTH
    since: str = "22.04"
    hwe: bool = False


# Flavours without a row, such as raspi, kvm, gke, oem, intel-iotg and fips: their prebuilt modules
# of the -server driver are not confirmed by any source, so DKMS builds modules for them.
_FLAVOURS = (
    Flavour("generic", hwe=True),
    Flavour("generic-64k", "ubuntu-docs", _ARM, hwe=True),
    Flavour("lowlatency", hwe=True),
    Flavour("lowlatency-64k", architectures=_ARM, hwe=True),
    Flavour("nvidia", hwe=True),
    Flavour("nvidia-64k", architectures=_ARM, hwe=True),
    Flavour("aws"),
    Flavour("aws-64k", "ubuntu-docs", _ARM),
    Flavour("azure"),
    Flavour("azure-fde", "driver-container", ("amd64",), since="24.04"),
    Flavour("gcp"),
    Flavour("gcp-64k", "ubuntu-docs", _ARM),
    Flavour("ibm"),
    Flavour("oracle"),
    Flavour("oracle-64k", "ubuntu-docs", _ARM),
)
FLAVOURS: Mapping[str, Flavour] = MappingProxyType({row.name: row for row in _FLAVOURS})

# Kernel series of each release; a newer series of some flavours is the `hwe` kernel.
RELEASE_SERIES: Mapping[str, str] = MappingProxyType(
    {"22.04": "5.15", "24.04": "6.8", "26.04": "7.0"}
)


@dataclass(frozen=True)
class Kind:
    """A kind of kernel from outside Ubuntu's and Debian's archives, or one without a driver.

    ``name`` completes the sentence "Kernel X is ...". ``headers`` and ``metas`` are the packages
    with the headers of this kernel and of its successors; {release} and {series} stand for
    parts of the kernel's release. Kinds without ``headers`` are in no archive. ``refusal`` says why
    no driver can be built.
    """

    name: str
    pattern: re.Pattern[str]
    source: str
    headers: tuple[str, ...] = ()
    metas: tuple[str, ...] = ()
    refusal: str = ""


_VERSION = r"(?P<series>\d+\.\d+)\.\d+"
_REAL_TIME = (
    "NVIDIA's driver does not build for real-time kernels (PREEMPT_RT); expected another kernel. "
    "Boot a kernel that is not real-time, or set nvidia_driver_source to keep"
)
# First match wins, before the kernels of the distribution.
_KINDS = (
    Kind(
        "a real-time kernel",
        re.compile(
            rf"{_VERSION}-\d+-(?:[a-z]+-)?realtime(?:-64k)?"  # Ubuntu
            rf"|{_VERSION.replace('series', 'debian')}(?:\+\S+?)?(?:-\d+)?-rt-(?:amd64|arm64)"
            r"|\d+\.\d+\.\d+-rt\d+(?:-x64v\d)?(?:-xanmod\d+)?"  # upstream's patches and XanMod
            r"|\d+\.\d+\.\d+-\d+-nvidia-tegra-rt"
        ),
        "preempt-rt",
        refusal=_REAL_TIME,
    ),
    Kind(
        "the kernel of NVIDIA Jetson",
        re.compile(rf"{_VERSION}(?:-\d+)?-(?:nvidia-)?tegra(?:-igx)?"),
        "tegra",
        refusal="it contains its own driver; expected a server kernel. Set nvidia_driver_source to"
        " keep",
    ),
    Kind(
        "a mainline build of Ubuntu's kernel team",
        re.compile(rf"{_VERSION}-(?:0\d{{5}}(?:rc\d+)?|99\d)-(?:generic|lowlatency)(?:-64k)?"),
        "mainline",
    ),
    Kind(
        "a kernel of Proxmox VE",
        re.compile(rf"{_VERSION}-\d+-pve"),
        "proxmox",
        headers=("proxmox-headers-{release}",),
        metas=("proxmox-headers-{series}",),
    ),
    Kind(
        "a kernel of XanMod",
        re.compile(rf"{_VERSION}(?:-x64v\d)?-xanmod\d+"),
        "third-party",
        headers=("linux-headers-{release}",),
    ),
    Kind(
        "a Liquorix kernel",
        re.compile(rf"{_VERSION}-\d+(?:\.\d+)?-liquorix-amd64"),
        "third-party",
        headers=("linux-headers-{release}",),
        metas=("linux-headers-liquorix-amd64",),
    ),
    Kind(
        "a kernel of System76",
        re.compile(rf"{_VERSION}-76\d{{6}}-generic"),
        "third-party",
        headers=("linux-headers-{release}",),
    ),
)
# Ubuntu counts the builds of a kernel series with up to four digits.
_UBUNTU = re.compile(rf"{_VERSION}-[1-9]\d{{0,3}}-(?P<flavour>[a-z][a-z0-9-]*)")
_DEBIAN = re.compile(
    r"\d+\.\d+(?:\.\d+)?(?:[~+][a-z0-9.+~]+|-\d+(?:\.[a-z0-9.+~]+)?)?"
    r"-(?P<flavour>(?:cloud-)?(?:amd64|arm64(?:-16k)?))"
)


@dataclass(frozen=True)
class Kernel:
    """A running kernel: its kind (None for the distribution's own), series and flavour.

    All three are None for an unknown kernel.
    """

    kind: Kind | None = None
    series: str | None = None
    flavour: str | None = None


def recognise(distribution: str, release: str) -> Kernel:
    """Return what the RELEASE of a kernel says about it."""
    for kind in _KINDS:
        if match := kind.pattern.fullmatch(release):
            return Kernel(kind, match["series"])
    if distribution == "debian":
        match = _DEBIAN.fullmatch(release)
        return Kernel(flavour=match["flavour"]) if match else Kernel()
    match = _UBUNTU.fullmatch(release)
    return Kernel(series=match["series"], flavour=match["flavour"]) if match else Kernel()


def has_prebuilt(host: HostFacts) -> bool:
    """Return whether Ubuntu builds and signs modules of the driver for the running kernel."""
    kernel = recognise(host.distribution, host.kernel)
    row = FLAVOURS.get(kernel.flavour or "")
    return (
        host.distribution == "ubuntu"
        and row is not None
        and host.architecture in row.architectures
        and host.release >= row.since
    )


def kernel_metas(host: HostFacts) -> tuple[str, ...]:
    """Return the kernel flavours of this host, such as ``generic-hwe-24.04``.

    Module and header packages of these names are updated together with each new kernel. The
    flavours come from the installed kernel packages, or else from the release and the running
    kernel. Empty for a kernel that is not from the distribution.
    """
    kernel = recognise(host.distribution, host.kernel)
    if kernel.flavour is None:
        return ()
    if host.distribution == "debian":
        return (kernel.flavour,)
    # linux-image-virtual installs generic kernels and has no separate module packages.
    metas = (re.sub(r"^virtual\b", "generic", meta) for meta in host.kernel_metas)
    installed = tuple(dict.fromkeys(meta for meta in metas if _flavour_of(meta) == kernel.flavour))
    row = FLAVOURS.get(kernel.flavour)
    if installed or row is None:
        return installed
    is_newer = kernel.series != RELEASE_SERIES.get(host.release)
    return (f"{row.name}-hwe-{host.release}" if row.hwe and is_newer else row.name,)


def _flavour_of(meta: str) -> str:
    """Return the kernel flavour of a meta package: ``aws`` of ``aws-lts-24.04``."""
    return re.sub(r"(?:-(?:hwe|lts))?(?:-\d+\.\d+[a-z]?)?(?:-edge)?$", "", meta)


def header_packages(host: HostFacts) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the packages with headers for new kernels, and for the running one, for DKMS.

    Raise Refusal if the driver does not build for the kernel, or if no archive has its headers and
    they are not on the host.
    """
    kernel = recognise(host.distribution, host.kernel)
    kind = kernel.kind
    if kind and kind.refusal:
        raise Refusal(f"Kernel {host.kernel} is {kind.name}: {kind.refusal}.")
    if kind and kind.headers:
        names = {"release": host.kernel, "series": kernel.series}
        metas, exact = (
            tuple(name.format(**names) for name in group) for group in (kind.metas, kind.headers)
        )
        return metas, () if host.headers else exact
    if kernel.flavour:
        metas = tuple(f"linux-headers-{meta}" for meta in kernel_metas(host))
        return metas, (f"linux-headers-{host.kernel}",)
    if host.headers:
        return (), ()
    name = kind.name if kind else f"not from {host.distribution.capitalize()}"
    raise Refusal(
        f"Kernel {host.kernel} is {name}: found no headers in /lib/modules/{host.kernel}/build, and"
        " no known archive has them; expected headers, from which DKMS builds the kernel modules."
        " Install the headers from where the kernel came from, or boot a kernel of"
        f" {host.distribution.capitalize()}."
    )
