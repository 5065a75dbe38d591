# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Types that detection, decision and package sets share.

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
    """The host or the request is not supported; the message is a sentence for the host's owner."""


@dataclass(frozen=True)
class PciDevice:
    """One PCI function, with the numbers of its files in sysfs.

    ``virtual`` says whether a GPU is a vGPU of a hypervisor; it is None if reading that needs root.
    ``virtual_host_driver`` is the hypervisor's driver version. ``virtual_function`` marks an SR-IOV
    function of a card whose physical function belongs to this host.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    driver: str | None = None
    virtual: bool | None = False
    virtual_host_driver: str | None = None
    virtual_function: bool = False


@dataclass(frozen=True)
class HostFacts:
    """Facts of a host that the decision depends on.

    ``distribution`` and ``release`` are ID and VERSION_ID of os-release (``sid`` if Debian has no
    VERSION_ID). ``architecture`` is dpkg's. ``kernel`` is the running release (``uname -r``).
    ``kernel_metas`` are the X of installed packages ``linux-image-X`` that follow a kernel
    flavour. ``headers`` says whether the headers of the running kernel are on the host.
    ``secure_boot`` is None if it could not be read. ``nvlink_bridges`` are the network functions
    that manage NVSwitches of the fifth NVLink generation, ``fabric_modules`` whether the running
    kernel has the modules for them.
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
    headers: bool = True
    fabric_modules: bool = True

    @property
    def release_name(self) -> str:
        """Distribution and release for a sentence: ``Ubuntu 24.04``."""
        return f"{self.distribution.capitalize()} {self.release}"


@dataclass(frozen=True)
class DriverRequest:
    """Overrides by the host's owner, and whether containers need video codecs."""

    source: str = AUTO
    branch: int | None = None
    modules: str | None = None
    video: bool = False


@dataclass(frozen=True)
class Choice:
    """Source, branch, module flavour and fabric chosen for a host, without packages."""

    host: HostFacts
    source: str
    branch: int
    modules: str
    fabric: str
    video: bool = False


def join_words(items: Iterable[str]) -> str:
    """Join words for a sentence: ``a, b and c``."""
    words = list(items)
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
