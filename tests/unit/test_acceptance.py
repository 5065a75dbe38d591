# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The acceptance report: its schema, its verdict, and the sentences of failed checks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import consent
from ansible_collections.slipway.host.plugins.module_utils.gpu import health, load, proof
from ansible_collections.slipway.host.plugins.module_utils.host import acceptance, check
from ansible_collections.slipway.host.plugins.module_utils.host import verify as host_verify
from ansible_collections.slipway.host.plugins.module_utils.host.check import Check

from tests.contract.tree import ROOT, text
from tools import verify as tool

SCHEMA = json.loads((ROOT / "docs/acceptance-report.schema.json").read_text())
GOOD = Check("engine", True, "Docker Engine 28.5.2, API 1.51", 0.2)
SIMULATED = Check("GPU computation", True, "1 computed correctly with a stand-in driver", 1.5)
ABSENT = Check("GPUs in containers", True, "not applicable: no driver is declared or installed")
BAD = Check("service iris", False, "exited; expected a running one. Run ./slipway site", 0.1)
FAULT = health.Finding("", "Xid 79", "none", "Reboot").as_data()
DIFFERENCE = {"kind": "users", "name": "alice", "found": "missing", "expected": "a user"}
CONFLICT = {"kind": "links", "name": "ml", "reason": "ml: a file.", "blocks": ["links a"]}


def entry(*checks: Check, **changes: Any) -> dict[str, Any]:
    return {
        "state": "no_drift",
        "differences": {},
        "conflicts": {},
        "health": [],
        "system": {"kernel": "6.8"},
        "checks": [one.as_data() for one in checks],
        **changes,
    }


def build(**hosts: dict[str, Any]) -> dict[str, Any]:
    times = ("2026-11-27T10:00:00+00:00", "2026-11-27T10:01:00+00:00")
    report = acceptance.build(hosts, "full", 0, *times)
    jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(
        json.loads(json.dumps(report))
    )
    return report


def test_a_held_host_is_not_accepted_and_not_ill() -> None:
    report = build(gpu01=entry(state="held", hold="disk swap"))
    host = report["hosts"]["gpu01"]
    assert (host["accepted"], host["error"]) == (False, "held: disk swap")
    assert "gpu01  held    -     held: disk swap" in acceptance.table(report)


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        (entry(GOOD), True),
        (entry(GOOD, ABSENT, SIMULATED), True),
        (entry(GOOD, BAD), False),
        (entry(), False),
        (entry(GOOD, differences={"user_access": [DIFFERENCE]}), False),
        (entry(GOOD, conflicts={"ml_aliases": [CONFLICT]}), False),
        (entry(GOOD, health=[FAULT]), False),
        (entry(GOOD, health=[{**FAULT, "warning": True}]), True),
        (entry(GOOD, health=[{**FAULT, "warning": True, "accepted": "Accepted: x"}]), True),
        (entry(state="unreachable", error="ssh: timed out"), False),
    ],
)
def test_a_host_is_accepted_only_if_nothing_is_wrong(host: dict[str, Any], accepted: bool) -> None:
    assert build(gpu01=host)["hosts"]["gpu01"]["accepted"] is accepted


def test_a_host_without_checks_has_an_error() -> None:
    hosts = build(a=entry(), b=entry(error="ssh: timed out"), c=entry(BAD, error="x"))["hosts"]
    assert [hosts[name]["error"] for name in "abc"] == ["no check ran", "ssh: timed out", ""]


def test_a_failed_check_says_what_was_expected_and_what_to_do() -> None:
    (found,) = build(gpu01=entry(BAD))["hosts"]["gpu01"]["checks"]
    assert found == {
        "id": "service",
        "what": "service iris",
        "status": "failed",
        "found": "exited",
        "expected": "a running one",
        "remedy": "Run ./slipway site",
        "seconds": 0.1,
        "stand_in": False,
        "others": [],
    }


def test_every_check_of_a_host_has_an_expectation() -> None:
    source = text(Path(host_verify.__file__))
    constants = [
        getattr(host_verify, name)
        for name in re.findall(r"(?:run_check|Check)\(([A-Z_]+),", source)
    ]
    literals = re.findall(r'(?:run_check|Check)\(\s*f?"([a-z ]+)', source)
    assert len(constants) > 7 and len(literals) > 7
    for what in (*constants, *(f"{literal.strip()} x" for literal in literals)):
        subject = Check(what, True, "").subject
        assert subject, what
        assert what.startswith(subject)


def test_a_failure_of_another_form_keeps_its_words() -> None:
    found = Check("GPU health", False, "two; faults").as_data()
    assert (found["found"], found["expected"]) == ("two; faults", "no fault")
    assert found["remedy"] == check.AGAIN


def test_text_of_hosts_is_safe_for_a_terminal() -> None:
    report = build(gpu01=entry(Check("engine", False, "\x1b[2J; expected a. B")))
    assert "\x1b" not in json.dumps(report, ensure_ascii=False)
    assert "\\x1b[2J; expected a. B" in acceptance.table(report)


def test_the_table_names_stand_ins_and_what_was_not_checked() -> None:
    report = build(gpu01=entry(GOOD, SIMULATED, ABSENT), gpu02=entry(error="ssh: timed out"))
    lines = acceptance.table(report).splitlines()
    assert lines[:5] == [
        "HOST   RESULT   TIME   CHECK",
        "gpu01  passed   0.2 s  engine: Docker Engine 28.5.2, API 1.51",
        "gpu01  passed   1.5 s  GPU computation: 1 computed correctly with a stand-in driver",
        "gpu01  not run  0.0 s  GPUs in containers: not applicable: no driver is declared or "
        "installed",
        "gpu02  error    -      ssh: timed out",
    ]
    assert lines[5].startswith("gpu01: simulated, proves nothing about hardware: GPU computation")
    assert "GPUs under load: no --burn-in" in lines[6]
    assert lines[7] == "Accepted: 1 of 2 hosts."


def test_only_a_check_of_gpus_can_be_simulated() -> None:
    assert SIMULATED.as_data()["stand_in"]
    assert not Check("service iris", True, "answered: a stand-in driver").as_data()["stand_in"]


def test_on_simulated_gpus_all_their_checks_are_simulated() -> None:
    health_check = Check("GPU health", True, "No fault found. GPUs: 8.")
    assert not health_check.as_data()["stand_in"]
    assert health_check.as_data(simulated=True)["stand_in"]
    assert not GOOD.as_data(simulated=True)["stand_in"]


def test_the_table_names_each_difference() -> None:
    report = build(gpu01=entry(GOOD, differences={"user_access": [DIFFERENCE]}))
    row = acceptance.table(report).splitlines()[2]
    assert row.split() == [
        *("gpu01", "drift", "-", "user_access:", "users", "alice:", "missing", "->", "a", "user")
    ]


def test_a_quick_run_says_that_it_left_out_the_smoke_tests() -> None:
    quick = acceptance.build({}, "quick", 5, "", "")["not_covered"]
    assert "smoke tests of images, and content of data sets: level quick" in quick
    assert not any("load" in text for text in quick)


@pytest.mark.parametrize(
    ("arguments", "level", "others"),
    [
        (["-i", "hosts"], "normal", ["-i", "hosts"]),
        (["--full", "--limit", "a", "-vv"], "full", ["--limit", "a", "-vv"]),
        (["--quick", "--burn-in", "3"], "quick", []),
    ],
)
def test_own_options_and_those_of_ansible_can_be_mixed(
    arguments: list[str], level: str, others: list[str]
) -> None:
    options, rest = tool.parse(arguments)
    assert (options.level, rest) == (level, others)


@pytest.mark.parametrize(
    "arguments",
    [["--quick", "--full"], ["--burn-in", "-1"], ["--burn-in", "9999"], ["--report", "/no/x"]],
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        tool.parse(arguments)


BUS = "00000000:3B:00.0"


def sample(temperature: str, clock: str, **more: str) -> dict[str, dict[str, str]]:
    fields = {load.TEMPERATURE: temperature, load.CLOCK: clock, load.POWER[0]: "120.5 W"}
    return {BUS: {**fields, **more}}


def test_the_load_records_the_extremes_of_each_gpu() -> None:
    samples: list[load.Sample] = [
        sample("40 C", "1980 MHz"),
        {},
        sample("71 C", "1410 MHz"),
        {BUS: {}},
    ]
    assert load.describe(samples) == [
        "GPU 0000:3b:00.0: at most 71 °C, clock 1410 to 1980 MHz, at most 120.5 W"
    ]
    assert load.describe([{BUS: {}}]) == ["GPU 0000:3b:00.0: no readings"]


HOT = "clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown"


def test_a_gpu_that_slows_down_under_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(*_gpus: Any, load_seconds: int) -> str:
        assert load_seconds == 120
        return "1 computed"

    monkeypatch.setattr(consent, "gpu_users", list)
    monkeypatch.setattr(proof, "compute_on_host", compute)
    monkeypatch.setattr(load.Watch, "__enter__", lambda watch: watch)
    monkeypatch.setattr(load.Watch, "__exit__", lambda *_error: None)
    seen = [sample("70 C", "1980 MHz"), {}]
    monkeypatch.setattr(load.Watch, "samples", seen, raising=False)
    monkeypatch.setattr(load.Watch, "__init__", lambda _watch: None)
    assert load.check(["0000:3b:00.0"], 2).startswith("2 min: 1 computed; GPU 0000:3b:00.0: at")
    seen += [sample("90 C", "900 MHz", **{HOT: "Active"})] * 2
    with pytest.raises(ValueError, match=r"^GPU 0000:3b:00\.0: slowed down by hardware.*\.$"):
        load.check(["0000:3b:00.0"], 2)


def test_gpus_in_use_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consent, "gpu_users", lambda: ["process 7 (python) of bob"])
    with pytest.raises(ValueError, match=r"in use by process 7 \(python\) of bob; expected idle"):
        load.check(["0000:3b:00.0"], 1)


def test_the_watch_reads_nvidia_smi_until_it_ends(program: Any) -> None:
    program("nvidia-smi", f"echo '<nvidia_smi_log><gpu id=\"{BUS}\"/></nvidia_smi_log>'")
    with load.Watch() as watch:
        while not watch.samples:
            pass
    assert watch.samples == [{BUS: {}}]
