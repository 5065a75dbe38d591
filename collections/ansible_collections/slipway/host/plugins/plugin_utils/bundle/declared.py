# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle that the variables of a host name, and what it must have for that host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (
    Bundle,
    open_bundle,
)

ROLE = "ml_images"
VARIABLES = ("ml_images_bundle", "ml_images_bundle_signer")


def open_checked(path: str, signer: str) -> Bundle:
    """Open a bundle whose signature and form are checked; raise BundleError otherwise."""
    bundle = open_bundle(Path(path).expanduser(), Path(signer).expanduser() if signer else None)
    bundle.check_headers()
    return bundle


def refuse_missing(
    variables: Mapping[str, Any],
    template: Callable[[Any], Any],
    owned: Mapping[str, Mapping[str, Any]],
    drift: Mapping[str, Sequence[Difference]],
    facts: Mapping[str, Any],
) -> None:
    """Fail if images of a host have drift and the bundle that its variables name lacks one.

    OWNED and DRIFT are those of each role.
    """
    path, signer = (str(template(variables.get(name, "")) or "") for name in VARIABLES)
    names = {difference.name for difference in drift.get(ROLE, ())}
    if not path or not names:
        return
    declared = {image["reference"]: image["digest"] for image in owned[ROLE]["images"]}
    wanted = {name: digest for name, digest in declared.items() if name in names}
    try:
        images.check_offer(open_checked(path, signer), wanted, facts["architecture"])
    except BundleError as error:
        raise AnsibleActionFail(f"{error} Nothing was changed.") from None
