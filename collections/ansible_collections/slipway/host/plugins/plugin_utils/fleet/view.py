# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page shows of hosts and of the fleet, as data for its template. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import quote

from ansible_collections.slipway.host.plugins.module_utils.gpu.health import FAULT, sentences
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.module_utils.state.model import phrase
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import history, pictures, store

Report: TypeAlias = "Mapping[str, Any]"
Json: TypeAlias = "dict[str, Any]"

# Conditions of hosts in the order of the page: what needs a person first.
CONDITIONS: Mapping[str, str] = {
    "failed": "failed",
    "fault": "GPU fault",
    "conflict": "conflict",
    "unreachable": "unreachable",
    "waiting": "waits",
    "drift": "drift",
    "held": "held",
    "declared": "as declared",
}
ORDER = {name: rank for rank, name in enumerate(CONDITIONS)}
STALE_DAYS = 7
# A disk with a smaller part of free space is marked.
LOW_DISK = 0.1
MAX_REASON = 140
MAX_VERSIONS = 5
# Fewest days of a trend.
MIN_DAYS = 14


def host(report: Report, now: datetime) -> Json:
    """Return what a row of the page shows of a host, and the report itself."""
    overview, condition = report["overview"], history.condition(report)
    stale = not report["seen"] or report["seen"] < (now - timedelta(days=STALE_DAYS)).isoformat()
    gpus = overview.get("gpus", [])
    is_ill = bool(history.faults(report)) or any(one["health"] == "missing" for one in gpus)
    services = [{**one, "mark": _mark(one)} for one in overview.get("services", ())]
    marks = {
        "need": condition in state_report.UNFINISHED,
        "drift": any(report["drift"].values()),
        "wait": bool(report["waiting"]),
        "ill": is_ill,
        "gpu": bool(gpus),
        "old": stale,
    }
    system = report["system"]
    return {
        "report": report,
        "id": f"host-{quote(report['host'], safe='')}",
        "name": report["host"],
        "file": quote(store.file_name(report["host"])),
        "system": " ".join(
            filter(None, (system.get("distribution"), system.get("distribution_version")))
        ),
        "condition": condition,
        "label": CONDITIONS[condition],
        "reason": _reason(report, condition),
        "marks": " ".join(name for name, applies in marks.items() if applies),
        "needy": marks["need"],
        "stale": stale,
        "gpus": _gpus(gpus),
        "driver": _driver(overview.get("driver") or {}),
        "engine": overview.get("engine", ""),
        "engine_name": " ".join(map(upstream, overview.get("engine", "").split())),
        "toolkit": overview.get("toolkit", ""),
        "services": services,
        "down": sum(not is_up(one) for one in services),
        "images": overview.get("images", []),
        "disks": [_disk(one) for one in overview.get("disks", ())],
        "seen": report["seen"],
        "rank": (ORDER[condition], not stale, _natural(report["host"])),
    }


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts gpu2 before gpu10."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d{1,18})", name)
    ]


def upstream(version: str) -> str:
    """Return a version of Debian without epoch and revision: ``5:29.1.0-1~noble`` is 29.1.0."""
    return re.sub(r"^\d+:|-[^-]*$", "", version) if re.match(r"(\d+:)?\d", version) else version


def _mark(service: Report) -> str:
    """Return the class of the state of a service."""
    if service["state"] == "starting":
        return "warn"
    return "good" if is_up(service) else "bad"


def is_up(service: Report) -> bool:
    """Return whether a service runs and does not say that it is ill."""
    return service["state"] in ("running", "healthy", "starting")


def _driver(driver: Report) -> str:
    return " ".join(filter(None, (driver.get("version"), driver.get("flavour"))))


def _disk(disk: Report) -> Json:
    total = disk["total"] or 1
    free = disk["free"] / total
    return {**disk, "used": round(100 * (1 - free)), "low": free < LOW_DISK}


def _gpus(gpus: Sequence[Report]) -> Json:
    """Return the picture of the GPUs of a host, and what it shows in words."""
    names = Counter(gpu["name"].removeprefix("NVIDIA ") for gpu in gpus)
    healths = Counter(gpu["health"] for gpu in gpus)
    parts = [f"{healths[name]} {name}" for name in healths if name != "healthy"]
    for words, count in (
        ("in use", sum(bool(gpu["users"]) for gpu in gpus)),
        ("reserved", sum(bool(gpu["reserved"]) for gpu in gpus)),
    ):
        if count:
            parts.append(f"{count} {words}")
    return {
        "picture": pictures.gpus(gpus) if gpus else "",
        "models": ", ".join(f"{count} \u00d7 {name}" for name, count in names.items()),
        "text": ", ".join(parts),
    }


def _reason(report: Report, condition: str) -> str:
    """Return why a host is in its condition, in one short sentence."""
    failed = [one for one in report["checks"]["items"] if one["status"] == "failed"]
    # The error of failed checks lists them.
    error = report["error"] if report["state"] == "failed" else ""
    is_of_checks = any(error.startswith(f"{one['what']}: ") for one in failed)
    texts: Mapping[str, Sequence[str]] = {
        "failed": [
            *([] if is_of_checks else [error]),
            *(f"check {one['what']}: {one['found']}" for one in failed),
        ],
        "fault": [text for kind, text in sentences(report["health"]) if kind == FAULT],
        "conflict": [one["reason"] for found in report["conflicts"].values() for one in found],
        "unreachable": [report["error"]],
        "waiting": report["waiting"],
        "held": [report.get("hold", "")],
        "drift": [
            ", ".join(f"{role}: {len(found)}" for role, found in report["drift"].items() if found)
        ],
    }
    found = [text for text in texts.get(condition, ()) if text]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    text = found[0] if found else ""
    if len(text) > MAX_REASON:
        # Without a cut word, unless the text is a single one.
        text = f"{text[:MAX_REASON].rpartition(' ')[0] or text[: MAX_REASON - 1]}…"
    return text + more


def details(view: Report, now: datetime, full: bool = True) -> Json:
    """Return what the section of a host shows beyond its row; FULL: with the checks that passed."""
    report = view["report"]
    checks = sorted(report["checks"]["items"], key=lambda one: str(one["status"]))
    return {
        "drift": [
            {"role": role, "thing": phrase(one["kind"], one["name"]), **one}
            for role, found in report["drift"].items()
            for one in found
        ],
        "conflicts": [
            {"role": role, **one} for role, found in report["conflicts"].items() for one in found
        ],
        "checks": [one for one in checks if full or one["status"] != "passed"],
        "passed": [one["what"] for one in checks if one["status"] == "passed"],
        "history": day_strip(report["days"], now),
        "events": report["events"][::-1],
        "roles": _roles(report["timeline"]["steps"]),
        "slowest": sorted(report["timeline"]["steps"], key=lambda one: -float(one["seconds"])),
    }


def _roles(steps: Sequence[Report]) -> list[Json]:
    """Return each role of a run: when it began, how long it took, what part of the run that is."""
    spans: dict[str, Json] = {}
    for step in steps:
        name = step["role"] or "survey"
        span = spans.setdefault(
            name, {"name": name, "start": step["start"], "end": 0, "changed": 0}
        )
        span["end"] = max(span["end"], step["start"] + step["seconds"])
        span["changed"] += bool(step["changed"])
    first = min((span["start"] for span in spans.values()), default=0)
    length = max((span["end"] - first for span in spans.values()), default=0) or 1
    for span in spans.values():
        span["seconds"] = round(span["end"] - span["start"], 1)
        span["left"] = round(100 * (span["start"] - first) / length, 1)
        span["width"] = max(0.5, round(100 * (span["end"] - span["start"]) / length, 1))
    return list(spans.values())


def _dates(now: datetime) -> list[str]:
    first = now.date() - timedelta(days=history.DAYS - 1)
    return [(first + timedelta(days=number)).isoformat() for number in range(history.DAYS)]


def _per_day(days: Sequence[Report], dates: Sequence[str]) -> list[Report | None]:
    """Return the newest record of a host for each date, None before the first one."""
    by_day = {one["day"]: one for one in days}
    found: list[Report | None] = []
    for day in dates:
        found.append(by_day.get(day) or (found[-1] if found else None))
    return found


def day_strip(days: Sequence[Report], now: datetime) -> Any:
    """Return the history of a host as a picture, a column for each of the last 90 days."""
    dates, measured = _dates(now), {one["day"] for one in days}
    states = [str(one["state"]) if one else "" for one in _per_day(days, dates)]
    return pictures.strip(
        [state if state in CONDITIONS else None for state in states],
        [day in measured for day in dates],
    )


def fleet(views: Sequence[Report], now: datetime) -> Json:
    """Return numbers of the fleet now, and its trends."""
    dates = _dates(now)
    measured = [one["day"] for view in views for one in view["report"]["days"]]
    # A young fleet has wide columns, not an empty chart.
    begin = min([*measured, dates[-MIN_DAYS]])
    dates = [day for day in dates if day >= begin]
    rows = [_per_day(view["report"]["days"], dates) for view in views]
    columns = [[one for one in column if one] for column in zip(*rows, strict=True)]
    columns = columns or [[] for _day in dates]
    states = [Counter(str(one["state"]) for one in column) for column in columns]
    gpus = [gpu for view in views for gpu in view["report"]["overview"].get("gpus", ())]
    services = [one for view in views for one in view["services"]]
    return {
        "hosts": len(views),
        "needy": sum(view["needy"] for view in views),
        "drift": sum("drift" in view["marks"].split() for view in views),
        "waiting": sum("wait" in view["marks"].split() for view in views),
        "stale": sum(view["stale"] for view in views),
        "ill": sum("ill" in view["marks"].split() for view in views),
        "gpus": len(gpus),
        "gpus_ill": sum(gpu["health"] in ("fault", "missing") for gpu in gpus),
        "gpus_used": sum(bool(gpu["users"]) for gpu in gpus),
        "gpus_reserved": sum(bool(gpu["reserved"]) for gpu in gpus),
        "services": len(services),
        "services_up": sum(is_up(one) for one in services),
        "days": len(dates),
        "states": pictures.areas(
            [(f"c-{name}", [count[name] for count in states]) for name in reversed([*CONDITIONS])]
        ),
        "faults": pictures.areas(
            [("c-fault", [sum(int(one["faults"]) for one in column) for column in columns])]
        ),
        "fault_peak": max(sum(int(one["faults"]) for one in column) for column in columns),
        "drivers": _versions(columns),
        "engines": Counter(view["engine_name"] for view in views if view["engine"]).most_common(
            MAX_VERSIONS
        ),
    }


def _versions(columns: Sequence[Sequence[Report]]) -> Json:
    """Return how many hosts had each version of the driver on each day; rare ones are one group."""
    counts = [Counter(str(one["driver"]) for one in column if one["driver"]) for column in columns]
    total = sum(counts, Counter())
    names = [name for name, _count in total.most_common(MAX_VERSIONS)]
    series = [(name, [count[name] for count in counts]) for name in names]
    others = [sum(count.values()) - sum(count[name] for name in names) for count in counts]
    if any(others):
        series.append(("others", others))
    return {
        "picture": pictures.areas(
            [(f"v{number}", values) for number, (_name, values) in enumerate(series)]
        ),
        "names": [
            {"class": f"v{number}", "name": name, "hosts": values[-1]}
            for number, (name, values) in enumerate(series)
        ],
    }
