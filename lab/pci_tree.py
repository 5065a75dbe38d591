# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""PCI trees of GPU host models, in the format of sysfs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NVIDIA = 0x10DE
MELLANOX = 0x15B3

VGA = 0x030000
GPU_3D = 0x030200
AUDIO = 0x040300
NVSWITCH = 0x068000
ETHERNET = 0x020000
INFINIBAND = 0x020700

VGPU_HOST_DRIVER = "550.90.05"


@dataclass(frozen=True)
class Function:
    """One PCI function.

    slot: function number on the previous function's card, 0 for a card of its own.
    physical: index of the physical function that a virtual function belongs to.
    """

    device: int
    class_code: int = GPU_3D
    vendor: int = NVIDIA
    subsystem: tuple[int, int] = (NVIDIA, 0x0001)
    driver: str | None = None
    config: bytes = b""
    vpd: bytes = b""
    slot: int = 0
    physical: int | None = None
    domain: int = 0


def configuration(vgpu: bool = False) -> bytes:
    """Return 256 bytes of PCI configuration space, as root reads them.

    GPUs and vGPUs have a vendor-specific capability; that of a vGPU has a signature and the version
    of the hypervisor's driver.
    """
    space = bytearray(256)
    space[0:2] = NVIDIA.to_bytes(2, "little")
    space[0x06] = 0x10
    space[0x34] = 0x60
    space[0x60:0x63] = bytes((0x01, 0x68, 0x03))
    record = (
        bytes((0, 22)) + VGPU_HOST_DRIVER.encode().ljust(10, b"\0") + b"r550_00".ljust(10, b"\0")
    )
    body = b"VF" + record if vgpu else bytes(17)
    space[0x68 : 0x68 + 3 + len(body)] = bytes((0x09, 0x00, 3 + len(body))) + body
    return bytes(space)


def _gpus(count: int, device: int, **more: object) -> tuple[Function, ...]:
    return (Function(device, config=configuration(), **more),) * count  # type: ignore[arg-type]


def _switches(count: int, device: int) -> tuple[Function, ...]:
    return (Function(device, NVSWITCH),) * count


def _nics(count: int, device: int, vpd: bytes = b"") -> tuple[Function, ...]:
    nic = Function(device, INFINIBAND, MELLANOX, (MELLANOX, 0x0023), "mlx5_core", vpd=vpd)
    return (nic,) * count


_HDMI_AUDIO = Function(0x22E8, AUDIO, driver="snd_hda_intel", slot=1)
_SERVER = (
    Function(0x2000, 0x030000, 0x1A03, (0x1A03, 0x2000), "ast"),
    Function(0x1572, ETHERNET, 0x8086, (0x8086, 0x0001), "i40e"),
)

# By the names that `./slipway demo --gpu` accepts.
MODELS: Mapping[str, tuple[Function, ...]] = {
    "none": _SERVER,
    "t4": (*_SERVER, *_gpus(1, 0x1EB8, subsystem=(NVIDIA, 0x12A2))),
    "2xh100": (*_SERVER, *_gpus(2, 0x2331)),
    "8xv100": (*_SERVER, *_gpus(8, 0x1DB5), *_nics(4, 0x1017)),
    "8xa100": (*_SERVER, *_gpus(8, 0x20B2), *_switches(6, 0x1AF1), *_nics(8, 0x101B)),
    "8xh100": (*_SERVER, *_gpus(8, 0x2330), *_switches(4, 0x22A3), *_nics(8, 0x1021)),
    "8xb200": (
        *_SERVER,
        *_gpus(8, 0x2901),
        *_nics(8, 0x1023, b"\x82ConnectX-8\x90SN"),
        *_nics(2, 0x1021, b"\x82ConnectX-7\x90SN\x91V0SW_MNG"),
    ),
    "rtx-pro-6000": (*_SERVER, *_gpus(1, 0x2BB5), _HDMI_AUDIO),
    # One K80 board is two GPUs.
    "k80": (*_SERVER, *_gpus(2, 0x102D)),
    "gh200": (*_gpus(1, 0x2342, domain=9), *_nics(1, 0xA2DC)),
    # The DGX Spark.
    "gb10": (*_gpus(1, 0x2E12, domain=15), *_nics(2, 0x1021)),
    "v100-b200": (*_SERVER, *_gpus(1, 0x1DB6), *_gpus(1, 0x2901)),
    "workstation": (
        *_gpus(1, 0x2B85, class_code=VGA, driver="nvidia"),
        _HDMI_AUDIO,
        *_nics(1, 0x101D),
    ),
    "nouveau": (*_gpus(1, 0x2684, class_code=VGA, driver="nouveau"), _HDMI_AUDIO),
    "vfio": (*_SERVER, *_gpus(2, 0x26B9, driver="vfio-pci")),
    "vfio-part": (*_SERVER, *_gpus(1, 0x26B9, driver="vfio-pci"), *_gpus(1, 0x26B9)),
    "sr-iov": (*_SERVER, *_gpus(1, 0x2235), *_gpus(2, 0x2235, physical=2)),
    "vgpu": (*_SERVER, Function(0x2236, config=configuration(vgpu=True))),
    "unprivileged": (*_SERVER, Function(0x2236, config=configuration(vgpu=True)[:64])),
    "future": (*_SERVER, *_gpus(1, 0x3A00)),
    "fermi": (*_SERVER, *_gpus(1, 0x1091)),
}


def build(root: Path, functions: Sequence[Function], flat: bool = False) -> Path:
    """Write a PCI tree below ``root`` and return its ``devices`` folder.

    As in sysfs, the entries of ``devices`` are links to another folder, and a bound driver is a
    link. With ``flat`` the entries are folders, for a host that sees this folder alone.
    """
    devices = root / "bus/pci/devices"
    devices.mkdir(parents=True)
    addresses: list[str] = []
    for function in functions:
        address = f"{function.domain:04x}:{len(addresses) + 1:02x}:00.0"
        if function.slot:
            address = f"{addresses[-1][:-1]}{function.slot}"
        addresses.append(address)
        folder = devices / address if flat else root / "devices/pci0000:00" / address
        _write_function(folder, function)
        if function.driver:
            (root / "bus/pci/drivers" / function.driver).mkdir(parents=True, exist_ok=True)
        if function.physical is not None:
            (folder / "physfn").symlink_to(f"../{addresses[function.physical]}")
        if not flat:
            (devices / address).symlink_to(f"../../../devices/pci0000:00/{address}")
    return devices


def _write_function(folder: Path, function: Function) -> None:
    """Write the files of one PCI function."""
    folder.mkdir(parents=True)
    for name, number, digits in (
        ("vendor", function.vendor, 4),
        ("device", function.device, 4),
        ("class", function.class_code, 6),
        ("subsystem_vendor", function.subsystem[0], 4),
        ("subsystem_device", function.subsystem[1], 4),
    ):
        (folder / name).write_text(f"0x{number:0{digits}x}\n")
    (folder / "config").write_bytes(function.config)
    if function.vpd:
        (folder / "vpd").write_bytes(function.vpd)
    if function.driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{function.driver}")
