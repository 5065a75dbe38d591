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
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared, packages
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
# What a host is before its first run, and without a network.
FRESH = {"reachable": {}, "docker_package": ""}


class ActionModule(survey.ActionModule):
    """Ansible's entry point."""

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Copy packages to a folder, see the documentation of slipway.host.bundle_packages."""
        result: dict[str, Any] = super(survey.ActionModule, self).run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        variables = task_vars or {}
        facts = {**ask_host.ask(self, {})["facts"], **FRESH}
        self._check_input(arguments["roles"], variables, facts)
        wanted = list_packages(self._owned(arguments["roles"], variables, facts))
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

    def _copy(self, pool: packages.Pool, work: str, described: Mapping[str, Any]) -> int:
        """Copy a package file to a pool; return the bytes received."""
        target = pool.place(described)
        if target is None:
            return 0
        self._connection.fetch_file(f"{work}/archives/{described['file']}", str(target))
        pool.add(described)
        return target.stat().st_size


def list_packages(owned: survey.Plans) -> dict[str, list[str]]:
    """Return the ``names`` of the packages that roles install, and those that are ``optional``.

    OWNED: owned state by role. Raise AnsibleActionFail if a bundle cannot have them.
    """
    found: dict[str, list[str]] = {"names": [], "optional": []}
    for role, statement in owned.items():
        problems = list(statement.get("refused", ()))
        if statement.get("keyrings"):
            problems.append(declared.VENDOR)
        if problems:
            raise AnsibleActionFail(f"{role}: {'; '.join(problems)}.")
        for entry in packages.list_present(statement):
            found["optional" if entry.get("optional") else "names"].append(entry["name"])
    return {kind: sorted({*names}) for kind, names in found.items()}
