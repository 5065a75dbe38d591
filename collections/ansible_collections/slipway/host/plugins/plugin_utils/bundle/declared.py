# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle that the variables of a host name, and what it must have for that host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images, packages
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

VENDOR = (
    "packages of a vendor's apt repository; expected packages of the distribution, the only ones "
    "that a bundle has. Leave the role out of slipway_roles, or choose the distribution as its "
    "source"
)


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


def open_packages(variables: Mapping[str, Any], template: role_plans.Template) -> Bundle | None:
    """Return the open bundle that VARIABLES name if it has packages; TEMPLATE evaluates variables.

    Raise AnsibleActionFail if the bundle is refused.
    """
    path, signer = (
        str(role_plans.evaluate(name, variables.get(name) or "", template))
        for name in (BUNDLE, SIGNER)
    )
    if not path:
        return None
    try:
        with files_of(path):
            bundle = open_checked(path, signer, variables)
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None
    return bundle if packages.list_releases(bundle) else None


def refuse_missing_packages(
    bundle: Bundle | None,
    roles: Mapping[str, tuple[Mapping[str, Any], Sequence[Difference]]],
    answer: Mapping[str, Any],
    transport: str,
    end: str,
) -> None:
    """Fail if ROLES that will run need packages that a bundle lacks.

    ROLES: owned state and drift by name. ANSWER: of the host. TRANSPORT: the connection of the
    host. END: the end of the message.
    """
    owned = {name: statement for name, (statement, _drift) in roles.items()}
    installs = [statement for statement in owned.values() if packages.list_present(statement)]
    if bundle is None or not installs:
        return
    try:
        if transport != "ssh":
            raise BundleError(
                f"connection {transport}; expected ssh, over which the packages of {bundle.path} "
                "are delivered. Use a bundle without packages for this host."
            )
        for name, (_statement, drift) in roles.items():
            if any(one.kind == "keyrings" for one in drift):
                raise BundleError(f"{name}: {VENDOR}.")
        packages.check_index(bundle, answer["facts"], owned, answer["packages"])
    except BundleError as error:
        raise AnsibleActionFail(f"{str(error).rstrip('.')}{end}") from None
