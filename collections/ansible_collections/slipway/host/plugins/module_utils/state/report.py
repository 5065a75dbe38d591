# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run found and did, as data, and the tables that a person reads.

A report is a mapping of host name to a mapping with these keys. ``state``: ``no_drift``, ``drift``,
``changed``, ``would_change`` (in check mode), ``waiting``, ``fault``, ``conflict``, ``failed``,
``unreachable``, ``held`` or ``not_started`` (the run stopped before). After ``conflict`` everything
is done but the entries in conflict, after ``fault`` (of GPUs) everything. ``differences``: role to
a list of mappings with kind, name, found and expected.
``conflicts``: role to a list of mappings with kind, name, reason and blocks.
``consequences``: see :mod:`consequences`. ``waiting``: why changes wait, and what to do.
``health``: faults of GPUs, a list of mappings with where (a PCI address or empty), found, expected,
remedy, warning (true: may be intended), gpu (its UUID or empty) and accepted (why the owner of the
host accepts the fault, or empty). ``information``: sentences about what others configured,
no drift. ``gpus``: number of GPUs that the driver reports. ``urls``: service to address. ``notes``:
lines. ``error``: the first error. ``hold``: why a person keeps a held host out of runs, or
empty. Until version 0.3 a report also has ``status``, with the old names of the states.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import health as gpu_health
from ansible_collections.slipway.host.plugins.module_utils.state import plan_rows, verdict
from ansible_collections.slipway.host.plugins.module_utils.state.model import phrase
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

Report = Mapping[str, Mapping[str, Any]]

SCHEMA, VERSION = "slipway-run", 1
NO_DRIFT, DRIFT, CHANGED, WOULD_CHANGE = "no_drift", "drift", "changed", "would_change"
CONFLICT, WAITING, FAILED, UNREACHABLE = "conflict", "waiting", "failed", "unreachable"
FAULT, HELD, NOT_STARTED = "fault", "held", "not_started"
# States of hosts with which a run fails.
UNFINISHED = frozenset({FAULT, CONFLICT, FAILED, UNREACHABLE})
OLD_STATES: Mapping[str, str] = {NO_DRIFT: "as declared", WOULD_CHANGE: "changed"}

# What an address begins with that nobody but the host can reach.
LOOPBACK = ("//127.", "//[::1]")
EXIT_CLEAN, EXIT_ERROR, EXIT_DRIFT, EXIT_CONFLICT, EXIT_FAULT = 0, 1, 2, 3, 4
# Exit status of site and upgrade if all is done but what waits; Ansible itself uses others.
EXIT_WAITING = 6
# How a table counts findings of GPUs, the worst first.
_HEALTH: Mapping[str, str] = {
    gpu_health.FAULT: "fault",
    gpu_health.WARNING: "warning",
    gpu_health.ACCEPTED: "accepted",
}
# How tables name what is disturbed, by the kind of the consequence.
_DISTURBED: Mapping[str, str] = {
    "restart": "unit",
    "stop": "unit",
    "gpu_process": "GPU process",
    "session": "user",
}


# The end of the space before a column, or before an indented line.
_COLUMN = re.compile(r"(?:^|(?<=\S)) {2,}(?=\S)")


def table(rows: Sequence[Sequence[str]], heading: Sequence[str]) -> str:
    """Return ROWS under HEADING as text in aligned columns; the last column runs free."""
    lines = [heading, *rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(heading) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in lines
    )


def wrap(text: str, width: int) -> str:
    """Return a text whose lines break between words at WIDTH characters.

    What follows of a row of a table begins below its last column. A line with a word that does not
    fit, such as a long path, stays as it is.
    """
    return "\n".join(part for line in text.split("\n") for part in _wrap_line(line, width))


def _wrap_line(line: str, width: int) -> list[str]:
    columns = [match.end() for match in _COLUMN.finditer(line) if match.end() <= width // 2]
    indent = " " * max(columns, default=0)
    if max(map(len, line.split()), default=0) > width - len(indent):
        return [line]
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        expand_tabs=False,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [line]


def escape(value: Any) -> Any:
    """Return JSON of hosts with all control characters in texts escaped."""
    if isinstance(value, str):
        return escape_control(value)
    if isinstance(value, Mapping):
        return {escape(key): escape(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape(one) for one in value]
    return value


def as_json(report: Report) -> dict[str, dict[str, Any]]:
    """Return a report in the form of docs/run-report.schema.json.

    It also has the key ``status``, which version 0.3 removes.
    """
    return {
        host: {
            "schema": SCHEMA,
            "version": VERSION,
            "error": "",
            **entry,
            "status": OLD_STATES.get(entry["state"], entry["state"]),
        }
        for host, entry in report.items()
    }


def _phrase(state: str) -> str:
    """Return a state as tables show it."""
    return state.replace("_", " ")


def describe(difference: Mapping[str, str]) -> str:
    """Return a difference as a phrase: the thing, what was found and what is expected."""
    thing = phrase(difference["kind"], difference["name"])
    return f"{thing}: {difference['found']} -> {difference['expected']}"


def consequences(report: Report) -> str:
    """Return what a run disturbs, a row for each consequence; empty if nothing is disturbed."""
    rows = [
        (host, f"{_DISTURBED.get(one['kind'], one['kind'])} {one['name']}: {one['effect']}")
        for host, entry in sorted(report.items())
        for one in entry.get("consequences", ())
    ]
    return table(rows, ("HOST", "WHAT THE CHANGES DISTURB, AND WHO USES THE HOST")) if rows else ""


def conflicts(report: Report) -> str:
    """Return the conflicts, a row for each with what waits for it; empty without conflicts."""
    rows = []
    for host, entry in sorted(report.items()):
        for role, found in entry.get("conflicts", {}).items():
            for one in found:
                names = ", ".join(phrase(*block.split(" ", 1)) for block in one["blocks"])
                waiting = f" Waiting for it: {names}." if names else ""
                rows.append((host, role, one["reason"] + waiting))
    return table(rows, ("HOST", "ROLE", "CONFLICT: A PERSON MUST DECIDE")) if rows else ""


def health(report: Report) -> str:
    """Return the faults of GPUs, a row for each with what to do; empty without any."""
    rows = [
        (host, kind, text)
        for host, entry in sorted(report.items())
        for kind, text in gpu_health.sentences(entry.get("health", ()))
    ]
    heading = ("HOST", "HEALTH", "WHAT IS WRONG WITH GPUS, AND WHAT TO DO")
    return table(rows, heading) if rows else ""


def plan(report: Report, verbose: bool = False) -> str:
    """Return what would change and why, then conflicts; VERBOSE: a row for each difference."""
    rows: list[tuple[str, str, str]] = []
    for host, entry in sorted(report.items()):
        if entry.get("error"):
            rows.append((host, _phrase(entry["state"]), entry["error"]))
            continue
        if entry.get("hold"):
            rows.append((host, "-", f"{HELD}: {entry['hold']}"))
            continue
        found = [
            (host, role, why)
            for role, differences in entry["differences"].items()
            for why in plan_rows.grouped(differences, verbose)
        ]
        rows.extend(found or [(host, "-", _phrase(NO_DRIFT))])
    changes = table(rows, ("HOST", "ROLE", "WHAT WOULD CHANGE"))
    tables = [
        changes,
        conflicts(report),
        health(report),
        consequences(report),
        information(report),
        verdict.of_plan(report),
    ]
    return "\n\n".join(filter(None, tables))


def information(report: Report) -> str:
    """Return the sentences about what others configured, a line each; empty without any."""
    lines = [
        f"{host}: {sentence}"
        for host, entry in sorted(report.items())
        for sentence in entry.get("information", ())
    ]
    return "\n".join(["INFORMATION (Slipway changes none of this)", *lines]) if lines else ""


def summary(report: Report, result: str = "as declared") -> str:
    """Return what ends a run: a row for each host, its addresses and notes, then conflicts.

    RESULT: see :func:`verdict.of_run`.
    """
    after = []
    several = sum(bool(entry["urls"]) for entry in report.values()) > 1
    for host, entry in sorted(report.items()):
        after += [f"{host}: {note}" for note in [*entry["notes"], *entry.get("waiting", ())]]
        after += [
            f"{service}: {url}{_place(host, url, several)}"
            for service, url in sorted(entry["urls"].items())
        ]
    hosts = "\n".join([_overview(report), *after])
    parts = [hosts, conflicts(report), health(report), verdict.of_run(report, result)]
    return "\n\n".join(filter(None, parts))


def _place(host: str, url: str, several: bool) -> str:
    """Return on which host an address is, where it does not say so by itself."""
    if any(part in url for part in LOOPBACK):
        return f" (on {host} itself)"
    return f" (on {host})" if several and f"//{host}:" not in url else ""


def _overview(report: Report) -> str:
    """Return a row for each host; a column that no host needs is left out."""
    columns: dict[str, list[str]] = {
        "HOST": sorted(report),
        "RESULT": [_phrase(report[host]["state"]) for host in sorted(report)],
        "WAITS": [_count_waiting(report[host]) for host in sorted(report)],
        "GPUS": [_gpu_health(report[host]) for host in sorted(report)],
        "DIFFERENCES BEFORE, BY ROLE": [_differences(report[host]) for host in sorted(report)],
    }
    last = list(columns)[-1]
    used = {name: cells for name, cells in columns.items() if any(cells) or name == last}
    rows = [[cell or "-" for cell in row] for row in zip(*used.values(), strict=True)]
    return table(rows, list(used))


def _differences(entry: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{role}: {len(found)}" for role, found in entry["differences"].items())
    hold = f"{HELD}: {entry['hold']}" if entry.get("hold") else ""
    return str(entry.get("error") or hold or counts)


def _count_waiting(entry: Mapping[str, Any]) -> str:
    count = len(entry.get("waiting", ()))
    return f"{count} change{'s' * (count > 1)}" if count else ""


def _gpu_health(entry: Mapping[str, Any]) -> str:
    kinds = Counter(kind for kind, _text in gpu_health.sentences(entry.get("health", ())))
    found = [
        f"{kinds[kind]} {word}{'s' * (kinds[kind] > 1 and kind != gpu_health.ACCEPTED)}"
        for kind, word in _HEALTH.items()
        if kinds[kind]
    ]
    return ", ".join(found) or ("healthy" if entry.get("gpus") else "")


def exit_status(report: Report) -> int:
    """Return the exit status of plan for the worst that a host has.

    1: it could not be surveyed; 3: conflicts; 4: faults of GPUs; 2: drift.
    """
    if any(entry["state"] in (FAILED, UNREACHABLE) for entry in report.values()):
        return EXIT_ERROR
    if any(entry.get("conflicts") for entry in report.values()):
        return EXIT_CONFLICT
    if any(not one["warning"] for entry in report.values() for one in entry.get("health", ())):
        return EXIT_FAULT
    if any(entry["differences"] for entry in report.values()):
        return EXIT_DRIFT
    return EXIT_CLEAN
