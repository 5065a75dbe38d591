# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine architectures that images of the catalogue are built for.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARCHITECTURES = ("x86_64", "aarch64")
"""As `uname -m` and the markers of Python packages name them."""


def unavailable(
    settings: Mapping[str, Any], variant: str, below: Mapping[str, str]
) -> dict[str, str]:
    """Return why a variant of an image is not built for an architecture, by architecture.

    SETTINGS is the declaration of the image, BELOW the result for the image below it.
    """
    declared = settings["architectures"]
    built = declared.get(variant, ARCHITECTURES) if isinstance(declared, Mapping) else declared
    reason = settings["other_architectures"]
    return {**{name: reason for name in ARCHITECTURES if name not in built}, **below}


def misfit(machine: str, unavailable_on: Mapping[str, str]) -> str | None:
    """Return why an image is not built for the architecture MACHINE of a host, None if it is."""
    if machine not in ARCHITECTURES:
        return (
            f"is not built for {machine}, the architecture of the host; expected "
            f"{' or '.join(ARCHITECTURES)}. Do not list images for this host"
        )
    if reason := unavailable_on.get(machine):
        return f"is not built for {machine}, the architecture of the host: {reason.rstrip('.')}"
    return None
