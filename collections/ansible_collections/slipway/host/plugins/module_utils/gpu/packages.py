# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages that make a chosen driver: names of Ubuntu, Debian and NVIDIA's CUDA repository.

All sets are headless and bring nvidia-smi and the persistence daemon. Sources of the names:
``ubuntu``, ``debian``, ``nvidia-install``, ``nvidia-fabric`` and ``cuda-repo`` of ``gpu.tables``.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.gpu import tables as data
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
    """What one source needs installed, and how the kernel modules come to be.

    ``running_kernel`` are those of ``packages`` that serve the running kernel alone, ``pin`` the
    one that must be installed before all others, ``components`` the archive areas they are in.
    """

    build: str
    packages: Names
    running_kernel: Names
    components: Names = ()
    pin: str | None = None
    warnings: tuple[str, ...] = ()


def package_set(choice: Choice) -> PackageSet:
    """Name the packages of a choice. Raises Refusal if its source lacks a part it needs."""
    return _BY_SOURCE[choice.source](choice)


def _ubuntu(choice: Choice) -> PackageSet:
    """Use the ``-server`` flavour alone: the fabric manager depends on its exact version."""
    if choice.fabric == NVLINK5:
        raise Refusal(
            "Ubuntu's archive lacks NVIDIA's subnet manager (nvlsm), which an NVLink 5 baseboard"
            " needs."
        )
    host, branch = choice.host, choice.branch
    server = f"{branch}-server"
    suffix = f"{server}-open" if choice.modules == data.OPEN else server
    packages: Names = (f"nvidia-headless-no-dkms-{suffix}", f"nvidia-utils-{server}")
    components = data.OFFERS[data.UBUNTU, host.distribution, host.release].components[branch]
    if choice.fabric == NVSWITCH:
        packages += (f"nvidia-fabricmanager-{branch}", f"libnvidia-nscq-{branch}")
        components = ("restricted", "multiverse")
    if choice.video:
        packages += (f"libnvidia-encode-{server}", f"libnvidia-decode-{server}")
    if has_prebuilt(host, branch):
        exact: Names = (f"linux-modules-nvidia-{suffix}-{host.kernel}",)
        metas = tuple(f"linux-modules-nvidia-{suffix}-{meta}" for meta in kernel_metas(host))
        return PackageSet(PREBUILT, packages + metas + exact, exact, components)
    metas, exact, warnings = _build_needs(host)
    packages += (f"nvidia-dkms-{suffix}", *metas, *exact)
    return PackageSet(DKMS, packages, exact, components, warnings=warnings)


def _cuda(choice: Choice) -> PackageSet:
    """Use NVIDIA's compute-only sets, behind the package that pins the branch.

    Ubuntu's names lose the branch at 590, the fabric manager's at 580; Debian's never had one.
    """
    branch, is_open = choice.branch, choice.modules == data.OPEN
    tail = "" if branch >= data.CUDA_UNSUFFIXED_SINCE else f"-{branch}"
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
    metas, exact, warnings = _build_needs(choice.host)
    packages = (pin, *driver, "nvidia-persistenced", *_cuda_fabric(choice))
    packages += (*(codecs if choice.video else ()), *metas, *exact)
    return PackageSet(DKMS, packages, exact, components, pin, warnings)


def _cuda_fabric(choice: Choice) -> Names:
    tail = "" if choice.branch >= data.CUDA_FABRIC_UNSUFFIXED_SINCE else f"-{choice.branch}"
    manager = f"nvidia-fabricmanager{tail}"
    if choice.fabric == NVSWITCH:
        return (manager, f"libnvidia-nscq{tail}")
    if choice.fabric == NVLINK5:
        # NVIDIA does not build libnvsdm for arm64.
        nvsdm = (f"libnvsdm{tail}",) if choice.host.architecture == "amd64" else ()
        return (manager, "nvlsm", *nvsdm, "infiniband-diags")
    return ()


def _debian(choice: Choice) -> PackageSet:
    """Use Debian's packages below its desktop meta package; legacy 470 has names of its own."""
    if choice.fabric != NO_FABRIC:
        raise Refusal("Debian's archive lacks NVIDIA's fabric manager, which NVSwitches need.")
    if choice.branch == data.KEPLER.last:
        tesla = f"tesla-{choice.branch}"
        driver: Names = (
            f"nvidia-{tesla}-kernel-dkms",
            f"libnvidia-{tesla}-cuda1",
            f"nvidia-{tesla}-smi",
        )
        codecs: Names = (f"libnvidia-{tesla}-encode1", f"libnvidia-{tesla}-nvcuvid1")
    else:
        is_open = choice.modules == data.OPEN
        kernel = "nvidia-open-kernel-dkms" if is_open else "nvidia-kernel-dkms"
        driver = (kernel, "libcuda1", "nvidia-smi")
        codecs = ("libnvidia-encode1", "libnvcuvid1")
    metas, exact, warnings = _build_needs(choice.host)
    packages = (*driver, "nvidia-persistenced", *(codecs if choice.video else ()), *metas, *exact)
    return PackageSet(
        DKMS, packages, exact, ("contrib", "non-free", "non-free-firmware"), warnings=warnings
    )


_BY_SOURCE: Mapping[str, Callable[[Choice], PackageSet]] = {
    data.UBUNTU: _ubuntu,
    data.CUDA: _cuda,
    data.DEBIAN: _debian,
}


# --- kernels -----------------------------------------------------------------------------------


def has_prebuilt(host: HostFacts, branch: int) -> bool:
    """Say whether Ubuntu builds and signs modules of the branch for the running kernel."""
    running = _ubuntu_kernel(host.kernel)
    flavour = _without_page_size(running[1]) if running else None
    return branch in data.PREBUILT_BRANCHES and flavour in data.PREBUILT_FLAVOURS


def kernel_metas(host: HostFacts) -> Names:
    """Return the flavours, such as ``generic-hwe-24.04``, whose kernels this host gets.

    Module and header packages of these names arrive together with each new kernel. The installed
    kernel packages say it surely; without one, the release and the running kernel do. Empty for
    a kernel that is not the distribution's.
    """
    if host.distribution == "debian":
        debian = re.search(r"-((?:cloud-|rt-)?(?:amd64|arm64(?:-16k)?))$", host.kernel)
        return (debian[1],) if debian else ()
    running = _ubuntu_kernel(host.kernel)
    if running is None:
        return ()
    series, flavour = running
    # linux-image-virtual installs generic kernels and has no module packages of its own.
    metas = (re.sub(r"^virtual\b", "generic", meta) for meta in host.kernel_metas)
    installed = tuple(dict.fromkeys(meta for meta in metas if _flavour_of(meta) == flavour))
    plain = _without_page_size(flavour)
    if installed or plain not in data.PREBUILT_FLAVOURS:
        return installed
    if plain in data.HWE_FLAVOURS and series != data.RELEASE_KERNEL[host.release]:
        return (f"{flavour}-hwe-{host.release}",)
    return (flavour,)


def _build_needs(host: HostFacts) -> tuple[Names, Names, tuple[str, ...]]:
    """Return what DKMS builds with: packages for the flavours, for this kernel, and warnings."""
    metas = tuple(f"linux-headers-{meta}" for meta in kernel_metas(host))
    warnings: tuple[str, ...] = ()
    if not metas:
        warnings += (
            f"Kernel {host.kernel} is not one of {host.distribution.capitalize()}'s: modules can"
            " be built for it only if its headers are there.",
        )
    if host.secure_boot is None:
        warnings += (
            "Whether Secure Boot is on could not be read; the modules built here would not load"
            " under it.",
        )
    return metas + _compiler(host), (f"linux-headers-{host.kernel}",), warnings


def _compiler(host: HostFacts) -> Names:
    running = _ubuntu_kernel(host.kernel)
    compiler = data.HWE_COMPILER.get(host.release) if host.distribution == "ubuntu" else None
    if compiler and running and running[0] != data.RELEASE_KERNEL[host.release]:
        return (compiler,)
    return ()


def _ubuntu_kernel(kernel: str) -> tuple[str, str] | None:
    """Split ``6.8.0-31-generic`` into series and flavour, or None if it has no such shape."""
    match = re.fullmatch(r"(\d+\.\d+)\.\d+-\d+-([a-z][a-z0-9-]*)", kernel)
    return (match[1], match[2]) if match else None


def _flavour_of(meta: str) -> str:
    """Return the flavour that a kernel meta package follows: ``aws`` of ``aws-lts-24.04``."""
    return re.sub(r"(?:-(?:hwe|lts))?(?:-\d+\.\d+[a-z]?)?(?:-edge)?$", "", meta)


def _without_page_size(flavour: str) -> str:
    return flavour[: -len("-64k")] if flavour.endswith("-64k") else flavour
