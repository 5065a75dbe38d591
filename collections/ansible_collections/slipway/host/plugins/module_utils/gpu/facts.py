# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the choice of an NVIDIA driver depends on, read from sysfs, procfs, dpkg and apt."""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.state import packages, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

NVIDIA, MELLANOX = "0x10de", "0x15b3"
# Packages of a driver; the container toolkit is the subject of another role.
DRIVER_PACKAGES = (
    *("nvidia-", "libnvidia-", "libcuda1", "libnvcuvid1", "libnvsdm", "nvlsm", "nvlink5"),
    *("linux-modules-nvidia-", "linux-objects-nvidia-", "linux-signatures-nvidia-"),
    *("firmware-nvidia-", "xserver-xorg-video-nvidia", "cuda-drivers"),
)
# The role nvidia_driver writes this file before it installs packages.
MANAGED = "/etc/apt/preferences.d/slipway-nvidia-driver.pref"
# How many GPUs the host has, as the role nvidia_driver recorded.
RECORD = "/var/lib/slipway/gpus.json"
TOOLKIT_PACKAGES = ("nvidia-container-", "libnvidia-container")
APT_COMPONENTS = {"contrib", "non-free", "non-free-firmware", "restricted", "multiverse"}

# HGX baseboards with fifth-generation NVLink: the host sees no NVSwitches on its PCI bus and
# manages them through ConnectX-7 bridges (nvidia-fabric), which the vital product data of network
# functions shows.
NVLINK5_GPUS = ("0x2901", "0x2909", "0x290a", "0x3182")
# Kernel modules for these bridges. Cloud kernels have them in linux-modules-extra.
FABRIC_MODULES = ("mlx5_ib", "ib_umad")
# GPUs of such a baseboard. A virtual machine with fewer uses the fabric of its host.
NVLINK5_BASEBOARD = 8
# Bytes of the configuration of a PCI function that are readable without root.
UNPRIVILEGED_CONFIG = 64


def is_driver_package(name: str) -> bool:
    """Return whether a package is named like part of a driver."""
    return name.startswith(DRIVER_PACKAGES) and not name.startswith(TOOLKIT_PACKAGES)


def find_functions(root: str) -> Json:
    """Return the folders of the PCI functions of NVIDIA and of Mellanox, by vendor."""
    folders: Json = {NVIDIA: [], MELLANOX: []}
    for address in reading.list_names(root) or []:
        vendor = reading.read_word(f"{root}/{address}/vendor")
        if vendor in folders:
            folders[vendor].append(f"{root}/{address}")
    return folders


def read_function(path: str) -> list[Any]:
    """Return ``[address, device, class, driver, is a virtual function, configuration]``.

    The numbers are as sysfs writes them. The configuration is in hexadecimal, and only where the
    signature of a vGPU is in it or only root can read that: most of it changes all the time.
    """
    config = reading.read_file(f"{path}/config") or b""
    return [
        path.rsplit("/", 1)[-1],
        reading.read_word(f"{path}/device"),
        reading.read_word(f"{path}/class"),
        reading.read_link_name(f"{path}/driver"),
        os.path.exists(f"{path}/physfn"),
        config.hex()
        if len(config) <= UNPRIVILEGED_CONFIG or b"VF" in config[UNPRIVILEGED_CONFIG:]
        else "",
    ]


def read_secure_boot(sys: str = "/sys") -> bool | None:
    """Return whether the kernel requires signed modules, None if this is unknown.

    A host that booted without UEFI has no Secure Boot. Validation that is disabled in the shim
    (``mokutil --disable-validation``) counts as off, because the kernel treats it so.
    """
    variables = f"{sys}/firmware/efi/efivars"
    if not os.path.isdir(os.path.dirname(variables)):
        return False
    shim = f"{variables}/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    if (reading.read_file(shim) or b"")[-1:] == b"\x01":
        return False
    value = reading.read_file(f"{variables}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    return value[-1:] == b"\x01" if value else None


def read_loaded(proc: str = "/proc", sys: str = "/sys") -> tuple[str, str]:
    """Return the version of the loaded kernel module and the first line of its banner.

    Either may be empty; see ``gpu.detection.loaded_module``.
    """
    banner = reading.read_word(f"{proc}/driver/nvidia/version").partition("\n")[0]
    return reading.read_word(f"{sys}/module/nvidia/version"), banner


def read_apt_components(root: str = "/etc/apt") -> list[str]:
    """Return which areas beyond the free ones the host's own apt sources name.

    Sources that this project writes do not count: what they hold depends on the answer.
    """
    folder = root + "/sources.list.d"
    others = [name for name in reading.list_names(folder) or [] if not name.startswith("slipway-")]
    words: set[str] = set()
    for path in [f"{root}/sources.list", *(f"{folder}/{name}" for name in others)]:
        for line in reading.read_word(path).splitlines():
            if not line.lstrip().startswith("#"):
                words.update(line.split())
    return sorted(words & APT_COMPONENTS)


def read_kernel(fabric: bool, proc: str = "/proc", modules: str = "/lib/modules") -> Json:
    """Return whether the running kernel has its headers, and the modules for an NVLink 5 FABRIC.

    Without such a fabric, and without a list of modules, a kernel counts as complete.
    """
    release = reading.read_word(f"{proc}/sys/kernel/osrelease") or os.uname().release
    folder = f"{modules}/{release}"
    listed = reading.read_file(f"{folder}/modules.dep") if fabric else None
    names = (listed or b"") + (reading.read_file(f"{folder}/modules.builtin") or b"")
    return {
        "headers": os.path.exists(f"{folder}/build/Makefile"),
        "fabric_modules": listed is None
        or all(f"/{name}.ko".encode() in names for name in FABRIC_MODULES),
    }


def read_recorded_gpus() -> int:
    """Return how many GPUs the record says that the host has, 0 without a record."""
    try:
        return int(json.loads(reading.read_file(RECORD) or b"{}")["gpus"])
    except (ValueError, KeyError, TypeError):
        return 0


def ask_gpus(
    pci: str = "/sys/bus/pci/devices",
    proc: str = "/proc",
    sys: str = "/sys",
    status: str = packages.STATUS,
    always: bool = False,
    modules: str = "/lib/modules",
) -> Json:
    """Return the input of the driver choice, see gpu.host, which interprets it.

    On a host without NVIDIA devices and without a driver, ``devices`` is all of it, except ALWAYS.
    The other arguments are paths.
    """
    functions = find_functions(pci)
    devices = [read_function(path) for path in functions[NVIDIA]]
    recorded = read_recorded_gpus()
    if not (always or devices or recorded or os.path.exists("/usr/bin/nvidia-smi")):
        return {"devices": []}
    baseboard = sum(device[1] in NVLINK5_GPUS for device in devices)
    # Vital product data is slow to read, so only where it matters.
    networks = functions[MELLANOX] if 0 < baseboard < NVLINK5_BASEBOARD else []
    kernels = packages.installed_packages(("linux-image-",), status)
    drivers = packages.installed_packages(DRIVER_PACKAGES, status)
    version, banner = read_loaded(proc, sys)
    return {
        "devices": devices,
        "bridges": [
            path.rsplit("/", 1)[-1]
            for path in networks
            if b"SW_MNG" in (reading.read_file(f"{path}/vpd") or b"")
        ],
        "secure_boot": read_secure_boot(sys),
        # linux-image-generic follows a flavour; linux-image-6.8.0-31-generic is one kernel.
        "kernel_metas": sorted(
            name[12:]
            for name in kernels
            if not name[12:13].isdigit() and not name[12:].startswith("unsigned-")
        ),
        "packages": {
            name: version for name, version in sorted(drivers.items()) if is_driver_package(name)
        },
        "components": read_apt_components(),
        "loaded": version,
        "banner": banner,
        # NVIDIA's .run installer leaves this file; no package contains it.
        "run_installer": os.path.exists("/usr/bin/nvidia-uninstall"),
        "managed": os.path.exists(MANAGED),
        "recorded": recorded,
        **read_kernel(baseboard > 0, proc, modules),
    }
