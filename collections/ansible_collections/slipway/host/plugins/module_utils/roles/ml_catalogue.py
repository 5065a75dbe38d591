# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue, variant and base image of a host, for all image roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images import index

AUTO = "auto"
# The default base image by distribution: a name in images/bases.yml.
BASES = {"Ubuntu": "ubuntu-24.04"}
DEFAULT_BASE = "debian-13"


@dataclass(frozen=True)
class Build:
    """How images of the catalogue are built for one host.

    catalogue: folder on the controller. variant: ``cpu`` or ``gpu``. base: a name of
    images/bases.yml. args: build arguments by image and name.
    """

    catalogue: str
    variant: str
    base: str
    args: Mapping[str, Mapping[str, str]]

    def images(self, names: Sequence[str]) -> list[index.Planned]:
        """Return the images NAMES and their base images of the catalogue, in build order.

        Raise DeclarationError for a broken catalogue or an unknown image.
        """
        return index.planned(self.catalogue, names, self.variant, self.base, self.args)


def choose_build(facts: Mapping[str, Any], options: Mapping[str, Any]) -> Build:
    """Return how a host's images are built; ``auto`` is resolved from FACTS."""
    variant, base = options["ml_catalogue_variant"], options["ml_catalogue_base"]
    if variant == AUTO:
        variant = "gpu" if _has_gpu(facts) else "cpu"
    if base == AUTO:
        base = BASES.get(facts["distribution"], DEFAULT_BASE)
    folder = options["ml_catalogue_folder"] or f"{facts['role_path']}/../../images"
    return Build(str(folder), variant, base, options["ml_catalogue_build_args"])


def image_names(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the images declared for a host."""
    names = options["ml_images_present"]
    return list(options["ml_catalogue_images"] if names is None else names)


def _has_gpu(facts: Mapping[str, Any]) -> bool:
    if not facts.get("gpu", {}).get("devices"):
        return False
    # Imported late: the GPU tables are needed only for hosts with NVIDIA devices.
    from ansible_collections.slipway.host.plugins.module_utils.gpu import host

    return host.has_gpu(facts)
