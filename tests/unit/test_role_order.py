# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles run in one order on all hosts, whichever of them have drift on which host."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("one", "two", "three")
DRIFT = {"a": ["three"], "b": ["one", "three"], "c": ["two", "three"]}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def test_a_role_is_removed_after_those_before_it_on_every_host(tmp_path: Path) -> None:
    plays = yaml.safe_load((ROOT / "playbooks/remove.yml").read_text(encoding="utf-8"))
    (found,) = [one for one in plays if one["name"] == "Remove roles from hosts"]
    del found["vars_files"]
    write(tmp_path / "play.yml", [found])
    shutil.copytree(ROOT / "playbooks/tasks", tmp_path / "tasks")
    for name in ROLES:
        task = {"name": f"Say {name}", "ansible.builtin.debug": {"msg": name}}
        write(tmp_path / f"roles/{name}/tasks/main.yml", [task])
    hosts = {host: {"__slipway_survey": {"drift": drift}} for host, drift in DRIFT.items()}
    groups: dict[str, Any] = {
        "slipway_drift": {"hosts": hosts, "vars": {"__slipway_removed_roles": list(ROLES)}}
    }
    for host, drift in DRIFT.items():
        for role in drift:
            groups.setdefault(f"slipway_apply_{role}", {"hosts": {}})["hosts"][host] = {}
    write(tmp_path / "hosts.yml", groups)
    done = subprocess.run(
        ["ansible-playbook", "-i", "hosts.yml", "-c", "local", "play.yml"],
        cwd=tmp_path,
        env={
            "PATH": str(Path(shutil.which("ansible-playbook") or "").parent),
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r'^ok: \[(\w)\].*\n    "msg": "(\w+)"', done.stdout, re.MULTILINE)
    assert sorted(said) == sorted((host, role) for host in DRIFT for role in DRIFT[host])
    order = [role for _host, role in said]
    assert order == sorted(order, key=ROLES.index)


@pytest.mark.parametrize(
    ("declared", "removed"),
    [
        ({"slipway_roles": ["nvidia_driver", "docker_engine"]}, ["docker_engine", "nvidia_driver"]),
        ({"slipway_roles": ["ml_data", "ml_images"]}, ["ml_images"]),
        ({"slipway_roles": ["ml_data"], "slipway_remove_data": True}, ["ml_data"]),
        ({"slipway_roles": ["ml_images", "slurm"]}, ["slurm", "ml_images"]),
        ({"slipway_roles": ["unknown"]}, ["unknown"]),
    ],
)
def test_a_removal_of_some_roles_keeps_order_and_data_sets(
    declared: dict[str, Any], removed: list[str]
) -> None:
    loader = DataLoader()
    variables = loader.load_from_file(str(ROOT / "vars/removal.yml"), trusted_as_template=True)
    templar = Templar(loader, {**variables, **declared})
    assert templar.template(trust_as_template("{{ __slipway_removed_roles }}")) == removed


@pytest.mark.parametrize(
    ("declared", "all_of_it"),
    [
        ({}, True),
        ({"slipway_remove_data": True}, True),
        # With -e NAME_state=present, a part stays, with its records.
        ({"docker_engine_state": "present"}, False),
        ({"host_metrics_state": "present"}, False),
        ({"slipway_roles": ["docker_engine"]}, False),
        ({"slipway_remove_data": True, "ml_data_state": "present"}, False),
    ],
)
def test_records_are_deleted_when_every_role_is_removed(
    declared: dict[str, Any], all_of_it: bool
) -> None:
    done = subprocess.run(
        [
            *("ansible", "localhost", "-m", "ansible.builtin.debug"),
            *("-a", "var=__slipway_removes_all", "-e", "@vars/removal.yml"),
            *("-e", json.dumps(declared)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"__slipway_removes_all: {json.dumps(all_of_it)}" in done.stdout, done.stderr
    plays = yaml.safe_load((ROOT / "playbooks/remove.yml").read_text(encoding="utf-8"))
    tasks = {task["name"]: task for play in plays for task in play["tasks"]}
    assert "__slipway_removes_all" in tasks["Delete the folders of records"]["when"]
