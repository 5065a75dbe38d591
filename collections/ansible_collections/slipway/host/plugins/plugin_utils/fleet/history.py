# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a host: what is known of it now, and its history of the last 90 days.

Pure functions over the JSON with the schema docs/host-report.schema.json. A report is bounded: each
list and each text has a limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

Json: TypeAlias = "dict[str, Any]"
Entry: TypeAlias = "Mapping[str, Any]"

SCHEMA, VERSION = "slipway-host-report", 1
DAYS = 90
MAX_EVENTS, MAX_LIST, MAX_TEXT = 200, 200, 400
# States of a host that nobody asked or that did not answer: what is known of it stays.
UNKNOWN = (state_report.UNREACHABLE, state_report.FAILED)
# Versions that the history follows: key of the overview, and how people name it.
FOLLOWED = (("driver", "NVIDIA driver"), ("engine", "engine"), ("toolkit", "container toolkit"))


def update(old: Entry, host: str, run: Entry, now: datetime) -> Json:
    """Return the report of HOST after a RUN, from its OLD report, which may be empty.

    RUN: command, state, error, hold (why the host is held, or empty), survey (the last
    one of the run, None if the host did not answer), found (differences by role before the run),
    checks (None if none ran), steps, waiting.
    """
    new: Json = {"schema": SCHEMA, "version": VERSION, "host": host}
    for key, value in empty().items():
        new[key] = old.get(key, value)
    new.update(ran=now.isoformat(), command=run["command"], state=run["state"], error=run["error"])
    new["hold"] = run["hold"]
    survey = run["survey"]
    if survey:
        new.update(_surveyed(new, survey), seen=now.isoformat(), waiting=run["waiting"])
    if run["checks"] is not None:
        new["checks"] = {"at": now.isoformat(), "items": list(run["checks"])[:MAX_LIST]}
    if run["steps"]:
        new["timeline"] = {
            "at": now.isoformat(),
            "command": run["command"],
            "steps": list(run["steps"])[:MAX_LIST],
        }
    changes = [{"at": now.isoformat(), **one} for one in events(old, new, run)]
    first = (now - timedelta(days=DAYS)).isoformat()
    kept = [one for one in [*new["events"], *changes] if one["at"] >= first]
    new["events"] = kept[-MAX_EVENTS:]
    new["days"] = _days(new, now)
    report: Json = clean(new)
    return report


def empty() -> Json:
    """Return what a report says of a host that no run has reached."""
    return {
        "seen": "",
        "ran": "",
        "command": "",
        "state": "",
        "error": "",
        "hold": "",
        "system": {},
        "overview": {},
        "drift": {},
        "conflicts": {},
        "health": [],
        "information": [],
        "waiting": [],
        "checks": {"at": "", "items": []},
        "timeline": {"at": "", "command": "", "steps": []},
        "events": [],
        "days": [],
    }


def clean(value: Any) -> Any:
    """Return JSON with short texts and without control characters, which hosts may send."""
    if isinstance(value, str):
        text = escape_control(value[: MAX_TEXT + 1])
        return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    if isinstance(value, Mapping):
        return {clean(key): clean(one) for key, one in list(value.items())[:MAX_LIST]}
    if isinstance(value, (list, tuple)):
        return [clean(one) for one in value[:MAX_LIST]]
    return value


def _surveyed(known: Entry, survey: Entry) -> Json:
    """Return what a survey changes in a report; the roles that it left out stay as they were."""
    overview = survey["overview"]
    roles = set(overview["roles"])
    merged: Json = {
        key: {
            **{role: found for role, found in known[key].items() if role not in roles},
            **{role: list(found) for role, found in survey[name].items()},
        }
        for key, name in (("drift", "differences"), ("conflicts", "conflicts"))
    }
    return {
        **merged,
        "system": dict(survey["system"]),
        "overview": {
            **known["overview"],
            **overview,
            "roles": sorted(roles.union(known["overview"].get("roles", ()))),
        },
        "health": list(survey["health"]),
        "information": list(survey["information"]),
    }


def events(old: Entry, new: Entry, run: Entry) -> Iterator[dict[str, str]]:
    """Yield what changed on a host since its OLD report: kind and text."""
    if run["state"] in UNKNOWN and run["state"] != old.get("state"):
        yield {"kind": run["state"], "text": run["error"]}
    if run["hold"] and run["hold"] != old.get("hold"):
        yield {"kind": state_report.HELD, "text": run["hold"]}
    if old.get("hold") and not run["hold"] and run["state"] not in UNKNOWN:
        yield {"kind": "released", "text": "no longer held"}
    if not run["survey"]:
        return
    if old.get("state") == state_report.UNREACHABLE:
        yield {"kind": "reachable", "text": "answers again"}
    yield from _compare_versions(old.get("overview") or {}, new["overview"])
    yield from _compare_drift(old, new, run)
    for kind, key, gone in (("fault", "health", "recovered"), ("conflict", "conflicts", "")):
        before, after = (set(_sentences(one.get(key) or ())) for one in (old, new))
        for text in sorted(after - before):
            yield {"kind": kind, "text": text}
        if gone and before and not after:
            yield {"kind": gone, "text": "no fault is left"}


def _compare_versions(before: Entry, after: Entry) -> Iterator[dict[str, str]]:
    if before.get("boot") and after.get("boot") and before["boot"] != after["boot"]:
        yield {"kind": "reboot", "text": "rebooted"}
    for key, name in FOLLOWED:
        had, has = version_of(before, key), version_of(after, key)
        if had and has and had != has:
            yield {"kind": "upgrade", "text": f"{name} {had} → {has}"}


def version_of(overview: Entry, key: str) -> str:
    """Return the version of a part of a host, empty if it has none."""
    value = overview.get(key) or ""
    return str(value.get("version", "")) if isinstance(value, Mapping) else str(value)


def _compare_drift(old: Entry, new: Entry, run: Entry) -> Iterator[dict[str, str]]:
    found, left = _count(run["found"]), _count(new["drift"])
    if run["found"] and run["found"] != old.get("drift"):
        yield {"kind": "drift", "text": f"{found} found: {_by_role(run['found'])}"}
    if run["state"] == state_report.CHANGED and found > left:
        yield {"kind": "repaired", "text": f"{found - left} repaired: {_by_role(run['found'])}"}


def _count(differences: Mapping[str, Sequence[Any]]) -> int:
    return sum(map(len, differences.values()))


def _by_role(differences: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{role} {len(found)}" for role, found in differences.items())


def _sentences(found: Any) -> Iterator[str]:
    """Yield the faults of GPUs that are no warnings, or the reasons of conflicts."""
    if isinstance(found, Mapping):
        yield from (one["reason"] for several in found.values() for one in several)
    else:
        for one in found:
            if not one["warning"]:
                yield f"GPU {one['where']}: {one['found']}" if one["where"] else one["found"]


def faults(report: Entry) -> list[Entry]:
    """Return the faults of GPUs of a host, without the warnings."""
    return [one for one in report["health"] if not one["warning"]]


def condition(report: Entry) -> str:
    """Return what a host is now, the worst first.

    ``held``, ``unreachable``, ``failed``, ``fault``, ``conflict``, ``waiting``, ``drift`` or
    ``declared``.
    """
    is_unproven = any(one["status"] == "failed" for one in report["checks"]["items"])
    # verify fails for drift and conflicts, which have words of their own.
    differs = any(report["drift"].values()) or any(report["conflicts"].values())
    is_told = report["command"] == "verify" and differs
    is_failed = report["state"] == state_report.FAILED and not is_told
    cases = (
        (state_report.HELD, bool(report.get("hold"))),
        (state_report.UNREACHABLE, report["state"] == state_report.UNREACHABLE),
        (state_report.FAILED, is_failed or is_unproven),
        (state_report.FAULT, bool(faults(report))),
        (state_report.CONFLICT, any(report["conflicts"].values())),
        (state_report.WAITING, bool(report["waiting"])),
        (state_report.DRIFT, any(report["drift"].values())),
    )
    return next((name for name, applies in cases if applies), "declared")


def _days(report: Entry, now: datetime) -> list[Json]:
    """Return a record for each day on which a run reached for the host, the last 90 days."""
    first = (now - timedelta(days=DAYS - 1)).date().isoformat()
    today = {
        "day": now.date().isoformat(),
        "state": condition(report),
        "drift": _count(report["drift"]),
        "faults": len({one["where"] for one in faults(report)}),
        "driver": version_of(report["overview"], "driver"),
    }
    earlier = [one for one in report["days"] if first <= one["day"] < today["day"]]
    return [*earlier[-DAYS:], today]
