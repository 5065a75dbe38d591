# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out why a container does not see the GPUs of this host: ``ml doctor``.

The steps are in the order in which a GPU reaches a container: PCI bus, driver, device files, driver
library, engine, CDI specification, image. The first failed step is the reason; later steps depend
on it and are not checked. No step needs root or changes anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .engine import CDI_KIND, Docker
from .errors import MlError
from .images import Image

NVIDIA = "0x10de"
# PCI classes of GPUs: VGA controllers and 3D controllers.
GPU_CLASSES = ("0x0300", "0x0302")
# Drivers that hand a GPU to a virtual machine.
PASSTHROUGH = ("vfio-pci", "pci-stub", "xen-pciback")
CDI_FOLDERS = ("etc/cdi", "var/run/cdi")
LIBRARY_FOLDERS = (
    *("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"),
    *("usr/lib/x86_64-linux-gnu/nvidia/current", "usr/lib/aarch64-linux-gnu/nvidia/current"),
)
_VERSION = re.compile(r"\b\d{3}\.\d+(?:\.\d+)?\b")
_LIBRARY = re.compile(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)")
_NODE = re.compile(r"""^\s*-?\s*"?path"?:\s*"?(/dev/nvidia[^\s",]*)""", re.MULTILINE)


class Step(NamedTuple):
    """A step: its subject, whether it passed, and the result or the reason with a remedy."""

    subject: str
    passed: bool
    result: str


class Fault(Exception):
    """A step failed; the message is the reason and the remedy."""


class Host:
    """The host as a user without rights sees it; ROOT is another folder in tests."""

    def __init__(self, contact: str, root: Path = Path("/")) -> None:
        """Set the person to tell about problems."""
        self.contact = contact
        self.root = root

    def word(self, path: str) -> str:
        """Return the text of a file without surrounding white space, empty without a file."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a folder, none without a folder."""
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except OSError:
            return []

    def driver(self) -> str:
        """Return the version of the loaded driver, empty if none is loaded."""
        match = _VERSION.search(self.word("proc/driver/nvidia/version"))
        return match[0] if match else self.word("sys/module/nvidia/version")

    def check_bus(self) -> str:
        """Return how many GPUs are on the PCI bus and not given to virtual machines."""
        devices = "sys/bus/pci/devices"
        count = 0
        for address in self.names(devices):
            path = f"{devices}/{address}"
            is_gpu = self.word(f"{path}/class").startswith(GPU_CLASSES)
            if self.word(f"{path}/vendor") != NVIDIA or not is_gpu:
                continue
            link = self.root / path / "driver"
            if link.is_symlink() and os.readlink(link).rsplit("/", 1)[-1] in PASSTHROUGH:
                continue
            count += 1
        if count == 0:
            raise Fault(
                "this host has no NVIDIA GPU, or its GPUs belong to virtual machines. Use the cpu "
                "variant of the image, or another host"
            )
        return f"{count} on the PCI bus"

    def check_driver(self) -> str:
        """Return the version of the loaded driver."""
        version = self.driver()
        if not version:
            raise Fault(f"no NVIDIA driver is loaded. Tell {self.contact}")
        return f"version {version} is loaded"

    def check_devices(self) -> str:
        """Return how many device files of GPUs the caller can open."""
        nodes = [name for name in self.names("dev") if re.fullmatch(r"nvidia\d+", name)]
        needed = ["nvidiactl", "nvidia-uvm", *nodes]
        missing = [f"/dev/{name}" for name in needed if not (self.root / "dev" / name).exists()]
        if not nodes or missing:
            names = ", ".join(missing) or "/dev/nvidia0"
            raise Fault(f"the device files {names} are missing. Tell {self.contact}")
        closed = [
            f"/dev/{name}"
            for name in needed
            if not os.access(self.root / "dev" / name, os.R_OK | os.W_OK)
        ]
        if closed:
            return (
                f"{len(nodes)} GPUs; you cannot open {', '.join(closed)} outside containers, which "
                "is no fault"
            )
        return f"{len(nodes)} GPUs"

    def check_library(self) -> str:
        """Return the version of the driver library libcuda."""
        versions = sorted(
            {
                match[1]
                for folder in LIBRARY_FOLDERS
                for name in self.names(folder)
                if (match := _LIBRARY.fullmatch(name))
            }
        )
        driver = self.driver()
        if not versions:
            if any("libcuda.so.1" in self.names(folder) for folder in LIBRARY_FOLDERS):
                return "libcuda.so.1, of unknown version"
            raise Fault(f"the driver library libcuda.so.1 is missing. Tell {self.contact}")
        if driver not in versions:
            raise Fault(
                f"the driver library has version {', '.join(versions)}, the loaded driver "
                f"{driver}: the driver was upgraded and not loaded again. Tell {self.contact}: "
                "the host needs site.yml or a reboot"
            )
        return f"libcuda {driver}"

    def check_cdi(self) -> str:
        """Return the file that tells the engine about the GPUs (CDI)."""
        specifications = {
            f"/{folder}/{name}": text
            for folder in CDI_FOLDERS
            for name in self.names(folder)
            if CDI_KIND in (text := self.word(f"{folder}/{name}"))
        }
        if not specifications:
            raise Fault(
                f"no CDI specification of the GPUs in {' or '.join(f'/{f}' for f in CDI_FOLDERS)}. "
                f"Tell {self.contact}: systemctl restart nvidia-cdi-refresh"
            )
        for path, text in specifications.items():
            versions = set(_LIBRARY.findall(text))
            if versions and self.driver() not in versions:
                raise Fault(
                    f"the CDI specification {path} is of driver {', '.join(sorted(versions))}, "
                    f"loaded is {self.driver()}. Tell {self.contact}: systemctl restart "
                    "nvidia-cdi-refresh"
                )
            gone = [
                node
                for node in dict.fromkeys(_NODE.findall(text))
                if not (self.root / node[1:]).exists()
            ]
            if gone:
                raise Fault(
                    f"the CDI specification {path} names {', '.join(gone)}, which this host does "
                    f"not have. Tell {self.contact}: systemctl restart nvidia-cdi-refresh"
                )
        return ", ".join(specifications)


def describe_engine(info: Mapping[str, Any], contact: str) -> str:
    """Return how the engine gives GPUs to containers, from its own description INFO."""
    name = f"Docker Engine {info.get('ServerVersion', '')}".strip()
    if info.get("CDISpecDirs"):
        return f"{name} gives GPUs by CDI"
    if "nvidia" in (info.get("Runtimes") or {}):
        return f"{name} gives GPUs by the nvidia runtime"
    raise Fault(
        f"{name} cannot give GPUs to containers: neither CDI nor the nvidia runtime is configured. "
        f"Tell {contact}: run site.yml with the role nvidia_container_toolkit"
    )


def describe_image(image: Image) -> str:
    """Return the variant of an image."""
    if image.variant == "cpu":
        raise Fault(
            f"{image.reference} is the cpu variant of its image and has no GPU libraries. Use the "
            "gpu variant. See: ml list"
        )
    return f"{image.reference}, {image.variant or 'unknown'} variant"


def examine(
    host: Host, docker: Docker, find_image: Callable[[], Image] | None = None
) -> Iterator[Step]:
    """Yield the steps until the first one that fails; FIND_IMAGE returns the image to check."""
    info: dict[str, Any] = {}

    def check_engine() -> str:
        info.update(docker.get(dict, "/info")[0])
        return describe_engine(info, host.contact)

    def check_cdi() -> str:
        return host.check_cdi() if info.get("CDISpecDirs") else "not used by this engine"

    checks: list[tuple[str, Callable[[], str]]] = [
        ("GPUs", host.check_bus),
        ("driver", host.check_driver),
        ("device files", host.check_devices),
        ("driver library", host.check_library),
        ("engine", check_engine),
        ("CDI specification", check_cdi),
    ]
    if find_image is not None:
        checks.append(("image", lambda: describe_image(find_image())))
    for subject, check in checks:
        try:
            yield Step(subject, True, check())
        except (Fault, MlError) as fault:
            yield Step(subject, False, str(fault))
            return
