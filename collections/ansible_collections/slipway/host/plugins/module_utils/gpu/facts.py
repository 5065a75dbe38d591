# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the choice of an NVIDIA driver depends on, read from sysfs, procfs, dpkg and apt."""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import packages, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

NVIDIA, MELLANOX = "0x10de", "0x15b3"
# What belongs to a driver; the container toolkit is another role's business.
DRIVER_PACKAGES = (
    *("nvidia-", "libnvidia-", "libcuda1", "libnvcuvid1", "libnvsdm", "nvlsm", "cuda-drivers"),
    *("linux-modules-nvidia-", "linux-objects-nvidia-", "linux-signatures-nvidia-"),
    *("firmware-nvidia-", "xserver-xorg-video-nvidia"),
)
# The role nvidia_driver writes this file before it installs packages.
MANAGED = "/etc/apt/preferences.d/slipway-nvidia-driver.pref"
APT_COMPONENTS = {"contrib", "non-free", "non-free-firmware", "restricted", "multiverse"}
TOOLKIT_PACKAGES = ("nvidia-container-", "libnvidia-container")


# GPUs on baseboards whose switches show only in the vital product data of network functions, and
# how many of them need no such look, see gpu.tables.
NVLINK5_GPUS, NVLINK5_BASEBOARD = ("0x2901", "0x2909", "0x290a", "0x3182"), 8


EFI = "/sys/firmware/efi"


def _read_pci_function(path: str) -> list[Any]:
    """Return ``[address, device, class, driver, is a virtual function, configuration]``.

    The numbers are as sysfs writes them. The configuration is in hexadecimal, and only where the
    signature of a vGPU is in it: most of it changes from one moment to the next.
    """
    config = reading.read_file(f"{path}/config") or b""
    return [
        path.rsplit("/", 1)[-1],
        reading.read_word(f"{path}/device"),
        reading.read_word(f"{path}/class"),
        reading.read_link_name(f"{path}/driver"),
        os.path.exists(f"{path}/physfn"),
        config.hex() if b"VF" in config[64:] else "",
    ]


def read_secure_boot() -> bool | None:
    """Return whether the kernel demands signed modules, None where that cannot be read."""
    if not os.path.isdir(EFI):
        return False
    shim = EFI + "/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    if (reading.read_file(shim) or b"")[-1:] == b"\x01":
        return False
    value = reading.read_file(EFI + "/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    return value[-1:] == b"\x01" if value else None


def read_apt_components(root: str = "/etc/apt") -> list[str]:
    """Return which areas beyond the free ones the host's own apt sources name.

    Sources that this project writes do not count: what they hold depends on the answer.
    """
    folder = root + "/sources.list.d"
    others = [name for name in reading.list_names(folder) or [] if not name.startswith("slipway-")]
    found: set[str] = set()
    for path in [f"{root}/sources.list", *(f"{folder}/{name}" for name in others)]:
        for line in reading.read_word(path).splitlines():
            if not line.lstrip().startswith("#"):
                found.update(line.split())
    return sorted(found & APT_COMPONENTS)


def ask_gpus(root: str = "/sys/bus/pci/devices") -> Json:
    """Return what the choice of an NVIDIA driver depends on, see gpu.host, which reads it.

    A host without NVIDIA's devices, and with nothing of its driver, is asked no further.
    """
    devices, networks = [], []
    for address in reading.list_names(root) or []:
        path = f"{root}/{address}"
        vendor = reading.read_word(f"{path}/vendor")
        if vendor == NVIDIA:
            devices.append(_read_pci_function(path))
        elif vendor == MELLANOX:
            networks.append(path)
    if not devices and not os.path.exists("/usr/bin/nvidia-smi"):
        return {"devices": []}
    baseboard = sum(device[1] in NVLINK5_GPUS for device in devices)
    # Vital product data is slow to read, so only where it matters.
    looks = networks if 0 < baseboard < NVLINK5_BASEBOARD else []
    kernels = packages.installed_packages(("linux-image-",))
    drivers = packages.installed_packages(DRIVER_PACKAGES)
    return {
        "devices": devices,
        "bridges": [
            path[-12:] for path in looks if b"SW_MNG" in (reading.read_file(f"{path}/vpd") or b"")
        ],
        "secure_boot": read_secure_boot(),
        # linux-image-generic follows a flavour; linux-image-6.8.0-31-generic is one kernel.
        "kernel_metas": sorted(
            name[12:]
            for name in kernels
            if not name[12:13].isdigit() and not name[12:].startswith("unsigned-")
        ),
        "packages": {
            name: version
            for name, version in sorted(drivers.items())
            if not name.startswith(TOOLKIT_PACKAGES)
        },
        "components": read_apt_components(),
        "loaded": reading.read_word("/sys/module/nvidia/version"),
        "banner": reading.read_word("/proc/driver/nvidia/version").partition("\n")[0],
        # What NVIDIA's .run installer leaves, and no package has.
        "run_installer": os.path.exists("/usr/bin/nvidia-uninstall"),
        "managed": os.path.exists(MANAGED),
    }
