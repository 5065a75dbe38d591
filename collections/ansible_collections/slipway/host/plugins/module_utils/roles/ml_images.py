# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role ml_images: images of the catalogue by their context digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``variant`` and ``base`` of the host's images and the ``owned`` state.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the options of the role and of ml_catalogue.
    Raise DeclarationError for a broken catalogue or an unknown image.
    """
    build = ml_catalogue.choose_build(facts, options)
    images = build.images(options["ml_images_names"])
    return {
        "variant": build.variant,
        "base": build.base,
        "owned": {
            "images": [{"reference": image.reference, "digest": image.digest} for image in images]
        },
    }
