# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for the NVIDIA packages of Debian's archive."""

from __future__ import annotations

from collections.abc import Iterator

from lab.apt_repository import ARCHITECTURE, Package
from lab.nvidia_packages.parts import dkms, libcuda, modules, persistence, smi
from lab.nvidia_packages.programs import PERSISTENCED_ENABLED
from lab.nvidia_packages.versions import DEBIAN_VERSIONS, debian_kernel


def debian(architecture: str = ARCHITECTURE) -> Iterator[Package]:
    """Yield the packages of Debian's driver; an archive has one version."""
    version = DEBIAN_VERSIONS[1]
    full = f"{version}-2"
    yield Package(
        "nvidia-kernel-dkms",
        full,
        {"Depends": f"nvidia-kernel-support (= {full}), firmware-nvidia-gsp (= {full})"},
        modules(f"/usr/src/nvidia-{version}", version, is_open=False),
        dict(dkms("", "", "", version, stem="nvidia-current").scripts),
        "non-free",
    )
    yield Package("nvidia-kernel-support", full, component="non-free")
    yield Package("firmware-nvidia-gsp", full, component="non-free-firmware")
    yield Package("libcuda1", full, files=libcuda(architecture), component="non-free")
    yield Package("nvidia-smi", full, {"Depends": "libcuda1"}, smi(550), component="non-free")
    # In Debian this package has a version of its own.
    yield Package(
        "nvidia-persistenced",
        "535.171.04-1",
        files=persistence(PERSISTENCED_ENABLED),
        component="contrib",
    )
    for kernel in (architecture, debian_kernel(architecture)):
        yield Package(f"linux-headers-{kernel}", "99.0-1", component="contrib")
