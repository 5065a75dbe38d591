# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text of a run: failures, messages, and lines where no view can be drawn."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    progress_channel,
    run_display,
    run_output,
    run_text,
    run_times,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.progress_channel import Message
from ansible_collections.slipway.host.plugins.plugin_utils.live.view_state import RoleEnd


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ({"msg": "Task failed: Module failed: no room\nFree it."}, ["  no room", "  Free it."]),
        ({"msg": ["a", "b"]}, ["  a", "  b"]),
        ({"msg": "no", "stderr": "why"}, ["  no", "  stderr:", "    why"]),
        ({"msg": "why: full", "stderr": "full"}, ["  why: full"]),
        ({"msg": "\x1b[2J[red]x\u202e|"}, ["  \\x1b[2J[red]x\\u202e|"]),
        ({}, ["  no message; see the log, or run again with -v"]),
    ],
)
def test_a_failure_is_complete_and_escaped(result: dict[str, Any], lines: list[str]) -> None:
    assert run_text.failure("gpu01", "Install", result) == ["FAILED gpu01: Install", *lines]


def test_of_a_long_output_the_end_is_shown_and_the_rest_counted() -> None:
    output = "\n".join(map(str, range(100)))
    lines = run_text.failure("gpu01", "Install", {"msg": "no", "output": output})
    assert lines[2] == "  output: (the log has 60 more lines)"
    assert lines[3].strip() == "60"
    assert lines[-1].strip() == "99"


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        ({"msg": "one"}, ["h: one"]),
        ({"msg": ["one", "two\x07"]}, ["h:", "one", "two\\x07"]),
        ({"x": 1, "changed": False, "_ansible_verbose_always": True}, ["h: x: 1"]),
    ],
)
def test_messages_of_debug_tasks(result: dict[str, Any], lines: list[str]) -> None:
    assert run_text.debug_message("h", result) == lines


def test_events_are_one_line_per_role_and_change_and_never_twice() -> None:
    events = run_text.Events()
    lines = events.play("Apply roles")
    lines += events.task("docker: Install", "docker")
    for host in ("b", "a", "a"):
        events.change(host)
    lines += events.task("docker: Start", "docker")
    lines += events.line("a: pulls") + events.line("a: pulls")
    lines += events.end_task()
    assert lines == ["Apply roles", "role docker", "changed a, b: docker: Install", "a: pulls"]


@pytest.mark.parametrize(
    ("asked", "environment", "terminal", "mode"),
    [
        ("auto", {"TERM": "xterm"}, True, "live"),
        ("auto", {"TERM": "xterm"}, False, "plain"),
        ("auto", {"TERM": "dumb"}, True, "plain"),
        ("auto", {}, True, "plain"),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, True, "plain"),
        ("auto", {"TERM": "xterm", "CI": "true"}, True, "plain"),
        ("auto", {"TERM": "xterm", "CI": "false"}, True, "live"),
        ("live", {}, False, "live"),
        ("ansible", {"TERM": "xterm"}, True, "ansible"),
    ],
)
def test_the_mode_of_the_output(
    asked: str, environment: dict[str, str], terminal: bool, mode: str
) -> None:
    assert run_display.choose(asked, environment, terminal) == mode


# The log and the times of the last runs.


def test_the_log_is_for_its_owner_and_has_no_colours(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(30):
        (folder / f"2020-{number:02}.log").touch()
    log = run_output.Log(folder, "site")
    log.write("\x1b[0;31mred\x1b[0m \x1b[2J\x07ü\t.\n")
    assert log.path.read_text("utf-8") == "red \\x1b[2J\\x07ü\t.\n"
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == run_output.KEPT_LOGS
    assert kept[0] == "2020-11.log"


def test_times_of_roles_that_changed_something_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    run_times.write(file, [RoleEnd("h", "a", 1.25, True), RoleEnd("h", "b", 9.0, False)])
    run_times.write(file, [RoleEnd("g", "a", 3.0, True)])
    assert run_times.read(file) == {"a": {"h": 1.2, "g": 3.0}}


@pytest.mark.parametrize("content", ["", "[]", '{"roles": 1}', '{"roles": {"a": {"h": "x"}}}'])
def test_a_broken_file_of_times_is_as_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "times.json"
    file.write_text(content)
    assert run_times.read(file) == {}
    run_times.write(file, [RoleEnd("h", "a", 1.0, True)])
    assert run_times.read(file) == {"a": {"h": 1.0}}


# The socket for progress.


def test_progress_reaches_the_channel_and_nothing_after_its_end() -> None:
    channel = progress_channel.Channel()
    path = Path(os.environ[progress_channel.VARIABLE])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    sent = Message("h", "now", "x" * 3000)
    assert progress_channel.send(sent)
    assert list(channel.receive()) == [Message("h", "now", "x" * progress_channel.MAX_TEXT)]
    channel.close()
    assert not progress_channel.send(sent)
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", json.dumps({"host": "h"}).encode()])
def test_other_messages_are_ignored(content: bytes) -> None:
    assert progress_channel.parse(content) is None
