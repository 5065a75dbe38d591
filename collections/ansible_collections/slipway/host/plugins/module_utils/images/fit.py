# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks whether an image runs on a host: its architecture, and the CUDA release in it.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import host, tables
from ansible_collections.slipway.host.plugins.module_utils.images import architectures
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


def misfits(
    images: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], driver_changes: bool = False
) -> dict[str, str]:
    """Return why images do not run on a host, by reference.

    IMAGES are entries of the plan of the role ml_images. FACTS is `ansible_facts['slipway']`.
    CUDA releases are not checked on a host without a loaded driver, which builds for other hosts or
    loads its driver at the next boot, and on a host whose DRIVER_CHANGES in this run.
    """
    driver = None if driver_changes else host.loaded(facts)
    gpus = [gpu.device for gpu in host.host_facts(facts).gpus] if driver else []
    reasons = {}
    for image in images:
        reason = architectures.misfit(facts["architecture"], image.get("unavailable", {}))
        if reason is None and driver and image.get("cuda"):
            reason = misfit(image["cuda"], driver.version, gpus)
        if reason:
            reasons[image["reference"]] = reason
    return reasons


def conflicts(
    statements: Iterable[Mapping[str, Sequence[Entry]]],
    answer: Answer,
    driver_changes: bool = False,
) -> list[Conflict]:
    """Return a conflict for each image to build that the host cannot run."""
    outdated = [
        image
        for owned in statements
        for image in owned.get("images", ())
        if any(containers.compare_images(image, answer))
    ]
    found = misfits(outdated, answer["facts"], driver_changes) if outdated else {}
    return [
        Conflict("images", reference, f"image {reference} {reason}.")
        for reference, reason in found.items()
    ]
