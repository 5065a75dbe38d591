# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The acceptance report of hosts: each check with what was expected and found; JSON and table.

The JSON has the schema docs/acceptance-report.schema.json. It is made from the report of a run, see
:mod:`state.report`, and has nothing of a host but what that report has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import check
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

SCHEMA, VERSION = "slipway-acceptance", 1
# Facts of the survey that identify a system.
SYSTEM = (
    *("distribution", "distribution_version", "kernel", "architecture"),
    *("docker_package", "docker_version"),
)
# Begins the error of a host on which no check ran because a person keeps it out of runs.
HELD = f"{state_report.HELD}: "
NOT_COVERED = (
    "network between hosts, and InfiniBand",
    "speed of disks",
    "NCCL between hosts",
    "firmware of the host and of its controllers",
)


def build(
    report: Mapping[str, Mapping[str, Any]],
    level: str,
    burn_in: int,
    began: str,
    ended: str,
) -> dict[str, Any]:
    """Return the acceptance report of a run; BEGAN and ENDED are times in ISO 8601.

    A host is accepted if it was surveyed, all of its checks passed or do not apply, and it has
    neither drift nor conflicts nor faults of GPUs.
    """
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "level": level,
        "burn_in_minutes": burn_in,
        "began": began,
        "ended": ended,
        "not_covered": [*NOT_COVERED, *_left_out(level, burn_in)],
        "hosts": {name: _host(entry) for name, entry in sorted(report.items())},
    }


def _left_out(level: str, burn_in: int) -> Iterator[str]:
    if level == "quick":
        yield "smoke tests of images, and content of data sets: level quick"
    if not burn_in:
        yield "GPUs under load: no --burn-in"


def _host(entry: Mapping[str, Any]) -> dict[str, Any]:
    checks = describe_checks(entry.get("checks", ()))
    differences = [
        {"role": role, **one} for role, found in entry["differences"].items() for one in found
    ]
    conflicts = [
        {"role": role, "kind": one["kind"], "name": one["name"], "reason": one["reason"]}
        for role, found in entry["conflicts"].items()
        for one in found
    ]
    faults = [one for one in entry["health"] if not one["warning"]]
    is_failed = any(one["status"] == check.FAILED for one in checks)
    hold = f"{HELD}{entry['hold']}" if entry.get("hold") else ""
    accepted = bool(checks) and not (is_failed or differences or conflicts or faults)
    return {
        "accepted": accepted,
        "error": "" if accepted or checks else entry.get("error") or hold or "no check ran",
        "system": entry.get("system", {}),
        "checks": checks,
        "stand_ins": [one["what"] for one in checks if one["stand_in"]],
        "not_run": [one["what"] for one in checks if one["status"] == check.NOT_RUN],
        "drift": differences,
        "conflicts": conflicts,
        "health": list(entry["health"]),
    }


def describe_checks(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the checks of a host as reports have them, from those of the module verify."""
    return [_check(one) for one in found]


def _check(one: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("id", "what", "status", "expected", "found", "remedy", "seconds", "stand_in", "others")
    return {
        key: escape_control(one[key]) if isinstance(one[key], str) else one[key] for key in kept
    }


def table(acceptance: Mapping[str, Any]) -> str:
    """Return the checks as a table, and below it what was not checked."""
    rows = [
        (host, one["status"].replace("_", " "), f"{one['seconds']:.1f} s", _line(one))
        for host, entry in acceptance["hosts"].items()
        for one in entry["checks"]
    ]
    rows += [
        (host, "drift", "-", f"{one['role']}: {state_report.describe(one)}")
        for host, entry in acceptance["hosts"].items()
        for one in entry["drift"]
    ]
    rows += [
        (host, "held" if entry["error"].startswith(HELD) else "error", "-", entry["error"])
        for host, entry in acceptance["hosts"].items()
        if entry["error"]
    ]
    notes = [
        f"{host}: simulated, proves nothing about hardware: {', '.join(entry['stand_ins'])}"
        for host, entry in acceptance["hosts"].items()
        if entry["stand_ins"]
    ]
    notes.append(f"Not checked: {'; '.join(acceptance['not_covered'])}.")
    accepted = sum(entry["accepted"] for entry in acceptance["hosts"].values())
    notes.append(f"Accepted: {accepted} of {len(acceptance['hosts'])} hosts.")
    return "\n".join([state_report.table(rows, ("HOST", "RESULT", "TIME", "CHECK")), *notes])


def _line(one: Mapping[str, Any]) -> str:
    text = f"{one['what']}: {one['found']}"
    if one["status"] == check.FAILED:
        text += f"; expected {one['expected']}. {one['remedy']}"
    return text
