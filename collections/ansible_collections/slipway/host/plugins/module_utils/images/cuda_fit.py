# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the CUDA that an image brings along runs on a host's driver and GPUs.

PRIVATE to the collection. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import host, tables
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild

OLDEST_DRIVER: Mapping[int, int] = MappingProxyType({11: 450, 12: 525, 13: 580})
"""The driver branch that a major release of CUDA needs at least, in any of its minor releases.

Source: NVIDIA, "CUDA Compatibility", table of minor version compatibility.
"""


def misfit(cuda: str, driver: str, gpus: Iterable[int]) -> str | None:
    """Return why a release of CUDA, such as `13.2`, does not run on a host, None if it runs.

    DRIVER is the version of the module in the host's kernel, GPUS are PCI device IDs.
    """
    major = int(cuda.partition(".")[0])
    # A release newer than the table needs no older driver than the newest in it.
    oldest = OLDEST_DRIVER[max(known for known in OLDEST_DRIVER if known <= max(major, 11))]
    if int(driver.partition(".")[0]) < oldest:
        return (
            f"brings CUDA {cuda}, which needs NVIDIA driver {oldest} or newer, and the host runs "
            f"{driver}; take a newer driver (nvidia_driver_branch), or the cpu variant on this "
            "host (ml_catalogue_variant: cpu)"
        )
    for gpu in gpus:
        newest = tables.architecture_of(gpu).cuda
        if newest is not None and newest < major:
            return (
                f"brings CUDA {cuda}, and CUDA {newest} is the last for the host's "
                f"{tables.name_of(gpu)}; lock packages that bring CUDA {newest}, or take the "
                "cpu variant on this host (ml_catalogue_variant: cpu)"
            )
    return None


def misfits(builds: Iterable[ImageBuild], facts: Mapping[str, Any]) -> dict[str, str]:
    """Return why builds do not run on a host, by reference; those that do are left out.

    FACTS is `ansible_facts['slipway']`. A host without a driver in its kernel builds for others,
    or gets its driver after the next boot: everything fits.
    """
    driver = host.loaded(facts)
    if driver is None:
        return {}
    gpus = [gpu.device for gpu in host.host_facts(facts).gpus]
    found = {
        build.reference: misfit(build.cuda, driver.version, gpus) for build in builds if build.cuda
    }
    return {reference: why for reference, why in found.items() if why}
