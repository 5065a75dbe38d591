# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The package sets: names by source, branch, flavour, kernel and fabric."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    NO_FABRIC,
    NVLINK5,
    NVSWITCH,
    Choice,
    HostFacts,
    Refusal,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import (
    PackageSet,
    package_set,
)

NOBLE = HostFacts("ubuntu", "24.04", "6.8.0-149-generic", kernel_metas=("generic",))
JAMMY_HWE = HostFacts("ubuntu", "22.04", "6.8.0-149-generic", kernel_metas=("generic-hwe-22.04",))
BOOKWORM = HostFacts("debian", "12", "6.1.0-40-amd64")
TRIXIE = HostFacts("debian", "13", "6.12.57+deb13-cloud-amd64")


def names(
    host: HostFacts,
    source: str,
    branch: int,
    modules: str,
    fabric: str = NO_FABRIC,
    video: bool = False,
) -> PackageSet:
    return package_set(Choice(host, source, branch, modules, fabric, video))


# --- Ubuntu's archive --------------------------------------------------------------------------


def test_ubuntu_packages_with_prebuilt_modules_are_named() -> None:
    assert names(NOBLE, "ubuntu", 580, "open") == PackageSet(
        build="prebuilt",
        packages=(
            "nvidia-headless-no-dkms-580-server-open",
            "nvidia-utils-580-server",
            "linux-modules-nvidia-580-server-open-generic",
            "linux-modules-nvidia-580-server-open-6.8.0-149-generic",
        ),
        running_kernel=("linux-modules-nvidia-580-server-open-6.8.0-149-generic",),
        components=("restricted",),
    )


def test_ubuntu_proprietary_with_switches_and_video() -> None:
    assert names(NOBLE, "ubuntu", 580, "proprietary", NVSWITCH, video=True) == PackageSet(
        build="prebuilt",
        packages=(
            "nvidia-headless-no-dkms-580-server",
            "nvidia-utils-580-server",
            "nvidia-fabricmanager-580",
            "libnvidia-nscq-580",
            "libnvidia-encode-580-server",
            "libnvidia-decode-580-server",
            "linux-modules-nvidia-580-server-generic",
            "linux-modules-nvidia-580-server-6.8.0-149-generic",
        ),
        running_kernel=("linux-modules-nvidia-580-server-6.8.0-149-generic",),
        components=("restricted", "multiverse"),
    )


def test_ubuntu_470_is_built_on_the_host_with_the_kernels_compiler() -> None:
    assert names(JAMMY_HWE, "ubuntu", 470, "proprietary") == PackageSet(
        build="dkms",
        packages=(
            "nvidia-headless-no-dkms-470-server",
            "nvidia-utils-470-server",
            "nvidia-dkms-470-server",
            "linux-headers-generic-hwe-22.04",
            "gcc-12",
            "linux-headers-6.8.0-149-generic",
        ),
        running_kernel=("linux-headers-6.8.0-149-generic",),
        components=("restricted", "multiverse"),
    )


@pytest.mark.parametrize(
    ("branch", "release", "components"),
    [
        (580, "24.04", ("restricted",)),
        (595, "24.04", ("restricted", "multiverse")),
        (595, "26.04", ("restricted",)),
        (615, "26.04", ("restricted", "multiverse")),
    ],
)
def test_archive_areas(branch: int, release: str, components: tuple[str, ...]) -> None:
    host = replace(NOBLE, release=release)
    assert names(host, "ubuntu", branch, "open").components == components


def test_ubuntu_has_no_subnet_manager() -> None:
    with pytest.raises(Refusal, match="nvlsm"):
        names(NOBLE, "ubuntu", 580, "open", NVLINK5)


# --- NVIDIA's CUDA repository ------------------------------------------------------------------


def test_cuda_on_ubuntu_up_to_580() -> None:
    assert names(NOBLE, "cuda", 580, "open", NVSWITCH, video=True) == PackageSet(
        build="dkms",
        packages=(
            "nvidia-driver-pinning-580",
            "libnvidia-compute-580",
            "libnvidia-cfg1-580",
            "nvidia-dkms-580-open",
            "nvidia-utils-580",
            "nvidia-persistenced",
            "nvidia-fabricmanager",
            "libnvidia-nscq",
            "libnvidia-encode-580",
            "libnvidia-decode-580",
            "linux-headers-generic",
            "linux-headers-6.8.0-149-generic",
        ),
        running_kernel=("linux-headers-6.8.0-149-generic",),
        pin="nvidia-driver-pinning-580",
    )


@pytest.mark.parametrize("branch", [590, 595, 610])
def test_cuda_on_ubuntu_since_590_has_no_branch_in_its_names(branch: int) -> None:
    found = names(NOBLE, "cuda", branch, "proprietary", NVSWITCH, video=True)
    assert found.pin == f"nvidia-driver-pinning-{branch}"
    assert found.packages == (
        f"nvidia-driver-pinning-{branch}",
        "libnvidia-compute",
        "libnvidia-cfg1",
        "nvidia-dkms",
        "nvidia-persistenced",
        "nvidia-fabricmanager",
        "libnvidia-nscq",
        "libnvidia-encode",
        "libnvidia-decode",
        "linux-headers-generic",
        "linux-headers-6.8.0-149-generic",
    )


@pytest.mark.parametrize(
    ("architecture", "fabric"),
    [
        ("amd64", ("nvidia-fabricmanager", "nvlsm", "libnvsdm", "infiniband-diags")),
        ("arm64", ("nvidia-fabricmanager", "nvlsm", "infiniband-diags")),
    ],
)
def test_cuda_brings_the_subnet_manager(architecture: str, fabric: tuple[str, ...]) -> None:
    found = names(replace(NOBLE, architecture=architecture), "cuda", 595, "open", NVLINK5).packages
    position = found.index("nvidia-fabricmanager")
    assert found[position : position + len(fabric)] == fabric
    assert "libnvidia-nscq" not in found


@pytest.mark.parametrize(
    ("modules", "kernel"),
    [("open", "nvidia-kernel-open-dkms"), ("proprietary", "nvidia-kernel-dkms")],
)
@pytest.mark.parametrize("branch", [580, 595])
def test_cuda_on_debian_never_had_a_branch_in_its_names(
    modules: str, kernel: str, branch: int
) -> None:
    assert names(TRIXIE, "cuda", branch, modules) == PackageSet(
        build="dkms",
        packages=(
            f"nvidia-driver-pinning-{branch}",
            "nvidia-driver-cuda",
            kernel,
            "nvidia-persistenced",
            "linux-headers-cloud-amd64",
            "linux-headers-6.12.57+deb13-cloud-amd64",
        ),
        running_kernel=("linux-headers-6.12.57+deb13-cloud-amd64",),
        components=("contrib",),
        pin=f"nvidia-driver-pinning-{branch}",
    )


# --- Debian's archive --------------------------------------------------------------------------


def test_debian_own_packages() -> None:
    assert names(BOOKWORM, "debian", 535, "proprietary", video=True) == PackageSet(
        build="dkms",
        packages=(
            "nvidia-kernel-dkms",
            "libcuda1",
            "nvidia-smi",
            "nvidia-persistenced",
            "libnvidia-encode1",
            "libnvcuvid1",
            "linux-headers-amd64",
            "linux-headers-6.1.0-40-amd64",
        ),
        running_kernel=("linux-headers-6.1.0-40-amd64",),
        components=("contrib", "non-free", "non-free-firmware"),
    )


def test_debian_open_modules() -> None:
    assert names(BOOKWORM, "debian", 535, "open").packages[0] == "nvidia-open-kernel-dkms"


def test_debian_legacy_470_has_names_of_its_own() -> None:
    assert names(BOOKWORM, "debian", 470, "proprietary", video=True).packages[:6] == (
        "nvidia-tesla-470-kernel-dkms",
        "libnvidia-tesla-470-cuda1",
        "nvidia-tesla-470-smi",
        "nvidia-persistenced",
        "libnvidia-tesla-470-encode1",
        "libnvidia-tesla-470-nvcuvid1",
    )


def test_debian_has_no_fabric_manager() -> None:
    with pytest.raises(Refusal, match="fabric manager"):
        names(BOOKWORM, "debian", 535, "proprietary", NVSWITCH)
