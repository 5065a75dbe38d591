# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.image_offer: a host builds images and offers them to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import Registry
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    catalogue_builds,
    detached_job,
    image_registry,
    ssh_forward,
)

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.BUILD_ARGUMENT_SPEC,
    "references": {"type": "list", "elements": "str", "required": True},
    "architecture": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
}


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Offer images to a host, see the documentation of slipway.host.image_offer."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        builder = str(self._task.delegate_to)
        if self._task.check_mode:
            return result
        variables = task_vars or {}
        own = image_registry.read_of_builder(builder, variables, self._templar.template)
        try:
            outcome = self._offer(arguments, builder, variables, own)
        except (AnsibleConnectionFailure, ssh_forward.NoDeliveryError) as error:
            # As a failure of the connection it would end the run on the host of the task.
            outcome = {"failed": {}, "unavailable": str(error)}
        failed, unavailable = outcome["failed"], outcome.get("unavailable", "")
        reasons = [f"{builder}: {reference}: {reason}" for reference, reason in failed.items()]
        result.update(
            changed=bool(outcome.get("built")),
            images=outcome.get("images", {}),
            socket=outcome.get("socket", ""),
            failed_images=failed,
            unavailable=unavailable,
            failed=not (outcome.get("images") or unavailable),
            msg="\n".join(reasons),
        )
        return result

    def _offer(
        self,
        arguments: Mapping[str, Any],
        builder: str,
        variables: Mapping[str, Any],
        own: Registry | None = None,
    ) -> dict[str, Any]:
        """Build and serve on the builder; return the result of the job with the ``socket``.

        OWN: registry of the user that gets the images instead.
        """
        builds = catalogue_builds.Builds(arguments).select(arguments["names"])
        offered = needed = set(arguments["references"])
        # An image is built on the image below it, which the other host may have already.
        for build in reversed(builds):
            if build.reference in needed and build.parent:
                needed = needed | {build.parent}
        builds = [build for build in builds if build.reference in needed]
        owned = {"images": list(map(ml_images.image_entry, builds))}
        answer = ask_host.ask(self, engine.question([owned], kinds.ALL))
        compared = engine.compare({"": owned}, answer, kinds.ALL)[""]
        differing = {one.name for one in compared.differences}
        # What the builder could not build in this run, it does not try again for each host.
        built = variables["hostvars"][builder].get("__ml_images_built") or {}
        missing = [
            build
            for build in builds
            if build.reference in differing and not built.get("failed", False)
        ]
        offer = {
            "images": {one.reference: one.digest for one in builds if one.reference in offered},
            "lease": ssh_forward.lease_of(arguments["host"]),
            "architecture": arguments["architecture"],
        }
        job = images_job.pack_job(missing, arguments["build"], offer, own)
        outcome = detached_job.run_job(self, images_job.WORK, images_job.OFFER, job)
        if outcome.get("port"):
            outcome["socket"] = str(ssh_forward.open_socket(self, builder, outcome["port"]))
        return outcome
