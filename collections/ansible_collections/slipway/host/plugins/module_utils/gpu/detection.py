# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sysfs, procfs and a few files say of a host's GPUs and their driver.

Every function takes the folder or file it reads, so that a copied or made-up tree serves as well
as a real host. Nothing here needs a tool on the host. What cannot be read counts as absent,
except where the difference matters; there the answer is None.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.gpu import tables as data
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import PciDevice

# Bytes of PCI configuration space that a caller without root gets to see.
_UNPRIVILEGED_CONFIG = 64
_DRIVER_VERSION = re.compile(r"\s(\d{3}\.\d+(?:\.\d+)?)\s")
# What belongs to a driver, by the beginning of its name. The container toolkit does not.
DRIVER_PACKAGE = re.compile(
    r"((lib|firmware-)?nvidia|linux-(modules|objects|signatures)-nvidia)-(?!container)|"
    r"cuda-drivers|libcuda1$|libnv(sdm|cuvid1)|nvlsm$|nvlink5"
)
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
# Module files of Ubuntu and NVIDIA, then of Debian, which keeps several beside each other.
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
    """GPU-holding processes; ``complete`` is False where some could not be looked into."""

    processes: tuple[Holder, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Dpkg:
    """Installed packages by name, and dpkg's own architecture."""

    architecture: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def kernel_metas(self) -> tuple[str, ...]:
        """Return the X of installed ``linux-image-X`` that follow a kernel flavour."""
        prefix = "linux-image-"
        names = (name[len(prefix) :] for name in sorted(self.versions) if name.startswith(prefix))
        return tuple(name for name in names if not re.match(r"\d|unsigned-", name))

    def driver(self) -> dict[str, str]:
        """Return the packages that belong to an NVIDIA driver, with their versions."""
        return {
            name: version for name, version in self.versions.items() if DRIVER_PACKAGE.match(name)
        }


# --- PCI ---------------------------------------------------------------------------------------


def inventory(pci_root: Path) -> Inventory:
    """Read NVIDIA's devices below ``/sys/bus/pci/devices`` or a tree of that shape.

    Matching is by numeric vendor and class alone, so it needs no list of names: those of an LTS
    release are years older than the cards it meets.
    """
    gpus, nvswitches, audio, nics = [], [], [], []
    for folder in _children(pci_root):
        vendor, class_code = _number(folder / "vendor"), _number(folder / "class")
        if vendor == data.VENDOR_NVIDIA and class_code in data.CLASS_GPU:
            gpus.append(_device(folder, look_for_vgpu=True))
        elif vendor == data.VENDOR_NVIDIA and class_code == data.CLASS_NVSWITCH:
            nvswitches.append(_device(folder))
        elif vendor == data.VENDOR_NVIDIA and class_code >> 8 == data.CLASS_AUDIO:
            audio.append(_device(folder))
        elif vendor == data.VENDOR_MELLANOX and class_code >> 16 == data.CLASS_NETWORK:
            nics.append(_device(folder))
    bridges: list[PciDevice] = []
    # Vital product data is slow to read, so only where it can matter.
    if any(gpu.device in data.NVLINK5_BASEBOARD_GPUS for gpu in gpus):
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
    """Tell from PCI configuration space whether a GPU is a vGPU, and its host driver's version.

    A vGPU carries a vendor-specific capability signed ``VF``, whose record 0 holds the driver
    version of the hypervisor (as NVIDIA's k8s-device-plugin reads it, internal/vgpu). None means
    that the part which would tell is hidden from this user.
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
    """Return ID and VERSION_ID of an os-release file; ``sid`` for a Debian that states none."""
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
    """Say whether the headers of a kernel are there for a module to be built against."""
    return (modules_root / kernel / "build" / "Makefile").exists()


def secure_boot(sys_root: Path) -> bool | None:
    """Say whether the kernel demands signed modules, None if the firmware's word is hidden.

    A host that booted without UEFI has no Secure Boot. Validation switched off in the shim
    (``mokutil --disable-validation``) counts as off, as it does for the kernel.
    """
    if not (sys_root / "firmware/efi").is_dir():
        return False
    variables = sys_root / "firmware/efi/efivars"
    if _bytes(variables / "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23")[-1:] == b"\x01":
        return False
    value = _bytes(variables / "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
    return value[-1:] == b"\x01" if value else None


def reboot_asked_for(run_root: Path) -> bool:
    """Say whether a package asked for a reboot that has not happened."""
    return (run_root / "reboot-required").exists()


# --- the driver --------------------------------------------------------------------------------


def loaded(proc_root: Path, sys_root: Path) -> KernelModule | None:
    """Return version and flavour of the NVIDIA module in the kernel, None if there is none."""
    banner = _text(proc_root / "driver/nvidia/version").split("\n")[0]
    return loaded_module(_text(sys_root / "module/nvidia/version").strip(), banner)


def loaded_module(version: str, banner: str) -> KernelModule | None:
    """Return the module that the kernel's own words tell of.

    VERSION is what sysfs says, BANNER the first line of /proc/driver/nvidia/version; either may
    be empty.
    """
    if not version:
        match = _DRIVER_VERSION.search(f"{banner} ")
        if match is None:
            return None
        version = match[1]
    modules = None
    if banner:
        modules = data.OPEN if "Open Kernel Module" in banner else data.PROPRIETARY
    return KernelModule(version, modules)


def module_files(modules_root: Path, kernel: str) -> tuple[Path, ...]:
    """Return the files of the NVIDIA module that are registered for a kernel."""
    found = []
    for line in _text(modules_root / kernel / "modules.dep").splitlines():
        relative = line.split(":")[0]
        if _MODULE_FILE.fullmatch(relative.rsplit("/", 1)[-1]):
            found.append(modules_root / kernel / relative)
    return tuple(found)


def flavour_of_license(text: str) -> str | None:
    """Tell the flavour of a module by the license it states (``modinfo -F license``)."""
    text = text.strip()
    if not text:
        return None
    return data.PROPRIETARY if text == "NVIDIA" else data.OPEN


def is_loaded(sys_root: Path, module: str) -> bool:
    """Say whether a kernel module is loaded."""
    return (sys_root / "module" / module).is_dir()


def holders(proc_root: Path) -> Holders:
    """Return the processes that have an NVIDIA device file open.

    Command lines may hold secrets, so the command is the kernel's short name for the process.
    """
    found, complete = [], True
    for folder in _children(proc_root):
        if not folder.name.isdigit():
            continue
        try:
            devices = _open_devices(folder / "fd")
        except PermissionError:
            complete = False
            continue
        if devices:
            found.append(
                Holder(
                    int(folder.name),
                    _text(folder / "comm").strip(),
                    devices,
                    container_of(_text(folder / "cgroup")),
                )
            )
    return Holders(tuple(sorted(found, key=lambda holder: holder.pid)), complete)


def container_of(cgroup: str) -> str | None:
    """Return the container ID that a process's cgroup file names, if any."""
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
        # The process ended meanwhile.
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
    """Read a hexadecimal number as sysfs writes it; 0 where there is none."""
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
