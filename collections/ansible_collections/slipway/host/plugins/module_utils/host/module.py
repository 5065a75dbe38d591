# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of all modules of this collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.host import environment
from ansible_collections.slipway.host.plugins.module_utils.host.status import Status
from ansible_collections.slipway.host.plugins.module_utils.state.model import Conflict


class HostModule(AnsibleModule):
    """A module with Slipway's own environment, see :mod:`environment`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        environment.apply()
        # What the module does now, for the view of a run.
        self.status = Status()
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call] # of ansible-core

    def finish(self, conflicts: Sequence[Conflict], **result: Any) -> NoReturn:
        """Return the result of a module that works on several entries; fail if there are CONFLICTS.

        The key ``conflicts`` of the result tells a role that everything else was done.
        """
        result["conflicts"] = [
            {"kind": one.kind, "name": one.name, "reason": one.reason} for one in conflicts
        ]
        if conflicts:
            self.fail_json(msg="\n".join(one.reason for one in conflicts), **result)
        self.exit_json(**result)
