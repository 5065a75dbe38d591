#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module slipway.host.slurm_database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slurm_database
short_description: Create and remove the MariaDB database of a Slurm cluster
description:
  - Creates a database, and the MariaDB user C(slurm) with rights for this database alone. The user
    C(slurm) of the host logs in over the socket of MariaDB, so that there is no password.
  - Other databases and users stay as they are. A MariaDB user C(slurm) without the database is a
    conflict.
options:
  entries:
    description: The database, as the C(slurm_databases) list of a role's owned state.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the database, letters only.
        type: str
        required: true
  state:
    description: Whether the database exists; V(absent) removes its records.
    type: str
    choices: [present, absent]
    default: present
  installed:
    description: Whether the role has just installed MariaDB. A later removal then removes it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Reports whether the database would change.
    support: full
  diff_mode:
    description: Shows the differences of the database.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Create the database and its user
  slipway.host.slurm_database:
    entries:
      - name: slipwayslurm
"""

RETURN = r"""
conflicts:
  description: What is in the way, a mapping with kind, name and reason for each conflict.
  returned: with O(state=present)
  type: list
  elements: dict
removes_server:
  description: Whether Slipway installed MariaDB, and nobody else uses it.
  returned: with O(state=absent)
  type: bool
"""

from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    facts,
    paths,
    reading,
    slurm,
    slurm_database,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here, diff_of

ARGUMENT_SPEC: dict[str, Any] = {
    "entries": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"name": {"type": "str", "required": True}},
    },
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "installed": {"type": "bool", "default": False},
}
# Says that the role installed MariaDB.
INSTALLED = f"{facts.SLURMDBD_RECORD}/installed"
USES_DATABASE = "AccountingStorageType=accounting_storage/slurmdbd"
ACCOUNT = f"{slurm_database.USER}@localhost"


def change(module: HostModule, *statements: str) -> None:
    """Run statements of SQL; fail if MariaDB refuses one."""
    status, out, err = module.run_command(
        [*slurm_database.CLIENT, "--execute", "; ".join(statements)]
    )
    if status:
        module.fail_json(
            msg=f"MariaDB: found {(err or out).strip()}; expected that root may change databases "
            "over its socket. Start MariaDB, or let root in, then run again."
        )


def create(module: HostModule, name: str) -> None:
    """Create the database, then its user, as :mod:`state.slurm_database` knows both."""
    comparison = Here(slurm_database).compare({"slurm_databases": [{"name": name}]})
    differences = comparison.differences
    if not module.check_mode:
        if module.params["installed"]:
            with paths.opened_parent(INSTALLED, make=True) as (folder, file):
                folder.replace(file, b"", 0o600, 0, 0)
        if differences:
            change(
                module,
                f"CREATE DATABASE IF NOT EXISTS {name}",
                f"CREATE USER IF NOT EXISTS {ACCOUNT} IDENTIFIED VIA unix_socket",
                f"ALTER USER {ACCOUNT} IDENTIFIED VIA unix_socket",
                f"GRANT ALL ON {name}.* TO {ACCOUNT}",
            )
    module.finish(comparison.conflicts, changed=bool(differences), diff=diff_of(differences))


def remove(module: HostModule, name: str) -> None:
    """Remove the database and its user; say whether MariaDB is not needed any more."""
    configuration = slurm.CONFIGURATIONS[0]
    if USES_DATABASE in reading.read_word(configuration).splitlines():
        module.fail_json(
            msg=f"slurmdbd: found {configuration}, whose jobs are recorded in the database; "
            "expected no cluster that uses it. Remove slurmdbd_state and slurm_accounting from the "
            "inventory, or remove the cluster, and run ./slipway site. Then remove slurmdbd. "
            "Nothing was changed."
        )
    found = slurm_database.ask_database(name)
    if found is None and module.get_bin_path(slurm_database.SERVER_PROGRAM):
        # Fails with the reason.
        change(module, "SELECT 1")
    # A user without the database is somebody else's.
    exists = bool(found and found["database"])
    if exists and not module.check_mode:
        change(module, f"DROP USER IF EXISTS {ACCOUNT}", f"DROP DATABASE {name}")
    is_used = bool(
        found and (found["other_databases"] or found["other_users"] or (found["user"] > exists))
    )
    module.exit_json(
        changed=exists,
        removes_server=reading.read_record(INSTALLED) is not None and not is_used,
        diff={"prepared": f"database {name}: removed\n" if exists else ""},
    )


def main() -> None:
    """Run the module."""
    module = HostModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    name = module.params["entries"][0]["name"]
    (remove if module.params["state"] == "absent" else create)(module, name)


if __name__ == "__main__":
    main()
