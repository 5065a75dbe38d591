# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_images: images of the catalogue by their context digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import STATE_FOLDER
from ansible_collections.slipway.host.plugins.module_utils.images import (
    build_cache,
    delivery,
    index,
    own_registry,
    types,
)
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue
from ansible_collections.slipway.host.plugins.module_utils.state.containers import IMAGE_RECORDS

# Copies of images that this host offered to others.
REGISTRY = f"{STATE_FOLDER}/registry"
# Docker trusts all files *.crt in the folder of a server; others may have files there too.
CERTIFICATE = "/etc/docker/certs.d/{server}/slipway.crt"


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return names, catalogue, variant, base and args of images, how to build, and ``owned``.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the options of the role and of ml_catalogue.
    Raise DeclarationError for a broken catalogue or an unknown image, ValueError for a builder that
    is not in the inventory, for a wrong size and for a wrong registry.
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
    registry = own_registry.read_option(options["ml_images_registry"])
    build = ml_catalogue.choose_build(facts, options)
    absent = options["ml_images_state"] == "absent"
    names = [] if absent else ml_catalogue.image_names(options)
    files = certificates(None if absent else registry, facts.get("registry_certificates", ()))
    folders: list[dict[str, Any]] = []
    if absent:
        files.append({"path": REGISTRY, "state": "absent"})
        folders.append({"path": IMAGE_RECORDS, "entries": []})
    owned = {
        "images": list(map(image_entry, build.images(names))),
        "files": files,
        "folders": folders,
    }
    return {
        "names": names,
        "catalogue": build.catalogue,
        "variant": build.variant,
        "base": build.base,
        "args": build.args,
        "build": {**options["ml_images_build"], "cache_bytes": cache_bytes},
        "owned": owned,
    }


def certificates(
    registry: own_registry.Registry | None, present: Iterable[str]
) -> list[dict[str, Any]]:
    """Return the file with the certificates of the registry, as Docker reads it.

    PRESENT: servers for which the host has such a file; those of other registries are removed.
    """
    declared = registry.server if registry and registry.ca else None
    files: list[dict[str, Any]] = [
        {"path": CERTIFICATE.format(server=server), "state": "absent"}
        for server in present
        if server != declared
    ]
    if registry and declared:
        path = CERTIFICATE.format(server=declared)
        files.append({"path": path, "content": f"{registry.ca.strip()}\n"})
    return files


def image_entry(image: index.Planned | types.ImageBuild) -> dict[str, Any]:
    """Return an image as owned state: its needs are its parent, a driver and an architecture."""
    return {
        "reference": image.reference,
        "digest": image.digest,
        **({"cuda": image.cuda} if image.cuda else {}),
        **({"unavailable": dict(image.unavailable)} if image.unavailable else {}),
        **({"needs": [["images", image.parent]]} if image.parent else {}),
    }
