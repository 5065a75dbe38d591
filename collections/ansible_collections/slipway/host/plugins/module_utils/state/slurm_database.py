# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The MariaDB database of a Slurm cluster, and the MariaDB user who may use it.

Key of an entry of slurm_databases: name: of the database, a word of SQL. The user slurm of the host
logs in over the socket as the MariaDB user slurm. Such a user without the database is somebody
else's.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

USER = "slurm"
CLIENT = ("mariadb", "--batch", "--skip-column-names")
SERVER_PROGRAM = "mariadbd"
# Those of MariaDB itself.
DATABASES = ("information_schema", "mysql", "performance_schema", "sys")
USERS = ("", "mariadb.sys", "mysql", "root")
_COUNTS = ("database", "user", "socket", "rights", "other_databases", "other_users")


def list_words(*words: str) -> str:
    """Return words as a list of SQL."""
    return ", ".join(f"'{word}'" for word in words)


def write_question(database: str) -> str:
    """Return the query for the counts of :func:`ask_database`."""
    own = f"user = '{USER}' AND host = 'localhost'"
    wheres = (
        f"information_schema.schemata WHERE schema_name = '{database}'",
        f"mysql.user WHERE {own}",
        f"mysql.user WHERE {own} AND plugin = 'unix_socket'",
        f"mysql.db WHERE {own} AND db = '{database}'",
        "information_schema.schemata WHERE schema_name NOT IN "
        f"({list_words(*DATABASES, database)})",
        f"mysql.user WHERE user NOT IN ({list_words(*USERS, USER)})",
    )
    counts = ", ".join(f"(SELECT COUNT(*) FROM {where})" for where in wheres)
    return f"SELECT CONCAT_WS(' ', {counts})"


def ask_database(database: str) -> Json | None:
    """Return counts about a database, None if MariaDB does not answer.

    0 or 1: ``database``, ``user``, whether the user logs in over the ``socket``, and has ``rights``
    for the database. ``other_databases`` and ``other_users`` are those of others.
    """
    try:
        status, text = reading.run_for_status([*CLIENT, "--execute", write_question(database)])
    except OSError:
        return None
    numbers = [int(word) for word in text.split() if word.isdigit()]
    is_answer = status == 0 and len(numbers) == len(_COUNTS)
    return dict(zip(_COUNTS, numbers)) if is_answer else None


ASKS = {"slurm_databases": reading.each(ask_database)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)


def compare_databases(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a database; raise ConflictError for the user of somebody else."""
    found = answer["slurm_databases"][entry["name"]]
    if found is None:
        yield "no answer of MariaDB", "a database"
        return
    if not found["database"]:
        if found["user"]:
            raise ConflictError(
                f"MariaDB user {USER}: found a user that Slipway did not make; expected none. "
                f"Remove the user with DROP USER {USER}@localhost if no program needs it, then "
                "run again"
            )
        yield MISSING, "a database"
    elif not found["user"]:
        yield f"user {USER} missing", "a user"
    elif not found["socket"]:
        yield f"user {USER} logs in otherwise", "over the socket of the host"
    elif not found["rights"]:
        yield f"user {USER} without rights", "all rights for the database"


KINDS = (Kind("slurm_databases", "name", "slurm_databases", compare_databases),)
