# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages that make a chosen driver: names of Ubuntu, Debian and NVIDIA's CUDA repository.

All sets are headless and include nvidia-smi and the persistence daemon. Sources of the names:
``ubuntu``, ``debian``, ``nvidia-install``, ``nvidia-fabric`` and ``cuda-repo`` of ``gpu.tables``.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    NO_FABRIC,
    NVLINK5,
    NVSWITCH,
    Choice,
    HostFacts,
    Refusal,
)

PREBUILT = "prebuilt"
DKMS = "dkms"

Names = tuple[str, ...]


@dataclass(frozen=True)
class PackageSet:
    """The driver packages of one source, and how their kernel modules are built.

    ``running_kernel`` are those of ``packages`` for the running kernel only, ``pin`` is the package
    to install before all others, ``components`` are the archive areas of the packages.
    """

    build: str
    packages: Names
    running_kernel: Names
    components: Names = ()
    pin: str | None = None
    warnings: tuple[str, ...] = ()


def package_set(choice: Choice) -> PackageSet:
    """Return the packages of a choice; raise Refusal if its source lacks a required package."""
    return _BY_SOURCE[choice.source](choice)


def _ubuntu(choice: Choice) -> PackageSet:
    """Use the ``-server`` flavour: the fabric manager depends on its exact version."""
    if choice.fabric == NVLINK5:
        raise Refusal(
            "Ubuntu's archive does not have NVIDIA's subnet manager (nvlsm), which an NVLink 5"
            " baseboard needs."
        )
    host, branch = choice.host, choice.branch
    server = f"{branch}-server"
    suffix = f"{server}-open" if choice.modules == branches.OPEN else server
    packages: Names = (f"nvidia-headless-no-dkms-{suffix}", f"nvidia-utils-{server}")
    components = branches.OFFERS[branches.UBUNTU, host.distribution, host.release].components[
        branch
    ]
    if choice.fabric == NVSWITCH:
        packages += (f"nvidia-fabricmanager-{branch}", f"libnvidia-nscq-{branch}")
        components = ("restricted", "multiverse")
    if choice.video:
        packages += (f"libnvidia-encode-{server}", f"libnvidia-decode-{server}")
    if has_prebuilt(host, branch):
        exact: Names = (f"linux-modules-nvidia-{suffix}-{host.kernel}",)
        metas = tuple(f"linux-modules-nvidia-{suffix}-{meta}" for meta in kernel_metas(host))
        return PackageSet(PREBUILT, packages + metas + exact, exact, components)
    metas, exact, warnings = _build_dependencies(host)
    packages += (f"nvidia-dkms-{suffix}", *metas, *exact)
    return PackageSet(DKMS, packages, exact, components, warnings=warnings)


def _cuda(choice: Choice) -> PackageSet:
    """Use NVIDIA's compute-only sets, after the package that pins the branch.

    Package names for Ubuntu contain the branch before 590, the fabric manager's before 580. Names
    for Debian never contain it.
    """
    branch, is_open = choice.branch, choice.modules == branches.OPEN
    tail = "" if branch >= branches.CUDA_UNSUFFIXED_SINCE else f"-{branch}"
    components: Names = ()
    if choice.host.distribution == "debian":
        components = ("contrib",)
        driver: Names = (
            "nvidia-driver-cuda",
            "nvidia-kernel-open-dkms" if is_open else "nvidia-kernel-dkms",
        )
        codecs: Names = ("libnvidia-encode1", "libnvcuvid1")
    else:
        driver = (
            f"libnvidia-compute{tail}",
            f"libnvidia-cfg1{tail}",
            f"nvidia-dkms{tail}-open" if is_open else f"nvidia-dkms{tail}",
        )
        # From 590 on, nvidia-smi is in libnvidia-compute.
        driver += (f"nvidia-utils{tail}",) if tail else ()
        codecs = (f"libnvidia-encode{tail}", f"libnvidia-decode{tail}")
    pin = f"nvidia-driver-pinning-{branch}"
    metas, exact, warnings = _build_dependencies(choice.host)
    packages = (pin, *driver, "nvidia-persistenced", *_cuda_fabric(choice))
    packages += (*(codecs if choice.video else ()), *metas, *exact)
    return PackageSet(DKMS, packages, exact, components, pin, warnings)


def _cuda_fabric(choice: Choice) -> Names:
    tail = "" if choice.branch >= branches.CUDA_FABRIC_UNSUFFIXED_SINCE else f"-{choice.branch}"
    manager = f"nvidia-fabricmanager{tail}"
    if choice.fabric == NVSWITCH:
        return (manager, f"libnvidia-nscq{tail}")
    if choice.fabric == NVLINK5:
        # NVIDIA does not build libnvsdm for arm64.
        nvsdm = (f"libnvsdm{tail}",) if choice.host.architecture == "amd64" else ()
        return (manager, "nvlsm", *nvsdm, "infiniband-diags")
    return ()


def _debian(choice: Choice) -> PackageSet:
    """Use Debian's packages without its desktop meta package; branch 470 has different names."""
    if choice.fabric != NO_FABRIC:
        raise Refusal(
            "Debian's archive does not have NVIDIA's fabric manager, which NVSwitches need."
        )
    if choice.branch == tables.KEPLER.last:
        tesla = f"tesla-{choice.branch}"
        driver: Names = (
            f"nvidia-{tesla}-kernel-dkms",
            f"libnvidia-{tesla}-cuda1",
            f"nvidia-{tesla}-smi",
        )
        codecs: Names = (f"libnvidia-{tesla}-encode1", f"libnvidia-{tesla}-nvcuvid1")
    else:
        is_open = choice.modules == branches.OPEN
        kernel = "nvidia-open-kernel-dkms" if is_open else "nvidia-kernel-dkms"
        driver = (kernel, "libcuda1", "nvidia-smi")
        codecs = ("libnvidia-encode1", "libnvcuvid1")
    metas, exact, warnings = _build_dependencies(choice.host)
    packages = (*driver, "nvidia-persistenced", *(codecs if choice.video else ()), *metas, *exact)
    return PackageSet(
        DKMS, packages, exact, ("contrib", "non-free", "non-free-firmware"), warnings=warnings
    )


_BY_SOURCE: Mapping[str, Callable[[Choice], PackageSet]] = {
    branches.UBUNTU: _ubuntu,
    branches.CUDA: _cuda,
    branches.DEBIAN: _debian,
}


# --- kernels -----------------------------------------------------------------------------------


def has_prebuilt(host: HostFacts, branch: int) -> bool:
    """Return whether Ubuntu builds and signs modules of the branch for the running kernel."""
    running = _ubuntu_kernel(host.kernel)
    flavour = _without_page_size(running[1]) if running else None
    return branch in branches.PREBUILT_BRANCHES and flavour in tables.PREBUILT_FLAVOURS


def kernel_metas(host: HostFacts) -> Names:
    """Return the kernel flavours of this host, such as ``generic-hwe-24.04``.

    Module and header packages of these names are updated together with each new kernel. The
    flavours come from the installed kernel packages, or else from the release and the running
    kernel. Empty for a kernel that is not from the distribution.
    """
    if host.distribution == "debian":
        debian = re.search(r"-((?:cloud-|rt-)?(?:amd64|arm64(?:-16k)?))$", host.kernel)
        return (debian[1],) if debian else ()
    running = _ubuntu_kernel(host.kernel)
    if running is None:
        return ()
    series, flavour = running
    # linux-image-virtual installs generic kernels and has no separate module packages.
    metas = (re.sub(r"^virtual\b", "generic", meta) for meta in host.kernel_metas)
    installed = tuple(dict.fromkeys(meta for meta in metas if _flavour_of(meta) == flavour))
    plain = _without_page_size(flavour)
    if installed or plain not in tables.PREBUILT_FLAVOURS:
        return installed
    if plain in tables.HWE_FLAVOURS and series != tables.RELEASE_KERNEL[host.release]:
        return (f"{flavour}-hwe-{host.release}",)
    return (flavour,)


def _build_dependencies(host: HostFacts) -> tuple[Names, Names, tuple[str, ...]]:
    """Return the build dependencies of DKMS: for kernel flavours, for this kernel, and warnings."""
    metas = tuple(f"linux-headers-{meta}" for meta in kernel_metas(host))
    warnings: tuple[str, ...] = ()
    if not metas:
        warnings += (
            f"Kernel {host.kernel} is not from {host.distribution.capitalize()}: install its"
            " headers, or DKMS cannot build modules for it.",
        )
    if host.secure_boot is None:
        warnings += (
            "Cannot read whether Secure Boot is on. With Secure Boot, modules built on the host do"
            " not load.",
        )
    return metas + _compiler(host), (f"linux-headers-{host.kernel}",), warnings


def _compiler(host: HostFacts) -> Names:
    running = _ubuntu_kernel(host.kernel)
    compiler = tables.HWE_COMPILER.get(host.release) if host.distribution == "ubuntu" else None
    if compiler and running and running[0] != tables.RELEASE_KERNEL[host.release]:
        return (compiler,)
    return ()


def _ubuntu_kernel(kernel: str) -> tuple[str, str] | None:
    """Split ``6.8.0-31-generic`` into series and flavour; return None for another form."""
    match = re.fullmatch(r"(\d+\.\d+)\.\d+-\d+-([a-z][a-z0-9-]*)", kernel)
    return (match[1], match[2]) if match else None


def _flavour_of(meta: str) -> str:
    """Return the kernel flavour of a meta package: ``aws`` of ``aws-lts-24.04``."""
    return re.sub(r"(?:-(?:hwe|lts))?(?:-\d+\.\d+[a-z]?)?(?:-edge)?$", "", meta)


def _without_page_size(flavour: str) -> str:
    return flavour[: -len("-64k")] if flavour.endswith("-64k") else flavour
