# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read from sysfs, procfs and files, on made-up trees of their shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect

from lab import pci_tree

OPEN_BANNER = "NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (root)"
PROPRIETARY_BANNER = "NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024"
CONTAINER = "4f" * 32


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- PCI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpus", "switches", "audio", "nics", "bridges"),
    [
        ("none", 0, 0, 0, 0, 0),
        ("t4", 1, 0, 0, 0, 0),
        ("8xv100", 8, 0, 0, 4, 0),
        ("8xa100", 8, 6, 0, 8, 0),
        ("8xh100", 8, 4, 0, 8, 0),
        ("8xb200", 8, 0, 0, 10, 2),
        ("rtx-pro-6000", 1, 0, 1, 0, 0),
        ("k80", 2, 0, 0, 0, 0),
        ("gh200", 1, 0, 0, 1, 0),
        ("v100-b200", 2, 0, 0, 0, 0),
        ("workstation", 1, 0, 1, 1, 0),
    ],
)
def test_devices_are_counted_by_class(
    tmp_path: Path, model: str, gpus: int, switches: int, audio: int, nics: int, bridges: int
) -> None:
    found = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS[model]))
    counts = (found.gpus, found.nvswitches, found.audio, found.nics, found.nvlink_bridges)
    assert tuple(len(kind) for kind in counts) == (gpus, switches, audio, nics, bridges)


def test_a_gpu_is_read_whole(tmp_path: Path) -> None:
    (gpu,) = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS["nouveau"])).gpus
    assert gpu.address == "0000:01:00.0"
    assert (gpu.vendor, gpu.device, gpu.class_code) == (0x10DE, 0x2684, 0x030000)
    assert (gpu.subsystem_vendor, gpu.subsystem_device) == (0x10DE, 0x0001)
    assert (gpu.driver, gpu.virtual, gpu.virtual_function) == ("nouveau", False, False)


def test_an_unbound_gpu_and_a_bound_one(tmp_path: Path) -> None:
    found = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS["vfio-part"])).gpus
    assert [gpu.driver for gpu in found] == ["vfio-pci", None]


def test_virtual_functions_are_told_from_their_card(tmp_path: Path) -> None:
    found = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS["sr-iov"])).gpus
    assert [gpu.virtual_function for gpu in found] == [False, True, True]


@pytest.mark.parametrize(
    ("model", "virtual", "version"),
    [
        ("t4", False, None),
        ("vgpu", True, pci_tree.VGPU_HOST_DRIVER),
        ("unprivileged", None, None),
    ],
)
def test_a_vgpu_is_told_by_its_signature(
    tmp_path: Path, model: str, virtual: bool | None, version: str | None
) -> None:
    (gpu,) = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS[model])).gpus
    assert (gpu.virtual, gpu.virtual_host_driver) == (virtual, version)


def damaged(**bytes_at: int) -> bytes:
    space = bytearray(pci_tree.configuration(vgpu=True))
    for position, value in bytes_at.items():
        space[int(position[1:], 16)] = value
    return bytes(space)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        damaged(_06=0x00),  # no capability list
        damaged(_34=0x00),  # an empty one
        damaged(_34=0x10),  # one that points into the header
        damaged(_61=0x60),  # one that runs in a circle
        damaged(_68=0x05),  # another kind of capability
        damaged(_6a=0x03),  # one too short for a signature
        pci_tree.configuration(vgpu=True)[:128],
    ],
)
def test_damaged_configuration_space_is_no_vgpu(config: bytes) -> None:
    assert detect.vgpu(config) == (False, None)


@pytest.mark.parametrize(
    "config",
    [
        damaged(_6a=0x05),  # no record
        damaged(_6d=0x07, _6e=0x00),  # a record without length
        damaged(_6f=0x00),  # an empty version
    ],
)
def test_a_vgpu_may_keep_its_host_driver_to_itself(config: bytes) -> None:
    assert detect.vgpu(config) == (True, None)


def test_no_bus_and_odd_entries_are_no_devices(tmp_path: Path) -> None:
    assert detect.inventory(tmp_path / "absent") == detect.Inventory()
    write(tmp_path / "0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path / "0000:02:00.0/vendor", "nonsense\n")
    write(tmp_path / "file", "")
    assert detect.inventory(tmp_path) == detect.Inventory()


# --- the host ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n', ("ubuntu", "24.04")),
        ('ID=debian\nVERSION_ID="13"\n', ("debian", "13")),
        ("ID=debian\nVERSION_CODENAME=forky\n", ("debian", "sid")),
        ("ID=arch\n", ("arch", "")),
        ("", ("unknown", "")),
    ],
)
def test_os_release(tmp_path: Path, text: str, expected: tuple[str, str]) -> None:
    write(tmp_path / "os-release", text)
    assert detect.os_release(tmp_path / "os-release") == expected


STATUS = """\
Package: dpkg
Status: install ok installed
Architecture: arm64
Version: 1.22.6
Description: package manager
 Version: not this one

Package: linux-image-generic-hwe-24.04
Status: hold ok installed
Architecture: arm64
Version: 7.0.0-43.43

Package: linux-image-6.8.0-149-generic
Status: install ok installed
Version: 6.8.0-149.149

Package: linux-image-unsigned-6.8.0-1-generic
Status: install ok installed
Version: 1

Package: linux-image-generic
Status: deinstall ok config-files
Version: 6.8.0-149.149

Package: nvidia-utils-580-server
Status: install ok installed
Version: 580.178.04-0ubuntu0.24.04.1

Package: linux-modules-nvidia-580-server-open-generic
Status: hold ok installed
Version: 6.8.0-149.149+1

Package: nvidia-container-toolkit
Status: install ok installed
Version: 1.20.1-1

Package: libnvidia-container1
Status: install ok installed
Version: 1.20.1-1

Package: libnvidia-compute-580-server
Status: install ok half-configured
Version: 580.178.04-0ubuntu0.24.04.1
"""


def test_dpkg(tmp_path: Path) -> None:
    write(tmp_path / "status", STATUS)
    found = detect.dpkg(tmp_path / "status")
    assert found.architecture == "arm64"
    assert found.kernel_metas() == ("generic-hwe-24.04",)
    # The container toolkit is not part of the driver; what is half installed is not there.
    assert found.driver() == {
        "nvidia-utils-580-server": "580.178.04-0ubuntu0.24.04.1",
        "linux-modules-nvidia-580-server-open-generic": "6.8.0-149.149+1",
    }
    assert detect.dpkg(tmp_path / "absent") == detect.Dpkg()


EFIVARS = "firmware/efi/efivars"
SECURE_BOOT = f"{EFIVARS}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM = f"{EFIVARS}/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({EFIVARS: None}, None),
        ({SECURE_BOOT: 1}, True),
        ({SECURE_BOOT: 0}, False),
        ({SECURE_BOOT: 1, SHIM: 1}, False),
        ({SECURE_BOOT: 1, SHIM: 0}, True),
    ],
    ids=["bios", "hidden", "on", "off", "validation off", "validation on"],
)
def test_secure_boot(tmp_path: Path, files: dict[str, int | None], expected: bool | None) -> None:
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if value is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(bytes((6, 0, 0, 0, value)))
    assert detect.secure_boot(tmp_path) is expected


def test_headers_and_reboot_request(tmp_path: Path) -> None:
    assert not detect.headers_present(tmp_path, "6.8")
    write(tmp_path / "headers/Makefile", "")
    (tmp_path / "6.8").mkdir()
    (tmp_path / "6.8/build").symlink_to("../headers")
    assert detect.headers_present(tmp_path, "6.8")
    assert not detect.is_reboot_required(tmp_path)
    write(tmp_path / "reboot-required", "*** System restart required ***\n")
    assert detect.is_reboot_required(tmp_path)


# --- the driver --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("banner", "in_sysfs", "expected"),
    [
        ("", "", None),
        (OPEN_BANNER, "580.105.08", detect.KernelModule("580.105.08", "open")),
        (OPEN_BANNER, "", detect.KernelModule("580.105.08", "open")),
        (PROPRIETARY_BANNER, "", detect.KernelModule("470.256.02", "proprietary")),
        (
            "NVIDIA UNIX x86_64 Kernel Module  580.65",
            "",
            detect.KernelModule("580.65", "proprietary"),
        ),
        ("", "595.71.05", detect.KernelModule("595.71.05")),
        ("unreadable", "", None),
    ],
)
def test_the_loaded_module(
    tmp_path: Path, banner: str, in_sysfs: str, expected: detect.KernelModule | None
) -> None:
    if banner:
        write(
            tmp_path / "proc/driver/nvidia/version",
            f"NVRM version: {banner}\nGCC version:  gcc version 13.3.0 (Ubuntu)\n",
        )
    if in_sysfs:
        write(tmp_path / "sys/module/nvidia/version", f"{in_sysfs}\n")
    assert detect.loaded(tmp_path / "proc", tmp_path / "sys") == expected


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("kernel/nvidia-580/nvidia.ko: kernel/x.ko\n", ["kernel/nvidia-580/nvidia.ko"]),
        ("updates/dkms/nvidia.ko.zst:\n", ["updates/dkms/nvidia.ko.zst"]),
        ("updates/dkms/nvidia-current.ko.xz:\n", ["updates/dkms/nvidia-current.ko.xz"]),
        ("updates/dkms/nvidia-current-open.ko:\n", ["updates/dkms/nvidia-current-open.ko"]),
        (
            "updates/dkms/nvidia-tesla-470-current.ko:\n",
            ["updates/dkms/nvidia-tesla-470-current.ko"],
        ),
        ("updates/dkms/nvidia-uvm.ko:\nupdates/dkms/nvidia-drm.ko: updates/dkms/nvidia.ko\n", []),
        ("kernel/drivers/video/fbdev/nvidia/nvidiafb.ko:\n", []),
        ("updates/dkms/nvidia-current-uvm.ko:\n", []),
    ],
)
def test_module_files(tmp_path: Path, listed: str, found: list[str]) -> None:
    write(tmp_path / "6.8/modules.dep", listed)
    assert detect.module_files(tmp_path, "6.8") == tuple(tmp_path / "6.8" / name for name in found)


@pytest.mark.parametrize(
    ("text", "flavour"),
    [("Dual MIT/GPL\n", "open"), ("NVIDIA\n", "proprietary"), ("", None)],
)
def test_flavour_of_license(text: str, flavour: str | None) -> None:
    assert detect.flavour_of_license(text) == flavour


def process(root: Path, pid: int, command: str, opened: list[str], cgroup: str = "0::/\n") -> None:
    write(root / str(pid) / "comm", f"{command}\n")
    write(root / str(pid) / "cgroup", cgroup)
    (root / str(pid) / "fd").mkdir()
    for number, target in enumerate(opened):
        (root / str(pid) / "fd" / str(number)).symlink_to(target)


def test_holders(tmp_path: Path) -> None:
    process(tmp_path, 900, "bash", ["/dev/pts/0"])
    process(
        tmp_path,
        1200,
        "python3",
        ["/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia0"],
        f"0::/system.slice/docker-{CONTAINER}.scope\n",
    )
    process(tmp_path, 77, "nvidia-persiste", ["/dev/nvidiactl"])
    write(tmp_path / "uptime", "1 1\n")
    (tmp_path / "31").mkdir()
    assert detect.holders(tmp_path) == detect.Holders(
        (
            detect.Holder(77, "nvidia-persiste", ("/dev/nvidiactl",)),
            detect.Holder(1200, "python3", ("/dev/nvidia-uvm", "/dev/nvidia0"), CONTAINER),
        ),
        complete=True,
    )


def test_processes_that_cannot_be_looked_into_are_admitted(tmp_path: Path) -> None:
    process(tmp_path, 5, "secret", ["/dev/nvidia0"])

    class Closed(type(tmp_path)):  # type: ignore[misc]
        def iterdir(self):  # type: ignore[no-untyped-def]
            if self.name == "fd":
                raise PermissionError(13, "Permission denied")
            return super().iterdir()

    assert detect.holders(Closed(tmp_path)) == detect.Holders((), complete=False)


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", CONTAINER),
        (f"12:devices:/docker/{CONTAINER}\n0::/\n", CONTAINER),
        (f"0::/kubepods.slice/pod1/cri-containerd-{CONTAINER}.scope\n", CONTAINER),
        ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
        ("", None),
    ],
)
def test_container_of(cgroup: str, container: str | None) -> None:
    assert detect.container_of(cgroup) == container
