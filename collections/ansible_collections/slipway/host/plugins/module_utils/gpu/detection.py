# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""State of a host's driver in sysfs, procfs and /lib/modules, and the meaning of what they contain.

``gpu.facts`` reads the GPUs and everything else that the choice of a driver depends on. Each
function that reads has the folder or file as an argument, so that tests can use a copied or
artificial tree. No function runs a program. A file that cannot be read counts as absent; functions
whose caller needs the difference return None.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.gpu.branches import OPEN, PROPRIETARY
from ansible_collections.slipway.host.plugins.module_utils.gpu.facts import UNPRIVILEGED_CONFIG

_DRIVER_VERSION = re.compile(r"\s(\d{3}\.\d+(?:\.\d+)?)\s")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
# Module files of Ubuntu and NVIDIA, then of Debian, which can have several installed.
_MODULE_FILE = re.compile(r"(nvidia(?:-(?:tesla-\d+-)?current(?:-open)?)?)\.ko(?:\.(?:xz|zst|gz))?")


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


def vgpu(config: bytes) -> tuple[bool | None, str | None]:
    """Return whether PCI configuration space is of a vGPU, and its host driver's version.

    A vGPU has a vendor-specific capability with the signature ``VF``; its record 0 contains the
    driver version of the hypervisor (see NVIDIA's k8s-device-plugin, internal/vgpu). None means
    that this user cannot read the capabilities.
    """
    if 0 < len(config) <= UNPRIVILEGED_CONFIG:
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


def headers_present(modules_root: Path, kernel: str) -> bool:
    """Return whether the headers of a kernel are installed, so that modules can be built."""
    return (modules_root / kernel / "build" / "Makefile").exists()


def is_reboot_required(run_root: Path) -> bool:
    """Return whether a package requires a reboot since the last boot."""
    return (run_root / "reboot-required").exists()


# --- the driver --------------------------------------------------------------------------------


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


def _link_target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
