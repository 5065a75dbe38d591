# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring images from a bundle on the controller to a host, over SSH."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils import detached_job, ssh_forward
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images, serving
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


def fetch(
    action: ActionBase, arguments: Mapping[str, Any], builds: Sequence[ImageBuild], host: str
) -> dict[str, Any]:
    """Bring images to the host of an action; return the result of the job.

    ARGUMENTS: bundle, signer and architecture, see slipway.host.images.
    """
    wanted = {build.reference: build.digest for build in builds}
    try:
        bundle = open_checked(arguments["bundle"], arguments["signer"])
        offered = images.check_offer(bundle, wanted, arguments["architecture"])
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None
    path = ssh_forward.socket_file(action, f"{host} bundle")
    with (
        serving.serving(bundle, path),
        ssh_forward.forwarded_port(action, host, str(path)) as port,
    ):
        job = images_job.pack_fetch(builds, offered, f"bundle {bundle.path.name}", port)
        outcome = detached_job.run_job(action, images_job.WORK, images_job.FETCH, job)
    if outcome.get("unavailable"):
        raise ssh_forward.NoDeliveryError(outcome["unavailable"])
    return outcome
