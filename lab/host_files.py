# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that slipway.host.gpu_info reads on a GPU host: PCI tree, procfs, dpkg and others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lab import pci_tree

SECURE_BOOT_VARIABLE = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def write_host_files(
    root: Path,
    model: str,
    *,
    distribution: str = "ubuntu",
    release: str = "24.04",
    kernel: str = "6.8.0-149-generic",
    architecture: str = "amd64",
    packages: Mapping[str, str] | None = None,
    secure_boot: bool | None = None,
    loaded: str | None = None,
) -> dict[str, str]:
    """Write the files of a simulated host below ``root``; return gpu_info's options for them.

    secure_boot: None for a host that booted without UEFI. loaded: the version line of
    /proc/driver/nvidia/version.
    """
    sys_root, proc_root = root / "sys", root / "proc"
    pci_tree.build(sys_root, pci_tree.MODELS[model])
    _write(proc_root / "sys/kernel/osrelease", f"{kernel}\n")
    version_id = "" if release == "sid" else f'VERSION_ID="{release}"\n'
    _write(root / "etc/os-release", f"ID={distribution}\n{version_id}")
    _write_dpkg_status(root, architecture, {"dpkg": "1.22", **(packages or {})})
    if secure_boot is not None:
        variable = sys_root / "firmware/efi/efivars" / SECURE_BOOT_VARIABLE
        variable.parent.mkdir(parents=True)
        variable.write_bytes(bytes((6, 0, 0, 0, int(secure_boot))))
    if loaded:
        _write(proc_root / "driver/nvidia/version", f"NVRM version: {loaded}\nGCC version: 13\n")
        _write(sys_root / "module/nvidia/version", f"{loaded.split('  ')[1]}\n")
    for folder in ("run", "lib/modules"):
        (root / folder).mkdir(parents=True)
    return {
        "pci_root": str(sys_root / "bus/pci/devices"),
        "proc_root": str(proc_root),
        "sys_root": str(sys_root),
        "modules_root": str(root / "lib/modules"),
        "run_root": str(root / "run"),
        "os_release": str(root / "etc/os-release"),
        "dpkg_status": str(root / "var/lib/dpkg/status"),
    }


def _write_dpkg_status(root: Path, architecture: str, packages: Mapping[str, str]) -> None:
    stanzas = (
        f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\n"
        f"Version: {version}\n"
        for name, version in packages.items()
    )
    _write(root / "var/lib/dpkg/status", "\n".join(stanzas))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
