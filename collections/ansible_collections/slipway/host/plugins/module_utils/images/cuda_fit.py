# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether the CUDA release in an image runs on the driver and GPUs of a host.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import host, tables
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Answer,
    Conflict,
    Entry,
)

OLDEST_DRIVER: Mapping[int, int] = MappingProxyType({11: 450, 12: 525, 13: 580})
"""The oldest driver branch for all minor releases of a major release of CUDA.

Source: NVIDIA, "CUDA Compatibility", table of minor version compatibility.
"""


def oldest_driver(cuda: str) -> int:
    """Return the oldest driver branch for a release of CUDA, such as `13.2`."""
    major = int(cuda.partition(".")[0])
    # A release newer than the table needs no older driver than the newest in it.
    return OLDEST_DRIVER[max(known for known in OLDEST_DRIVER if known <= max(major, 11))]


def misfit(cuda: str, driver: str, gpus: Iterable[int]) -> str | None:
    """Return why a release of CUDA, such as `13.2`, does not run on a host, None if it runs.

    DRIVER is the version of the module in the host's kernel, GPUS are PCI device IDs.
    """
    major = int(cuda.partition(".")[0])
    oldest = oldest_driver(cuda)
    if int(driver.partition(".")[0]) < oldest:
        return (
            f"contains CUDA {cuda}, which needs NVIDIA driver {oldest} or newer; the host runs "
            f"{driver}. Install a newer driver (nvidia_driver_branch), or use the cpu variant on "
            "this host (ml_catalogue_variant: cpu)"
        )
    for gpu in gpus:
        newest = tables.architecture_of(gpu).cuda
        if newest is not None and newest < major:
            return (
                f"contains CUDA {cuda}; CUDA {newest} is the newest release for the host's "
                f"{tables.name_of(gpu)}. Lock packages that contain CUDA {newest}, or use the "
                "cpu variant on this host (ml_catalogue_variant: cpu)"
            )
    return None


def misfits(releases: Mapping[str, str | None], facts: Mapping[str, Any]) -> dict[str, str]:
    """Return why images do not run on a host, by reference.

    RELEASES has the release of CUDA in each image, None for an image without CUDA. FACTS is
    `ansible_facts['slipway']`. The result is empty for a host without a loaded driver: the host
    builds for other hosts, or loads its driver at the next boot.
    """
    driver = host.loaded(facts)
    if driver is None:
        return {}
    gpus = [gpu.device for gpu in host.host_facts(facts).gpus]
    reasons = {
        reference: misfit(cuda, driver.version, gpus)
        for reference, cuda in releases.items()
        if cuda
    }
    return {reference: reason for reference, reason in reasons.items() if reason}


def conflicts(
    statements: Iterable[Mapping[str, Sequence[Entry]]], answer: Answer
) -> list[Conflict]:
    """Return a conflict for each image to build whose CUDA release the host cannot run."""
    releases = {
        image["reference"]: image["cuda"]
        for owned in statements
        for image in owned.get("images", ())
        if image.get("cuda") and any(containers.compare_images(image, answer))
    }
    found = misfits(releases, answer["facts"]) if releases else {}
    return [
        Conflict("images", reference, f"image {reference} {reason}.")
        for reference, reason in found.items()
    ]
