# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plain types that detection, decision and package sets share.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

AUTO = "auto"

NO_FABRIC = "none"
NVSWITCH = "nvswitch"
NVLINK5 = "nvlink5"


class Refusal(Exception):
    """The host or the wish cannot be served; the message is a sentence for the host's owner."""


@dataclass(frozen=True)
class PciDevice:
    """One PCI function as sysfs shows it; the numbers are those of the files there.

    ``virtual`` says whether a GPU is a vGPU, a slice that a hypervisor hands out, and is None
    where only root may read that; ``virtual_host_driver`` is the hypervisor's driver version.
    ``virtual_function`` marks an SR-IOV function of a card whose physical function is here.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    subsystem_vendor: int = 0
    subsystem_device: int = 0
    driver: str | None = None
    virtual: bool | None = False
    virtual_host_driver: str | None = None
    virtual_function: bool = False


@dataclass(frozen=True)
class HostFacts:
    """What the decision depends on.

    ``distribution`` and ``release`` are ID and VERSION_ID of os-release (``sid`` where Debian
    states none); ``architecture`` is dpkg's; ``kernel`` is the running release (``uname -r``);
    ``kernel_metas`` are the X of installed packages ``linux-image-X`` that follow a kernel
    flavour; ``secure_boot`` is None where it could not be read. ``nvlink_bridges`` are the
    network functions through which NVSwitches of the fifth NVLink generation are managed.
    """

    distribution: str
    release: str
    kernel: str
    architecture: str = "amd64"
    kernel_metas: tuple[str, ...] = ()
    secure_boot: bool | None = False
    gpus: tuple[PciDevice, ...] = ()
    nvswitches: tuple[PciDevice, ...] = ()
    nvlink_bridges: tuple[PciDevice, ...] = ()

    @property
    def place(self) -> str:
        """Distribution and release as a sentence names them."""
        return f"{self.distribution.capitalize()} {self.release}"


@dataclass(frozen=True)
class Wanted:
    """What the host's owner asks for: overrides, and video codecs for containers."""

    source: str = AUTO
    branch: int | None = None
    modules: str | None = None
    video: bool = False


@dataclass(frozen=True)
class Choice:
    """Source, branch, module flavour and fabric for a host, before packages are named."""

    host: HostFacts
    source: str
    branch: int
    modules: str
    fabric: str
    video: bool = False


def listed(items: Iterable[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    words = list(items)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
