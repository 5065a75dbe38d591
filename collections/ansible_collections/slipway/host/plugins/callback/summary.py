# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback slipway.host.summary: show one table at the end of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: summary
type: aggregate
short_description: One table at the end of a run
description:
  - Prints for each surveyed host whether it had drift, how it differed, and the addresses of its
    services.
  - If C(SLIPWAY_REPORT) names a file, writes the same as JSON to this file and prints nothing.
options:
  report:
    description: File for the report in JSON.
    type: path
    env:
      - name: SLIPWAY_REPORT
  reports:
    description:
      - Folder for the reports of hosts and the page about them, F(index.html). It is created with
        mode 0700.
      - Without a folder, and with F(/dev/null), nothing is written.
    type: path
    env:
      - name: SLIPWAY_REPORTS
    ini:
      - section: callback_slipway_summary
        key: reports
requirements:
  - enabled in ansible.cfg
"""

import json
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import connection_loader

# Must be the first import: it loads the modules below from byte code.
from ansible_collections.slipway.host.plugins.plugin_utils import bytecode_cache  # noqa: F401

# isort: split
from ansible_collections.slipway.host.plugins.module_utils.host import acceptance
from ansible_collections.slipway.host.plugins.module_utils.state import report
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils import image_source
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import page, recorder
from ansible_collections.slipway.host.plugins.plugin_utils.live import run_text

HOLDS = "Leave out held hosts"
# The names of the plays that fail a run if they match no host: the first one of each playbook.
PLAYS = (
    "Compare hosts with the declared state",
    "Compare hosts with their state after the removal",
    HOLDS,
    "Read connection settings",
)
NO_HOSTS = (
    "No host matched: the inventory has no hosts, or --limit excludes all of them. Add your "
    "servers to inventory/hosts.yml, or set another inventory with -i."
)
# Where ./slipway demo writes its host, relative to the folder of the project.
DEMO = Path("inventory/demo")
NO_TASKS = (
    "No task matched --tags: Slipway's tasks have no tags. To run only some roles: "
    """-e '{"slipway_roles": ["docker_engine"]}'"""
)
# The first plays that change hosts; all but the second may stop before some of them.
CHANGES = (
    "Apply roles to hosts with drift",
    "Remove roles from hosts",
    "Upgrade driver, Docker Engine and container toolkit",
    "Roll back the last upgrade",
)
# The plays that fail hosts on which everything else is done.
LAST_PLAYS = {"Report conflicts": report.CONFLICT, "Report faults of GPUs": report.FAULT}
# The playbook that removes Slipway from hosts.
REMOVAL = "remove"
# The playbook that builds images, and does nothing else.
IMAGE_BUILD = "images_build"
SSH_FORWARD = "ansible_collections.slipway.host.plugins.plugin_utils.ssh_forward"
# What the last line says of hosts that need nothing more: these commands do not compare all roles.
RESULTS = {
    REMOVAL: "with nothing left to remove",
    IMAGE_BUILD: "finished",
    "rollback": "finished",
    "upgrade": "finished",
}
SURVEY = ("slipway.host.survey", "survey")
# The task that compares a host only for its metrics, after a change of another kind.
METRICS_SURVEY = "Survey the host for its metrics"
VERIFY = ("slipway.host.verify", "verify")


def read_path(callback: CallbackBase, option: str, variable: str) -> str:
    """Return the path in an option, empty without one or if its VARIABLE is set, but empty.

    Ansible turns an empty variable into the current folder.
    """
    return "" if os.environ.get(variable) == "" else str(callback.get_option(option) or "")


class CallbackModule(CallbackBase):
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "slipway.host.summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.report: dict[str, dict[str, Any]] = {}
        self.recorder = recorder.Recorder()
        # The first result of each host's survey.
        self.surveys: dict[str, dict[str, Any]] = {}
        self.command = ""
        self.play = ""
        self.no_hosts = False
        # Whether a play of CHANGES began, the hosts that it is about, and those that it reached.
        self.is_changing = False
        self.due: set[str] = set()
        self.started: set[str] = set()
        # For each play of PLAYS, whether a task of it started.
        self.had_tasks: dict[str, bool] = {}
        # By host and task, the first error of an item of a loop.
        self.item_errors: dict[tuple[str, str], str] = {}

    def _entry(self, host: str) -> dict[str, Any]:
        new = {
            "state": report.NO_DRIFT,
            "differences": {},
            "information": [],
            "conflicts": {},
            "consequences": [],
            "health": [],
            "gpus": 0,
            "checks": [],
            "system": {},
            "waiting": [],
            "hold": "",
            "urls": {},
            "notes": [],
        }
        return self.report.setdefault(host, new)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Record which command runs: the name of its playbook."""
        self.command = Path(getattr(playbook, "_file_name", "")).stem
        end_old_deliveries()

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Record when a task begins on a host."""
        self.recorder.start(host.name, task._uuid)
        if self.play in CHANGES:
            self.started.add(host.name)

    def _record_end(self, result: Any) -> None:
        """Record when a task ended on a host."""
        task, role = result.task, getattr(result.task, "_role", None)
        self.recorder.end(
            result.host.name,
            task._uuid,
            role.get_name() if role else "",
            getattr(task, "name", ""),
            bool(result.result.get("changed")),
        )

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Record which play runs; print what it disturbs before the first change."""
        self.play = play.get_name()
        # Each batch of hosts is a play of the same name.
        if self.play in CHANGES and not self.is_changing:
            self.is_changing = True
            text = report.consequences(self.report)
            if text and not read_path(self, "report", "SLIPWAY_REPORT"):
                self._display.display("\n" + text)
        if self.play in PLAYS:
            self.had_tasks[self.play] = False

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Record that the play has a task."""
        if self.play in self.had_tasks:
            self.had_tasks[self.play] = True

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Record that no host matched a play of PLAYS."""
        self.no_hosts = self.no_hosts or self.play in PLAYS

    def v2_runner_on_ok(self, result: Any) -> None:
        """Record the result of the first survey, and the notes of other tasks."""
        answer, host = result.result, result.host.name
        if answer.get("hold"):
            self._entry(host).update(state=report.HELD, hold=answer["hold"])
            return
        if answer.get("hold") == "":
            self.due.add(host)
        self._record_end(result)
        if result.task.action in SURVEY and "differences" in answer:
            self.recorder.survey(host, answer)
            is_first = host not in self.report and result.task.name != METRICS_SURVEY
            entry = self._entry(host)
            # A role may have met more conflicts, or made what was missing.
            entry["conflicts"] = answer["conflicts"]
            entry["urls"] = answer["urls"]
            entry["health"] = answer["health"]
            entry["gpus"] = count_gpus(answer["overview"])
            facts = answer["ansible_facts"]["slipway"]
            entry["system"] = {key: facts[key] for key in acceptance.SYSTEM if key in facts}
            if is_first:
                self.surveys[host] = answer
                # The survey after the roles finds no drift or fails.
                entry["differences"] = answer["differences"]
                entry["consequences"] = answer["consequences"]
                entry["information"] = answer.get("information", [])
                if answer["differences"]:
                    entry["state"] = report.DRIFT
                if answer["drift"]:
                    self.due.add(host)
        self._record_checks(result)
        if answer.get("slipway_note") and host in self.report:
            self._entry(host)["notes"].append(answer["slipway_note"])
        self._record_waiting(host, answer.get("slipway_waiting", ()))

    def _record_checks(self, result: Any) -> None:
        """Record the acceptance checks of a host, passed or failed."""
        if result.task.action in VERIFY and result.host.name in self.report:
            checks = result.result.get("checks", [])
            self._entry(result.host.name)["checks"] = checks
            if checks:
                self.recorder.check(result.host.name, checks)

    def _record_waiting(self, host: str, sentences: Iterable[str]) -> None:
        """Record why changes of a host wait; a role that runs twice says it twice."""
        waiting = self._entry(host)["waiting"] if sentences else []
        waiting += [one for one in map(escape_control, sentences) if one not in waiting]

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Record the error of an item: the error of the loop says only that an item failed."""
        key = (result.host.name, result.task._uuid)
        self.item_errors.setdefault(key, first_line(result.result))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Record the first error of a host."""
        self._record_end(result)
        self._record_checks(result)
        if not ignore_errors and self.play in LAST_PLAYS:
            self._entry(result.host.name)["state"] = LAST_PLAYS[self.play]
        elif not ignore_errors:
            self._record_error(result, report.FAILED)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Record why a host was unreachable."""
        self._record_error(result, report.UNREACHABLE)

    def _record_error(self, result: Any, state: str) -> None:
        entry = self._entry(result.host.name)
        entry["state"] = state
        item_error = self.item_errors.get((result.host.name, result.task._uuid))
        entry.setdefault("error", item_error or first_line(result.result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print the table, or write the report."""
        failed = {host for host in self.report if host not in self.surveys}
        image_source.name_sources(self.surveys, failed)
        self._mark_not_started()
        self.report = report.escape(self.report)
        for host, entry in self.report.items():
            # An upgrade also changes hosts without drift.
            surveyed = entry["state"] in (report.DRIFT, report.NO_DRIFT)
            if surveyed and stats.summarize(host)["changed"]:
                entry["state"] = report.WOULD_CHANGE if in_check_mode() else report.CHANGED
            if entry["waiting"] and entry["state"] not in report.UNFINISHED:
                entry["state"] = report.WAITING
        file = read_path(self, "report", "SLIPWAY_REPORT")
        if file:
            Path(file).write_text(json.dumps(report.as_json(self.report)), encoding="utf-8")
        elif self.report:
            result = RESULTS.get(self.command, "as declared")
            self._display.display("\n" + report.summary(self.report, result))
        self._write_reports()
        if self.no_hosts:
            # Ansible does not report it, because an empty group is normal for the later plays.
            demo = f" For the host of the demo: -i {DEMO}" if (DEMO / "hosts.yml").is_file() else ""
            self._display.error(NO_HOSTS + demo)
        elif not all(self.had_tasks.values()):
            self._display.error(NO_TASKS)
        if self.no_hosts or not all(self.had_tasks.values()):
            # Ansible would exit with 0, and a script with a wrong -i or --tags would not notice.
            raise SystemExit(1)
        states = {entry["state"] for entry in self.report.values()}
        if report.WAITING in states and not states & report.UNFINISHED:
            raise SystemExit(report.EXIT_WAITING)

    def _mark_not_started(self) -> None:
        """Mark the hosts that a run with too many failures did not reach."""
        left = self.due - self.started if self.is_changing else set()
        for host in left:
            entry = self._entry(host)
            if entry["state"] not in (report.FAILED, report.UNREACHABLE):
                entry["state"] = report.NOT_STARTED
        if self.play != CHANGES[0]:
            return
        # All hosts of a batch failed: Ansible left out the plays that report conflicts and faults.
        for entry in self.report.values():
            if entry["state"] in (report.DRIFT, report.NO_DRIFT):
                is_ill = any(not one["warning"] for one in entry["health"])
                state = report.CONFLICT if entry["conflicts"] else report.FAULT
                entry["state"] = state if entry["conflicts"] or is_ill else entry["state"]

    def _write_reports(self) -> None:
        """Write the reports of the hosts and the page; a run does not fail if that fails."""
        store = recorder.open_store(
            read_path(self, "reports", "SLIPWAY_REPORTS"), self._display.warning
        )
        # A removal compares hosts with nothing: its differences are no drift. A build of images
        # compares only them.
        if store is None or not self.report or self.command in (REMOVAL, IMAGE_BUILD):
            return
        try:
            self.recorder.write(store, self.report, self.command)
            page.write(store)
        except OSError as error:
            self._display.warning(f"Reports were not written: {error}.")
        else:
            self._display.display(f"\nFleet page: {store.page}")


def end_old_deliveries() -> None:
    """End what killed runs left of deliveries of images."""
    # Loads the option; the processes of the hosts share the plugin.
    connection_loader.get("ssh", class_only=True)
    option = ("control_path_dir", None, "connection", "ssh")
    folder = Path(constants.config.get_config_value(*option)).expanduser()
    if any(folder.glob("slipway-*")):
        # Imported late: hardly any run finds such a file.
        import_module(SSH_FORWARD).end_old_runs(folder)


def count_gpus(overview: Mapping[str, Any]) -> int:
    """Return the number of GPUs of a host that the driver reports."""
    return sum(gpu["health"] not in ("missing", "unknown") for gpu in overview.get("gpus", ()))


def in_check_mode() -> bool:
    """Return whether the run only predicts changes."""
    return bool(context.CLIARGS.get("check"))


def first_line(result: Mapping[str, Any]) -> str:
    """Return the first line of the error of a task."""
    message = run_text.message_of(result)
    if "non-zero return code" in message:
        # The words of ansible.builtin.command, which say less than the program's own.
        message = str(result.get("stderr") or message)
    return escape_control(next(iter(message.strip().splitlines()), "see above"))
