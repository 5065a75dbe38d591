# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of sysfs, procfs and files for the choice of a driver, on artificial trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import HostFacts
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts

from lab import pci_tree

OPEN_BANNER = "NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (root)"
PROPRIETARY_BANNER = "NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024"
CONTAINER = "4f" * 32


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_bus(folder: Path, model: str) -> HostFacts:
    """Return what the driver of a simulated host depends on, read from its PCI tree."""
    return bus_facts(pci_tree.build(folder, pci_tree.MODELS[model]))


def bus_facts(tree: Path) -> HostFacts:
    return gpu_host.host_facts({**state_facts.ask_system(), "gpu": gpu_facts.ask_gpus(str(tree))})


@pytest.mark.parametrize(
    ("model", "gpus", "switches"),
    [
        ("none", 0, 0),
        ("t4", 1, 0),
        ("8xv100", 8, 0),
        ("8xa100", 8, 6),
        ("8xh100", 8, 4),
        ("8xb200", 8, 0),
        ("rtx-pro-6000", 1, 0),
        ("k80", 2, 0),
        ("gh200", 1, 0),
        ("v100-b200", 2, 0),
        ("workstation", 1, 0),
    ],
)
def test_devices_are_counted_by_class(tmp_path: Path, model: str, gpus: int, switches: int) -> None:
    found = read_bus(tmp_path, model)
    assert (len(found.gpus), len(found.nvswitches)) == (gpus, switches)


def test_all_properties_of_a_gpu_are_read(tmp_path: Path) -> None:
    (gpu,) = read_bus(tmp_path, "nouveau").gpus
    assert gpu.address == "0000:01:00.0"
    assert (gpu.vendor, gpu.device, gpu.class_code) == (0x10DE, 0x2684, 0x030000)
    assert (gpu.driver, gpu.virtual, gpu.virtual_function) == ("nouveau", False, False)


def test_an_unbound_gpu_and_a_bound_one(tmp_path: Path) -> None:
    found = read_bus(tmp_path, "vfio-part").gpus
    assert [gpu.driver for gpu in found] == ["vfio-pci", None]


def test_virtual_functions_differ_from_their_card(tmp_path: Path) -> None:
    found = read_bus(tmp_path, "sr-iov").gpus
    assert [gpu.virtual_function for gpu in found] == [False, True, True]


@pytest.mark.parametrize(
    ("model", "virtual", "version"),
    [
        ("t4", False, None),
        ("vgpu", True, pci_tree.VGPU_HOST_DRIVER),
        ("unprivileged", None, None),
    ],
)
def test_a_vgpu_is_detected_by_its_signature(
    tmp_path: Path, model: str, virtual: bool | None, version: str | None
) -> None:
    (gpu,) = read_bus(tmp_path, model).gpus
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
    assert gpu_facts.ask_gpus(str(tmp_path / "absent")) == {"devices": []}
    write(tmp_path / "0000:01:00.0/vendor", "0x10de\n")
    write(tmp_path / "0000:01:00.0/class", "nonsense\n")
    write(tmp_path / "0000:02:00.0/vendor", "nonsense\n")
    write(tmp_path / "file", "")
    found = bus_facts(tmp_path)
    assert (found.gpus, found.nvswitches, found.nvlink_bridges) == ((), (), ())


# --- the host ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "distribution", "release"),
    [
        ('NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n', "ubuntu", "24.04"),
        ('ID=debian\nVERSION_ID="13"\n', "debian", "13"),
        ("ID=debian\nVERSION_CODENAME=forky\n", "debian", "sid"),
        ("ID=arch\n", "arch", ""),
        ("", "unknown", ""),
    ],
)
def test_distribution_and_release_are_read_from_os_release(
    tmp_path: Path, text: str, distribution: str, release: str
) -> None:
    write(tmp_path / "os-release", text)
    found = gpu_host.host_facts(state_facts.ask_system(str(tmp_path / "os-release")))
    assert (found.distribution, found.release) == (distribution, release)


def test_the_running_kernel_is_that_of_procfs(tmp_path: Path) -> None:
    write(tmp_path / "sys/kernel/osrelease", "6.8.0-149-generic\n")
    assert state_facts.ask_system(proc=str(tmp_path))["kernel"] == "6.8.0-149-generic"
    assert state_facts.ask_system(proc=str(tmp_path / "none"))["kernel"] == os.uname().release


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
def test_secure_boot_is_read_from_efi_variables(
    tmp_path: Path, files: dict[str, int | None], expected: bool | None
) -> None:
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if value is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(bytes((6, 0, 0, 0, value)))
    assert gpu_facts.read_secure_boot(str(tmp_path)) is expected


def test_kernel_headers_and_reboot_requests_are_found(tmp_path: Path) -> None:
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
def test_version_and_flavour_of_the_loaded_module_are_read(
    tmp_path: Path, banner: str, in_sysfs: str, expected: detect.KernelModule | None
) -> None:
    if banner:
        write(
            tmp_path / "proc/driver/nvidia/version",
            f"NVRM version: {banner}\nGCC version:  gcc version 13.3.0 (Ubuntu)\n",
        )
    if in_sysfs:
        write(tmp_path / "sys/module/nvidia/version", f"{in_sysfs}\n")
    words = gpu_facts.read_loaded(str(tmp_path / "proc"), str(tmp_path / "sys"))
    assert detect.loaded_module(*words) == expected


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
def test_module_files_are_found_in_modules_dep(
    tmp_path: Path, listed: str, found: list[str]
) -> None:
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


def test_processes_that_hold_a_gpu_are_found(tmp_path: Path) -> None:
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


def test_unreadable_processes_are_reported(tmp_path: Path) -> None:
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
