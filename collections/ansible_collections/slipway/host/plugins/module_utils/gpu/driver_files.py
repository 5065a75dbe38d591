# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration files of a driver: for apt, unattended-upgrades, kernel modules and systemd.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, tables
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import Decision
from ansible_collections.slipway.host.plugins.module_utils.gpu.driver_repository import WRITTEN_BY
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import HostFacts
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import PREBUILT

PREFERENCES = gpu_facts.MANAGED
UNATTENDED = "/etc/apt/apt.conf.d/60slipway-nvidia-driver"
MODPROBE = "/etc/modprobe.d/slipway-nvidia-driver.conf"
MODULES_LOAD = "/etc/modules-load.d/slipway-nvidia-driver.conf"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/slipway.conf"
PATHS = (PREFERENCES, UNATTENDED, MODPROBE, MODULES_LOAD, PERSISTENCE)
# Driver packages in the syntax of apt_preferences(5). The last pattern excludes
# libnvidia-container.
_APT_PATTERNS = (
    "cuda-drivers* libcuda1 libnvcuvid1 libnvsdm* nvidia-alternative* nvidia-compute-utils* "
    "nvidia-dkms* nvidia-driver* nvidia-fabricmanager* nvidia-firmware* nvidia-headless* "
    "nvidia-kernel* nvidia-modprobe nvidia-open* nvidia-persistenced nvidia-smi nvidia-utils* "
    "xserver-xorg-video-nvidia* /^libnvidia-([^c]|c[^o]|co[^n])/"
)
# The same for unattended-upgrades, which matches the start of a name (Python's re).
_UNATTENDED_PATTERNS = (
    "nvidia-(?!container)",
    "libnvidia-(?!container)",
    "linux-(modules|objects|signatures)-nvidia-",
    "libcuda1$",
    "libnvcuvid1$",
    "libnvsdm",
    "nvlsm$",
    "cuda-drivers",
    "firmware-nvidia-",
    "xserver-xorg-video-nvidia",
)


def declare_files(
    host: HostFacts, decision: Decision, version: str, hold: bool, hold_kernel: bool
) -> Iterator[dict[str, Any]]:
    """Yield the configuration files of a driver as owned files."""
    yield {"path": PREFERENCES, "content": _preferences_text(decision, version)}
    if hold:
        yield {"path": UNATTENDED, "content": _unattended_text(host, decision, hold_kernel)}
    else:
        yield {"path": UNATTENDED, "state": "absent"}
    yield {"path": MODPROBE, "content": _modprobe_text()}
    yield {"path": MODULES_LOAD, "content": _modules_load_text(decision)}
    if decision.source == branches.UBUNTU:
        yield {"path": PERSISTENCE, "content": _persistence_text()}
    else:
        yield {"path": PERSISTENCE, "state": "absent"}


def _preferences_text(decision: Decision, version: str) -> str:
    """Return apt preferences that allow one source of the driver, and one VERSION if it is set."""
    is_cuda = decision.source == branches.CUDA
    stanzas = [
        "# One source for the driver: packages of another source do not fit.\n"
        f"Package: {_APT_PATTERNS}\n"
        "Pin: release l=NVIDIA CUDA\n"
        f"Pin-Priority: {600 if is_cuda else -1}\n"
    ]
    if version:
        stanzas.insert(
            0,
            "# nvidia_driver_version; above 1000, so that apt also downgrades to it.\n"
            f"Package: {_APT_PATTERNS}\n"
            f"Pin: version {version}-*\n"
            "Pin-Priority: 1001\n",
        )
    return "\n".join([WRITTEN_BY.rstrip("\n"), *stanzas])


def _unattended_text(host: HostFacts, decision: Decision, hold_kernel: bool) -> str:
    """Return the apt.conf that excludes the driver from unattended-upgrades.

    With prebuilt modules, a new kernel without its modules would leave the host without GPUs after
    the next boot. So kernels are excluded too.
    """
    patterns = list(_UNATTENDED_PATTERNS)
    if decision.build == PREBUILT and hold_kernel:
        patterns.append("linux-(image|headers|modules)-")
        patterns += [f"linux-{meta}$" for meta in host.kernel_metas]
    lines = "".join(f'    "{pattern}";\n' for pattern in patterns)
    return (
        "// Written by Slipway's role nvidia_driver.\n"
        f"Unattended-Upgrade::Package-Blacklist {{\n{lines}}};\n"
    )


def _modprobe_text() -> str:
    lines = [f"blacklist {name}\n" for name in sorted(tables.NOUVEAU_DRIVERS)]
    return f"{WRITTEN_BY}{''.join(lines)}options nouveau modeset=0\n"


def _modules_load_text(decision: Decision) -> str:
    """Return the modules to load at boot, before container runtimes need the device files."""
    return WRITTEN_BY + "".join(f"{name}\n" for name in decision.kernel_modules)


def _persistence_text() -> str:
    """Return the systemd drop-in that enables persistence mode in Ubuntu's nvidia-persistenced.

    Ubuntu's unit starts it with --no-persistence-mode and stops it when no other unit needs it.
    """
    return (
        f"{WRITTEN_BY}[Unit]\nStopWhenUnneeded=no\n\n[Service]\nExecStart=\n"
        "ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode "
        "--verbose\n\n[Install]\nWantedBy=multi-user.target\n"
    )
