# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of slipway.host.images: starts the builder on the host and shows its progress."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import cuda_fit
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    catalogue_builds,
    detached_job,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "names": {"type": "list", "elements": "str", "required": True},
    "catalogue": {"type": "path", "required": True},
    "variant": {"type": "str", "choices": ["cpu", "gpu"], "required": True},
    "base": {"type": "str", "required": True},
    "args": {"type": "dict", "default": {}},
    "build": {"type": "dict", "default": {}},
}
WORK = "/var/lib/slipway/builds"


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build the images that differ, see the documentation of slipway.host.images."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        builds = catalogue_builds.Builds(arguments).of(arguments["names"])
        entries = [{"reference": build.reference, "digest": build.digest} for build in builds]
        owned = {"images": entries}
        answer = ask_host.ask(self, engine.question([owned], kinds.ALL))
        differing = engine.differences(owned, answer, kinds.ALL)
        names = {difference.name for difference in differing}
        outdated = [build for build in builds if build.reference in names]
        unfit = cuda_fit.misfits(outdated, answer["facts"])
        if unfit:
            sentences = [f"{reference} {why}" for reference, why in unfit.items()]
            raise AnsibleActionFail("; ".join(sentences) + ". Nothing was built.")
        result.update(changed=bool(differing), images=entries)
        result["diff"] = [{"prepared": f"{difference}\n"} for difference in differing]
        if not differing or self._task.check_mode:
            return result
        if answer["engine"]:
            raise AnsibleActionFail(
                f"Docker does not answer on the host: {answer['engine']}; expected a running "
                "engine. Run the role docker_engine, then build again."
            )
        job = images_job.pack_job(outdated, arguments["build"])
        outcome = detached_job.carry_out(self, WORK, images_job.BUILDER, job)
        result["built"] = outcome["built"]
        if outcome["failed"]:
            result["failed"] = True
            result["msg"] = "\n".join(
                f"{reference}: {why}" for reference, why in outcome["failed"].items()
            )
        return result
