# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out why a container does not see the GPUs of this host: ``ml doctor``.

The steps are in the order in which a GPU reaches a container: PCI bus, driver, driver library,
device files, CDI specification, right to use Docker, engine, image, CUDA release of the image. Then
the CUDA check computes on the host and in a container. The first failed step is the reason; later
steps depend on it and are not done. No step needs root or changes anything.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import api, doctor_compute
from .doctor_compute import ComputeError, NotDone
from .engine import CDI_KIND, Docker
from .errors import MlError
from .images import Image
from .settings import Cuda

NVIDIA = "0x10de"
# PCI classes of GPUs: VGA controllers and 3D controllers.
GPU_CLASSES = ("0x0300", "0x0302")
# Drivers that hand a GPU to a virtual machine.
PASSTHROUGH = ("vfio-pci", "pci-stub", "pciback", "nvgrace-gpu-vfio-pci")
READ_WRITE = os.R_OK | os.W_OK
CDI_FOLDERS = ("etc/cdi", "var/run/cdi")
LIBRARY_FOLDERS = (
    *("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"),
    *("usr/lib/x86_64-linux-gnu/nvidia/current", "usr/lib/aarch64-linux-gnu/nvidia/current"),
)
_VERSION = re.compile(r"\b\d{3}\.\d+(?:\.\d+)?\b")
_LIBRARY = re.compile(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)")
_NODE = re.compile(r"""^\s*-?\s*"?path"?:\s*"?(/dev/nvidia[^\s",]*)""", re.MULTILINE)


class Step(NamedTuple):
    """A step: its subject, whether it passed, and the result or the reason with a remedy.

    ``passed`` is None for a step that was not done.
    """

    subject: str
    passed: bool | None
    result: str


class Fault(Exception):
    """A step failed; the message is the reason and the remedy."""


class Host:
    """The host as a user without rights sees it; ROOT is another folder in tests."""

    def __init__(
        self, contact: str, root: Path = Path("/"), library: Path = doctor_compute.LIBRARY
    ) -> None:
        """Set the person to tell about problems, and the folder of the CUDA check."""
        self.contact = contact
        self.root = root
        self.library = library

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

    def addresses(self) -> list[str]:
        """Return the PCI addresses of the GPUs that are not given to virtual machines."""
        devices = "sys/bus/pci/devices"
        addresses = []
        for address in self.names(devices):
            path = f"{devices}/{address}"
            is_gpu = self.word(f"{path}/class").startswith(GPU_CLASSES)
            if self.word(f"{path}/vendor") != NVIDIA or not is_gpu:
                continue
            link = self.root / path / "driver"
            passed_on = link.is_symlink() and os.readlink(link).rsplit("/", 1)[-1] in PASSTHROUGH
            # A virtual function is a part of a GPU, for virtual machines.
            if not passed_on and not (self.root / path / "physfn").is_symlink():
                addresses.append(address)
        return addresses

    def check_bus(self) -> str:
        """Return how many GPUs are on the PCI bus and not given to virtual machines."""
        count = len(self.addresses())
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
        if closed := self.closed():
            return (
                f"{len(nodes)} GPUs; you cannot open {', '.join(closed)} outside containers, which "
                "is no fault"
            )
        return f"{len(nodes)} GPUs"

    def closed(self) -> list[str]:
        """Return the device files of GPUs that the caller cannot open."""
        needed = re.compile(r"nvidia\d+|nvidiactl|nvidia-uvm")
        return [
            f"/dev/{name}"
            for name in self.names("dev")
            if needed.fullmatch(name) and not os.access(self.root / "dev" / name, READ_WRITE)
        ]

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

    def has_runtime(self) -> bool:
        """Return whether the engine's configuration file has the nvidia runtime, and no CDI."""
        try:
            settings = json.loads(self.word("etc/docker/daemon.json"))
            cdi = settings.get("features", {}).get("cdi", False)
            return "nvidia" in settings.get("runtimes", {}) and not cdi
        except (ValueError, AttributeError, TypeError):
            return False

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


def check_cuda(image: Image, cuda: Cuda | None, driver: str, contact: str) -> str:
    """Return the CUDA release of an image that the DRIVER runs; raise NotDone if it is unknown."""
    branch = driver.partition(".")[0]
    if cuda is None or not branch.isdigit():
        raise NotDone(f"the CUDA release of {image.reference} is not known on this host")
    if int(branch) < cuda.driver:
        raise Fault(
            f"{image.reference} contains CUDA {cuda.release}, which needs NVIDIA driver "
            f"{cuda.driver} or newer; this host runs {driver}. Tell {contact}: install a newer "
            "driver (nvidia_driver_branch). Until then, use the cpu variant of the image"
        )
    return f"CUDA {cuda.release} runs on driver {driver}"


def examine(
    host: Host,
    docker: Docker,
    find_image: Callable[[], Image | None],
    find_cuda: Callable[[Image], Cuda | None],
) -> Iterator[Step]:
    """Yield all steps; those after the first failed one are not done.

    FIND_IMAGE returns the image to check, None for none. FIND_CUDA returns the CUDA release of an
    image, None for an unknown one.
    """
    failed = ""
    for subject, check in Examination(host, docker, find_image, find_cuda).checks():
        if failed:
            yield Step(subject, None, f"{failed} failed")
            continue
        try:
            yield Step(subject, True, check())
        except NotDone as reason:
            yield Step(subject, None, str(reason))
        except ComputeError as error:
            failed = subject
            yield Step(subject, False, f"{str(error).rstrip('.')}. Tell {host.contact}")
        except (Fault, MlError) as fault:
            failed = subject
            yield Step(subject, False, str(fault))


class Examination:
    """The checks of a host, an engine and an image; later checks use results of earlier ones."""

    def __init__(
        self,
        host: Host,
        docker: Docker,
        find_image: Callable[[], Image | None],
        find_cuda: Callable[[Image], Cuda | None],
    ) -> None:
        self.host, self.docker = host, docker
        self.find_image, self.find_cuda = find_image, find_cuda
        self.info: dict[str, Any] | MlError | None = None
        self.image: Image | None = None

    def checks(self) -> list[tuple[str, Callable[[], str]]]:
        """Return subject and function of each check, in their order."""
        return [
            ("GPUs", self.host.check_bus),
            ("driver", self.host.check_driver),
            ("driver library", self.host.check_library),
            ("device files", self.host.check_devices),
            ("CDI specification", self.check_cdi),
            ("Docker group", self.check_group),
            ("engine", lambda: describe_engine(self.engine(), self.host.contact)),
            ("image", self.check_image),
            ("CUDA release", self.check_release),
            ("computation on the host", self.compute_on_host),
            ("computation in a container", self.compute_in_container),
        ]

    def engine(self) -> dict[str, Any]:
        """Return the engine's description of itself; raise MlError without an answer."""
        if self.info is None:
            try:
                self.info = self.docker.get(dict, "/info")[0]
            except MlError as error:
                self.info = error
        if isinstance(self.info, MlError):
            raise self.info
        return self.info

    def check_cdi(self) -> str:
        """Return the CDI specification, if the engine uses it."""
        try:
            used = bool(self.engine().get("CDISpecDirs"))
        except MlError:
            used = not self.host.has_runtime()
        return self.host.check_cdi() if used else "not used by this engine"

    def check_group(self) -> str:
        """Return whether the caller may use the engine's socket."""
        socket = api.find_socket()
        if not os.path.exists(socket):
            raise NotDone(f"there is no socket {socket or 'of an engine'} on this host")
        if not os.access(socket, READ_WRITE):
            raise Fault(self.docker.explain("permission denied while trying to connect"))
        return f"you may use {socket}"

    def check_image(self) -> str:
        """Return the variant of the image."""
        self.image = self.find_image()
        if self.image is None:
            raise NotDone("no declared gpu variant of an image is on this host")
        return describe_image(self.image)

    def check_release(self) -> str:
        """Return the CUDA release of the image."""
        if self.image is None:
            raise NotDone("no image")
        cuda = self.find_cuda(self.image)
        return check_cuda(self.image, cuda, self.host.driver(), self.host.contact)

    def compute_on_host(self) -> str:
        """Return the result of the CUDA check on the host."""
        if closed := self.host.closed():
            raise NotDone(f"you cannot open {', '.join(closed)} outside containers")
        return doctor_compute.compute_on_host(self.host.addresses(), self.host.library)

    def compute_in_container(self) -> str:
        """Return the result of the CUDA check in a container of the image."""
        if self.image is None:
            raise NotDone("no image")
        if not api.find_socket():
            raise NotDone("the engine is on another host")
        return doctor_compute.compute_in_container(
            self.image.reference,
            len(self.host.addresses()),
            bool(self.engine().get("CDISpecDirs")),
            self.host.library,
        )
