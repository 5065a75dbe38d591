# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle that the variables of a host name, and what it must have for that host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (
    Bundle,
    open_bundle,
)

BUNDLE, SIGNER = "ml_images_bundle", "ml_images_bundle_signer"


def open_checked(path: str, signer: str) -> Bundle:
    """Open a bundle whose signature and form are checked; raise BundleError otherwise."""
    bundle = open_bundle(Path(path).expanduser(), Path(signer).expanduser() if signer else None)
    bundle.check_headers()
    return bundle


def refuse_missing(
    options: Mapping[str, Any], wanted: Mapping[str, str], architecture: str
) -> None:
    """Fail if the bundle that the OPTIONS of ml_images name lacks an image.

    WANTED: context digest by reference.
    """
    try:
        images.check_offer(open_checked(options[BUNDLE], options[SIGNER]), wanted, architecture)
    except BundleError as error:
        raise AnsibleActionFail(f"{error} Nothing was changed.") from None
