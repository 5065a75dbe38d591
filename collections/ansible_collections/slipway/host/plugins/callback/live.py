# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The callback slipway.host.live: one line per host while a run goes on."""

from __future__ import annotations

DOCUMENTATION = r"""
name: live
type: stdout
short_description: One line per host while a run goes on
description:
  - On a terminal, shows what each host does now, and above it failures and messages. Elsewhere,
    prints a line with the time for each event that matters.
  - A log file contains everything that the callback M(ansible.builtin.default#callback) prints.
  - With C(-v) or C(--step), it is the callback M(ansible.builtin.default#callback).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  output:
    description:
      - V(live) is the view, V(plain) lines with the time, V(ansible) the ordinary output.
      - V(auto) is the view on a terminal, and lines elsewhere and if C(NO_COLOR), C(CI) or
        C(TERM=dumb) is set.
    type: str
    choices: [auto, live, plain, ansible]
    default: auto
    env:
      - name: SLIPWAY_OUTPUT
    ini:
      - section: slipway
        key: output
  state:
    description: Folder for the logs and for the times of the last runs.
    type: path
    default: ~/.ansible/slipway
    env:
      - name: SLIPWAY_STATE
requirements:
  - set as stdout callback
  - Python library rich, for the view
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible import context
from ansible.plugins.callback.default import CallbackModule as Default

# Must be the first import: it loads the modules below from byte code.
from ansible_collections.slipway.host.plugins.plugin_utils import bytecode_cache  # noqa: F401

# isort: split
from ansible_collections.slipway.host.plugins.callback import summary
from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    run_display,
    run_text,
    view_state,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.run_output import LOG, SCREEN

DEBUGS = ("debug", "ansible.builtin.debug", "ansible.legacy.debug")
PAUSES = ("pause", "ansible.builtin.pause", "ansible.legacy.pause")
# The default of the option state.
STATE = "~/.ansible/slipway"
# The report of its checks is part of the table at the end.
SILENT_ROLES = ("host_verify",)


class CallbackModule(Default):
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "slipway.host.live"

    def __init__(self) -> None:
        super().__init__()
        # None: the ordinary output.
        self.shown: run_display.RunDisplay | None = None
        # By task, its name and its role.
        self.labels: dict[str, tuple[str, str]] = {}
        self.play = ""
        # The name of a play without a task so far: a play may have no hosts.
        self.untold_play = ""
        # Whether the callback summary prints a table of all hosts.
        self.has_table = False
        # The hosts with a task beyond the check for a hold.
        self.started: set[str] = set()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Choose the output, once for all playbooks of the command."""
        if self.shown is None and not needs_ordinary_output(self._display.verbosity):
            asked = self.get_option("output")
            mode = run_display.choose(asked, os.environ, can_draw())
            if mode != run_display.ANSIBLE:
                state = summary.read_path(self, "state", "SLIPWAY_STATE") or STATE
                name = Path(playbook._file_name).stem
                lock = getattr(self._display, "_lock", threading.RLock())
                self.shown = run_display.RunDisplay(mode, lock, Path(state).expanduser(), name)
                atexit.register(self._at_exit, os.getpid())
                self.shown.start()
        with self._log():
            super().v2_playbook_on_start(playbook)

    def _log(self) -> AbstractContextManager[None]:
        """Return a context in which the ordinary output goes only to the log."""
        return self.shown.output.only(LOG) if self.shown else nullcontext()

    def _state(self) -> AbstractContextManager[Any]:
        """Return a context in which the state may change."""
        return self.shown.lock if self.shown else nullcontext()

    def _at_exit(self, pid: int) -> None:
        """End the view after an interruption or an error of Ansible; workers never get here."""
        if self.shown and os.getpid() == pid and not self.shown.is_over:
            with self._state():
                lines = self.shown.interrupted()
            self.shown.stop()
            self.shown.say(*lines)
            self._print_log_path()

    def _print_log_path(self) -> None:
        if self.shown and self.shown.output.log:
            self.shown.say(f"Log: {self.shown.output.log.path}")

    # Questions

    def v2_playbook_on_vars_prompt(self, *arguments: Any, **options: Any) -> None:
        """Remove the view until the next play, so that the question stays visible."""
        if self.shown:
            self.shown.pause()

    # Plays and tasks

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Show the play."""
        self.play = play.get_name()
        if self.shown:
            with self._state():
                name = run_text.one_line(self.play)
                if context.CLIARGS.get("check"):
                    name += " (check mode)"
                self.shown.resume()
                self.untold_play = name
        with self._log():
            super().v2_playbook_on_play_start(play)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Show the task."""
        self._start_task(task)
        with self._log():
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Show the handler."""
        self._start_task(task)
        with self._log():
            super().v2_playbook_on_handler_task_start(task)

    def _start_task(self, task: Any) -> None:
        if self.shown is None:
            return
        with self._state():
            step, role = self._label(task)
            if self.untold_play:
                self.shown.run.start_play(self.untold_play, time.monotonic())
                self.shown.tell(self.shown.events.play(self.untold_play))
                self.shown.news()
                self.untold_play = ""
            self.shown.tell(self.shown.events.task(": ".join(filter(None, [role, step])), role))
            if task.action in PAUSES:
                self.shown.pause()
            else:
                self.shown.resume()

    def _label(self, task: Any) -> tuple[str, str]:
        """Return the name and the role of a task, as of its start: later it may be a template."""
        if task._uuid not in self.labels:
            role = task._role.get_name() if task._role else ""
            step = task.name or task.action
            self.labels[task._uuid] = (run_text.one_line(step), run_text.one_line(role))
        return self.labels[task._uuid]

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Show what the host does."""
        if self.play != summary.HOLDS:
            self.started.add(host.name)
        if self.shown:
            with self._state():
                step, role = self._label(task)
                self.shown.run.start_step(host.name, role, step, time.monotonic())
                self.shown.news()
        with self._log():
            super().v2_runner_on_start(host, task)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Show that the hosts wait for the tasks of the file."""
        for host in included_file._hosts:
            self._end_step(host.name, False)
        with self._log():
            super().v2_playbook_on_include(included_file)

    # Results

    def _end_step(self, host: str, changed: bool) -> None:
        if self.shown:
            with self._state():
                self.shown.run.end_step(host, changed, time.monotonic())
                if changed:
                    self.shown.events.change(host)
                self.shown.news()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Show the end of a task, and the text of a debug task."""
        if self.shown:
            answer, host = result.result, result.host.name
            _step, role = self._label(result.task)
            if result.task.action in summary.SURVEY and "differences" in answer:
                self.has_table = True
                with self._state():
                    self.shown.run.plan_roles(host, answer["drift"])
            self._end_step(host, bool(answer.get("changed")))
            if answer.get("hold"):
                self._show_hold(host, run_text.one_line(answer["hold"]))
            if result.task.action in DEBUGS and not result.task.loop and role not in SILENT_ROLES:
                self.shown.say(*run_text.debug_message(host, answer))
        with self._log():
            super().v2_runner_on_ok(result)

    def _show_hold(self, host: str, reason: str) -> None:
        if self.shown:
            with self._state():
                self.shown.run.hold(host, reason)
                self.shown.tell(self.shown.events.line(f"{host}: {view_state.HELD}: {reason}"))
                self.shown.news()

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Show the end of a task that did not run."""
        self._end_step(result.host.name, False)
        with self._log():
            super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Show a failure completely; an expected one is only in the log."""
        if ignore_errors:
            self._end_step(result.host.name, False)
        elif self.shown:
            if not (result.task.loop and "results" in result.result):
                self._print_failure(result, result.host.name, "FAILED")
            self._end_host(result, view_state.FAILED)
        with self._log():
            super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Show why a host cannot be reached."""
        if self.shown:
            self._print_failure(result, result.host.name, "UNREACHABLE")
            self._end_host(result, view_state.UNREACHABLE)
        with self._log():
            super().v2_runner_on_unreachable(result)

    def _print_failure(self, result: Any, host: str, outcome: str) -> None:
        # The table at the end has what the last plays fail on.
        if self.shown and self.play not in summary.LAST_PLAYS:
            label = ": ".join(filter(None, reversed(self._label(result.task))))
            self.shown.say(*run_text.failure(host, label, result.result, outcome))

    def _end_host(self, result: Any, state: str) -> None:
        if self.shown:
            with self._state():
                reason = next(iter(run_text.safe_lines(run_text.message_of(result.result))), "")
                self.shown.run.fail(result.host.name, state, reason, time.monotonic())
                self.shown.news()

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Show which item of a loop ended."""
        self._end_item(result)
        if self.shown and result.task.action in DEBUGS:
            self.shown.say(*run_text.debug_message(result.host.name, result.result))
        with self._log():
            super().v2_runner_item_on_ok(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Show which item of a loop ended."""
        self._end_item(result)
        with self._log():
            super().v2_runner_item_on_skipped(result)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        """Show the failure of an item of a loop, unless it is expected."""
        self._end_item(result)
        if self.shown and not result.task.ignore_errors:
            item = run_text.one_line(self._get_item_label(result.result))
            self._print_failure(result, f"{result.host.name} ({item})", "FAILED")
        with self._log():
            super().v2_runner_item_on_failed(result)

    def _end_item(self, result: Any) -> None:
        if self.shown:
            with self._state():
                text = run_text.one_line(self._get_item_label(result.result))
                self.shown.run.progress(result.host.name, f"{text}: done")
                self.shown.news()

    def v2_runner_retry(self, result: Any) -> None:
        """Show which try of a task failed."""
        if self.shown:
            with self._state():
                tries = f"try {result.result['attempts']} of {result.result['retries']} failed"
                self.shown.run.progress(result.host.name, tries)
                self.shown.news()
        with self._log():
            super().v2_runner_retry(result)

    def _handle_warnings(self, res: Any) -> None:
        """Print warnings also on the terminal."""
        with self.shown.output.only(LOG, SCREEN) if self.shown else nullcontext():
            super()._handle_warnings(res)

    def v2_on_file_diff(self, result: Any) -> None:
        """Print differences also on the terminal: a person asked for them."""
        if self.shown and context.CLIARGS.get("diff") and "diff" in result.result:
            self.shown.say(f"{result.host.name}:")
        super().v2_on_file_diff(result)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Log that a play has no hosts."""
        with self._log():
            super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Log that all hosts failed."""
        with self._log():
            super().v2_playbook_on_no_hosts_remaining()

    def v2_runner_on_async_poll(self, result: Any) -> None:
        """Log that a task still runs."""
        with self._log():
            super().v2_runner_on_async_poll(result)

    def v2_runner_on_async_ok(self, result: Any) -> None:
        """Log that a task ended."""
        with self._log():
            super().v2_runner_on_async_ok(result)

    def v2_runner_on_async_failed(self, result: Any) -> None:
        """Log that a task ended."""
        with self._log():
            super().v2_runner_on_async_failed(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """End the view; the table follows."""
        if self.shown:
            with self._state():
                self.shown.run.end(time.monotonic())
                self.shown.tell(self.shown.events.end_task())
            self.shown.stop()
            self.shown.save_times()
            if not self.has_table:
                for line in recap(stats, self.started):
                    self.shown.say(line)
            self._print_log_path()
        with self._log():
            super().v2_playbook_on_stats(stats)


def needs_ordinary_output(verbosity: int) -> bool:
    """Return whether a person asked for details, or for questions after tasks."""
    return bool(
        verbosity or context.CLIARGS.get("step") or getattr(C, "ENABLE_TASK_DEBUGGER", False)
    )


def can_draw() -> bool:
    """Return whether nothing else writes to the terminal.

    Workers of Ansible without a session of their own may ask there, such as ssh for a host key.
    """
    return sys.stdout.isatty() and getattr(C, "WORKER_SESSION_ISOLATION", True)


def recap(stats: Any, started: Collection[str]) -> list[str]:
    """Return the result of each STARTED host as a line."""
    lines = []
    for host in sorted({*stats.processed}.intersection(started)):
        counts = stats.summarize(host)
        changes = "1 change" if counts["changed"] == 1 else f"{counts['changed']} changes"
        outcome = "failed" if counts["failures"] or counts["unreachable"] else "done"
        lines.append(f"{host}: {outcome}, {changes}")
    return lines
