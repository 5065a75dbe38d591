# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sysfs, procfs and a few files say of a host's GPUs and their driver.

Every function has the folder or file to read as an argument, so that tests can use a copied or
artificial tree. No function runs a program. A file that cannot be read counts as absent; functions
whose caller needs the difference return None.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.branches import OPEN, PROPRIETARY
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import PciDevice

# Bytes of PCI configuration space that are readable without root.
_UNPRIVILEGED_CONFIG = 64
_DRIVER_VERSION = re.compile(r"\s(\d{3}\.\d+(?:\.\d+)?)\s")
# Names of driver packages start like this; those of the container toolkit are excluded.
DRIVER_PACKAGE = re.compile(
    r"((lib|firmware-)?nvidia|linux-(modules|objects|signatures)-nvidia)-(?!container)|"
    r"cuda-drivers|libcuda1$|libnv(sdm|cuvid1)|nvlsm$|nvlink5|xserver-xorg-video-nvidia"
)
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
# Module files of Ubuntu and NVIDIA, then of Debian, which can have several installed.
_MODULE_FILE = re.compile(r"(nvidia(?:-(?:tesla-\d+-)?current(?:-open)?)?)\.ko(?:\.(?:xz|zst|gz))?")


@dataclass(frozen=True)
class Inventory:
    """NVIDIA's PCI functions of a host, each list in order of address."""

    gpus: tuple[PciDevice, ...] = ()
    nvswitches: tuple[PciDevice, ...] = ()
    audio: tuple[PciDevice, ...] = ()
    nics: tuple[PciDevice, ...] = ()
    nvlink_bridges: tuple[PciDevice, ...] = ()


@dataclass(frozen=True)
class KernelModule:
    """The NVIDIA kernel module, loaded or on disk: its version and flavour."""

    version: str
    modules: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Holder:
    """A process that has a GPU device open, and the container it runs in, if any."""

    pid: int
    command: str
    devices: tuple[str, ...]
    container: str | None = None


@dataclass(frozen=True)
class Holders:
    """Processes that use GPUs; ``complete`` is False if some processes could not be read."""

    processes: tuple[Holder, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Dpkg:
    """Versions of installed packages by name, and the architecture of dpkg."""

    architecture: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def kernel_metas(self) -> tuple[str, ...]:
        """Return the X of installed ``linux-image-X`` that follow a kernel flavour."""
        prefix = "linux-image-"
        names = (name[len(prefix) :] for name in sorted(self.versions) if name.startswith(prefix))
        return tuple(name for name in names if not re.match(r"\d|unsigned-", name))

    def driver(self) -> dict[str, str]:
        """Return the NVIDIA driver packages with their versions."""
        return {
            name: version for name, version in self.versions.items() if DRIVER_PACKAGE.match(name)
        }


# --- PCI ---------------------------------------------------------------------------------------


def inventory(pci_root: Path) -> Inventory:
    """Read NVIDIA's devices below ``/sys/bus/pci/devices`` or a tree of the same form.

    Devices are identified by numeric vendor and class. The name lists of an LTS release would be
    too old for new cards.
    """
    gpus, nvswitches, audio, nics = [], [], [], []
    for folder in _children(pci_root):
        vendor, class_code = _number(folder / "vendor"), _number(folder / "class")
        if vendor == tables.VENDOR_NVIDIA and class_code in tables.CLASS_GPU:
            gpus.append(_device(folder, look_for_vgpu=True))
        elif vendor == tables.VENDOR_NVIDIA and class_code == tables.CLASS_NVSWITCH:
            nvswitches.append(_device(folder))
        elif vendor == tables.VENDOR_NVIDIA and class_code >> 8 == tables.CLASS_AUDIO:
            audio.append(_device(folder))
        elif vendor == tables.VENDOR_MELLANOX and class_code >> 16 == tables.CLASS_NETWORK:
            nics.append(_device(folder))
    bridges: list[PciDevice] = []
    # Vital product data is slow to read, so read it only on hosts with such a baseboard.
    if any(gpu.device in tables.NVLINK5_BASEBOARD_GPUS for gpu in gpus):
        bridges = [nic for nic in nics if b"SW_MNG" in _bytes(pci_root / nic.address / "vpd")]
    return Inventory(tuple(gpus), tuple(nvswitches), tuple(audio), tuple(nics), tuple(bridges))


def _device(folder: Path, look_for_vgpu: bool = False) -> PciDevice:
    virtual: bool | None = False
    host_driver: str | None = None
    if look_for_vgpu:
        virtual, host_driver = vgpu(_bytes(folder / "config"))
    return PciDevice(
        address=folder.name,
        vendor=_number(folder / "vendor"),
        device=_number(folder / "device"),
        class_code=_number(folder / "class"),
        subsystem_vendor=_number(folder / "subsystem_vendor"),
        subsystem_device=_number(folder / "subsystem_device"),
        driver=_link_name(folder / "driver"),
        virtual=virtual,
        virtual_host_driver=host_driver,
        virtual_function=(folder / "physfn").exists(),
    )


def vgpu(config: bytes) -> tuple[bool | None, str | None]:
    """Return whether PCI configuration space is of a vGPU, and its host driver's version.

    A vGPU has a vendor-specific capability with the signature ``VF``; its record 0 contains the
    driver version of the hypervisor (see NVIDIA's k8s-device-plugin, internal/vgpu). None means
    that this user cannot read the capabilities.
    """
    if 0 < len(config) <= _UNPRIVILEGED_CONFIG:
        return None, None
    for capability in _vendor_capabilities(config):
        if capability[3:5] == b"VF":
            return True, _host_driver(capability)
    return False, None


def _vendor_capabilities(config: bytes) -> Iterator[bytes]:
    has_list = len(config) == 256 or len(config) == 4096
    position = config[0x34] if has_list and config[0x06] & 0x10 else 0
    seen: set[int] = set()
    while 0x40 <= position < 0xFE and position not in seen:
        seen.add(position)
        kind, following, length = config[position : position + 3]
        if kind == 0x09:
            yield config[position : min(position + length, 0x100)]
        position = following


def _host_driver(capability: bytes) -> str | None:
    position = 5
    while position + 2 <= len(capability):
        record, length = capability[position], capability[position + 1]
        if record == 0:
            text = capability[position + 2 : position + 12].split(b"\0")[0]
            return text.decode("ascii", "replace") or None
        if length < 2:
            return None
        position += length
    return None


# --- the host ----------------------------------------------------------------------------------


def os_release(path: Path) -> tuple[str, str]:
    """Return ID and VERSION_ID of an os-release file; ``sid`` for Debian without VERSION_ID."""
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', _text(path), re.MULTILINE))
    distribution = fields.get("ID", "unknown")
    return distribution, fields.get("VERSION_ID") or ("sid" if distribution == "debian" else "")


def dpkg(status: Path) -> Dpkg:
    """Read the installed packages from dpkg's status file."""
    versions: dict[str, str] = {}
    architecture = None
    for stanza in _text(status).split("\n\n"):
        if not re.search(r"^Status: \w+ \w+ installed$", stanza, re.MULTILINE):
            continue
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.+)$", stanza, re.MULTILINE))
        name = fields.get("Package", "")
        versions[name] = fields.get("Version", "")
        if name == "dpkg":
            architecture = fields.get("Architecture")
    return Dpkg(architecture, versions)


def running_kernel(proc_root: Path) -> str:
    """Return the release of the running kernel."""
    return _text(proc_root / "sys/kernel/osrelease").strip()


def headers_present(modules_root: Path, kernel: str) -> bool:
    """Return whether the headers of a kernel are installed, so that modules can be built."""
    return (modules_root / kernel / "build" / "Makefile").exists()


def secure_boot(sys_root: Path) -> bool | None:
    """Return whether the kernel requires signed modules, None if the firmware cannot be read.

    A host that booted without UEFI has no Secure Boot. Validation disabled in the shim
    (``mokutil --disable-validation``) counts as off, because the kernel treats it so.
    """
    if not (sys_root / "firmware/efi").is_dir():
        return False
    variables = sys_root / "firmware/efi/efivars"
    if _bytes(variables / "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23")[-1:] == b"\x01":
        return False
    value = _bytes(variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    return value[-1:] == b"\x01" if value else None


def is_reboot_required(run_root: Path) -> bool:
    """Return whether a package requires a reboot since the last boot."""
    return (run_root / "reboot-required").exists()


# --- the driver --------------------------------------------------------------------------------


def loaded(proc_root: Path, sys_root: Path) -> KernelModule | None:
    """Return version and flavour of the loaded NVIDIA kernel module, None if none is loaded."""
    banner = _text(proc_root / "driver/nvidia/version").split("\n")[0]
    return loaded_module(_text(sys_root / "module/nvidia/version").strip(), banner)


def loaded_module(version: str, banner: str) -> KernelModule | None:
    """Return version and flavour of the loaded module.

    VERSION is the content of the file in sysfs, BANNER the first line of
    /proc/driver/nvidia/version; either may be empty.
    """
    if not version:
        match = _DRIVER_VERSION.search(f"{banner} ")
        if match is None:
            return None
        version = match[1]
    modules = None
    if banner:
        modules = OPEN if "Open Kernel Module" in banner else PROPRIETARY
    return KernelModule(version, modules)


def module_files(modules_root: Path, kernel: str) -> tuple[Path, ...]:
    """Return the files of the NVIDIA module that are registered for a kernel."""
    files = []
    for line in _text(modules_root / kernel / "modules.dep").splitlines():
        relative = line.split(":")[0]
        if _MODULE_FILE.fullmatch(relative.rsplit("/", 1)[-1]):
            files.append(modules_root / kernel / relative)
    return tuple(files)


def flavour_of_license(text: str) -> str | None:
    """Return the flavour of a module by its license (``modinfo -F license``)."""
    text = text.strip()
    if not text:
        return None
    return PROPRIETARY if text == "NVIDIA" else OPEN


def is_loaded(sys_root: Path, module: str) -> bool:
    """Return whether a kernel module is loaded."""
    return (sys_root / "module" / module).is_dir()


def holders(proc_root: Path) -> Holders:
    """Return the processes that have an NVIDIA device file open.

    Command lines may contain secrets, so the command is the kernel's short name of the process.
    """
    processes, complete = [], True
    for folder in _children(proc_root):
        if not folder.name.isdigit():
            continue
        try:
            devices = _open_devices(folder / "fd")
        except PermissionError:
            complete = False
            continue
        if devices:
            processes.append(
                Holder(
                    int(folder.name),
                    _text(folder / "comm").strip(),
                    devices,
                    container_of(_text(folder / "cgroup")),
                )
            )
    return Holders(tuple(sorted(processes, key=lambda holder: holder.pid)), complete)


def container_of(cgroup: str) -> str | None:
    """Return the container ID in a process's cgroup file, None if there is none."""
    match = _CONTAINER_ID.search(cgroup)
    return match[0] if match else None


def _open_devices(folder: Path) -> tuple[str, ...]:
    devices = set()
    try:
        for link in folder.iterdir():
            target = _link_target(link)
            if target.startswith("/dev/nvidia"):
                devices.add(target)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        # The process ended in the meantime.
        return ()
    return tuple(sorted(devices))


# --- reading -----------------------------------------------------------------------------------


def _children(folder: Path) -> Iterable[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _number(path: Path) -> int:
    """Return the hexadecimal number in a sysfs file, 0 if there is none."""
    try:
        return int(_text(path), 16)
    except ValueError:
        return 0


def _link_target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _link_name(path: Path) -> str | None:
    return _link_target(path).rsplit("/", 1)[-1] or None
