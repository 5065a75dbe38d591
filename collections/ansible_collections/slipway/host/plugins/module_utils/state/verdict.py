# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last lines of a run: the result of the hosts, and the next command.

A report is that of :mod:`report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Mapping[str, Any]]

# So many hosts are named in a line.
NAMED = 8
# States of hosts that need a person: UNFINISHED of the module report, which imports this one.
NEEDY = ("failed", "unreachable", "conflict", "fault")


def of_run(report: Report, result: str = "as declared") -> str:
    """Return the last lines of a run that changes or verifies hosts; empty without a host.

    RESULT says what hosts are that need nothing more.
    """
    return "\n".join(_of_run(report, result))


def _of_run(report: Report, result: str) -> Iterator[str]:
    needy = {host: entry["state"] for host, entry in report.items() if entry["state"] in NEEDY}
    waiting = _with_state(report, "waiting")
    planned = _with_state(report, "would_change")
    held = _with_state(report, "held")
    left = _with_state(report, "not_started")
    others = [host for host in report if host not in {*needy, *waiting, *planned, *held, *left}]
    if others:
        yield f"OK: {_hosts(others)} {result}{_checks(report, others)}."
    yield from _holds(held)
    if planned:
        yield f"{_hosts(planned)} would change: {_list(planned)}. To change, run without --check."
    if waiting:
        verb = "waits" if len(waiting) == 1 else "wait"
        yield f"{_hosts(waiting)} {verb}: {_list(waiting)}. Run again when nobody is disturbed."
    if needy:
        yield f"{_need(needy)} See above what to do, then run again."
    if left:
        verb = "was" if len(left) == 1 else "were"
        yield f"{_hosts(left)} {verb} not started: {_list(left)}. The run stopped after failures."


def of_plan(report: Report) -> str:
    """Return the last lines of a plan; empty without a host."""
    return "\n".join(_of_plan(report))


def _of_plan(report: Report) -> Iterator[str]:
    needy = {host: state for host, entry in report.items() if (state := _needs(entry))}
    drifted = [host for host, entry in report.items() if entry["differences"]]
    held = _with_state(report, "held")
    declared = [host for host in report if host not in {*needy, *drifted, *held}]
    if declared:
        yield f"OK: {_hosts(declared)} as declared."
    yield from _holds(held)
    if needy:
        yield f"{_need(needy)} See above what to do."
    if drifted:
        count = sum(
            len(found) for host in drifted for found in report[host]["differences"].values()
        )
        differences = "1 difference" if count == 1 else f"{count} differences"
        limit = f" --limit {','.join(sorted(drifted))}" if len(drifted) <= NAMED else ""
        yield f"{differences} on {_hosts(drifted)}. To apply, run ./slipway site{limit}"


def _with_state(report: Report, state: str) -> list[str]:
    return [host for host, entry in report.items() if entry["state"] == state]


def _holds(held: Sequence[str]) -> Iterator[str]:
    if held:
        verb = "is" if len(held) == 1 else "are"
        yield f"{_hosts(held)} {verb} held: {_list(held)}. Nothing was done there."


def _needs(entry: Mapping[str, Any]) -> str:
    """Return why a surveyed host needs a person, empty if it does not."""
    if entry["state"] in NEEDY:
        return str(entry["state"])
    if entry.get("conflicts"):
        return "conflict"
    if any(not one["warning"] for one in entry.get("health", ())):
        return "fault"
    return ""


def _need(needy: Mapping[str, str]) -> str:
    verb = "needs" if len(needy) == 1 else "need"
    named = _list([f"{host} ({state})" for host, state in sorted(needy.items())])
    return f"{_hosts(list(needy))} {verb} you: {named}."


def _hosts(names: Sequence[str]) -> str:
    return "1 host" if len(names) == 1 else f"{len(names)} hosts"


def _list(names: Sequence[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more


def _checks(report: Report, hosts: Sequence[str]) -> str:
    count = sum(one["ok"] for host in hosts for one in report[host].get("checks", ()))
    passed = "1 check passed" if count == 1 else f"{count} checks passed"
    return f", {passed}" if count else ""
