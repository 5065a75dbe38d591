# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Convert the host facts about GPUs into the input of the driver choice.

The facts contain raw lines of sysfs and dpkg, because ``gpu.facts`` is sent to the host with the
survey. The survey and the module gpu_info both read hosts with it.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt.sources import ARCHITECTURES
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import HostFacts, PciDevice
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import skip_reason

NOTHING: Mapping[str, Any] = {"devices": []}


def gpu_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of the host FACTS about GPUs."""
    gpu: Mapping[str, Any] = facts.get("gpu") or NOTHING
    return gpu


def nvidia_functions(facts: Mapping[str, Any]) -> list[PciDevice]:
    """Return the PCI functions of NVIDIA, in order of their addresses."""
    return [pci_device(tables.VENDOR_NVIDIA, *row) for row in gpu_facts(facts)["devices"]]


def host_facts(facts: Mapping[str, Any]) -> HostFacts:
    """Return the input of the decision from FACTS, which is ``ansible_facts['slipway']``."""
    gpu = gpu_facts(facts)
    functions = nvidia_functions(facts)
    distribution = facts["distribution"].lower() or "unknown"
    release = facts["distribution_version"]
    if distribution == "debian" and not release.isdigit():
        release = "sid"
    return HostFacts(
        distribution=distribution,
        release=release,
        kernel=facts["kernel"],
        architecture=ARCHITECTURES.get(facts["architecture"], facts["architecture"]),
        kernel_metas=tuple(gpu.get("kernel_metas", ())),
        secure_boot=gpu.get("secure_boot", False),
        gpus=tuple(device for device in functions if device.class_code in tables.CLASS_GPU),
        nvswitches=tuple(
            device for device in functions if device.class_code == tables.CLASS_NVSWITCH
        ),
        nvlink_bridges=tuple(
            PciDevice(address, tables.VENDOR_MELLANOX, 0, tables.CLASS_NETWORK << 16)
            for address in gpu.get("bridges", ())
        ),
        headers=gpu.get("headers", True),
        fabric_modules=gpu.get("fabric_modules", True),
    )


def has_gpu(facts: Mapping[str, Any]) -> bool:
    """Return whether this host itself uses a GPU, not only a virtual machine on it.

    A host whose GPUs are gone from the PCI bus is a GPU host with a fault, see
    :mod:`gpu.health`, and keeps what GPU hosts have.
    """
    return count(facts) > 0 or recorded(facts) > 0


def recorded(facts: Mapping[str, Any]) -> int:
    """Return how many GPUs this host is recorded to have, 0 without a record."""
    return int(gpu_facts(facts).get("recorded", 0))


def count(facts: Mapping[str, Any]) -> int:
    """Return how many GPUs this host itself uses."""
    return sum(skip_reason(gpu) is None for gpu in host_facts(facts).gpus)


def loaded(facts: Mapping[str, Any]) -> detect.KernelModule | None:
    """Return the loaded NVIDIA kernel module, None if none is loaded."""
    gpu = gpu_facts(facts)
    return detect.loaded_module(gpu.get("loaded", ""), gpu.get("banner", ""))


def pci_device(
    vendor: int,
    address: str,
    device: str,
    class_code: str,
    driver: str,
    virtual_function: bool,
    config: str,
) -> PciDevice:
    """Return a PCI function of a vendor; the other arguments are those of `facts.read_function`."""
    virtual, host_driver = detect.vgpu(bytes.fromhex(config))
    return PciDevice(
        address=address,
        vendor=vendor,
        device=_number(device),
        class_code=_number(class_code),
        driver=driver or None,
        virtual=virtual,
        virtual_host_driver=host_driver,
        virtual_function=virtual_function,
    )


def _number(text: str) -> int:
    """Return a hexadecimal number of sysfs, 0 if it is none."""
    try:
        return int(text, 16)
    except ValueError:
        return 0
