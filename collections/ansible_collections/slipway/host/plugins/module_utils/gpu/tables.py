# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of NVIDIA's GPUs, package sources and kernels; driver branches are in ``gpu.branches``.

Support for a new GPU or release is a new row; ``gpu.needs`` and ``gpu.decision`` read the rows.
Each row names its document in ``SOURCES``; the comment of a row says if it is uncertain.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ansible_collections.slipway.host.plugins.module_utils.gpu import facts
from ansible_collections.slipway.host.plugins.module_utils.gpu.branches import (
    CUDA,
    DEBIAN,
    NEWEST_PRODUCTION,
    OPEN,
    PROPRIETARY,
    UBUNTU,
)

BOTH = frozenset({OPEN, PROPRIETARY})

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "pci.ids": "pci.ids of 2026-10-24 (its BSD-3-Clause option): device ID, chip, product",
        "driver-lists": "lists of supported GPUs inside the driver packages 470.256.02, 535.261.03,"
        " 550.163.01, 580.178.04, 595.99.02 and 615.71.09",
        "open-modules": "NVIDIA/open-gpu-kernel-modules: README 'Compatible GPUs',"
        " kernel-open/nvidia/nv-pci-table.c, linux_nvswitch.c, osapi.c",
        "nvidia-open-blog": "NVIDIA Transitions Fully Towards Open-Source GPU Kernel Modules:"
        " open is required by Grace Hopper and Blackwell, and the default since branch 560",
        "nvidia-branches": "NVIDIA data center documentation, 'Supported Drivers and CUDA Toolkit"
        " Versions', read 2026-11",
        "nvidia-install": "NVIDIA Driver Installation Guide: compute-only installation, version"
        " locking, and the renaming of Ubuntu packages at branch 590",
        "nvidia-fabric": "NVIDIA Fabric Manager User Guide, and nvidia-fabricmanager-start.sh of"
        " its package (SW_MNG, ib_umad, nvlsm)",
        "ubuntu": "package indexes of jammy, noble and resolute, read 2026-11-20",
        "debian": "package indexes of bookworm, trixie and sid, read 2026-11-20",
        "cuda-repo": "packages of NVIDIA's CUDA repository as named by NVIDIA/gpu-driver-container"
        " (ubuntu26.04/install.sh) and by published installations, 2025-08 to 2026-10",
        "eks-ami": "awslabs/amazon-eks-ami: which GPU IDs have their NVSwitches outside the host,"
        " and the branch that first lists each",
    }
)


@dataclass(frozen=True)
class Architecture:
    """A GPU generation: the driver branches and kernel module flavours that drive it.

    ``first`` is the oldest branch in ``gpu.branches`` that drives it, not the oldest that NVIDIA
    released for it. ``last`` is None while current branches drive it. ``cuda`` is the newest CUDA
    major version whose toolkit supports it, None for all. ``certain`` is False for a guess by the
    device ID, which an override can replace.
    """

    name: str
    first: int
    last: int | None
    modules: frozenset[str]
    source: str
    cuda: int | None = None
    certain: bool = True


# Branch 390 is the last for Fermi and older: no release has a maintained driver for them.
TOO_OLD = Architecture("Fermi or older", 0, 390, frozenset({PROPRIETARY}), "driver-lists")
KEPLER = Architecture("Kepler", 470, 470, frozenset({PROPRIETARY}), "driver-lists", 11)
MAXWELL = Architecture("Maxwell", 470, 580, frozenset({PROPRIETARY}), "driver-lists", 12)
PASCAL = Architecture("Pascal", 470, 580, frozenset({PROPRIETARY}), "driver-lists", 12)
VOLTA = Architecture("Volta", 470, 580, frozenset({PROPRIETARY}), "driver-lists", 12)
TURING = Architecture("Turing", 470, None, BOTH, "open-modules")
AMPERE = Architecture("Ampere", 470, None, BOTH, "open-modules")
ADA = Architecture("Ada Lovelace", 535, None, BOTH, "driver-lists")
HOPPER = Architecture("Hopper", 535, None, BOTH, "driver-lists")
# Blackwell is not in the lists of 550. The first 570 release for each card was not checked.
BLACKWELL = Architecture("Blackwell", 570, None, frozenset({OPEN}), "nvidia-open-blog")
GB10 = replace(BLACKWELL, first=580, source="open-modules")
BLACKWELL_ULTRA = Architecture("Blackwell Ultra", 580, None, frozenset({OPEN}), "eks-ami")
# In pci.ids, but not in the driver lists up to 615. That it needs open modules is an assumption.
RUBIN = Architecture("Rubin", 616, None, frozenset({OPEN}), "pci.ids")

# Device IDs outside every range. NVIDIA assigns IDs in ascending blocks. For all 534 IDs of the
# driver lists, Maxwell starts at 1340 and Turing at 1E00.
UNKNOWN_LEGACY = Architecture(
    "unknown, Maxwell to Volta by its number",
    470,
    580,
    frozenset({PROPRIETARY}),
    "driver-lists",
    cuda=12,
    certain=False,
)
UNKNOWN_CURRENT = Architecture(
    "unknown, Turing or newer by its number",
    NEWEST_PRODUCTION,
    None,
    frozenset({OPEN}),
    "driver-lists",
    certain=False,
)
FIRST_MAXWELL = 0x1340
FIRST_TURING = 0x1E00


@dataclass(frozen=True)
class IdRange:
    """Device IDs ``first`` to ``last``, both included, that belong to one architecture."""

    first: int
    last: int
    architecture: Architecture
    source: str = "pci.ids"


ID_RANGES: tuple[IdRange, ...] = (
    IdRange(0x0FC0, 0x103F, KEPLER),
    IdRange(0x1180, 0x11FF, KEPLER),
    IdRange(0x1280, 0x130B, KEPLER),
    IdRange(0x1340, 0x1436, MAXWELL),
    IdRange(0x15C2, 0x15FF, PASCAL),
    IdRange(0x1613, 0x1676, MAXWELL),
    IdRange(0x1725, 0x172F, PASCAL),
    IdRange(0x174D, 0x17FD, MAXWELL),
    IdRange(0x1B00, 0x1D56, PASCAL),
    IdRange(0x1D81, 0x1DF6, VOLTA),
    IdRange(0x1E02, 0x1FF9, TURING),
    IdRange(0x2080, 0x20FF, AMPERE),
    IdRange(0x2182, 0x21D1, TURING),
    IdRange(0x2200, 0x223F, AMPERE),
    IdRange(0x2302, 0x23F0, HOPPER),
    IdRange(0x2414, 0x25FB, AMPERE),
    IdRange(0x2681, 0x28F8, ADA),
    IdRange(0x2900, 0x2DF9, BLACKWELL),
    # GB10 (DGX Spark) and related chips: since branch 580.
    IdRange(0x2E02, 0x2E2A, GB10, "open-modules"),
    IdRange(0x2F04, 0x2F58, BLACKWELL),
    IdRange(0x3000, 0x30FF, RUBIN),
    IdRange(0x3180, 0x3340, BLACKWELL_ULTRA),
)


@dataclass(frozen=True)
class DeviceRule:
    """Differences of one device ID from its architecture; ``refusal`` says why it has no driver."""

    source: str
    first: int | None = None
    modules: frozenset[str] | None = None
    refusal: str | None = None


_JETSON = "its driver is part of NVIDIA's JetPack image, not of a package source"

DEVICE_RULES: Mapping[int, DeviceRule] = MappingProxyType(
    {
        0x230C: DeviceRule("driver-lists", first=580),  # H20 NVL16: not in 550
        0x230E: DeviceRule("driver-lists", first=580),  # H20 NVL16: not in 550
        0x2335: DeviceRule("driver-lists", first=550),  # H200 SXM: not in 535
        0x233B: DeviceRule("driver-lists", first=580),  # H200 NVL: not in 550
        0x2342: DeviceRule("nvidia-open-blog", modules=frozenset({OPEN})),  # GH200
        0x2348: DeviceRule("driver-lists", first=580, modules=frozenset({OPEN})),  # GH200 144G
        0x2B00: DeviceRule("pci.ids", refusal=_JETSON),  # Jetson AGX Thor
        0x31C3: DeviceRule("eks-ami", first=595),  # GB300, second ID
        0x3400: DeviceRule("pci.ids", refusal=_JETSON),  # GB10B as a Tegra part
    }
)

NVLINK5_BASEBOARD_GPUS = frozenset(int(number, 16) for number in facts.NVLINK5_GPUS)
# GB200 and GB300: the NVSwitches are in the rack's switch trays (eks-ami).
OFF_HOST_FABRIC_GPUS = frozenset({0x2941, 0x31C2, 0x31C3})

VENDOR_NVIDIA, VENDOR_MELLANOX = int(facts.NVIDIA, 16), int(facts.MELLANOX, 16)
# The driver binds exactly these display classes, and treats every NVIDIA device of class 0680 as
# an NVSwitch (open-modules: nv-pci-table.c, linux_nvswitch.c).
CLASS_GPU = frozenset({0x030000, 0x030200})
CLASS_NVSWITCH = 0x068000
CLASS_AUDIO = 0x0403
CLASS_NETWORK = 0x02

# Drivers that reserve a GPU for a virtual machine.
PASSTHROUGH_DRIVERS = frozenset({"vfio-pci", "pci-stub", "pciback", "nvgrace-gpu-vfio-pci"})
NOUVEAU_DRIVERS = frozenset({"nouveau", "nova_core", "nova"})


# In the order of `auto`: the distribution's own archive first.
SOURCES_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"ubuntu": (UBUNTU, CUDA), "debian": (DEBIAN, CUDA)}
)
SOURCE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        UBUNTU: "Ubuntu's archive",
        DEBIAN: "Debian's archive",
        CUDA: "NVIDIA's CUDA repository",
    }
)

# 22.04 builds its newer kernels with gcc-12, although its default is gcc-11. DKMS needs the
# compiler of the kernel.
HWE_COMPILER: Mapping[str, str] = MappingProxyType({"22.04": "gcc-12"})

_GEFORCE = "GeForce RTX"
# Product names by device ID, only for messages (pci.ids).
NAMES: Mapping[int, str] = MappingProxyType(
    {
        0x1021: "Tesla K20Xm",
        0x1022: "Tesla K20c",
        0x1023: "Tesla K40m",
        0x1024: "Tesla K40c",
        0x1028: "Tesla K20m",
        0x102D: "Tesla K80",
        0x118F: "Tesla K10",
        0x13BD: "Tesla M10",
        0x13F2: "Tesla M60",
        0x13F3: "Tesla M6",
        0x17F0: "Quadro M6000",
        0x17FD: "Tesla M40",
        0x15F0: "Quadro GP100",
        0x15F7: "Tesla P100 PCIe 12GB",
        0x15F8: "Tesla P100 PCIe 16GB",
        0x15F9: "Tesla P100 SXM2 16GB",
        0x1B00: "TITAN X (Pascal)",
        0x1B02: "TITAN Xp",
        0x1B06: "GeForce GTX 1080 Ti",
        0x1B30: "Quadro P6000",
        0x1B38: "Tesla P40",
        0x1B80: "GeForce GTX 1080",
        0x1BB3: "Tesla P4",
        0x1D81: "TITAN V",
        0x1DB1: "Tesla V100 SXM2 16GB",
        0x1DB2: "Tesla V100 DGXS 16GB",
        0x1DB3: "Tesla V100 FHHL 16GB",
        0x1DB4: "Tesla V100 PCIe 16GB",
        0x1DB5: "Tesla V100 SXM2 32GB",
        0x1DB6: "Tesla V100 PCIe 32GB",
        0x1DB7: "Tesla V100 DGXS 32GB",
        0x1DB8: "Tesla V100 SXM3 32GB",
        0x1DBA: "Quadro GV100",
        0x1DF5: "Tesla V100 SXM2 16GB",
        0x1DF6: "Tesla V100S PCIe 32GB",
        0x1E02: "TITAN RTX",
        0x1E04: f"{_GEFORCE} 2080 Ti",
        0x1E07: f"{_GEFORCE} 2080 Ti",
        0x1E30: "Quadro RTX 6000/8000",
        0x1E78: "Quadro RTX 6000/8000",
        0x1EB0: "Quadro RTX 5000",
        0x1EB1: "Quadro RTX 4000",
        0x1EB4: "T4G",
        0x1EB8: "Tesla T4",
        0x20B0: "A100 SXM4 40GB",
        0x20B1: "A100 PCIe 40GB",
        0x20B2: "A100 SXM4 80GB",
        0x20B3: "A100 SXM 64GB",
        0x20B5: "A100 PCIe 80GB",
        0x20B7: "A30 PCIe",
        0x20B8: "A100X",
        0x20B9: "A30X",
        0x20BD: "A800 SXM4 40GB",
        0x20F1: "A100 PCIe 40GB",
        0x20F3: "A800 SXM4 80GB",
        0x20F5: "A800 PCIe 80GB",
        0x20F6: "A800 PCIe 40GB",
        0x2203: f"{_GEFORCE} 3090 Ti",
        0x2204: f"{_GEFORCE} 3090",
        0x2206: f"{_GEFORCE} 3080",
        0x2208: f"{_GEFORCE} 3080 Ti",
        0x2230: "RTX A6000",
        0x2231: "RTX A5000",
        0x2232: "RTX A4500",
        0x2233: "RTX A5500",
        0x2235: "A40",
        0x2236: "A10",
        0x2237: "A10G",
        0x230C: "H20 NVL16",
        0x230E: "H20 NVL16",
        0x2321: "H100L 94GB",
        0x2322: "H800 PCIe",
        0x2324: "H800",
        0x2329: "H20",
        0x232C: "H20 HBM3e",
        0x2330: "H100 SXM5 80GB",
        0x2331: "H100 PCIe",
        0x2335: "H200 SXM 141GB",
        0x2336: "H100",
        0x2338: "H100 SXM5 96GB",
        0x2339: "H100 SXM5 94GB",
        0x233A: "H800L 94GB",
        0x233B: "H200 NVL",
        0x2342: "GH200 120GB / 480GB",
        0x2348: "GH200 144G HBM3e",
        0x24B0: "RTX A4000",
        0x2531: "RTX A2000",
        0x2571: "RTX A2000 12GB",
        0x25B6: "A2 / A16",
        0x2684: f"{_GEFORCE} 4090",
        0x2685: f"{_GEFORCE} 4090 D",
        0x26B1: "RTX 6000 Ada Generation",
        0x26B2: "RTX 5000 Ada Generation",
        0x26B3: "RTX 5880 Ada Generation",
        0x26B5: "L40",
        0x26B9: "L40S",
        0x26BA: "L20",
        0x2702: f"{_GEFORCE} 4080 SUPER",
        0x2704: f"{_GEFORCE} 4080",
        0x2782: f"{_GEFORCE} 4070 Ti",
        0x27B0: "RTX 4000 SFF Ada Generation",
        0x27B1: "RTX 4500 Ada Generation",
        0x27B2: "RTX 4000 Ada Generation",
        0x27B6: "L2",
        0x27B8: "L4",
        0x28B0: "RTX 2000 Ada Generation",
        0x2901: "B200",
        0x2909: "B200 168GB",
        0x290A: "B200",
        0x2941: "GB200",
        0x29BC: "B100",
        0x2B00: "Jetson AGX Thor",
        0x2B85: f"{_GEFORCE} 5090",
        0x2B87: f"{_GEFORCE} 5090 D",
        0x2BB1: "RTX PRO 6000 Blackwell Workstation Edition",
        0x2BB3: "RTX PRO 5000 Blackwell",
        0x2BB4: "RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        0x2BB5: "RTX PRO 6000 Blackwell Server Edition",
        0x2BB9: "RTX 6000D",
        0x2C02: f"{_GEFORCE} 5080",
        0x2C05: f"{_GEFORCE} 5070 Ti",
        0x2C31: "RTX PRO 4500 Blackwell",
        0x2C33: "RTX PRO 4000 Blackwell SFF Edition",
        0x2C34: "RTX PRO 4000 Blackwell",
        0x2C3A: "RTX PRO 4500 Blackwell Server Edition",
        0x2D04: f"{_GEFORCE} 5060 Ti",
        0x2D30: "RTX PRO 2000 Blackwell",
        0x2E12: "GB10",
        0x2F04: f"{_GEFORCE} 5070",
        0x3182: "B300 SXM6 AC",
        0x31C2: "GB300",
        0x31C3: "GB300",
    }
)


def architecture_of(device_id: int) -> Architecture:
    """Return the architecture of a GPU by its PCI device ID (16 bits).

    The borders 1340 and 1E00 classify an ID outside every range, so that hardware newer than the
    table still gets a driver.
    """
    for row in ID_RANGES:
        if row.first <= device_id <= row.last:
            return row.architecture
    if device_id < FIRST_MAXWELL:
        return TOO_OLD
    return UNKNOWN_LEGACY if device_id < FIRST_TURING else UNKNOWN_CURRENT


def name_of(device_id: int) -> str:
    """Return the product name of a GPU, or its numeric ID if the table has no name."""
    product = NAMES.get(device_id)
    if product:
        return f"NVIDIA {product}"
    return f"NVIDIA GPU 10de:{device_id:04x}"
