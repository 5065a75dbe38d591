# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The acceptance checks of a Slurm cluster, with programs that answer like sinfo and scontrol."""

from __future__ import annotations

import os
import re
import shlex
import time
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import declared, slurm_check
from ansible_collections.slipway.host.plugins.module_utils.host.check import run_check

UNITS = slurm_check.UNITS


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs, the only one in PATH before those of the system."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm_check, "PATIENCE", 0.0)
    return tmp_path


def answer(folder: Path, name: str, output: str, status: int = 0) -> None:
    """Let a program print a text, on standard error if it fails."""
    where = ">&2" if status else ""
    (folder / name).write_text(f"#!/bin/sh\nprintf %s {shlex.quote(output)} {where}; exit {status}")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("line", "ok", "words"),
    [
        ("idle|Unknown|none\n", True, "node gpu01 is idle"),
        ("mixed|root|none\nmixed|root|none\n", True, "node gpu01 is mixed"),
        (
            "drained|root|new memory | on Monday\n",
            True,
            "node gpu01 is drained by root: new memory | on Monday; it gets no jobs",
        ),
        ("draining|slurm|Kill task failed\n", False, "is draining: Kill task failed; expected a"),
        ("down*|slurm|Not responding\n", False, "is down*: Not responding; expected a node"),
        ("idle*|Unknown|none\n", False, "node gpu01 is idle*; expected a node that runs jobs"),
        ("inval|slurm|gres/gpu count reported lower\n", False, "is inval: gres/gpu count"),
        ("unknown*|Unknown|none\n", False, "Repair the cause, then run: scontrol update nodename"),
        ("", False, "the controller knows no node gpu01"),
    ],
)
def test_a_node_passes_if_it_runs_jobs_or_a_person_drained_it(
    programs: Path, line: str, ok: bool, words: str
) -> None:
    answer(programs, "sinfo", line)
    check = run_check("Slurm node", lambda: slurm_check.check_node("gpu01"))
    assert (check.ok, words in check.seen) == (ok, True), check.seen


def test_a_node_may_need_some_seconds_after_its_start(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(programs, "sinfo", "unknown*|Unknown|none\n")
    monkeypatch.setattr(slurm_check, "PATIENCE", 60.0)
    monkeypatch.setattr(
        time, "sleep", lambda _seconds: answer(programs, "sinfo", "idle|Unknown|none\n")
    )
    assert slurm_check.check_node("gpu01") == "node gpu01 is idle"


@pytest.mark.parametrize(
    ("errors", "remedy"),
    [
        ("slurm_load_partitions: Zero Bytes were transmitted", "The munge key or the clock of"),
        ("slurm_load_partitions: Protocol authentication error", "The munge key or the clock of"),
        ("Unable to contact slurm controller (connect failure)", "Start slurmctld on the contr"),
        ("fatal: Could not establish a configuration source", "Start slurmd on this host"),
    ],
)
def test_a_controller_that_does_not_answer_has_a_remedy(
    programs: Path, errors: str, remedy: str
) -> None:
    answer(programs, "sinfo", errors, 1)
    with pytest.raises(ValueError, match="expected an answer of the controller") as raised:
        slurm_check.check_node("gpu01")
    assert f"{errors}; expected" in str(raised.value)
    assert f". {remedy}" in str(raised.value)


def test_a_controller_must_be_up(programs: Path) -> None:
    answer(programs, "scontrol", "Slurmctld(primary) at head is UP\n")
    assert slurm_check.check_controller("head") == "Slurmctld(primary) at head is UP"
    answer(programs, "scontrol", "Slurmctld(primary) at head is DOWN\n****\n** RESTORE **\n****\n")
    with pytest.raises(ValueError, match=r"is DOWN; expected it to be UP\. Run \./slipway site"):
        slurm_check.check_controller("head")
    answer(programs, "scontrol", "slurm_load_ctl_conf error", 1)
    with pytest.raises(ValueError, match="slurm_load_ctl_conf error; expected"):
        slurm_check.check_controller("head")
    answer(programs, "scontrol", "", 1)
    with pytest.raises(ValueError, match="no answer; expected"):
        slurm_check.check_controller("head")


@pytest.mark.parametrize(
    ("primary", "backup", "answering", "faults"),
    [
        ("UP", "UP", "head", []),
        ("DOWN", "UP", "spare", ["head"]),
        ("UP", "DOWN", "head", ["spare"]),
        ("DOWN", "DOWN", "", ["head", "spare"]),
    ],
)
def test_the_controller_that_answers_is_named(
    programs: Path, primary: str, backup: str, answering: str, faults: list[str]
) -> None:
    lines = {
        "head": f"Slurmctld(primary) at head is {primary}",
        "spare": f"Slurmctld(backup) at spare is {backup}",
    }
    answer(programs, "scontrol", "\n".join(lines.values()))
    for host, line in lines.items():
        if host in faults:
            with pytest.raises(ValueError, match=re.escape(f"{line}; expected it to be UP")):
                slurm_check.check_controller(host)
        else:
            expected = ", ".join([f"{answering} answers", *lines.values()])
            assert slurm_check.check_controller(host) == expected


def test_only_declared_parts_are_checked(programs: Path) -> None:
    name = os.uname().nodename.split(".")[0]
    answer(programs, "scontrol", f"Slurmctld(primary) at {name} is UP\n")
    answer(programs, "sinfo", "idle|Unknown|none\n")
    assert list(slurm_check.check_cluster(())) == []
    answer(programs, "sacctmgr", "slipway|192.0.2.11\n")
    every = list(slurm_check.check_cluster(UNITS.values()))
    names = ["Slurm controller", "Slurm accounting", "Slurm node"]
    assert [check.what for check in every] == names
    assert all(check.ok for check in every)
    units = [
        {"name": "slurmctld.service", "active": True},
        {"name": "slurmd.service", "active": False},
    ]
    assert declared.declare([{"units": units}])["slurm"] == ["slurmctld.service"]
    assert "slurm" not in declared.declare([{"units": units[1:]}])


@pytest.mark.parametrize(
    ("output", "status", "passes", "text"),
    [
        ("lab|192.0.2.11\n", 0, True, "records of cluster lab"),
        ("lab|\n", 0, False, "slurmdbd knows no running controller; expected"),
        ("Connection refused\n", 1, False, "Connection refused; expected"),
    ],
)
def test_slurmdbd_must_know_the_controller(
    programs: Path, output: str, status: int, passes: bool, text: str
) -> None:
    answer(programs, "sacctmgr", output, status)
    found = run_check("Slurm accounting", slurm_check.check_accounting)
    assert found.ok == passes
    assert text in found.seen
