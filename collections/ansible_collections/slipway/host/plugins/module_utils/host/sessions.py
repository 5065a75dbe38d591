# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who still runs programs with the groups of before: a program keeps those it was started with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

WITHOUT = (
    "{user} is in {group} now, but has programs that were started before and do not know: a new "
    "login does, and for services of {user}'s own: systemctl restart user@{uid}.service"
)
STILL_WITH = (
    "{user} is no longer in {group}, but has programs that were started before and keep it until "
    "they end; to end them all: loginctl terminate-user {user}"
)


def processes(root: Path = Path("/proc")) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield user and groups of each process."""
    for file in root.glob("[0-9]*/status"):
        try:
            yield parse(file.read_text(encoding="utf-8", errors="replace"))
        except (OSError, LookupError, ValueError):
            continue  # it ended in the meantime


def parse(status: str) -> tuple[int, frozenset[int]]:
    """Return the real user and the groups from a process's status, see proc_pid_status(5)."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    groups = {int(fields["Gid"].split()[1]), *map(int, fields["Groups"].split())}
    return int(fields["Uid"].split()[0]), frozenset(groups)


def outdated(
    group: str,
    gid: int,
    added: dict[int, str],
    removed: dict[int, str],
    found: Iterable[tuple[int, frozenset[int]]],
) -> list[str]:
    """Return a warning for each user with a process that does not know of the change.

    ADDED and REMOVED are names by user number; FOUND is what :func:`processes` yields.
    """
    said = set()
    for uid, groups in found:
        if uid in added and gid not in groups:
            said.add(WITHOUT.format(user=added[uid], group=group, uid=uid))
        elif uid in removed and gid in groups:
            said.add(STILL_WITH.format(user=removed[uid], group=group))
    return sorted(said)
