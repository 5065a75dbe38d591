# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bundle that the variables of a host name, and what it must have for that host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images, packages
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    Manifest,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (
    Bundle,
    open_bundle,
    read_unchecked,
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
) -> dict[str, Any]:
    """Return the images of the bundle that the OPTIONS of ml_images name; fail if one is missing.

    See :func:`images.offer`. WANTED: context digest by reference. VARIABLES: those of the host.
    """
    try:
        with files_of(options[BUNDLE]):
            bundle = open_checked(options[BUNDLE], options[SIGNER], variables)
            return images.check_offer(bundle, wanted, architecture)
    except BundleError as error:
        raise AnsibleActionFail(f"{error} Nothing was changed.") from None


def open_named(variables: Mapping[str, Any], template: role_plans.Template) -> Bundle | None:
    """Return the open bundle that VARIABLES name; TEMPLATE evaluates variables.

    Raise AnsibleActionFail if the bundle is refused.
    """
    path, signer = (_evaluate(name, variables, template) for name in (BUNDLE, SIGNER))
    if not path:
        return None
    try:
        with files_of(path):
            return open_checked(path, signer, variables)
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None


def open_packages(variables: Mapping[str, Any], template: role_plans.Template) -> Bundle | None:
    """Return the bundle of :func:`open_named` if it has packages."""
    bundle = open_named(variables, template)
    return bundle if bundle and packages.list_releases(bundle.manifest) else None


def read_named(variables: Mapping[str, Any], template: role_plans.Template) -> Manifest | None:
    """Return the manifest of the bundle that VARIABLES name; its signature is not checked.

    Raise AnsibleActionFail if the bundle cannot be read.
    """
    path = _evaluate(BUNDLE, variables, template)
    if not path:
        return None
    try:
        with files_of(path):
            return read_unchecked(Path(path).expanduser())
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None


def _evaluate(name: str, variables: Mapping[str, Any], template: role_plans.Template) -> str:
    return str(role_plans.evaluate(name, variables.get(name) or "", template))


def refuse_missing_packages(
    bundle: Bundle | None,
    owned: Mapping[str, Mapping[str, Any]],
    answer: Mapping[str, Any],
    transport: str,
    end: str,
) -> None:
    """Fail if roles that will run need packages that a bundle lacks.

    OWNED: owned state by role. ANSWER: of the host. TRANSPORT: the connection of the host. END: the
    end of the message.
    """
    installs = [statement for statement in owned.values() if packages.list_present(statement)]
    if bundle is None or not installs:
        return
    try:
        if transport != "ssh":
            raise BundleError(
                f"connection {transport}; expected ssh, over which the packages of {bundle.path} "
                "are delivered. Use a bundle without packages for this host."
            )
        packages.check_index(bundle, answer["facts"], owned, answer["packages"])
    except BundleError as error:
        raise AnsibleActionFail(f"{str(error).rstrip('.')}{end}") from None
