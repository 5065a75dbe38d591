# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of kernels: which have prebuilt modules, which need DKMS with which headers, which fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import kernels
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    NVLINK5,
    Choice,
    DriverRequest,
    HostFacts,
    PciDevice,
    Refusal,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import package_set

T4 = PciDevice("0000:01:00.0", 0x10DE, 0x1EB8, 0x030200)
PREBUILT, DKMS, REFUSED = "prebuilt", "dkms", None
NO_HEADERS = "no known archive has them"
REAL_TIME = "PREEMPT_RT"
FDE = "6.8.0-1044-azure-fde"


def host(release: str, kernel: str, **more: object) -> HostFacts:
    """Return a host: RELEASE with a dot is of Ubuntu, otherwise of Debian."""
    distribution = "ubuntu" if "." in release else "debian"
    return replace(HostFacts(distribution, release, kernel, gpus=(T4,)), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("release", "kernel", "more", "build", "words"),
    [
        # Ubuntu's flavours with prebuilt modules.
        ("24.04", "6.8.0-149-generic", {}, PREBUILT, "580-server-open-generic "),
        ("24.04", "7.0.0-43-generic", {}, PREBUILT, "580-server-open-generic-hwe-24.04"),
        (
            *("24.04", "7.0.0-20-generic", {"kernel_metas": ("generic-hwe-24.04-edge",)}),
            *(PREBUILT, "580-server-open-generic-hwe-24.04-edge"),
        ),
        ("24.04", "6.8.0-149-lowlatency", {}, PREBUILT, "580-server-open-lowlatency "),
        ("24.04", "6.14.0-1010-aws", {}, PREBUILT, "580-server-open-aws "),
        ("24.04", "6.14.0-1010-azure", {}, PREBUILT, "580-server-open-azure "),
        ("24.04", FDE, {"secure_boot": True}, PREBUILT, "580-server-open-azure-fde "),
        ("24.04", "6.8.0-1030-gcp", {}, PREBUILT, "580-server-open-gcp "),
        ("24.04", "6.8.0-1030-oracle", {}, PREBUILT, "580-server-open-oracle "),
        ("24.04", "6.8.0-1030-ibm", {}, PREBUILT, "580-server-open-ibm "),
        ("24.04", "6.8.0-1021-nvidia", {}, PREBUILT, "580-server-open-nvidia "),
        (
            *("24.04", "6.17.0-1014-nvidia-64k", {"architecture": "arm64"}),
            *(PREBUILT, "580-server-open-nvidia-64k-hwe-24.04"),
        ),
        (
            *("26.04", "7.0.0-43-generic-64k", {"architecture": "arm64"}),
            *(PREBUILT, "580-server-open-generic-64k "),
        ),
        # Flavours of Ubuntu's archive without modules of the -server driver.
        ("22.04", FDE, {}, DKMS, f"linux-headers-{FDE}"),
        ("24.04", FDE, {"architecture": "arm64"}, DKMS, f"linux-headers-{FDE}"),
        ("24.04", FDE.replace("44-", "44x-"), {"headers": False}, REFUSED, NO_HEADERS),
        (
            *("24.04", "6.14.0-1012-oem", {"kernel_metas": ("oem-24.04c",)}),
            *(DKMS, "linux-headers-oem-24.04c linux-headers-6.14.0-1012-oem"),
        ),
        ("24.04", "6.8.0-1010-raspi", {}, DKMS, "linux-headers-6.8.0-1010-raspi"),
        ("24.04", "6.8.0-1029-gke", {}, DKMS, "linux-headers-6.8.0-1029-gke"),
        ("22.04", "5.15.0-1068-fips", {}, DKMS, "linux-headers-5.15.0-1068-fips"),
        ("24.04", "6.8.0-1010-kvm", {}, DKMS, "linux-headers-6.8.0-1010-kvm"),
        # A signed kernel of the archive, but modules from the host: Secure Boot refuses them.
        ("24.04", "6.8.0-1029-gke", {"secure_boot": True}, REFUSED, "Secure Boot is on"),
        # Mainline and daily builds look like Ubuntu's flavour, and no archive has their headers.
        ("24.04", "6.15.4-061504-generic", {}, DKMS, "nvidia-dkms-580-server-open"),
        ("24.04", "6.15.4-061504-generic", {"headers": False}, REFUSED, "a mainline build"),
        ("24.04", "6.16.0-061600rc3-generic", {"headers": False}, REFUSED, "a mainline build"),
        ("24.04", "6.16.0-999-generic", {"headers": False}, REFUSED, "a mainline build"),
        ("24.04", "6.15.4-061504-generic", {"secure_boot": True}, REFUSED, "Secure Boot is on"),
        # Real-time kernels.
        ("24.04", "6.8.1-1015-realtime", {}, REFUSED, REAL_TIME),
        ("24.04", "6.8.0-2019-raspi-realtime", {}, REFUSED, REAL_TIME),
        ("13", "6.12.57+deb13-rt-amd64", {}, REFUSED, REAL_TIME),
        ("12", "6.1.0-40-rt-amd64", {}, REFUSED, REAL_TIME),
        ("24.04", "6.6.58-rt45-x64v3-xanmod1", {}, REFUSED, REAL_TIME),
        ("24.04", "5.4.84-rt47", {}, REFUSED, REAL_TIME),
        # Kernels of others with an archive of their own.
        ("13", "6.14.8-2-pve", {}, DKMS, "proxmox-headers-6.14"),
        (
            *("12", "6.8.12-4-pve", {"headers": False}),
            *(DKMS, "proxmox-headers-6.8 proxmox-headers-6.8.12-4-pve"),
        ),
        (
            *("24.04", "6.12.10-x64v3-xanmod1", {"headers": False}),
            *(DKMS, "linux-headers-6.12.10-x64v3-xanmod1"),
        ),
        ("13", "6.12.10-1-liquorix-amd64", {}, DKMS, "linux-headers-liquorix-amd64"),
        (
            *("24.04", "6.12.10-76061203-generic", {"headers": False}),
            *(DKMS, "linux-headers-6.12.10-76061203-generic"),
        ),
        ("24.04", "6.8.12-tegra", {}, REFUSED, "NVIDIA Jetson"),
        ("24.04", "6.8.0-1004-nvidia-tegra-rt", {}, REFUSED, REAL_TIME),
        # 22.04 needs the compiler of newer kernels, whoever built them.
        ("22.04", "6.4.6-76060406-generic", {}, DKMS, "gcc-12 "),
        ("22.04", "6.8.0-1029-gke", {}, DKMS, "gcc-12 "),
        # Built by hand: headers on the host, or nothing can be built.
        ("24.04", "6.18.44", {}, DKMS, "nvidia-dkms-580-server-open"),
        ("24.04", "6.18.44", {"headers": False}, REFUSED, NO_HEADERS),
        ("24.04", "6.9.3-surface-2", {"headers": False}, REFUSED, NO_HEADERS),
        ("24.04", "6.12.57+deb13-amd64", {"headers": False}, REFUSED, NO_HEADERS),
        ("13", "6.8.0-149-generic", {"headers": False}, REFUSED, NO_HEADERS),
        # Debian's own.
        ("12", "6.1.0-40-amd64", {}, DKMS, "linux-headers-amd64 linux-headers-6.1.0-40-amd64"),
        ("12", "6.12.9+bpo-cloud-amd64", {}, DKMS, "linux-headers-cloud-amd64"),
        ("13", "6.12.57+deb13-cloud-amd64", {}, DKMS, "linux-headers-cloud-amd64"),
        ("13", "6.12.57+deb13+1-arm64-16k", {}, DKMS, "linux-headers-arm64-16k"),
    ],
)
def test_each_kernel_has_its_answer(
    release: str, kernel: str, more: dict[str, object], build: str | None, words: str
) -> None:
    decision = decide(host(release, kernel, **more), DriverRequest())
    assert decision.build == build, decision
    said = f"{' '.join(decision.packages)} " if decision.supported else decision.reason
    assert words in said


@pytest.mark.parametrize(
    "kernel", ["6.15.4-061504-generic", "6.18.44", "6.8.12-4-pve", "6.12.10-76061203-generic"]
)
def test_headers_from_elsewhere_are_no_reason_for_a_reboot(kernel: str) -> None:
    """Only for kernels of the distribution, a newer kernel replaces missing packages."""
    for headers in (True, False):
        decision = decide(host("24.04", kernel, headers=headers), DriverRequest())
        assert set(decision.running_kernel_packages) <= {
            name for name in decision.packages if kernel in name and not headers
        }


@pytest.mark.parametrize(
    ("release", "kernel", "installed", "metas"),
    [
        # Both kernels are followed where both are installed, the running one or not.
        (
            *("24.04", "6.8.0-149-generic", ("generic", "generic-hwe-24.04")),
            ("generic", "generic-hwe-24.04"),
        ),
        ("24.04", "6.8.0-149-generic", ("virtual",), ("generic",)),
        ("24.04", "7.0.0-43-generic", ("virtual-hwe-24.04",), ("generic-hwe-24.04",)),
        ("24.04", "6.8.0-149-generic", ("generic", "virtual"), ("generic",)),
        ("24.04", "6.8.0-149-lowlatency", ("generic", "lowlatency"), ("lowlatency",)),
        ("24.04", "6.14.0-1010-aws", ("aws",), ("aws",)),
        ("24.04", "6.8.0-1030-aws", ("aws-lts-24.04",), ("aws-lts-24.04",)),
        ("24.04", FDE, ("azure", "azure-fde-lts-24.04"), ("azure-fde-lts-24.04",)),
        ("22.04", "5.15.0-203-generic", (), ("generic",)),
        ("22.04", "6.8.0-149-generic", (), ("generic-hwe-22.04",)),
        ("26.04", "7.0.0-43-generic", (), ("generic",)),
        ("24.04", "6.8.0-1010-raspi", ("raspi",), ("raspi",)),
        ("24.04", "6.8.0-1010-raspi", (), ()),
        ("24.04", "6.18.44", ("generic",), ()),
        ("24.04", "6.15.4-061504-generic", ("generic",), ()),
        ("24.04", "6.12.10-76061203-generic", ("generic",), ()),
        ("13", "6.12.57+deb13-amd64", (), ("amd64",)),
        ("13", "6.12.57+deb13-arm64-16k", (), ("arm64-16k",)),
        ("13", "6.18.44", (), ()),
    ],
)
def test_meta_packages(
    release: str, kernel: str, installed: tuple[str, ...], metas: tuple[str, ...]
) -> None:
    assert kernels.kernel_metas(host(release, kernel, kernel_metas=installed)) == metas


def test_each_row_names_a_known_source() -> None:
    sources = {row.source for row in kernels.FLAVOURS.values()}
    sources |= {kind.source for kind in kernels._KINDS}
    assert sources <= set(kernels.SOURCES)


@pytest.mark.parametrize(
    ("release", "kernel", "present", "expected"),
    [
        ("24.04", "6.17.0-1010-aws", False, ("linux-modules-extra-6.17.0-1010-aws",)),
        ("24.04", "6.17.0-1010-aws", True, ()),
        # No archive is known to have such a package.
        ("24.04", "6.18.44", False, ()),
        ("13", "6.12.57+deb13-amd64", False, ()),
    ],
)
def test_a_baseboard_gets_the_infiniband_modules_that_a_cloud_kernel_lacks(
    release: str, kernel: str, present: bool, expected: tuple[str, ...]
) -> None:
    board = host(release, kernel, fabric_modules=present)
    packages = package_set(Choice(board, "cuda", 580, "open", NVLINK5)).packages
    assert tuple(name for name in packages if "modules-extra" in name) == expected


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(Refusal) as refused:
        kernels.header_packages(host("24.04", "6.15.4-061504-generic", headers=False))
    assert "Install the headers from where the kernel came from" in str(refused.value)
