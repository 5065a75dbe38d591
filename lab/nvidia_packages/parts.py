# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and packages that the stand-in archives share."""

from __future__ import annotations

import struct
from pathlib import Path

from lab import stand_in_cuda
from lab.apt_repository import ARCHITECTURE, File, Package
from lab.bases import MACHINES
from lab.nvidia_packages.programs import DAEMON, FABRIC_START, FABRIC_UNIT
from lab.simulated_faults import SMI

SAMPLES = Path(__file__).parent / "nvidia-smi"


def kernel_module(version: str, is_open: bool, name: str = "nvidia") -> bytes:
    """Return the ELF object of a kernel module with a description and without code.

    64 bits, little-endian, relocatable, for x86-64 on every host (elf(5)); .modinfo contains the
    fields.
    """
    licence = "Dual MIT/GPL" if is_open else "NVIDIA"
    fields = (f"version={version}", f"license={licence}", f"name={name}", "description=stand-in")
    modinfo = b"".join(field.encode() + b"\0" for field in fields)
    names = b"\0.modinfo\0.shstrtab\0"
    header_size, entry_size = 64, 64
    at_modinfo = header_size
    at_names = at_modinfo + len(modinfo)
    at_sections = (at_names + len(names) + 7) // 8 * 8
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(1, 62, 1, 0, 0, at_sections, 0, header_size, 0, 0, entry_size, 3, 2),
    )

    def section(name: int, kind: int, flags: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, flags, 0, offset, size, 0, 0, 1, 0)

    sections = (
        bytes(entry_size)
        + section(1, 1, 2, at_modinfo, len(modinfo))
        + section(10, 3, 0, at_names, len(names))
    )
    return (header + modinfo + names).ljust(at_sections, b"\0") + sections


def modules(folder: str, version: str, is_open: bool, stem: str = "nvidia") -> dict[str, File]:
    """Return the module files of a driver below ``folder``."""
    return {
        f"{folder}/{stem}{part}.ko": File(kernel_module(version, is_open, f"nvidia{part}"))
        for part in ("", "-uvm", "-modeset")
    }


def sample(branch: int) -> str:
    """Return the sample of nvidia-smi's XML output that is nearest to a branch."""
    # Of several samples of a branch, the first by name.
    files = {int(file.name[:3]): file for file in sorted(SAMPLES.glob("*.xml"), reverse=True)}
    return files[min(files, key=lambda number: abs(number - branch))].read_text()


def libcuda(architecture: str = ARCHITECTURE) -> dict[str, File]:
    """Return the file of the stand-in driver library for a dpkg architecture."""
    machine = MACHINES.get(architecture, architecture)
    return {stand_in_cuda.installed(machine): File(stand_in_cuda.content(machine))}


def smi(branch: int) -> dict[str, File]:
    """Return the files of nvidia-smi."""
    return {
        "/usr/bin/nvidia-smi": File(SMI, 0o755),
        "/usr/share/nvidia-stand-in/nvidia-smi.xml": File(sample(branch)),
    }


def persistence(unit: str) -> dict[str, File]:
    """Return the files of the persistence daemon."""
    return {
        "/usr/bin/nvidia-persistenced": File(DAEMON, 0o755),
        "/lib/systemd/system/nvidia-persistenced.service": File(unit),
    }


def fabric_manager(name: str, version: str, depends: str = "", component: str = "main") -> Package:
    """Return the package of a fabric manager."""
    return Package(
        name,
        version,
        {"Depends": depends} if depends else {},
        {
            "/usr/bin/nvidia-fabricmanager-start.sh": File(FABRIC_START, 0o755),
            "/lib/systemd/system/nvidia-fabricmanager.service": File(FABRIC_UNIT),
        },
        component=component,
    )


def exclusive_fields(virtual_package: str) -> dict[str, str]:
    """Return the fields by which packages of different branches conflict with each other."""
    return dict.fromkeys(("Provides", "Conflicts", "Replaces"), virtual_package)


def dkms(
    name: str, full: str, depends: str, version: str, component: str = "main", stem: str = "nvidia"
) -> Package:
    """Return a package that installs modules by copying them, in place of DKMS."""
    folder = "/lib/modules/$kernel/updates/dkms"
    build = (
        "kernel=$(cat /proc/sys/kernel/osrelease)\n"
        f"mkdir -p {folder}\n"
        f"for file in /usr/src/nvidia-{version}/*.ko; do\n"
        f'    name=${{file##*/}}; cp "$file" "{folder}/{stem}${{name#nvidia}}"\n'
        "done\n"
        'depmod -a "$kernel"'
    )
    clean = (
        "kernel=$(cat /proc/sys/kernel/osrelease)\n"
        f"rm -f {folder}/nvidia*.ko\n"
        'depmod -a "$kernel" || true'
    )
    return Package(
        name,
        full,
        {"Depends": depends},
        scripts={"postinst": build, "prerm": clean},
        component=component,
    )
