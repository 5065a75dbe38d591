# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role slurmdbd: the database of a Slurm cluster, on its controller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.module_utils.state import slurm_database

# Options of the role slurm that the plan reads.
SHARED_OPTIONS = ("slurm_accounting", "slurm_controller", "slurm_state")
FOLDER, CONFIG = state_facts.SLURMDBD_RECORD, state_facts.SLURMDBD_CONFIG
DROP_IN = "/etc/systemd/system/slurmdbd.service.d/slipway.conf"
DATABASE, USER = "slipwayslurm", slurm_database.USER
SERVER, DAEMON = "mariadb-server", "slurmdbd"
PORT = 6819
# What MariaDB leaves when it is purged. Without the first, apt also removes its folder, unless
# clients of MariaDB stay.
SERVER_LEFT = ("/etc/mysql/debian.cnf", "/var/lib/mysql")
WRITTEN_BY = "# Written by Slipway's role slurmdbd.\n"
# MariaDB asks the kernel for the user behind a connection to its socket: there is no password.
# Records have the command lines of jobs, so that users see only their own.
SETTINGS = f"""AuthType=auth/munge
DbdHost=localhost
DbdPort={PORT}
SlurmUser={USER}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={USER}
StorageLoc={DATABASE}
PrivateData=jobs
Parameters=PreserveCaseUser
"""
DROP_IN_CONTENT = (
    f"{WRITTEN_BY}[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=on-failure\nRestartSec=10\n"
)


class SlurmdbdError(ValueError):
    """The declaration of a database cannot be applied."""


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role, and whether to ``remove`` the database.

    A removal has the ``databases`` to remove, and what to remove if nobody else uses the
    ``server``. FACTS is ``ansible_facts['slipway']`` with ``inventory_name``. Raise SlurmdbdError
    for a declaration that cannot be applied.
    """
    state = facts.get("slurmdbd", "")
    is_used = bool(
        options["slurm_accounting"]
        and options["slurm_controller"] == facts["inventory_name"]
        and options["slurm_state"] != "absent"
    )
    if options["slurmdbd_state"] == "absent":
        if is_used:
            raise SlurmdbdError(
                "slurmdbd_state: found absent; expected present while slurm_accounting is true. "
                "Set slurm_accounting: false"
            )
        return _removal() if state == "managed" else _plan({})
    if not is_used:
        return _plan({})
    if not facts["systemd"]:
        return _plan({"refused": ["the host does not run systemd, which slurmdbd needs"]})
    return _plan({"obstacles": [_foreign()]} if state == "foreign" else _owned())


def _plan(owned: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"owned": {"refused": [], **owned}, "remove": False, **more}


def _foreign() -> dict[str, Any]:
    return {
        "path": CONFIG,
        "holds": r"\A",
        "why": f"{CONFIG}: found the configuration of a slurmdbd that Slipway did not install; "
        "expected none. Remove that slurmdbd from the host, or set slurm_accounting: false",
    }


def _databases() -> list[dict[str, Any]]:
    return [{"name": DATABASE}]


def _owned() -> dict[str, Any]:
    return {
        "files": [
            {"path": FOLDER, "state": "directory", "mode": "0700"},
            {"path": DROP_IN, "content": DROP_IN_CONTENT},
            {
                "path": CONFIG,
                "content": WRITTEN_BY + SETTINGS,
                "owner": USER,
                "group": USER,
                "mode": "0600",
            },
        ],
        "packages": [{"name": SERVER}, {"name": DAEMON}],
        "slurm_databases": _databases(),
        "units": [
            {"name": "mariadb.service", "enabled": True, "active": True},
            {
                "name": f"{DAEMON}.service",
                "enabled": True,
                "active": True,
                "reads": [CONFIG],
                "unit_files": [DROP_IN],
            },
        ],
    }


def _removal() -> dict[str, Any]:
    owned = {
        "packages": [{"name": DAEMON, "state": "absent"}],
        "files": [{"path": path, "state": "absent"} for path in (DROP_IN, CONFIG, FOLDER)],
    }
    server = {
        "packages": [{"name": SERVER, "state": "absent"}],
        "files": [{"path": path, "state": "absent"} for path in SERVER_LEFT],
    }
    return _plan(owned, remove=True, databases=_databases(), server=server)
