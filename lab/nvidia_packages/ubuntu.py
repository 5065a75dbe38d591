# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for the NVIDIA packages of Ubuntu's archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.apt_repository import ARCHITECTURE, Package
from lab.nvidia_packages.parts import (
    dkms,
    exclusive_fields,
    fabric_manager,
    libcuda,
    modules,
    persistence,
    smi,
)
from lab.nvidia_packages.programs import PERSISTENCED
from lab.nvidia_packages.versions import BRANCHES, UBUNTU_KERNEL, UBUNTU_KERNEL_PACKAGE


def ubuntu(
    newest: bool = True, kernel: str = UBUNTU_KERNEL, architecture: str = ARCHITECTURE
) -> Iterator[Package]:
    """Yield the packages of Ubuntu's archive: the newer or the older version of each branch.

    The archive has one version of a branch at a time, with the modules of each kernel.
    """
    yield from _kernel(kernel)
    # The other packages are Debian's, where the engine's parts have other names.
    depends = {"Depends": "docker-cli, docker-compose, iptables"}
    yield Package("docker-compose-v2", "99.0-1", depends)
    for branch, versions in BRANCHES.items():
        version = versions[newest]
        component = "restricted" if branch == 580 else "multiverse"
        for is_open in (False, True) if branch != 470 else (False,):
            flavour = Flavour(branch, version, is_open, component)
            yield from _driver(flavour)
            if branch != 470:
                yield from _kernel_modules(flavour, kernel, revision=1 + newest)
        yield from _common(branch, version, component, architecture)


def _kernel(kernel: str) -> Iterator[Package]:
    for kind in ("image", "headers"):
        exact, meta = f"linux-{kind}-{kernel}", f"linux-{kind}-{_kernel_flavour(kernel)}"
        yield Package(exact, UBUNTU_KERNEL_PACKAGE)
        yield Package(meta, UBUNTU_KERNEL_PACKAGE, {"Depends": exact})


def _kernel_flavour(kernel: str) -> str:
    """Return the name of a kernel's meta packages.

    That is generic for 6.8.0-149-generic, and nvidia-hwe-24.04 for 6.17.0-1014-nvidia.
    """
    flavour = kernel.split("-", 2)[2]
    return flavour if kernel.startswith("6.8.") else f"{flavour}-hwe-24.04"


def _common(branch: int, version: str, component: str, architecture: str) -> Iterator[Package]:
    full, server = f"{version}-0ubuntu0.24.04.1", f"{branch}-server"
    common = f"nvidia-kernel-common-{server}"

    def package(name: str, depends: str = "", **more: object) -> Package:
        fields = {"Depends": depends} if depends else {}
        fields.update(more.pop("fields", {}))  # type: ignore[call-overload]
        return Package(name, full, fields, component=component, **more)  # type: ignore[arg-type]

    firmware = f"nvidia-firmware-{server}-{version}"
    yield package(firmware)
    yield package(
        common,
        firmware,
        fields=exclusive_fields("nvidia-kernel-common")
        | {"Provides": f"nvidia-kernel-common, {common}-{version}"},
    )
    yield package(
        f"libnvidia-compute-{server}",
        files=libcuda(architecture),
        fields=exclusive_fields("libnvidia-compute"),
    )
    yield package(f"libnvidia-cfg1-{server}")
    yield package(
        f"nvidia-compute-utils-{server}",
        f"libnvidia-compute-{server}",
        files=persistence(PERSISTENCED),
        fields=exclusive_fields("nvidia-compute-utils"),
    )
    yield package(
        f"nvidia-utils-{server}",
        f"libnvidia-compute-{server}",
        files=smi(branch),
        fields=exclusive_fields("nvidia-utils"),
    )
    for part in ("encode", "decode"):
        yield package(f"libnvidia-{part}-{server}", f"libnvidia-compute-{server} (= {full})")
    if branch != 470:
        exact = f"{common}-{version}"
        yield fabric_manager(f"nvidia-fabricmanager-{branch}", f"{version}-1", exact, "multiverse")
        yield Package(f"libnvidia-nscq-{branch}", f"{version}-1", component="multiverse")


@dataclass(frozen=True)
class Flavour:
    """One version of a branch, with open or proprietary kernel modules."""

    branch: int
    version: str
    is_open: bool
    component: str

    @property
    def name(self) -> str:
        """The flavour's part of package names."""
        return f"{self.branch}-server{'-open' * self.is_open}"

    @property
    def package_version(self) -> str:
        """The version of the flavour's packages."""
        return f"{self.version}-0ubuntu0.24.04.1"


def _driver(flavour: Flavour) -> Iterator[Package]:
    """Yield the driver's packages of one flavour, without modules of a kernel."""
    server, version = f"{flavour.branch}-server", flavour.package_version
    parts = (
        f"nvidia-kernel-common-{server}",
        f"nvidia-kernel-source-{flavour.name}",
        f"libnvidia-compute-{server}",
        f"libnvidia-cfg1-{server}",
        f"nvidia-compute-utils-{server}",
    )
    yield Package(
        f"nvidia-headless-no-dkms-{flavour.name}",
        version,
        {"Depends": ", ".join(f"{part} (= {version})" for part in parts)},
        component=flavour.component,
    )
    yield Package(
        f"nvidia-kernel-source-{flavour.name}",
        version,
        exclusive_fields("nvidia-kernel-source"),
        modules(f"/usr/src/nvidia-{flavour.version}", flavour.version, flavour.is_open),
        component=flavour.component,
    )
    yield dkms(
        f"nvidia-dkms-{flavour.name}",
        version,
        f"nvidia-kernel-source-{flavour.name} (= {version})",
        flavour.version,
        flavour.component,
    )


def _kernel_modules(flavour: Flavour, kernel: str, revision: int) -> Iterator[Package]:
    """Yield the modules of one flavour for a kernel.

    Their version is the kernel's, and they depend on exactly one version of the driver.
    """
    common = f"nvidia-kernel-common-{flavour.branch}-server"
    depends = f"{common} (<= {flavour.version}-1), {common} (>= {flavour.version})"
    exact = f"linux-modules-nvidia-{flavour.name}-{kernel}"
    version = f"{UBUNTU_KERNEL_PACKAGE}+{revision}"
    folder = f"/lib/modules/{kernel}/kernel/nvidia-{flavour.branch}srv{'-open' * flavour.is_open}"
    depmod = f"depmod -a {kernel}"
    yield Package(
        exact,
        version,
        {"Depends": depends},
        modules(folder, flavour.version, flavour.is_open),
        {"postinst": depmod, "postrm": f"{depmod} || true"},
        flavour.component,
    )
    yield Package(
        f"linux-modules-nvidia-{flavour.name}-{_kernel_flavour(kernel)}",
        version,
        {"Depends": f"{exact} (= {version}), {depends}"},
        component=flavour.component,
    )
