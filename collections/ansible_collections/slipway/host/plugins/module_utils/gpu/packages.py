# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The packages that make a chosen driver: names of Ubuntu, Debian and NVIDIA's CUDA repository.

All sets are headless and include nvidia-smi and the persistence daemon. Sources of the names:
``ubuntu``, ``debian``, ``nvidia-install``, ``nvidia-fabric`` and ``cuda-repo`` of ``gpu.tables``.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, kernels, tables
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
    if branch in branches.PREBUILT_BRANCHES and kernels.has_prebuilt(host):
        exact: Names = (f"linux-modules-nvidia-{suffix}-{host.kernel}",)
        metas = tuple(
            f"linux-modules-nvidia-{suffix}-{meta}" for meta in kernels.kernel_metas(host)
        )
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
    packages += _fabric_kernel_modules(choice)
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


def _fabric_kernel_modules(choice: Choice) -> Names:
    """Return the package with the InfiniBand modules that cloud kernels of Ubuntu lack.

    Without them the fabric manager takes an NVLink 5 baseboard for another one
    (NVIDIA/gpu-operator#2781).
    """
    host = choice.host
    is_own = kernels.recognise(host.distribution, host.kernel).flavour is not None
    if choice.fabric != NVLINK5 or host.fabric_modules or not is_own:
        return ()
    return (f"linux-modules-extra-{host.kernel}",) if host.distribution == "ubuntu" else ()


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


def _build_dependencies(host: HostFacts) -> tuple[Names, Names, tuple[str, ...]]:
    """Return the build dependencies of DKMS: for kernel flavours, for this kernel, and warnings."""
    metas, exact = kernels.header_packages(host)
    warnings: tuple[str, ...] = ()
    if host.secure_boot is None:
        warnings += (
            "Cannot read whether Secure Boot is on. With Secure Boot, modules built on the host do"
            " not load.",
        )
    return metas + _compiler(host), exact, warnings


def _compiler(host: HostFacts) -> Names:
    compiler = tables.HWE_COMPILER.get(host.release) if host.distribution == "ubuntu" else None
    is_own = host.kernel.startswith(f"{kernels.RELEASE_SERIES.get(host.release)}.")
    return (compiler,) if compiler and not is_own else ()
