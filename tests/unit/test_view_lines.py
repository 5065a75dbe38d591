# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The view of a run: hosts, terminal and time in, lines out."""

from __future__ import annotations

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    view_lines,
    view_state,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.view_state import Run
from rich.cells import cell_len


def fleet(count: int = 3) -> Run:
    """A run of COUNT hosts: the first failed, the second installs, all others wait for it."""
    run = Run(0.0, {"docker_engine": {"gpu02": 60.0}})
    run.start_play("Apply roles", 0.0)
    for number in range(1, count + 1):
        name = f"gpu{number:02}"
        run.start_step(name, "docker_engine", "Install packages", 10.0)
        if number != 2:
            run.end_step(name, True, 12.0)
    run.fail("gpu01", view_state.FAILED, "disk full", 12.0)
    run.progress("gpu02", "apt: Unpacking runc, 4 %")
    return run


def text(run: Run, width: int, height: int, now: float = 30.0) -> list[str]:
    return [
        "".join(part for part, _style in line).rstrip()
        for line in view_lines.lines(run, width, height, now)
    ]


def test_a_narrow_terminal_has_the_progress_below_the_step() -> None:
    assert text(fleet(), 80, 24) == [
        "0:30  Apply roles  3 hosts, 1 failed, about 0:40 left",
        "gpu01         failed  disk full",
        "gpu02   0:20  docker_engine  Install packages",
        "  apt: Unpacking runc, 4 %",
        "gpu03   0:18  docker_engine  Install packages",
        "  waits for gpu02",
    ]


def test_a_narrow_terminal_has_the_end_of_a_long_reason_below_its_host() -> None:
    run = fleet()
    reason = "apt-get install docker.io docker-cli docker-buildx failed: E: Unable to locate "
    run.fail("gpu01", view_state.FAILED, f"{reason}package docker.io. " + 30 * "word ", 12.0)
    assert text(run, 80, 24)[1:4] == [
        "gpu01         failed  apt-get install docker.io docker-cli docker-buildx",
        "  failed: E: Unable to locate package docker.io. word word word word word word",
        "gpu02   0:20  docker_engine  Install packages",
    ]


def test_a_held_host_shows_the_reason_until_the_end() -> None:
    run = fleet()
    run.hold("gpu03", "disk swap")
    assert text(run, 80, 24)[4] == "gpu03         held: disk swap"
    run.end(40.0)
    assert text(run, 80, 24)[3] == "gpu03         held: disk swap"


def test_a_wide_terminal_has_all_in_one_line() -> None:
    assert text(fleet(), 200, 50)[2:] == [
        "gpu02   0:20  docker_engine  Install packages  apt: Unpacking runc, 4 %",
        "gpu03   0:18  docker_engine  Install packages  waits for gpu02",
    ]


def test_without_room_the_progress_replaces_the_step() -> None:
    assert text(fleet(), 80, 6)[2] == "gpu02   0:20  docker_engine  apt: Unpacking runc, 4 %"


def test_of_many_hosts_the_failed_and_the_busiest_are_shown_and_the_others_counted() -> None:
    lines = text(fleet(40), 80, 8)
    assert len(lines) == 7
    assert lines[1].startswith("gpu01         failed")
    assert lines[2].startswith("gpu02   0:20")
    assert lines[-1] == "and 35 more: 35 idle"


@pytest.mark.parametrize("width", [1, 2, 20, 79, 80, 109, 110, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 24, 50])
@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_the_view_is_never_larger_than_the_terminal(width: int, height: int, count: int) -> None:
    run = fleet(count)
    run.progress("gpu02", "下载 " * 80)
    if count:
        run.fail("gpu01", view_state.FAILED, "下载 " * 80, 12.0)
    lines = text(run, width, height)
    assert len(lines) <= max(1, height - 1)
    assert all(cell_len(line) < max(width, 2) for line in lines)


def test_a_finished_run_shows_the_changes() -> None:
    run = fleet()
    run.end(40.0)
    assert text(run, 80, 24)[2] == "gpu02         done  0 changes"
    assert text(run, 80, 24)[3] == "gpu03         done  1 change"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3661, "1:01:01"), (-5, "0:00")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert view_lines.duration(seconds) == shown


# The state of the hosts.

USUAL = {"a": {"h1": 10.0}, "b": {"h1": 20.0, "h2": 40.0, "h3": 60.0}}


@pytest.mark.parametrize(
    ("role", "pending", "now", "remaining"),
    [
        ("a", [], 4.0, 6.0),
        ("a", [], 14.0, 0.0),
        ("a", ["b"], 4.0, 26.0),
        ("a", ["new"], 4.0, None),
        ("new", ["a"], 4.0, None),
        ("", ["a"], 4.0, None),
    ],
)
def test_the_remaining_time_is_that_of_the_last_runs(
    role: str, pending: list[str], now: float, remaining: float | None
) -> None:
    run = Run(0.0, USUAL)
    run.plan_roles("h1", pending)
    run.start_step("h1", role, "step", 0.0)
    assert run.remaining("h1", now) == remaining


def test_a_host_that_never_ran_a_role_counts_as_the_others() -> None:
    run = Run(0.0, USUAL)
    run.start_step("h9", "b", "step", 0.0)
    assert run.remaining("h9", 0.0) == 40.0


def test_a_role_ends_with_the_next_role_the_play_or_the_run() -> None:
    run = Run(0.0, {})
    run.plan_roles("h1", ["a", "b", "c"])
    run.start_step("h1", "a", "one", 0.0)
    run.end_step("h1", True, 3.0)
    run.start_step("h1", "b", "two", 5.0)
    assert run.hosts["h1"].pending == ["c"]
    run.start_play("next", 9.0)
    run.start_step("h1", "c", "three", 9.0)
    run.end(10.0)
    assert [(end.role, end.seconds, end.changed) for end in run.ended_roles] == [
        *(("a", 5.0, True), ("b", 4.0, False), ("c", 1.0, False))
    ]


def test_the_role_of_a_failed_host_has_no_usual_time() -> None:
    run = Run(0.0, {})
    run.start_step("h1", "a", "one", 0.0)
    run.fail("h1", view_state.FAILED, "no", 1.0)
    run.end(2.0)
    assert run.ended_roles == []
    assert run.hosts["h1"].state == view_state.FAILED
