# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.image_offer: a host builds images and offers them to others."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images import registry
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    catalogue_builds,
    detached_job,
    ssh_forward,
)

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.ARGUMENT_SPEC,
    "build": {"type": "dict", "default": {}},
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
        builds = [
            build
            for build in catalogue_builds.Builds(arguments).select(arguments["names"])
            if build.reference in arguments["references"]
        ]
        owned = {"images": list(map(ml_images.image_entry, builds))}
        answer = ask_host.ask(self, engine.question([owned], kinds.ALL))
        differing = {
            one.name for one in engine.compare({"": owned}, answer, kinds.ALL)[""].differences
        }
        offer = {
            "images": {build.reference: build.digest for build in builds},
            "lease": registry.lease_of(arguments["host"]),
            "architecture": arguments["architecture"],
        }
        other = (task_vars or {})["hostvars"][builder]
        # What the builder could not build in this run, it does not try again for each host.
        tried = (other.get("__ml_images_built") or {}).get("failed", False)
        missing = [build for build in builds if build.reference in differing and not tried]
        job = images_job.pack_job(missing, arguments["build"], offer)
        outcome = detached_job.run_job(self, images_job.WORK, images_job.OFFER, job)
        failed = outcome["failed"]
        unavailable = outcome.get("unavailable", "")
        result.update(images=outcome.get("images", {}), changed=bool(outcome.get("built")))
        if outcome.get("port"):
            try:
                socket = ssh_forward.open_socket(self, builder, outcome["port"])
                result["socket"] = str(socket)
            except AnsibleError as error:
                unavailable = str(error)
        reasons = [f"{builder}: {reference}: {reason}" for reference, reason in failed.items()]
        result.update(
            failed_images=failed,
            unavailable=unavailable,
            failed=not (result["images"] or unavailable),
            msg="\n".join(reasons),
        )
        return result
