# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drivers that somebody else installed: known by what they are, kept whole, never replaced unasked.

A driver is what the kernel has loaded, or the kernel modules that packages install. Package names
only tell where it came from. An adopted driver keeps its packages, versions and repository. The
role holds the packages as one set, keeps unattended upgrades away from them and loads the modules.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, driver_files
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    driver_repository as repository,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import (
    Decision,
    detect_fabric,
    kernel_modules,
    newest_cuda,
    own_gpus,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.detection import KernelModule
from ansible_collections.slipway.host.plugins.module_utils.gpu.driver_packages import (
    common_version,
    has_driver_version,
    set_versions,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    NO_FABRIC,
    DriverRequest,
    HostFacts,
    Refusal,
    join_words,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import driver_misfit
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import PREBUILT

ADOPTED = "adopted"
_WAY_OUT = "or set nvidia_driver_source to let Slipway install another driver"
# Packages that install kernel modules of the driver, or build them on the host.
_KERNEL_PACKAGE = re.compile(
    r"nvidia-(tesla-\d{3}-)?(dkms(-.*)?|(open-)?kernel-(open-)?dkms)"
    r"|linux-modules-nvidia-.*|nvidia-driver-\d{3}(-server)?(-open)?|nvidia-linux-grid-\d{3}"
)
# Packages with libcuda.so.1. NVIDIA's guest driver for vGPUs is a single package.
_CUDA_LIBRARY = re.compile(
    r"libnvidia-compute.*|libcuda1|libnvidia-tesla-\d{3}-cuda1|.*-grid-\d{3}"
)
_OPEN_NAME = re.compile(r"-open(-|$)")
_KERNEL_RELEASE = re.compile(r"-\d+\.\d+\.\d+-\d+-[a-z]")
# Who builds packages with such a version. First match wins. Sources: "Filename" and "Version"
# fields of the package indices, and the packaging repositories, as of 2026-11.
_BUILT_BY = (
    (re.compile(r"~gpu\d"), "the graphics-drivers PPA"),
    (re.compile(r"lambda"), "Lambda's repository"),
    (re.compile(r"~\d{10}~|pop|system76"), "System76's repository"),
    (re.compile(r"-\d+ubuntu\d+\.\d\d\.\d\d|-\d+ubuntu0\."), "Ubuntu's archive"),
    (re.compile(r"-\d+ubuntu\d+$"), "NVIDIA's repository"),
    (re.compile(r"~bpo\d+"), "Debian's backports"),
    (re.compile(r"-[1-9]\d*(~deb\d+u\d+|\+deb\d+u\d+)"), "Debian's archive"),
)


@dataclass(frozen=True)
class InstalledDriver:
    """A driver of packages: its version, module flavour if known, and who built the packages.

    ``problem`` says why no container can use it.
    """

    version: str
    modules: str | None
    builder: str | None
    problem: str | None

    @property
    def branch(self) -> int:
        """The driver branch."""
        return int(self.version.split(".")[0])


def recognise(present: Mapping[str, str], loaded: KernelModule | None) -> InstalledDriver | None:
    """Return the driver that packages installed, None for libraries without kernel modules.

    PRESENT are the installed driver packages with their versions.
    """
    version = common_version(present)
    kernel_packages = [name for name in present if _KERNEL_PACKAGE.fullmatch(name)]
    is_loaded = loaded is not None and loaded.version in set_versions(present)
    if version is None or not (kernel_packages or is_loaded):
        return None
    modules = loaded.modules if loaded and is_loaded else None
    if modules is None and kernel_packages:
        is_open = any(_OPEN_NAME.search(name) for name in kernel_packages)
        modules = branches.OPEN if is_open else branches.PROPRIETARY
    return InstalledDriver(version, modules, _builder(present), _problem(present, version))


def _problem(present: Mapping[str, str], version: str) -> str | None:
    """Return why no container can use the installed driver."""
    versions = set_versions(present)
    if len(versions) > 1:
        described = join_words(
            f"{version} ({join_words(names)})" for version, names in sorted(versions.items())
        )
        return (
            f"the installed driver packages have several versions: {described}; expected one. "
            "Bring them to one version with apt"
        )
    if not any(_CUDA_LIBRARY.fullmatch(name) for name in present):
        return (
            f"the packages of driver {version} lack libcuda.so.1, which every container needs; "
            "expected the package libnvidia-compute or libcuda1 of the same version. Install it "
            "from the repository of the driver"
        )
    return None


def _builder(present: Mapping[str, str]) -> str | None:
    texts = sorted({text for name, text in present.items() if has_driver_version(name)})
    return next(
        (name for pattern, name in _BUILT_BY for text in texts if pattern.search(text)), None
    )


def is_requested(driver: InstalledDriver, request: DriverRequest, version: str) -> bool:
    """Return whether the options leave the choice open, or name just this driver."""
    return (
        request.source == AUTO
        and request.branch in (None, driver.branch)
        and request.modules in (None, driver.modules)
        and version in ("", driver.version)
    )


def adopt(host: HostFacts, driver: InstalledDriver, present: Mapping[str, str]) -> Decision | None:
    """Return the decision to keep a driver, None if it does not support the GPUs of the host.

    Raise Refusal if no container can use the driver, or if the GPUs need a fabric manager that is
    not installed.
    """
    gpus = own_gpus(host)
    if driver_misfit(gpus, driver.branch, driver.modules):
        return None
    if driver.problem:
        raise Refusal(f"{driver.problem}, {_WAY_OUT}")
    fabric = detect_fabric(host, gpus)
    if fabric != NO_FABRIC and not any(name.startswith("nvidia-fabricmanager") for name in present):
        raise Refusal(
            f"driver {driver.version} is installed without nvidia-fabricmanager, which the "
            f"NVSwitches of this host need; expected version {driver.version} of it. Install it "
            f"from the repository of the driver, {_WAY_OUT}"
        )
    flavour = f" with {driver.modules} kernel modules" if driver.modules else ""
    builder = f" from {driver.builder}" if driver.builder else ""
    prebuilt = any(name.startswith("linux-modules-nvidia-") for name in present)
    return Decision(
        supported=True,
        reason=f"Driver {driver.version}{flavour}{builder} was installed by somebody else, supports"
        " the GPUs, and is kept as it is. To replace it, set nvidia_driver_source.",
        source=ADOPTED,
        branch=driver.branch,
        modules=driver.modules,
        build=PREBUILT if prebuilt else None,
        fabric_manager=fabric != NO_FABRIC,
        fabric=fabric,
        kernel_modules=kernel_modules(fabric),
        cuda_major=newest_cuda(driver.branch, gpus),
    )


def declare_packages(
    host: HostFacts, present: Mapping[str, str], hold: bool, hold_kernel: bool
) -> Iterator[dict[str, Any]]:
    """Yield the packages of an adopted driver: all stay; prebuilt modules also hold the kernel."""
    for name in sorted(present):
        entry: dict[str, Any] = {"name": name, "hold": hold}
        if name.startswith("linux-") and _KERNEL_RELEASE.search(name):
            # apt removes modules together with their kernel.
            entry["optional"] = True
        yield entry
    if any(name.startswith("linux-modules-nvidia-") for name in present):
        for meta in host.kernel_metas:
            yield {"name": f"linux-image-{meta}", "hold": hold and hold_kernel}


def declare_files(
    host: HostFacts, decision: Decision, hold: bool, hold_kernel: bool
) -> Iterator[dict[str, Any]]:
    """Yield the files of an adopted driver: no source and no pin, because its own ones stay."""
    kept = {driver_files.UNATTENDED, driver_files.MODULES_LOAD}
    for entry in driver_files.declare_files(host, decision, "", hold, hold_kernel):
        if entry["path"] in kept:
            yield entry
    obsolete = {repository.KEYRING, repository.SOURCES, *driver_files.PATHS} - kept
    yield from ({"path": path, "state": "absent"} for path in sorted(obsolete))
