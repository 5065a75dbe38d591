# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.image_fetch: bring images from the host that offers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.plugin_utils import (
    catalogue_builds,
    detached_job,
    image_registry,
    ssh_forward,
)

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.BUILD_ARGUMENT_SPEC,
    "builder": {"type": "str", "required": True},
    "offer": {"type": "dict", "required": True},
    "may_build": {"type": "bool", "default": False},
}

display = Display()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Bring images to the host, see the documentation of slipway.host.image_fetch."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        if self._task.check_mode:
            return result
        offer, builder, variables = arguments["offer"], arguments["builder"], task_vars or {}
        host = str(variables["inventory_hostname"])
        builds = catalogue_builds.Builds(arguments).select(arguments["names"])
        wanted = [build for build in builds if build.reference not in offer["failed_images"]]
        try:
            outcome = self._fetch(wanted, offer, builder, variables)
        except ssh_forward.NoDeliveryError as error:
            if not arguments["may_build"]:
                raise
            reason = str(error).rstrip(". ")
            display.warning(f"{reason}. Instead, {host} builds the images itself.")
            job = images_job.pack_job(wanted, arguments["build"])
            outcome = detached_job.run_job(self, images_job.WORK, images_job.BUILDER, job)
        failed = {
            **{name: f"{builder}: {reason}" for name, reason in offer["failed_images"].items()},
            **outcome["failed"],
        }
        result.update(
            changed=bool(outcome.get("fetched") or outcome.get("built")),
            fetched=outcome.get("fetched", []),
            built=outcome.get("built", []),
            received=outcome.get("received", 0),
            failed=bool(failed),
            msg="\n".join(f"{reference}: {reason}" for reference, reason in failed.items()),
        )
        return result

    def _fetch(
        self,
        builds: Sequence[ImageBuild],
        offer: Mapping[str, Any],
        builder: str,
        variables: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Bring images; raise NoDeliveryError if no registry or no connection is available."""
        if offer["unavailable"]:
            reason = f"{builder} cannot offer images: {offer['unavailable']}"
            raise ssh_forward.NoDeliveryError(reason)
        own = image_registry.read(variables, self._templar.template)
        host = str(variables["inventory_hostname"])
        with (
            nullcontext(own) if own else ssh_forward.forwarded_port(self, host, offer["socket"])
        ) as source:
            job = images_job.pack_fetch(builds, offer["images"], builder, source)
            outcome = detached_job.run_job(self, images_job.WORK, images_job.FETCH, job)
        if outcome.get("unavailable"):
            raise ssh_forward.NoDeliveryError(outcome["unavailable"])
        return outcome
