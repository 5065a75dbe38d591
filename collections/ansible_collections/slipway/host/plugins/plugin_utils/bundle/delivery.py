# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring images, packages and data from a bundle on the controller to a host, over SSH."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    detached_job,
    ssh_forward,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    data,
    declared,
    images,
    packages,
    serving,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    files_of,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import Bundle


@contextmanager
def _served(action: ActionBase, host: str, bundle: Bundle) -> Iterator[int]:
    """Yield a port on loopback of the host of an action on which a bundle is served."""
    path = ssh_forward.socket_file(action, f"{host} bundle")
    with (
        serving.serving(bundle, path),
        ssh_forward.forwarded_port(action, host, str(path)) as port,
    ):
        yield port


@contextmanager
def apt_source(action: ActionBase, variables: Mapping[str, Any]) -> Iterator[dict[str, str] | None]:
    """Yield the packages of a bundle as the option ``bundle`` of the modules that use apt.

    None if the VARIABLES of the host name no bundle with packages. Raise AnsibleActionFail if the
    bundle has none for the host.
    """
    bundle = declared.open_packages(variables, action._templar.template)
    if bundle is None:
        yield None
        return
    # A rollback runs no survey before.
    facts = variables.get("ansible_facts", {}).get("slipway") or ask_host.ask(action, {})["facts"]
    try:
        index = packages.read_index(bundle, facts)
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None
    with _served(action, str(variables["inventory_hostname"]), bundle) as port:
        yield {"url": f"http://127.0.0.1:{port}/{index.folder}", "sha256": index.sha256}


@contextmanager
def data_source(
    action: ActionBase, trees: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> Iterator[dict[str, str]]:
    """Yield the addresses of the archives of TREES that a bundle has, by name of the tree.

    VARIABLES: those of the host, which may name a bundle. Without SSH, the host downloads.
    """
    is_ssh = action._connection.transport == "ssh"
    bundle = declared.open_named(variables, action._templar.template) if is_ssh else None
    found = data.find(bundle.manifest, trees) if bundle else {}
    if bundle is None or not found:
        yield {}
        return
    with _served(action, str(variables["inventory_hostname"]), bundle) as port:
        yield {
            tree["name"]: f"http://127.0.0.1:{port}/{found[tree['path']]}"
            for tree in trees
            if tree["path"] in found
        }


def fetch(
    action: ActionBase,
    arguments: Mapping[str, Any],
    builds: Sequence[ImageBuild],
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    """Bring images to the host of an action; return the result of the job.

    ARGUMENTS: bundle and signer, see slipway.host.images. VARIABLES: those of the host.
    """
    wanted = {build.reference: build.digest for build in builds}
    host = str(variables["inventory_hostname"])
    architecture = variables["ansible_facts"]["slipway"]["architecture"]
    try:
        with files_of(arguments["bundle"]):
            bundle = declared.open_checked(arguments["bundle"], arguments["signer"], variables)
            offered = images.check_offer(bundle, wanted, architecture)
    except BundleError as error:
        raise AnsibleActionFail(str(error)) from None
    with _served(action, host, bundle) as port:
        job = images_job.pack_fetch(builds, offered, f"bundle {bundle.path.name}", port)
        outcome = detached_job.run_job(action, images_job.WORK, images_job.FETCH, job)
    if outcome.get("unavailable"):
        raise ssh_forward.NoDeliveryError(outcome["unavailable"])
    return outcome
