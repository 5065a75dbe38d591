# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A driver that is installed already: whether the role could have installed it, else a refusal.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    branches,
    driver_packages,
    driver_request,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    DriverRequest,
    Refusal,
)

# Packages that people install of Ubuntu's desktop flavour of the driver.
_DESKTOP_FLAVOUR = re.compile(r"nvidia-(driver|headless|headless-no-dkms)-\d{3}(-open)?")


def installed_driver(present: Mapping[str, str]) -> DriverRequest | None:
    """Return source, branch and module flavour of a driver that this role could have installed."""
    for name in present:
        if match := re.fullmatch(r"nvidia-headless-no-dkms-(\d{3})-server(-open)?", name):
            flavour = branches.OPEN if match[2] else branches.PROPRIETARY
            return DriverRequest(branches.UBUNTU, int(match[1]), flavour)
    pins = [name for name in present if name.startswith("nvidia-driver-pinning-")]
    is_open = any(
        re.fullmatch(r"nvidia-(dkms(-\d{3})?-open|kernel-open-dkms|open-kernel-dkms)", name)
        for name in present
    )
    flavour = branches.OPEN if is_open else branches.PROPRIETARY
    version = driver_packages.common_version(present)
    if version is None:
        return None
    if pins:
        return DriverRequest(branches.CUDA, int(version.split(".")[0]), flavour)
    if {"nvidia-kernel-dkms", "nvidia-open-kernel-dkms"} & set(present):
        return DriverRequest(branches.DEBIAN, int(version.split(".")[0]), flavour)
    return None


def refuse_foreign_driver(facts: Mapping[str, Any], present: Mapping[str, str]) -> None:
    """Refuse to install over a driver that was not installed by apt."""
    keep = f"or set nvidia_driver_source to {driver_request.KEEP} to keep it"
    if gpu_host.gpu_facts(facts)["run_installer"]:
        raise Refusal(
            "the driver was installed by NVIDIA's .run installer; expected a driver from packages, "
            "because packages would overwrite parts of the installed one. Remove the driver first "
            f"(nvidia-uninstall), {keep}"
        )
    loaded = gpu_host.loaded(facts)
    if loaded and not present:
        raise Refusal(
            f"driver {loaded.version} is loaded, but no package owns it; expected a driver from "
            f"packages. Remove the driver first, {keep}"
        )


def refuse_desktop_flavour(present: Mapping[str, str]) -> None:
    """Refuse to replace a driver with desktop parts, unless an option selects the source."""
    desktop_packages = [name for name in sorted(present) if _DESKTOP_FLAVOUR.fullmatch(name)]
    if desktop_packages and installed_driver(present) is None:
        raise Refusal(
            f"{desktop_packages[-1]} with desktop parts is installed; expected the -server "
            f"flavour, which has none. Set nvidia_driver_source to distribution to replace the "
            f"driver, or to {driver_request.KEEP} to keep it"
        )
