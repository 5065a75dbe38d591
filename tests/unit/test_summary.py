# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the table at the end of a run says went wrong."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.callback import summary
from ansible_collections.slipway.host.plugins.callback.summary import first_line
from ansible_collections.slipway.host.plugins.module_utils.state import report as state_report

from tests.contract.tree import ROOT
from tests.unit.test_json_forms import validate_run

LOOP = """
- name: Compare hosts with the declared state
  hosts: all
  gather_facts: false
  tasks:
    - name: Fail for one of them
      ansible.builtin.assert:
        that: item != "lab"
        fail_msg: there is no group {{ item }}
      loop: [docker, lab, research]
"""


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"msg": "Task failed: Module failed: no room"}, "no room"),
        ({"msg": "no room\non /srv"}, "no room"),
        ({"msg": "non-zero return code", "stderr": "image is in use\n"}, "image is in use"),
        ({"msg": "non-zero return code"}, "non-zero return code"),
        ({"msg": ""}, "see above"),
        ({}, "see above"),
    ],
)
def test_an_error_is_one_line_of_what_happened(result: dict[str, Any], line: str) -> None:
    assert first_line(result) == line


def test_of_a_loop_the_item_that_failed_is_told(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(LOOP, encoding="utf-8")
    report = tmp_path / "report.json"
    settings = {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "SLIPWAY_REPORT": str(report),
        "SLIPWAY_REPORTS": str(tmp_path / "reports"),
    }
    subprocess.run(
        ["ansible-playbook", "-i", "a,", "-c", "local", "play.yml"],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
    )
    written = json.loads(report.read_text())
    validate_run(written)
    assert written["a"]["error"] == "there is no group lab"
    found = json.loads((tmp_path / "reports/a.json").read_text())
    assert (found["command"], found["state"]) == ("play", "failed")
    assert found["error"] == "there is no group lab"
    assert (tmp_path / "reports/index.html").is_file()


# What a run disturbs, and what waits.

CONSEQUENCE = {"kind": "container", "name": "train", "effect": "would stop"}
SURVEYED: dict[str, Any] = {
    "drift": ["docker_engine"],
    "differences": {"docker_engine": [{}]},
    "conflicts": {},
    "consequences": [CONSEQUENCE],
    "health": [],
    "information": [],
    "overview": {"roles": []},
    "ansible_facts": {"slipway": {"kernel": "6.8", "apt_sources": []}},
    "urls": {},
}
IN_THE_WAY = {"ml_aliases": [{"kind": "links", "name": "ml", "reason": "ml: no.", "blocks": []}]}


class Callback(summary.CallbackModule):
    """The callback with the lines that it displays."""

    def __init__(self, report: str = "") -> None:
        super().__init__()
        self.file = report
        self.lines: list[str] = []
        self._display: Any = SimpleNamespace(
            display=self.lines.append, error=self.lines.append, warning=self.lines.append
        )

    def get_option(self, k: str, hostvars: Any = None) -> Any:
        return self.file if k == "report" else ""

    def play_starts(self, name: str) -> None:
        self.v2_playbook_on_play_start(SimpleNamespace(get_name=lambda: name))

    def task_ends(self, host: str, action: str, name: str = "", **result: Any) -> None:
        task = SimpleNamespace(action=action, name=name, _uuid="1")
        ended = SimpleNamespace(
            task=task, host=SimpleNamespace(name=host, get_name=lambda: host), result=result
        )
        (self.v2_runner_on_failed if result.get("failed") else self.v2_runner_on_ok)(ended)

    def run_ends(self) -> int:
        """Return the exit status that the callback sets."""
        stats = SimpleNamespace(summarize=lambda _host: {"changed": 1})
        try:
            self.v2_playbook_on_stats(stats)
        except SystemExit as error:
            return int(error.code or 0)
        return 0


def start(callback: Callback, host: str) -> None:
    task: Any = SimpleNamespace(_uuid="1")
    callback.v2_runner_on_start(SimpleNamespace(name=host), task)


def run_site(callback: Callback, **applied: Any) -> None:
    callback.play_starts("Compare hosts with the declared state")
    callback.v2_playbook_on_task_start(None, False)
    callback.task_ends("gpu01", "slipway.host.survey", **SURVEYED)
    callback.play_starts("Apply roles to hosts with drift")
    start(callback, "gpu01")
    callback.task_ends("gpu01", "slipway.host.units", **applied)
    callback.play_starts("Report conflicts")


def test_consequences_are_printed_before_the_first_change() -> None:
    callback = Callback()
    run_site(callback)
    (text,) = callback.lines
    assert text.splitlines()[-1] == "gpu01  container train: would stop"
    assert callback.run_ends() == 0
    silent = Callback(report="/dev/null")
    run_site(silent)
    assert silent.lines == []


@pytest.mark.parametrize(
    ("applied", "state", "status"),
    [
        ({}, "changed", 0),
        ({"slipway_waiting": ["restart waits\x1b"]}, "waiting", 6),
        ({"slipway_waiting": ["restart waits"], "failed": True}, "failed", 0),
    ],
)
def test_waiting_changes_are_in_report_and_exit_status(
    applied: dict[str, Any], state: str, status: int
) -> None:
    callback = Callback()
    run_site(callback, **applied)
    assert callback.run_ends() == status
    assert callback.report["gpu01"]["state"] == state
    if state == "waiting":
        assert callback.report["gpu01"]["waiting"] == ["restart waits\\x1b"]
        assert "\ngpu01: restart waits\\x1b\n" in callback.lines[-1]


@pytest.mark.parametrize("waiting", [[], ["restart waits"]])
def test_a_host_with_a_conflict_did_not_fail_and_is_not_done(waiting: list[str]) -> None:
    callback = Callback()
    run_site(callback, slipway_waiting=waiting)
    # The survey after the roles sees more than the first one.
    urls = {"api": "http://gpu01:5000/"}
    after = {**SURVEYED, "conflicts": IN_THE_WAY, "urls": urls}
    callback.task_ends("gpu01", "slipway.host.survey", **after)
    callback.play_starts("Report conflicts")
    callback.task_ends("gpu01", "ansible.builtin.fail", failed=True, msg="ml: no.")
    # Ansible's own exit status is that of a failed host.
    assert callback.run_ends() == 0
    entry = callback.report["gpu01"]
    assert (entry["state"], entry["conflicts"]) == ("conflict", IN_THE_WAY)
    difference = {"kind": "a", "name": "b", "found": "c", "expected": "d"}
    entry["differences"] = {"docker_engine": [difference]}
    validate_run(state_report.as_json(callback.report))
    assert entry["urls"] == urls
    assert "error" not in entry
    assert "\ngpu01  ml_aliases  ml: no.\n" in callback.lines[-1]


FAULT = {
    "where": "0000:3b:00.0",
    "found": "Xid 79",
    "expected": "none",
    "remedy": "Reboot",
    "warning": False,
    "gpu": "",
    "accepted": "",
}


def test_a_host_with_a_sick_gpu_is_neither_done_nor_failed() -> None:
    callback = Callback()
    run_site(callback)
    callback.task_ends("gpu01", "slipway.host.survey", **{**SURVEYED, "health": [FAULT]})
    callback.play_starts("Report faults of GPUs")
    callback.task_ends("gpu01", "ansible.builtin.assert", failed=True, msg="1 faults of GPUs.")
    assert callback.run_ends() == 0
    entry = callback.report["gpu01"]
    assert (entry["state"], entry["health"]) == ("fault", [FAULT])
    assert (
        "\ngpu01  fault   GPU 0000:3b:00.0: Xid 79; expected none. Reboot.\n" in callback.lines[-1]
    )


def test_hosts_after_the_stop_of_a_rolling_run_are_not_started() -> None:
    callback = Callback()
    callback.play_starts("Compare hosts with the declared state")
    callback.v2_playbook_on_task_start(None, False)
    for host in ("gpu01", "gpu02", "gpu03"):
        callback.task_ends(host, "slipway.host.survey", **SURVEYED)
    callback.play_starts("Apply roles to hosts with drift")
    start(callback, "gpu01")
    start(callback, "gpu02")
    callback.task_ends("gpu01", "slipway.host.verify", failed=True, msg="no engine")
    callback.play_starts("Apply roles to hosts with drift")
    callback.play_starts("Report conflicts")
    assert callback.run_ends() == 0
    states = {host: entry["state"] for host, entry in callback.report.items()}
    assert states == {"gpu01": "failed", "gpu02": "changed", "gpu03": "not_started"}
    # The consequences are printed once, not for each batch.
    assert sum("WHAT THE CHANGES DISTURB" in line for line in callback.lines) == 1
    assert "gpu03  not started" in callback.lines[-1]
    assert "1 host was not started: gpu03. The run stopped after failures." in callback.lines[-1]


def test_conflicts_are_told_also_if_all_hosts_of_a_batch_failed() -> None:
    callback = Callback()
    callback.play_starts("Compare hosts with the declared state")
    callback.v2_playbook_on_task_start(None, False)
    for host, conflicts in (("gpu01", IN_THE_WAY), ("gpu02", {})):
        callback.task_ends(host, "slipway.host.survey", **{**SURVEYED, "conflicts": conflicts})
    callback.play_starts("Apply roles to hosts with drift")
    start(callback, "gpu01")
    callback.play_starts("Apply roles to hosts with drift")
    start(callback, "gpu02")
    callback.task_ends("gpu02", "slipway.host.verify", failed=True, msg="no engine")
    assert callback.run_ends() == 0
    states = {host: entry["state"] for host, entry in callback.report.items()}
    assert states == {"gpu01": "conflict", "gpu02": "failed"}


def test_an_upgrade_names_the_hosts_that_it_did_not_reach() -> None:
    callback = Callback()
    callback.play_starts("Leave out held hosts")
    callback.v2_playbook_on_task_start(None, False)
    for host in ("gpu01", "gpu02"):
        callback.task_ends(host, "slipway.host.survey", hold="", drift=[])
    callback.play_starts("Upgrade driver, Docker Engine and container toolkit")
    start(callback, "gpu01")
    callback.task_ends("gpu01", "slipway.host.package_set", failed=True, msg="no space")
    assert callback.run_ends() == 0
    states = {host: entry["state"] for host, entry in callback.report.items()}
    assert states == {"gpu01": "failed", "gpu02": "not_started"}


def test_a_survey_for_metrics_adds_no_drift() -> None:
    """A rollback does not apply the drift of other roles, so the drift is not a result."""
    callback = Callback()
    callback.command = "rollback"
    callback.play_starts("Roll back the last upgrade")
    start(callback, "gpu01")
    callback.task_ends(
        "gpu01", "slipway.host.survey", name="Survey the host for its metrics", **SURVEYED
    )
    entry = callback.report["gpu01"]
    assert (entry["state"], entry["differences"], entry["consequences"]) == ("no_drift", {}, [])
    assert entry["system"]["kernel"] == "6.8"
    assert callback.surveys == {}
    assert callback.run_ends() == 0
    assert callback.report["gpu01"]["state"] == "changed"


def test_the_task_that_surveys_for_metrics_has_the_name_that_the_table_expects() -> None:
    text = (ROOT / "playbooks/tasks/refresh_metrics.yml").read_text(encoding="utf-8")
    (comparison,) = yaml.safe_load(text)
    survey, _write = comparison["block"]
    assert "slipway.host.survey" in survey
    assert survey["name"] == summary.METRICS_SURVEY


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("site", "OK: 1 host as declared."),
        ("verify", "OK: 1 host as declared."),
        ("remove", "OK: 1 host with nothing left to remove."),
        *[(name, "OK: 1 host finished.") for name in ("images_build", "rollback", "upgrade")],
    ],
)
def test_only_a_command_that_compares_all_roles_says_as_declared(command: str, line: str) -> None:
    callback = Callback()
    callback.command = command
    callback.task_ends("gpu01", "slipway.host.survey", **SURVEYED)
    assert callback.run_ends() == 0
    assert callback.lines[0].splitlines()[-1] == line


def test_a_host_that_failed_before_stays_failed() -> None:
    callback = Callback()
    run_site(callback, failed=True, msg="no room")
    callback.task_ends("gpu01", "slipway.host.survey", **{**SURVEYED, "conflicts": IN_THE_WAY})
    assert callback.run_ends() == 0
    assert callback.report["gpu01"]["state"] == "failed"


HOSTILE = "<b>&\x1b[2J\x9b31m\u202e\x00\nOK: all hosts as declared."


def test_texts_of_a_host_stay_on_their_line(tmp_path: Path) -> None:
    difference = dict.fromkeys(("kind", "name", "found", "expected"), HOSTILE)
    conflict = {"kind": HOSTILE, "name": HOSTILE, "reason": HOSTILE, "blocks": [HOSTILE]}
    finding = dict.fromkeys(("where", "found", "expected", "remedy", "gpu", "accepted"), HOSTILE)
    answer: dict[str, Any] = {
        "drift": ["docker_engine"],
        "differences": {"docker_engine": [difference]},
        "conflicts": {"docker_engine": [conflict]},
        "consequences": [{"kind": HOSTILE, "name": HOSTILE, "effect": HOSTILE}],
        "health": [{**finding, "warning": False}],
        "information": [HOSTILE],
        "overview": {"roles": [], "gpus": [{"health": HOSTILE}]},
        "ansible_facts": {"slipway": {"kernel": HOSTILE}},
        "urls": {HOSTILE: HOSTILE},
        "slipway_note": HOSTILE,
        "slipway_waiting": [HOSTILE],
    }
    file = tmp_path / "report.json"
    for callback in (Callback(), Callback(report=str(file))):
        callback.task_ends("gpu01", "slipway.host.survey", **answer)
        callback.run_ends()
        shown = [line for text in callback.lines for line in text.splitlines()]
        assert all(line.isprintable() for line in shown)
        assert [line for line in shown if line.startswith("OK:")] == []
    written = json.loads(file.read_text())
    assert written["gpu01"]["system"]["kernel"].isprintable()
    assert written["gpu01"]["notes"][0].startswith(r"<b>&\x1b[2J\x9b31m\u202e\x00\nOK:")
    plan = state_report.plan(written)
    assert all(line.isprintable() for line in plan.splitlines())
    assert [line for line in plan.splitlines() if line.startswith("OK:")] == []


def test_the_report_names_the_host_that_an_image_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    callback = Callback(report=str(file))
    callback.play_starts("Compare hosts with the declared state")
    callback.v2_playbook_on_task_start(None, False)
    image = {"kind": "images", "name": "slipway/a:cpu", "found": "missing", "expected": "built"}
    for position, host in ((1, "gpu02"), (0, "build01")):
        surveyed = {
            **SURVEYED,
            "differences": {"ml_images": [dict(image)]},
            "images": {"slipway/a:cpu": "1"},
            "delivery": {
                "builder": ["auto"],
                "position": position,
                "architecture": "x86_64",
                "ssh": True,
                "layers": {},
            },
        }
        callback.task_ends(host, "slipway.host.survey", **surveyed)
    callback.run_ends()
    written = json.loads(file.read_text())
    expected = {host: written[host]["differences"]["ml_images"][0]["expected"] for host in written}
    assert expected == {"build01": "built", "gpu02": "pull from build01"}
