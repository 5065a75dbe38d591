# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe where the images of a host come from, for a plan; the survey and the summary use it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images import delivery
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils import builders, role_plans, roles
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared

ROLE, OPTION = delivery.ROLE, "ml_images_builder"


def read_builder(
    owned: Mapping[str, Mapping[str, Any]],
    drift: Mapping[str, list[Difference]],
    variables: roles.Vars,
    answer: Mapping[str, Any],
    template: role_plans.Template,
) -> list[str]:
    """Return ``ml_images_builder`` of a host without held hosts, empty if no host brings images.

    TEMPLATE evaluates variables as in the tasks of the role. If images come from a bundle, the
    differences in DRIFT name the bundle then. Raise AnsibleActionFail if a held host would have to
    build, or if the bundle lacks an image.
    """
    if not drift.get(ROLE):
        return []
    options = role_plans.read_options(roles.load(ROLE), variables, template)
    images = delivery.declared_images(owned.values())
    if options[declared.BUNDLE]:
        differing = {difference.name for difference in drift[ROLE]}
        wanted = {name: digest for name, digest in images.items() if name in differing}
        architecture = str(answer["facts"].get("architecture"))
        offered = declared.refuse_missing(options, wanted, architecture, variables)
        source = f"bundle {Path(options[declared.BUNDLE]).name}"
        known = delivery.recorded_layers(answer.get("images"))
        drift[ROLE][:] = [_name_bundle(one, source, offered, known) for one in drift[ROLE]]
        return []
    own = delivery.Candidate(answer["facts"].get("architecture"), images)
    return builders.without_held(options[OPTION], own, variables)


def _name_bundle(
    difference: Difference, source: str, offered: Mapping[str, Any], known: Mapping[str, Any]
) -> Difference:
    """Return a difference of an image with its SOURCE and the bytes that the host lacks.

    OFFERED: images of the bundle, by reference. KNOWN: see :func:`delivery.recorded_layers`.
    """
    image = offered.get(difference.name)
    if image is None:
        return difference
    size = delivery.missing_bytes(delivery.short_names(image["layers"]), known)
    return replace(difference, expected=delivery.describe_source(difference.expected, source, size))


def describe(
    owned: Mapping[str, Mapping[str, Any]],
    variables: roles.Vars,
    answer: Mapping[str, Any],
    builder: list[str],
    transport: str,
    registry: str,
) -> dict[str, Any]:
    """Return the declared images of a host, and what decides where they come from.

    BUILDER is ``ml_images_builder``, TRANSPORT the connection of the host, REGISTRY the server of
    the user's registry or empty. position: number of the host in the inventory.
    """
    everyone = list(variables.get("groups", {}).get("all", ()))
    host = variables.get("inventory_hostname")
    return {
        "images": delivery.declared_images(owned.values()),
        "delivery": {
            "builder": builder,
            "position": everyone.index(host) if host in everyone else 0,
            "architecture": answer["facts"].get("architecture"),
            "ssh": transport == "ssh",
            "registry": registry,
            "layers": delivery.recorded_layers(answer.get("images")),
        },
    }


def name_sources(surveys: Mapping[str, Mapping[str, Any]], failed: Collection[str]) -> None:
    """Replace the differences of images in the results of the surveys of a run.

    The lists of differences are changed in place: reports have the same ones.
    """
    for host, differences in delivery.plan_pulls(surveys, failed).items():
        surveys[host]["differences"][ROLE][:] = differences
