# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A held host: no playbook connects to it, and every output says why it is held."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.images.delivery import Candidate
from ansible_collections.slipway.host.plugins.plugin_utils import builders, holds

from tests.contract.test_no_hosts import PLAYBOOKS
from tests.contract.tree import ROOT

HOSTILE = "disk <b>\x1b[2J\nOK: 1 host as declared."
SHOWN = "held: disk <b>\\x1b[2J OK: 1 host as declared."


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, ""),
        ({"slipway_hold": "disk swap"}, "disk swap"),
        ({"slipway_hold": " disk\n swap "}, "disk swap"),
        ({"slipway_hold": "{{ x }}"}, "evaluated"),
        ({"slipway_roles": [], "slipway_survey": True, "slipway_serial": 2}, ""),
        ({"slipway_upgrade": [], "slipway_remove_data": True, "slipway_owner": "ops"}, ""),
        ({"threshold": 1, "household": 1, "slipway_threshold": 1, "apt_hold": 1}, ""),
        ({"docker_engine_hold": True, "nvidia_driver_hold": True, "disk_hold": "x"}, ""),
    ],
)
def test_the_reason_of_a_hold(variables: dict[str, Any], reason: str) -> None:
    assert holds.find_reason(variables, lambda _value: "evaluated") == reason


@pytest.mark.parametrize("value", ["", "  ", None, True, False, 1, ["disk swap"], {}])
def test_a_hold_without_a_reason_is_an_error(value: object) -> None:
    with pytest.raises(AnsibleActionFail, match=r"slipway_hold: .*; expected a text with the reas"):
        holds.find_reason({"slipway_hold": value}, lambda value: value)


@pytest.mark.parametrize(
    "name",
    [
        *("slipway_holds", "slipway_hodl", "slipway_held", "slipway_hol", "slipwy_hold"),
        *("Slipway_hold", "SLIPWAY_HOLD", "slipway_on_hold", "sliway_hold", "slipway_Hodl"),
    ],
)
def test_a_mistyped_hold_is_an_error(name: str) -> None:
    with pytest.raises(AnsibleActionFail, match=f"{name}: unknown .* did you mean slipway_hold"):
        holds.find_reason({name: "disk swap"}, lambda value: value)


def run(
    playbook: str, folder: Path, slipway_serial: int = 1, **hosts: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook on hosts to which every connection fails."""
    inventory = folder / "hosts.yml"
    unreachable = {"ansible_ssh_executable": "/bin/false", "ansible_ssh_retries": 0}
    unreachable["slipway_serial"] = slipway_serial
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": unreachable}}))
    return subprocess.run(
        ["ansible-playbook", "-i", str(inventory), playbook],
        cwd=ROOT,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_STDOUT_CALLBACK": "slipway.host.live",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(folder / "facts"),
            "SLIPWAY_STATE": str(folder / "state"),
            "SLIPWAY_REPORTS": str(folder / "reports"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("playbook", [*PLAYBOOKS, "playbooks/plan.yml"])
def test_no_playbook_connects_to_a_held_host(playbook: str, tmp_path: Path) -> None:
    done = run(playbook, tmp_path, gpu01={"slipway_hold": HOSTILE})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"gpu01: {SHOWN}\n" in done.stdout
    assert f"gpu01  held    {SHOWN}\n" in done.stdout
    assert "1 host is held: gpu01. Nothing was done there.\n" in done.stdout
    assert "\nOK:" not in done.stdout
    # A build compares only images, so it writes no reports.
    if playbook not in ("playbooks/remove.yml", "playbooks/images_build.yml"):
        report = json.loads((tmp_path / "reports/gpu01.json").read_text())
        assert (report["state"], f"held: {report['hold']}") == ("held", SHOWN)
        page = (tmp_path / "reports/index.html").read_text()
        assert "disk &lt;b&gt;" in page
        assert "disk <b>" not in page


@pytest.mark.parametrize("playbook", ["playbooks/plan.yml", "playbooks/upgrade.yml"])
def test_an_unclear_hold_stops_the_run_before_the_host(playbook: str, tmp_path: Path) -> None:
    hosts: dict[str, Any] = {"gpu01": {"slipway_hold": ""}, "gpu02": {"slipway_hodl": "disk swap"}}
    done = run(playbook, tmp_path, **hosts)
    assert done.returncode == 2
    assert "slipway_hold: ''; expected a text with the reason" in done.stdout
    assert "slipway_hodl: unknown variable" in done.stdout
    assert "UNREACHABLE" not in done.stdout


@pytest.mark.parametrize("playbook", ["playbooks/upgrade.yml", "playbooks/rollback.yml"])
def test_a_host_with_a_mistyped_name_does_not_stop_the_other_hosts(
    playbook: str, tmp_path: Path
) -> None:
    hosts: dict[str, Any] = {"gpu01": {"slipway_hodl": "disk swap"}, "gpu02": {}, "gpu03": {}}
    done = run(playbook, tmp_path, slipway_serial=3, **hosts)
    assert done.returncode == 2
    assert "gpu01  failed  slipway_hodl: unknown variable" in done.stdout
    # The first task that connects fails there: the batch has started.
    assert re.findall(r"^(gpu0[23])  failed  ", done.stdout, re.M) == ["gpu02", "gpu03"]
    assert "not started" not in done.stdout


def test_the_question_of_a_removal_names_no_held_host(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    hosts = {"gpu01": {"slipway_hold": "disk swap"}, "gpu02": {}, "gpu03": {"slipway_hold": ""}}
    # Also a hold whose reason is known only after evaluation.
    hosts["gpu04"] = {"slipway_hold": "{{ inventory_hostname }} is of Ana"}
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "SLIPWAY_STATE": str(tmp_path)}
    done = subprocess.run(
        ["sh", "tools/remove.sh", "-i", str(inventory), "--limit", "gpu*"],
        cwd=ROOT,
        env={**os.environ, **settings, "SLIPWAY_REPORTS": str(tmp_path / "reports")},
        input="no\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("not confirmed")) == (1, 1)
    listed, held = done.stdout.partition("Remove everything")[0].split("Held hosts")
    # gpu03 has no reason: it fails before its first change.
    assert re.findall(r"gpu\d+", listed) == ["gpu02", "gpu03"]
    assert held == " are left out: gpu01, gpu04.\n"
    assert not (tmp_path / "reports").exists()


def filtered(wanted: list[str], **hosts: dict[str, Any]) -> list[str]:
    variables = {
        "inventory_hostname": "gpu01",
        "hostvars": {"gpu01": {}, **hosts},
        "groups": {"all": ["gpu01", *hosts]},
    }
    own = Candidate("x86_64", {"slipway/jupyter:cpu": "1"})
    return builders.without_held(wanted, own, variables)


HELD = {"slipway_hold": "disk swap"}
ARM = {"ansible_facts": {"slipway": {"architecture": "aarch64"}}}


@pytest.mark.parametrize(
    ("wanted", "hosts", "left"),
    [
        (["auto"], {"build": HELD}, ["auto"]),
        ([], {"build": HELD}, []),
        (["build"], {"build": {}, "other": HELD}, ["build"]),
        (["build", "other"], {"build": HELD, "other": {}}, ["other"]),
        (["gpu01", "build"], {"build": HELD}, ["gpu01"]),
        (["build"], {"build": ARM}, ["build"]),
    ],
)
def test_a_held_builder_is_passed_over_while_another_host_builds(
    wanted: list[str], hosts: dict[str, Any], left: list[str]
) -> None:
    assert filtered(wanted, **hosts) == left


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (["build"], "ml_images_builder: build is held: disk swap; expected a host that builds"),
        (["build", "arm"], "build is held: disk swap; arm has the architecture aarch64; expected"),
    ],
)
def test_a_held_builder_without_another_one_is_an_error(wanted: list[str], reason: str) -> None:
    with pytest.raises(AnsibleActionFail, match=reason):
        filtered(wanted, build=HELD, arm=ARM)
