# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.bundle_packages: copy packages of a host to the controller."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.action import survey
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    host_command,
    host_progress,
    role_plans,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import making, packages
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    files_of,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "list", "elements": "str", "required": True},
    "folder": {"type": "path", "required": True},
}
MODULE = "slipway.host.bundle_packages"
WORK = "/var/tmp/slipway-packages"


class ActionModule(survey.ActionModule):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Copy packages to a folder, see the documentation of slipway.host.bundle_packages."""
        result: dict[str, Any] = super(survey.ActionModule, self).run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        variables = task_vars or {}
        facts, wanted = self._list_packages(arguments["roles"], variables)
        received = 0
        result.update(changed=bool(wanted["names"]), received=0)
        if not wanted["names"] or self._task.check_mode:
            return result
        reply = host_command.run(self, f"mktemp --directory {WORK}-XXXXXXXXXX")
        work = reply.output.strip()
        if not re.fullmatch(rf"{WORK}-\w+", work):
            raise AnsibleActionFail(
                f"cannot make a folder on the host: {reply.error}; expected one in /var/tmp. Check "
                "its disk, then run again."
            )
        try:
            with host_progress.watch(self):
                done: dict[str, Any] = self._execute_module(
                    module_name=MODULE, module_args={**wanted, "work": work}, task_vars=variables
                )
            if done.get("failed"):
                return {**result, **done}
            with files_of(arguments["folder"]):
                pool = packages.Pool(Path(arguments["folder"]), facts)
                for described in done["packages"]:
                    received += self._copy(pool, work, described)
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None
        except (KeyError, TypeError) as error:
            raise AnsibleActionFail(
                f"the host described a package without {error}; expected file, size, SHA-256 and "
                "control data. Check the host: somebody may have replaced its Python."
            ) from None
        finally:
            host_command.run(self, f"rm -rf {work}")
        return {**result, "received": received}

    def _list_packages(
        self, names: list[str], variables: survey.Vars
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the facts of a fresh host, and what the roles NAMES download for it."""

        def text(name: str) -> str:
            value = variables.get(name) or ""
            return str(role_plans.evaluate(name, value, self._templar.template))

        asked = ask_host.ask(self, {})["facts"]
        try:
            facts = making.describe_fresh(asked, text(making.GPUS), text(making.KERNEL))
            self._check_input(names, variables, facts)
            plans = {}
            for name in names:
                template = self._template(name, variables, facts)
                plans[name] = role_plans.plan(name, variables, template, facts)
            return facts, making.list_packages(plans)
        except BundleError as error:
            raise AnsibleActionFail(str(error)) from None

    def _copy(self, pool: packages.Pool, work: str, described: Mapping[str, Any]) -> int:
        """Copy a package file to a pool; return the bytes received."""
        target = pool.place(described)
        if target is None:
            return 0
        self._connection.fetch_file(f"{work}/archives/{described['file']}", str(target))
        pool.add(described)
        return target.stat().st_size
