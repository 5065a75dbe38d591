# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.images_info: compare the catalogue with a host's images."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.images import fit, listing
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.plugin_utils import catalogue_builds, host_command

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.ARGUMENT_SPEC,
    "show": {"type": "str", "choices": ["nothing", "table", "markdown"], "default": "nothing"},
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
        """Compare the images of the host, see the documentation of slipway.host.images_info."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        catalogue = catalogue_builds.Builds(arguments)
        declared = {build.reference for build in catalogue.select(arguments["names"])}
        builds = catalogue.select()
        reply = host_command.run(self, listing.QUESTION)
        try:
            present = listing.read_answer(reply.output)
        except (ValueError, KeyError):
            raise AnsibleActionFail(
                f"Cannot list the images on the host: {reply.error}; expected JSON from "
                "Docker. Run 'docker images' on the host."
            ) from None
        facts = (task_vars or {}).get("ansible_facts", {}).get("slipway")
        unfit = fit.misfits(map(ml_images.image_entry, builds), facts) if facts else {}
        rows = listing.compare(builds, present, declared, unfit)
        if arguments["show"] != "nothing":
            host = (self._templar.available_variables or {}).get("inventory_hostname", "host")
            render = listing.page if arguments["show"] == "markdown" else listing.table
            display.display(f"\n{host}, {arguments['variant']}:\n\n{render(rows)}\n")
        result.update(
            changed=False,
            images=[asdict(row) for row in rows],
            unneeded=list(listing.unneeded(rows)),
        )
        return result
