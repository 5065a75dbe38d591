# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The base of all modules of this collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.host import environment


class HostModule(AnsibleModule):
    """A module with Slipway's own environment, see :mod:`environment`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        environment.apply()
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call] # of ansible-core

    def finish(self, refused: Sequence[str], **result: Any) -> NoReturn:
        """Return the result of a module that works on several entries; fail if any was refused.

        REFUSED has a sentence for each entry that could not be changed.
        """
        result["refused"] = refused
        if refused:
            self.fail_json(msg="\n".join(refused), **result)
        self.exit_json(**result)
