# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback slipway.host.summary: one table at the end of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: summary
type: aggregate
short_description: One table at the end of a run
description:
  - Prints for each host that was surveyed whether it had drift, where it differed, and the
    addresses of its services.
  - Where C(SLIPWAY_REPORT) names a file, the same goes there as JSON, and nothing is printed.
options:
  report:
    description: File that the report goes to as JSON.
    type: path
    env:
      - name: SLIPWAY_REPORT
requirements:
  - enabled in ansible.cfg
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible_collections.slipway.host.plugins.module_utils.state import report
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

_IMAGE_PLAYS = (
    "Build images on the hosts",
    "List images of the hosts",
    "Load images on the hosts",
    "Prune images on the hosts",
    "Push images to a registry",
    "Save images to archives",
    "Run image smoke tests on the hosts",
)
# The names of the plays that fail a run if they match no host.
PLAYS = (
    "Compare hosts with the declared state",
    "Upgrade driver, Docker Engine and container toolkit",
    "Roll back the last upgrade",
    *_IMAGE_PLAYS,
)
NO_HOSTS = (
    "there is no host to look at: the inventory names none, or --limit leaves none. Name your "
    "servers in inventory/hosts.yml, or another inventory with -i."
)
NO_TASKS = (
    "no task ran: Slipway's have no tags. To act for some of its roles alone: "
    """-e '{"slipway_roles": ["docker_engine"]}'"""
)
SURVEY = ("slipway.host.survey", "survey")


class CallbackModule(CallbackBase):
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "slipway.host.summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, dict[str, Any]] = {}
        self.play = ""
        self.no_hosts = False
        # Plays that want a host and had a task to run, or did not.
        self.had_tasks: dict[str, bool] = {}
        # By host and task, the error of the first item of a loop that failed.
        self.items: dict[tuple[str, str], str] = {}

    def _entry(self, host: str) -> dict[str, Any]:
        fresh = {"state": report.NO_DRIFT, "differences": {}, "urls": {}, "notes": []}
        return self.report.setdefault(host, fresh)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Remember which play runs."""
        self.play = play.get_name()
        if self.play in PLAYS:
            self.had_tasks[self.play] = False

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Remember that this play does something."""
        if self.play in self.had_tasks:
            self.had_tasks[self.play] = True

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Remember that there was nobody to look at."""
        self.no_hosts = self.no_hosts or self.play in PLAYS

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take what the survey found, and the notes that other tasks leave."""
        answer, host = result.result, result.host.name
        if result.task.action in SURVEY and "differences" in answer and host not in self.report:
            # The first survey of a run; the one after the roles found nothing, or failed.
            entry = self._entry(host)
            entry["differences"] = answer["differences"]
            entry["urls"] = answer["urls"]
            if answer["differences"]:
                entry["state"] = report.DRIFT
        if answer.get("slipway_note") and host in self.report:
            self._entry(host)["notes"].append(answer["slipway_note"])

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Remember why: of the loop, only that there was an item is said later."""
        key = (result.host.name, result.task._uuid)
        self.items.setdefault(key, first_line(result.result))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Take the first error of a host."""
        if not ignore_errors:
            self._failed(result, report.FAILED)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Take why a host could not be reached."""
        self._failed(result, report.UNREACHABLE)

    def _failed(self, result: Any, state: str) -> None:
        entry = self._entry(result.host.name)
        entry["state"] = state
        item = self.items.get((result.host.name, result.task._uuid))
        entry.setdefault("error", item or first_line(result.result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table, or write the report."""
        for host, entry in self.report.items():
            # A host without drift can change as well, by an upgrade.
            surveyed = entry["state"] in (report.DRIFT, report.NO_DRIFT)
            if surveyed and stats.summarize(host)["changed"]:
                entry["state"] = report.WOULD_CHANGE if in_check_mode() else report.CHANGED
        file = self.get_option("report")
        if file:
            Path(file).write_text(json.dumps(report.with_old_status(self.report)), encoding="utf-8")
        elif self.report:
            self._display.display("\n" + report.summary(self.report))
        if self.no_hosts:
            # Ansible says nothing of it: an empty group is the good case for the later plays.
            self._display.error(NO_HOSTS)
        elif not all(self.had_tasks.values()):
            self._display.error(NO_TASKS)
        if self.no_hosts or not all(self.had_tasks.values()):
            # For Ansible that is success, and a script with a wrong -i or --tags would not notice.
            raise SystemExit(1)


def in_check_mode() -> bool:
    """Return whether the run only predicts changes."""
    return bool(context.CLIARGS.get("check"))


def first_line(result: Mapping[str, Any]) -> str:
    """Return the line that says what went wrong."""
    words = str(result.get("msg", "")).removeprefix("Task failed: ").removeprefix("Module failed: ")
    return escape_control(next(iter(words.strip().splitlines()), "see above"))
