# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything known of a host's GPUs, read and decided, as one answer of plain tables.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    health_facts,
    nvidia_smi,
    tables,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    DriverRequest,
    HostFacts,
    PciDevice,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import (
    driver_misfit,
    skip_reason,
)
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.module_utils.state import packages, reading

# Runs a command and returns its exit code, standard output and standard error.
Run = Callable[[list[str]], tuple[int, str, str]]


@dataclass(frozen=True)
class HostPaths:
    """Paths of the host's files; tests set them to a temporary tree."""

    pci: Path
    proc: Path
    sys: Path
    modules: Path
    run: Path
    os_release: Path
    dpkg_status: Path


def report(paths: HostPaths, request: DriverRequest, smi: str | None, run: Run) -> dict[str, Any]:
    """Read a host and decide its driver.

    SMI is the path of nvidia-smi, None to skip it. It runs only while the driver is loaded,
    because otherwise it would load the driver.
    """
    facts = read_facts(paths)
    host = gpu_host.host_facts(facts)
    loaded = gpu_host.loaded(facts)
    installed = installed_module(paths.modules, host.kernel, run)
    holders = detect.holders(paths.proc) if loaded else detect.Holders()
    live, smi_error = _read_smi(smi, run) if smi and loaded else (None, None)
    by_address = {gpu.address: gpu for gpu in live.gpus} if live else {}
    return {
        "gpus": [_gpu(paths, gpu, by_address.get(gpu.address)) for gpu in host.gpus],
        "nvswitches": [_device(paths, device) for device in host.nvswitches],
        "audio": [
            _device(paths, device)
            for device in gpu_host.nvidia_functions(facts)
            if device.class_code >> 8 == tables.CLASS_AUDIO
        ],
        "nics": [_device(paths, device) for device in _network_functions(paths)],
        "driver": asdict(decide(host, request)),
        "present": _present(paths, host, loaded, installed, facts["gpu"]["packages"]),
        "holders": [asdict(holder) for holder in holders.processes],
        "holders_complete": holders.complete,
        "mig": any(gpu.mig for gpu in by_address.values()),
        "smi": {
            "driver_version": live.driver_version if live else None,
            "cuda_version": live.cuda_version if live else None,
            "error": smi_error,
        },
        "host": {
            "distribution": host.distribution,
            "release": host.release,
            "architecture": host.architecture,
            "kernel": host.kernel,
            "kernel_metas": host.kernel_metas,
            "headers": detect.headers_present(paths.modules, host.kernel),
            "secure_boot": host.secure_boot,
        },
        "reboot_required": detect.is_reboot_required(paths.run),
    }


def read_facts(paths: HostPaths) -> dict[str, Any]:
    """Return the facts of a host that its driver depends on, as the survey reads them."""
    facts: dict[str, Any] = state_facts.ask_system(str(paths.os_release), str(paths.proc))
    # The files may be those of a host with another processor.
    dpkg = re.search(
        r"^Package: dpkg\n(?:.+\n)*?Architecture: (\S+)$",
        packages.read_status(str(paths.dpkg_status)),
        re.MULTILINE,
    )
    if dpkg:
        facts["architecture"] = dpkg[1]
    facts["gpu"] = gpu_facts.ask_gpus(
        str(paths.pci), str(paths.proc), str(paths.sys), str(paths.dpkg_status), always=True
    )
    return facts


def _network_functions(paths: HostPaths) -> list[PciDevice]:
    """Return the network functions of Mellanox."""
    folders = gpu_facts.find_functions(str(paths.pci))[gpu_facts.MELLANOX]
    functions = [
        gpu_host.pci_device(tables.VENDOR_MELLANOX, *gpu_facts.read_function(folder))
        for folder in folders
    ]
    return [function for function in functions if function.class_code >> 16 == tables.CLASS_NETWORK]


def installed_module(modules: Path, kernel: str, run: Run) -> detect.KernelModule | None:
    """Return the installed NVIDIA module of a KERNEL, read by modinfo.

    MODULES is the folder with the modules of each kernel.
    """
    for path in detect.module_files(modules, kernel):
        code, version, _error = run(["modinfo", "-F", "version", str(path)])
        if code == 0 and version.strip():
            _status, license_text, _error = run(["modinfo", "-F", "license", str(path)])
            flavour = detect.flavour_of_license(license_text)
            return detect.KernelModule(version.strip(), flavour, str(path))
    return None


def _read_smi(smi: str, run: Run) -> tuple[nvidia_smi.SmiReport | None, str | None]:
    """Return the report of nvidia-smi, or why it failed."""
    code, output, error = run([*health_facts.LIMIT, smi, *health_facts.QUERY])
    if code != 0:
        return None, nvidia_smi.failure(code, error or output)
    try:
        return nvidia_smi.parse(output), None
    except nvidia_smi.SmiError as problem:
        return None, str(problem)


def _present(
    paths: HostPaths,
    host: HostFacts,
    loaded: detect.KernelModule | None,
    installed: detect.KernelModule | None,
    driver_packages: Mapping[str, str],
) -> dict[str, Any]:
    """Describe the present driver, and whether it fits the GPUs."""
    effective = loaded or installed
    branch = int(effective.version.split(".")[0]) if effective else None
    return {
        "branch": branch,
        "loaded": asdict(loaded) if loaded else None,
        "installed": asdict(installed) if installed else None,
        "stale": bool(loaded and installed and loaded.version != installed.version),
        "misfit": (
            driver_misfit(host.gpus, branch, effective.modules)
            if effective and branch is not None
            else None
        ),
        "nouveau": any(
            detect.is_loaded(paths.sys, name) for name in sorted(tables.NOUVEAU_DRIVERS)
        ),
        "packages": driver_packages,
    }


def _device(paths: HostPaths, device: PciDevice) -> dict[str, Any]:
    board = [
        reading.read_word(f"{paths.pci}/{device.address}/subsystem_{part}")[-4:] or "0000"
        for part in ("vendor", "device")
    ]
    return {
        "address": device.address,
        "id": f"{device.vendor:04x}:{device.device:04x}",
        "subsystem": ":".join(board),
        "class": f"{device.class_code >> 8:04x}",
        "driver": device.driver,
    }


def _gpu(paths: HostPaths, gpu: PciDevice, live: nvidia_smi.SmiGpu | None) -> Mapping[str, Any]:
    return _device(paths, gpu) | {
        "name": tables.name_of(gpu.device),
        "architecture": tables.architecture_of(gpu.device).name,
        "skipped": skip_reason(gpu),
        "vgpu": gpu.virtual,
        "smi": asdict(live) if live else None,
    }
