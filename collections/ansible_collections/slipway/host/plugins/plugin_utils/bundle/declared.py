# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle that the variables of a host name, and what it must have for that host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (
    Bundle,
    open_bundle,
)

BUNDLE, SIGNER = "ml_images_bundle", "ml_images_bundle_signer"
# SHA-256 of the manifest of the bundle that `site --bundle` checked completely.
CHECKED = "__ml_images_bundle_manifest"


def open_checked(path: str, signer: str, variables: Mapping[str, Any]) -> Bundle:
    """Open a bundle whose signature and form are checked; raise BundleError otherwise.

    VARIABLES of the host: if they have CHECKED, the bundle must still be that one.
    """
    bundle = open_bundle(Path(path).expanduser(), Path(signer).expanduser() if signer else None)
    checked = variables.get(CHECKED) or bundle.digest
    if bundle.digest != checked:
        raise BundleError(
            f"{bundle.path}: replaced during the run: its manifest has SHA-256 {bundle.digest}; "
            f"expected {checked}. Run again to check the new bundle."
        )
    bundle.check_headers()
    return bundle


def refuse_missing(
    options: Mapping[str, Any],
    wanted: Mapping[str, str],
    architecture: str,
    variables: Mapping[str, Any],
) -> None:
    """Fail if the bundle that the OPTIONS of ml_images name lacks an image.

    WANTED: context digest by reference. VARIABLES: those of the host.
    """
    try:
        with files_of(options[BUNDLE]):
            bundle = open_checked(options[BUNDLE], options[SIGNER], variables)
            images.check_offer(bundle, wanted, architecture)
    except BundleError as error:
        raise AnsibleActionFail(f"{error} Nothing was changed.") from None
