# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for the packages of NVIDIA's CUDA repository."""

from __future__ import annotations

from collections.abc import Iterator

from lab.apt_repository import ARCHITECTURE, File, Package
from lab.nvidia_packages.parts import dkms, fabric_manager, libcuda, modules, persistence, smi
from lab.nvidia_packages.programs import DAEMON, PERSISTENCED_ENABLED
from lab.nvidia_packages.versions import BRANCHES


def cuda_ubuntu(architecture: str = ARCHITECTURE) -> Iterator[Package]:
    """Yield branch 580 of NVIDIA's CUDA repository for Ubuntu, which has all versions."""
    for version in BRANCHES[580]:
        full = f"{version}-0ubuntu1"

        def package(name: str, depends: str = "", _full: str = full, **more: object) -> Package:
            fields = {"Depends": depends} if depends else {}
            return Package(name, _full, fields, **more)  # type: ignore[arg-type]

        yield package(
            "libnvidia-compute-580",
            f"libnvidia-gpucomp-580 (= {full})",
            files=libcuda(architecture),
        )
        yield package("libnvidia-gpucomp-580")
        yield package("libnvidia-cfg1-580")
        yield package("nvidia-utils-580", "libnvidia-compute-580", files=smi(580))
        yield package("nvidia-persistenced", files=persistence(PERSISTENCED_ENABLED))
        yield package(
            "nvidia-kernel-source-580-open",
            files=modules(f"/usr/src/nvidia-{version}", version, is_open=True),
        )
        source = f"nvidia-kernel-source-580-open (= {full})"
        yield dkms("nvidia-dkms-580-open", full, source, version)
        yield fabric_manager("nvidia-fabricmanager", f"{version}-1")
        yield Package("libnvsdm", f"{version}-1")
    yield _pinning(580)
    yield Package(
        "nvlsm",
        "2025.06.11-1",
        files={"/opt/nvidia/nvlsm/sbin/nvlsm": File(DAEMON, 0o755)},
    )
    # Ubuntu's package; added so that the simulated host needs no other source.
    yield Package("infiniband-diags", "99.0-1")


def _pinning(branch: int) -> Package:
    pin = f"Package: *nvidia*\nPin: version {branch}.*\nPin-Priority: 1000\n"
    path = f"/etc/apt/preferences.d/nvidia-driver-pinning-{branch}"
    return Package(f"nvidia-driver-pinning-{branch}", f"{branch}-1", files={path: File(pin)})
