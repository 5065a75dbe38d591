# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_images: images of the catalogue by their context digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images import (
    build_cache,
    delivery,
    index,
    types,
)
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue
from ansible_collections.slipway.host.plugins.module_utils.state.containers import IMAGE_RECORDS


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return names, catalogue, variant, base and args of images, how to build, and ``owned``.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the options of the role and of ml_catalogue.
    Raise DeclarationError for a broken catalogue or an unknown image, ValueError for a builder that
    is not in the inventory and for a wrong size.
    """
    for name in options["ml_images_builder"]:
        if name not in (delivery.AUTO, *facts["hosts"]):
            raise ValueError(
                f"ml_images_builder: {name} is not in the inventory; expected names of hosts, auto "
                "alone, or an empty list. Correct the name."
            )
    try:
        cache_bytes = build_cache.parse_size(options["ml_images_cache_size"])
    except ValueError as error:
        raise ValueError(f"ml_images_cache_size: {error}. Correct the size.") from None
    build = ml_catalogue.choose_build(facts, options)
    absent = options["ml_images_state"] == "absent"
    names = [] if absent else ml_catalogue.image_names(options)
    owned: dict[str, Any] = {"images": list(map(image_entry, build.images(names)))}
    if absent:
        owned["folders"] = [{"path": IMAGE_RECORDS, "entries": []}]
    return {
        "names": names,
        "catalogue": build.catalogue,
        "variant": build.variant,
        "base": build.base,
        "args": build.args,
        "build": {**options["ml_images_build"], "cache_bytes": cache_bytes},
        "owned": owned,
    }


def image_entry(image: index.Planned | types.ImageBuild) -> dict[str, Any]:
    """Return an image as owned state: its needs are its parent, a driver and an architecture."""
    return {
        "reference": image.reference,
        "digest": image.digest,
        **({"cuda": image.cuda} if image.cuda else {}),
        **({"unavailable": dict(image.unavailable)} if image.unavailable else {}),
        **({"needs": [["images", image.parent]]} if image.parent else {}),
    }
