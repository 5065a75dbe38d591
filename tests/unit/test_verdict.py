# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last lines of a run name the result of the hosts and the next command."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report
from ansible_collections.slipway.host.plugins.module_utils.state import verdict


def entry(state: str = "no_drift", **changes: Any) -> dict[str, Any]:
    return {"state": state, "differences": {}, **changes}


PASSED, FAILED = {"ok": True}, {"ok": False}


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        ({}, []),
        ({"a": entry()}, ["OK: 1 host as declared."]),
        (
            {"a": entry("changed", checks=[PASSED]), "b": entry(checks=[])},
            ["OK: 2 hosts as declared, 1 check passed."],
        ),
        (
            {"a": entry("changed", checks=[PASSED, PASSED])},
            ["OK: 1 host as declared, 2 checks passed."],
        ),
        (
            {"a": entry("would_change"), "b": entry("waiting")},
            [
                "1 host would change: a. To change, run without --check.",
                "1 host waits: b. Run again when nobody is disturbed.",
            ],
        ),
        (
            {"b": entry("failed", checks=[FAILED, PASSED]), "a": entry("conflict")},
            ["2 hosts need you: a (conflict), b (failed). See above what to do, then run again."],
        ),
        (
            {"b": entry("held"), "a": entry("changed")},
            ["OK: 1 host as declared.", "1 host is held: b. Nothing was done there."],
        ),
    ],
)
def test_the_end_of_a_run_says_who_must_do_what(report: dict[str, Any], lines: list[str]) -> None:
    assert verdict.of_run(report).splitlines() == lines


DIFFERENT: dict[str, Any] = {"user_access": [{}, {}], "ml_data": [{}]}
FAULT: dict[str, Any] = {"health": [{"warning": False}]}


@pytest.mark.parametrize(
    ("report", "lines"),
    [
        ({}, []),
        ({"a": entry(), "b": entry()}, ["OK: 2 hosts as declared."]),
        (
            {"b": entry("drift", differences=DIFFERENT), "a": entry(**FAULT)},
            [
                "1 host needs you: a (fault). See above what to do.",
                "3 differences on 1 host. To apply, run ./slipway site --limit b",
            ],
        ),
        (
            {"a": entry("drift", differences=DIFFERENT, conflicts={"x": [{}]})},
            [
                "1 host needs you: a (conflict). See above what to do.",
                "3 differences on 1 host. To apply, run ./slipway site --limit a",
            ],
        ),
        ({"a": entry(health=[{"warning": True}])}, ["OK: 1 host as declared."]),
        (
            {"b": entry("held"), "a": entry("held")},
            ["2 hosts are held: a, b. Nothing was done there."],
        ),
    ],
)
def test_the_end_of_a_plan_says_who_must_do_what(report: dict[str, Any], lines: list[str]) -> None:
    assert verdict.of_plan(report).splitlines() == lines


def test_every_unfinished_state_needs_a_person() -> None:
    assert set(verdict.NEEDY) == state_report.UNFINISHED


def test_of_many_hosts_only_some_are_named() -> None:
    report = {f"h{number:02}": entry("failed") for number in range(20)}
    assert "h07 (failed) and 12 more. See" in verdict.of_run(report)
    report = {f"h{number:02}": entry("drift", differences=DIFFERENT) for number in range(20)}
    assert verdict.of_plan(report) == "60 differences on 20 hosts. To apply, run ./slipway site"
