# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of slipway.host.images: starts the builder on the host and tells its progress."""

from __future__ import annotations

import base64
import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils import (
    _cuda_fit,
    _image_plan,
    _owned,
)
from ansible_collections.slipway.host.plugins.plugin_utils import _ask, _builds

ARGUMENT_SPEC: dict[str, Any] = {
    "names": {"type": "list", "elements": "str", "required": True},
    "catalogue": {"type": "path", "required": True},
    "variant": {"type": "str", "choices": ["cpu", "gpu"], "required": True},
    "base": {"type": "str", "required": True},
    "args": {"type": "dict", "default": {}},
    "build": {"type": "dict", "default": {}},
}
WORK = "/var/lib/slipway/builds"
# Seconds between two looks at the builder's progress.
PACE = 1.0

display = Display()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build what differs, see the documentation of slipway.host.images."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        builds = _builds.Builds(arguments).of(arguments["names"])
        entries = [{"reference": build.reference, "digest": build.digest} for build in builds]
        owned = {"images": entries}
        answer = _ask.ask(self, _owned.question([owned]))
        differing = _owned.differences(owned, answer)
        names = {difference.name for difference in differing}
        wanted = [build for build in builds if build.reference in names]
        unfit = _cuda_fit.misfits(wanted, answer["facts"])
        if unfit:
            sentences = [f"{reference} {why}" for reference, why in unfit.items()]
            raise AnsibleActionFail("; ".join(sentences) + ". Nothing was built.")
        result.update(changed=bool(differing), images=entries)
        result["diff"] = [{"prepared": f"{difference}\n"} for difference in differing]
        if not differing or self._task.check_mode:
            return result
        if answer["engine"]:
            raise AnsibleActionFail(
                f"Docker does not answer ({answer['engine']}). Images need a running engine; the "
                "role docker_engine installs one."
            )
        outcome = self._build(wanted, arguments)
        result["built"] = outcome["built"]
        if outcome["failed"]:
            result["failed"] = True
            result["msg"] = "\n".join(
                f"{reference}: {why}" for reference, why in outcome["failed"].items()
            )
        return result

    def _build(self, wanted: list[Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Send the job, start the builder, follow it; return its result."""
        job = _image_plan.job(wanted, arguments["build"])
        folder = f"{WORK}/{time.time_ns()}"
        python = _ask.interpreter(self)
        builder = f"{python} -m {_image_plan.BUILDER} {folder}"
        # The archive travels as text: a connection's standard input may not be clean for bytes.
        self._command(
            f"umask 077; mkdir -p {folder} && cd {folder} && base64 -d | tar -xz && : >progress && "
            f"{{ setsid {builder} >log 2>&1 </dev/null & echo $! >pid; }}",
            base64.encodebytes(job),
        )
        # A builder that is gone without a result was killed.
        look = (
            f"cd {folder}; kill -0 $(cat pid) 2>/dev/null && alive=1; "
            'cat result.json 2>/dev/null || [ "$alive" ] || echo \'{"killed": true}\'; '
            "echo; echo ----; tail -c +%d progress"
        )
        told = 0
        try:
            while True:
                outcome, _, news = self._command(look % (told + 1)).partition("----\n")
                told += len(news.encode())
                for line in news.splitlines():
                    display.display(f"{self._host()}: {line}")
                if outcome.strip():
                    done: dict[str, Any] = json.loads(outcome)
                    if "killed" in done:
                        raise AnsibleActionFail("the build was killed; run again to finish it")
                    return done
                time.sleep(PACE)
        finally:
            self._command(f"cd /; kill -0 $(cat {folder}/pid) 2>/dev/null || rm -rf {folder}")

    def _host(self) -> str:
        return str((self._templar.available_variables or {}).get("inventory_hostname", "host"))

    def _command(self, script: str, data: bytes = b"\n") -> str:
        """Run a shell script on the host as root; return its output or fail.

        There is always DATA for its standard input, else ssh gives it a terminal, which changes
        line ends.
        """
        reply = self._low_level_execute_command(
            f"/bin/sh -c {shlex.quote(script)}", in_data=data, sudoable=True
        )
        if reply["rc"] != 0:
            raise AnsibleActionFail(
                f"the builder could not be reached: {(reply['stderr'] or reply['stdout']).strip()}"
            )
        return str(reply["stdout"])
