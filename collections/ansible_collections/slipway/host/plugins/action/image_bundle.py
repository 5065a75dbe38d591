# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.image_bundle: copy images of a host to the controller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.action import image_offer
from ansible_collections.slipway.host.plugins.module_utils.images import registry
from ansible_collections.slipway.host.plugins.plugin_utils import (
    catalogue_builds,
    host_command,
    ssh_forward,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import images
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    files_of,
)

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.BUILD_ARGUMENT_SPEC,
    "architecture": {"type": "str", "required": True},
    "folder": {"type": "path", "required": True},
}


class ActionModule(image_offer.ActionModule):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Copy images to a folder, see the documentation of slipway.host.image_bundle."""
        result: dict[str, Any] = super(image_offer.ActionModule, self).run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        variables = task_vars or {}
        host, architecture = str(variables["inventory_hostname"]), arguments["architecture"]
        layout = images.Layout(Path(arguments["folder"]))
        builds = catalogue_builds.Builds(arguments).select(arguments["names"])
        missing = [
            build for build in builds if not layout.has(build.reference, build.digest, architecture)
        ]
        result.update(changed=bool(missing), received=0)
        if not missing or self._task.check_mode:
            return result
        references = [build.reference for build in missing]
        try:
            with files_of(layout.folder):
                offered = self._offer(
                    {**arguments, "references": references, "host": host}, host, variables
                )
                _refuse_failed(host, offered)
                offers = offered.get("images") or {}
                for build in missing:
                    notes = images.make_notes(build.reference, build.digest, architecture)
                    image = offers.get(build.reference)
                    result["received"] += layout.add(Path(offered["socket"]), image, notes)
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        finally:
            host_command.run(self, registry.release_script(ssh_forward.lease_of(host)))
            ssh_forward.close_socket(self, host)
        return result


def _refuse_failed(host: str, offered: Mapping[str, Any]) -> None:
    """Fail if the result of the job on a host has no registry with all images."""
    reason = offered.get("unavailable") or "; ".join(
        f"{name}: {text}" for name, text in offered["failed"].items()
    )
    if reason or "socket" not in offered:
        raise AnsibleActionFail(
            f"{host} cannot offer the images: {reason or 'no registry started'}; expected images "
            "that build on this host. Correct the cause, then run again."
        )
