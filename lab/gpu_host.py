# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins that make a throwaway host a simulated GPU host: PCI devices, kernel, apt archives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import (
    nvidia_packages,
    pci_tree,
    simulated_faults,
    simulated_kernel,
    stand_in_cuda,
)
from lab.apt_repository import Key, Repository
from lab.bases import MACHINES, base_named
from lab.commands import Commands, install_commands, install_package
from lab.errors import LabError
from lab.host_spec import Mount
from lab.simulated_kernel import FOLDER

# The address by which a host serves the archives to itself.
SERVER = "http://127.0.0.1:8765"
# Programs that create keys and archives, and compile the stand-in driver library.
REQUIRED_COMMANDS = ("gpg", "gpg-agent", "dpkg-deb", "gcc")
C_HEADER = Path("/usr/include/stdlib.h")


@dataclass(frozen=True)
class GpuHost:
    """The folder and the archives of a simulated host."""

    folder: Path
    base: str
    key: Key
    archive: Repository
    cuda: Repository
    toolkit: Repository
    server: str = f"file://{FOLDER}"

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The host's mounts of the folder."""
        return mounts(self.folder, self.base)

    @property
    def variables(self) -> dict[str, Any]:
        """The role variables that select the archives."""
        key = {
            "key_url": f"file://{FOLDER}/{self.key.file.name}",
            "fingerprint": self.key.fingerprint,
        }
        variables: dict[str, Any] = {
            "nvidia_container_toolkit_repository": {
                "url": f"{self.server}/toolkit",
                **key,
            },
            # A simulated GPU computes nothing.
            "ml_catalogue_variant": "cpu",
        }
        if self.base.startswith("ubuntu-like"):
            # The packages are Debian's, from which no Ubuntu base image can be built.
            variables["ml_catalogue_base"] = "debian-13"
        if self.base.startswith("debian"):
            variables["nvidia_driver_repository"] = {
                "url": f"{self.server}/archive",
                **key,
            }
        return variables

    @property
    def cuda_variables(self) -> dict[str, Any]:
        """The role variables for a host whose driver comes from NVIDIA's CUDA repository."""
        key = self.variables["nvidia_container_toolkit_repository"]
        return {
            **self.variables,
            "nvidia_driver_repository": {**key, "url": f"{self.server}/cuda"},
        }


def check_model(model: str) -> None:
    """Raise LabError for an unknown model."""
    if model not in pci_tree.MODELS:
        raise LabError(f"unknown GPU model {model!r}; expected one of {', '.join(pci_tree.MODELS)}")


def mounts(folder: Path, base: str) -> tuple[Mount, ...]:
    """Return the mounts of a simulated host on ``base`` with its stand-ins in ``folder``."""
    targets = {
        "": FOLDER,
        "pci/bus/pci/devices": "/sys/bus/pci/devices",
        "modules": "/sys/module",
        "sbin": "/usr/local/sbin",
        "units": "/usr/local/lib/systemd/system",
        "sudoers": "/etc/sudoers.d/stand-in",
    }
    if base.startswith("ubuntu"):
        targets["archive.sources"] = "/etc/apt/sources.list.d/stand-in-archive.sources"
    return tuple(
        Mount(str(folder / inner) if inner else str(folder), target)
        for inner, target in targets.items()
    )


def kernel_of(model: str, base: str) -> str:
    """Return the kernel release that a simulated host reports.

    A Grace Hopper reports Ubuntu's flavour with pages of 64 KiB, a DGX Spark (GB10) that of NVIDIA.
    """
    if base.startswith("debian"):
        return nvidia_packages.debian_kernel(base_named(base).architecture)
    if model == "gb10":
        return nvidia_packages.SPARK_KERNEL
    return nvidia_packages.UBUNTU_KERNEL + ("-64k" if model == "gh200" else "")


def prepare(
    folder: Path, model: str, base: str, newest: bool = True, server: str = f"file://{FOLDER}"
) -> GpuHost:
    """Write the stand-ins of a ``model`` on a ``base`` to ``folder``, and publish its archives.

    ``folder`` is for this model and base alone. Without ``newest``, Ubuntu's archive lacks the
    newest drivers. With the server :data:`SERVER`, the host serves its archives itself, so that apt
    downloads packages as from other servers.
    """
    check_model(model)
    commands = Commands()
    install_commands(commands, *REQUIRED_COMMANDS)
    if not C_HEADER.exists():
        install_package(commands, "libc6-dev")
    _install_cross_compiler(commands, base_named(base).architecture)
    functions = pci_tree.MODELS[model]
    # A running host sees this folder, so that the tree must not be replaced.
    if not (folder / "pci").exists():
        pci_tree.build(folder / "pci", functions, flat=True)
    _write_kernel(folder, kernel_of(model, base))
    _enable(folder, "stand-in-kernel.service", "sysinit.target")
    if server == SERVER:
        _enable(folder, "stand-in-server.service", "multi-user.target")
    if any(function.driver == "nouveau" for function in functions):
        (folder / "modules/nouveau").mkdir(exist_ok=True)
    host = describe(folder, base, server)
    _publish(host, newest)
    return host


def _install_cross_compiler(commands: Commands, architecture: str) -> None:
    """Install the compiler for a dpkg architecture that is not this machine's."""
    machine = MACHINES.get(architecture, architecture)
    if not commands.is_installed(stand_in_cuda.compiler(machine)):
        install_package(commands, f"libc6-dev-{architecture}-cross")
        install_package(commands, f"gcc-{machine}-linux-gnu")


def describe(folder: Path, base: str, server: str = f"file://{FOLDER}") -> GpuHost:
    """Return the simulated host of ``folder``; write nothing but a missing key."""
    key, architecture = Key(folder, "key"), base_named(base).architecture
    if base.startswith("debian"):
        suites = ("trixie", "trixie-updates") if base != "debian-sid" else ("unstable",)
        archive = Repository(folder / "archive", key, "Debian", "Debian", suites, architecture)
    else:
        suites = ("noble",)
        archive = Repository(folder / "archive", key, "Ubuntu", "Ubuntu", suites, architecture)
    cuda = Repository(folder / "cuda", key, "NVIDIA", "NVIDIA CUDA", architecture=architecture)
    toolkit = Repository(
        *(folder / "toolkit", key, "NVIDIA", "nvidia-container-toolkit"), architecture=architecture
    )
    return GpuHost(folder, base, key, archive, cuda, toolkit, server)


def _write_kernel(folder: Path, release: str) -> None:
    """Write the files of the simulated kernel."""
    texts = {
        "osrelease": f"{release}\n",
        "boot": simulated_kernel.BOOT,
        "sbin/modprobe": simulated_kernel.MODPROBE,
        "sbin/rmmod": simulated_kernel.RMMOD,
        "sbin/stand-in-fault": simulated_faults.INJECT,
        "sbin/update-initramfs": simulated_kernel.UPDATE_INITRAMFS,
        "units/stand-in-kernel.service": simulated_kernel.BOOT_UNIT,
        "units/stand-in-server.service": simulated_kernel.SERVER_UNIT,
        "sudoers": simulated_kernel.SUDOERS,
    }
    for name, text in texts.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if name.startswith("sbin/") else 0o644)
    (folder / "modules").mkdir(exist_ok=True)


def _enable(folder: Path, unit: str, target: str) -> None:
    """Enable a unit of the host."""
    link = folder / f"units/{target}.wants" / unit
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"../{unit}")


def _publish(host: GpuHost, newest: bool) -> None:
    """Publish the packages of the host's archives."""
    host.toolkit.publish(nvidia_packages.toolkit())
    architecture = host.archive.architecture
    if host.base.startswith("debian"):
        host.archive.publish(nvidia_packages.debian(architecture))
        return
    kernel = (host.folder / "osrelease").read_text().strip()
    host.archive.publish(nvidia_packages.ubuntu(newest, kernel, architecture))
    host.cuda.publish(nvidia_packages.cuda_ubuntu(architecture))
    (host.folder / "archive.sources").write_text(
        f"Types: deb\nURIs: {host.server}/archive\nSuites: noble\n"
        f"Components: main restricted multiverse\nSigned-By: {FOLDER}/{host.key.file.name}\n"
    )
