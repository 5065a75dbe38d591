# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find users whose running programs keep their old groups after a change of group members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

ADDED = (
    "{user} was added to {group}. Running programs of {user} keep their old groups: log in again; "
    "for user services run: systemctl restart user@{uid}.service"
)
REMOVED = (
    "{user} was removed from {group}. Running programs of {user} keep the group until they end. To "
    "end all of them: loginctl terminate-user {user}"
)


def processes(root: Path = Path("/proc")) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield user ID and groups of each process."""
    for file in root.glob("[0-9]*/status"):
        try:
            yield parse(file.read_text(encoding="utf-8", errors="replace"))
        except (OSError, LookupError, ValueError):
            continue  # The process ended in the meantime.


def parse(status: str) -> tuple[int, frozenset[int]]:
    """Return the real user ID and the groups in the status of a process, see proc_pid_status(5)."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    groups = {int(fields["Gid"].split()[1]), *map(int, fields["Groups"].split())}
    return int(fields["Uid"].split()[0]), frozenset(groups)


def find_outdated(
    group: str,
    gid: int,
    added: dict[int, str],
    removed: dict[int, str],
    running: Iterable[tuple[int, frozenset[int]]],
) -> list[str]:
    """Return a warning for each user with a process that was started before the change.

    ADDED and REMOVED are user names by user ID; RUNNING is the result of :func:`processes`.
    """
    warnings = set()
    for uid, groups in running:
        if uid in added and gid not in groups:
            warnings.add(ADDED.format(user=added[uid], group=group, uid=uid))
        elif uid in removed and gid in groups:
            warnings.add(REMOVED.format(user=removed[uid], group=group))
    return sorted(warnings)
