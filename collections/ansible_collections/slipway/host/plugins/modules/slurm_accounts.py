#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.slurm_accounts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_accounts
short_description: Declare the accounts of a Slurm cluster
description:
  - Adds accounts and their members to the database of a cluster with C(sacctmgr), sets shares and
    limits, and removes what it added earlier and is not declared any more.
  - Accounts and members that somebody else added stay, and so do other limits.
options:
  entries:
    description: The accounts, as the C(slurm_accounts) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      cluster:
        description: Name of the cluster.
        type: str
        required: true
      accounts:
        description:
          - Accounts with name, members, share, gpus, gpus_per_member and jobs_per_member, as the
            option C(slurm_accounts) of the role C(slurm).
        type: list
        elements: dict
        required: true
attributes:
  check_mode:
    description: Reports whether accounts would change.
    support: full
  diff_mode:
    description: Shows the differences of the accounts.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Declare the accounts
  slipway.host.slurm_accounts:
    entries:
      - cluster: slipway
        accounts:
          - {name: vision, members: [alice, bob], gpus: 4}
"""

RETURN = r"""
conflicts:
  description: What is in the way; nothing at present.
  returned: always
  type: list
  elements: dict
"""

import json
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import paths, slurm_accounts
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "entries": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "cluster": {"type": "str", "required": True},
            "accounts": {"type": "list", "elements": "dict", "required": True},
        },
    },
}


def write_record(record: Mapping[str, list[str]]) -> None:
    """Write which accounts and members the role made."""
    content = json.dumps(record, indent=1, sort_keys=True) + "\n"
    with paths.opened_parent(slurm_accounts.RECORD, make=True) as (folder, name):
        folder.replace(name, content.encode(), 0o600, 0, 0)


def apply_step(module: HostModule, step: slurm_accounts.Step) -> None:
    """Run sacctmgr for a step; fail with its message if it refuses."""
    if not step.arguments:
        return
    status, out, err = module.run_command(["sacctmgr", "--immediate", *step.arguments])
    if status:
        message = " ".join((err or out).split())
        module.fail_json(
            msg=f"slurm_accounts: found {step.found}; expected {step.expected}. sacctmgr "
            f"{' '.join(step.arguments)} failed: {message}. If jobs use the account, wait for them "
            "or cancel them with scancel, then run again."
        )


def change(module: HostModule, here: Here, entry: Mapping[str, Any]) -> None:
    """Make the accounts as declared.

    Until then, the record has the accounts of before and the declared ones: an interrupted run
    forgets none that it made.
    """
    owned = {"slurm_accounts": [entry]}
    answer = here.look(owned)
    if answer["slurm_accounts"][entry["cluster"]] is None:
        module.fail_json(
            msg="slurm_accounts: found no answer of slurmdbd to sacctmgr; expected the accounts "
            "of the cluster. Start it: systemctl restart mariadb slurmdbd, then run again."
        )
    record = slurm_accounts.read_record(answer["texts"].get(slurm_accounts.RECORD))
    final = slurm_accounts.record_of(entry)
    both = {
        name: sorted({*record.get(name, ()), *final.get(name, ())}) for name in {*record, *final}
    }
    write_record(both)
    for step in slurm_accounts.list_steps(entry, answer):
        apply_step(module, step)
    write_record(final)
    if left := here.differences(owned):
        module.fail_json(
            msg=f"sacctmgr succeeded, but {left[0].found}; expected {left[0].expected}. Run again."
        )


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    here = Here(slurm_accounts)
    entries = module.params["entries"]
    differences = here.differences({"slurm_accounts": entries})
    if differences and not module.check_mode:
        for entry in entries:
            change(module, here, entry)
    module.finish([], changed=bool(differences), diff=diff_of(differences))


if __name__ == "__main__":
    main()
