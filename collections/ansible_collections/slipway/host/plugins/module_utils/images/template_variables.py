# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of images/Dockerfile.j2 for one build.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.architectures import ARCHITECTURES
from ansible_collections.slipway.host.plugins.module_utils.images.locks import Pin, version_for
from ansible_collections.slipway.host.plugins.module_utils.images.types import (
    Base,
    CatalogueError,
    Image,
    ImageBuild,
    Python,
    UnfitError,
    lock_file,
)

_GPU_ENVIRONMENT = {
    "NVIDIA_VISIBLE_DEVICES": "all",
    "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
}


def template_variables(
    image: Image,
    variant: str,
    root: Base,
    parent: ImageBuild | None,
    args: Mapping[str, str],
    pins: Sequence[Pin],
) -> dict[str, Any]:
    """Return the variables of a template; images/Dockerfile.j2 describes them."""
    settings = image.settings
    requirements = image.requirements_file(variant)
    build_requirements = image.build_requirements_file
    packages = _apt_packages(settings["packages"], variant)
    on_python = False
    if requirements or build_requirements:
        python = _require_python(image, root)
        on_python = parent is None
        if parent and not parent.pins:
            packages = [*python.packages, *packages]
    return {
        "name": image.name,
        "variant": variant,
        "image": settings,
        "root": root,
        "reference": parent.reference if parent else root.reference,
        "packages": packages,
        "on_python": on_python,
        "lock": lock_file(requirements) if requirements else None,
        "build_lock": lock_file(build_requirements) if build_requirements else None,
        "args": {
            name: args.get(name, argument["default"]) for name, argument in settings["args"].items()
        },
        "environment": {
            **(_GPU_ENVIRONMENT if variant == "gpu" else {}),
            **settings["environment"],
        },
        "start": labels.START,
        "user_packages": labels.USER_PACKAGES,
        "labels": _labels(settings) | {labels.OCI_VERSION: _version(image, root, pins)},
    }


def _apt_packages(packages: Any, variant: str) -> list[str]:
    """Return the apt packages of a variant: one list for all variants, or a list for each."""
    if isinstance(packages, list):
        return packages
    return [*packages.get("all", []), *packages.get(variant, [])]


def _require_python(image: Image, root: Base) -> Python:
    """Return the base's Python; raise UnfitError if locks do not support its release."""
    python = root.python
    oldest = image.settings["oldest_python"]
    if python is None or release(python.version) < release(oldest):
        present = f"Python {python.version}" if python else "no Python"
        raise UnfitError(
            f"{image.place('requirements')}: base {root.name} has {present}; expected Python "
            f"{oldest} or newer. Choose another base, or apt packages."
        )
    return python


def release(python: str) -> tuple[int, ...]:
    """Return a release of Python, such as `3.11`, so that releases can be compared."""
    return tuple(map(int, python.split(".")))


def _labels(settings: Mapping[str, Any]) -> dict[str, str]:
    values = {
        labels.OCI_TITLE: settings["title"],
        labels.OCI_DESCRIPTION: " ".join(settings["description"].split()),
        labels.OCI_LICENSES: settings["licence"],
        labels.OCI_SOURCE: settings["source"],
        labels.END_OF_LIFE: settings["end_of_life"],
        labels.SUCCESSOR: settings["successor"],
    }
    return {name: value for name, value in values.items() if value is not None}


def _version(image: Image, root: Base, pins: Sequence[Pin]) -> str:
    """Return an image's version: the declared one, or for `lock:NAME` that of a locked package."""
    declared: str = image.settings["version"]
    kind, _separator, name = declared.partition(":")
    if kind != "lock":
        return declared
    python = root.python.version if root.python else ""
    # Some frameworks publish their CPU builds under another name.
    candidates = (
        version_for(pins, package, python, machine)
        for machine in ARCHITECTURES
        for package in (name, f"{name}-cpu")
    )
    version = next(filter(None, candidates), None)
    if version is None:
        raise CatalogueError(
            f"{image.place('version')}: {declared!r}, but no lock of the image pins {name!r}; "
            "expected a locked package. Correct the name, or write the version itself."
        )
    return version
