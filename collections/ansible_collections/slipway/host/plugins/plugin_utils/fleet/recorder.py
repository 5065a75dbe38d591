# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect during a run what the reports of hosts need, and write the reports at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host import acceptance
from ansible_collections.slipway.host.plugins.plugin_utils.fleet.store import Store

# What a report keeps of the result of a survey.
KEPT = ("overview", "differences", "conflicts", "health", "information")
# Steps of a host that a timeline keeps: the longest ones, and those that changed something.
MAX_STEPS = 60


class Recorder:
    """What one run found and did, by host."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = clock()
        self.surveys: dict[str, dict[str, Any]] = {}
        self.found: dict[str, Mapping[str, Any]] = {}
        self.checks: dict[str, list[dict[str, Any]]] = {}
        self.steps: dict[str, list[dict[str, Any]]] = {}
        self.running: dict[tuple[str, str], float] = {}

    def survey(self, host: str, answer: Mapping[str, Any]) -> None:
        """Record the result of a survey; the first one of a run shows what the run found."""
        facts = answer["ansible_facts"]["slipway"]
        system = {key: facts[key] for key in acceptance.SYSTEM if key in facts}
        self.surveys[host] = {**{key: answer[key] for key in KEPT}, "system": system}
        self.found.setdefault(host, answer["differences"])

    def check(self, host: str, checks: list[dict[str, Any]]) -> None:
        """Record the acceptance checks of a host."""
        self.checks[host] = acceptance.describe_checks(checks)

    def start(self, host: str, task: str) -> None:
        """Record when a task, which is known by its ID, began on a host."""
        self.running[host, task] = self.clock()

    def end(self, host: str, task: str, role: str, step: str, changed: bool) -> None:
        """Record how long a task took on a host."""
        now = self.clock()
        began = self.running.pop((host, task), now)
        self.steps.setdefault(host, []).append(
            {
                "role": role.rpartition(".")[2],
                "step": step,
                "start": round(began - self.began, 1),
                "seconds": round(now - began, 1),
                "changed": changed,
            }
        )

    def write(self, store: Store, report: Mapping[str, Any], command: str) -> None:
        """Write the reports of the hosts in the REPORT of a run, see module_utils.state.report."""
        now = datetime.now(timezone.utc).replace(microsecond=0)
        with store.lock():
            for host, entry in report.items():
                run = {
                    "command": command,
                    "state": entry["state"],
                    "error": entry.get("error", ""),
                    "hold": entry.get("hold", ""),
                    "survey": self.surveys.get(host),
                    "found": self.found.get(host, {}),
                    "checks": self.checks.get(host),
                    "steps": self._timeline(host),
                    "waiting": list(entry["waiting"]),
                }
                store.update(host, run, now)

    def _timeline(self, host: str) -> list[dict[str, Any]]:
        """Return the steps of a host that people look for, in order.

        A run that only compared the host has no timeline of its own: that of the last run stays.
        """
        steps = self.steps.get(host, [])
        if not any(step["role"] for step in steps):
            return []
        steps = sorted(steps, key=lambda step: (not step["changed"], -step["seconds"]))
        return sorted(steps[:MAX_STEPS], key=lambda step: float(step["start"]))


def open_store(folder: str, warn: Callable[[str], None]) -> Store | None:
    """Return the store in a FOLDER; None if it is empty or /dev/null, which turns reports off."""
    return None if folder in ("", "/dev/null") else Store(Path(folder), warn)
