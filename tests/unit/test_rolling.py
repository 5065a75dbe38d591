# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rolling runs: batches, the stop after failures, and what the end of the run says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.images.delivery import Candidate
from ansible_collections.slipway.host.plugins.plugin_utils import batches, builders

from tests.contract.tree import ROOT

DRIFT = {"c": ["two"], "a": ["one", "two"], "b": ["one"], "d": ["two"], "e": ["one"]}
PLAY = "Apply roles to hosts with drift"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


def run_site(folder: Path, bad: str = "", inventory: Any = None, **extra: Any) -> list[str]:
    """Run the play of site.yml that changes hosts; return each host with what it ran, in order.

    The acceptance checks fail on the hosts BAD.
    """
    plays = yaml.safe_load((ROOT / "site.yml").read_text(encoding="utf-8"))
    (play,) = [one for one in plays if one["name"] == PLAY]
    (survey,) = [one for one in play["tasks"] if "slipway.host.survey" in one]
    survey["ansible.builtin.debug"] = {"msg": survey.pop("slipway.host.survey") and "survey"}
    del survey["register"]
    last = {"name": "Report conflicts", "hosts": "slipway_drift", "gather_facts": False}
    last["tasks"] = [{"name": "End", "ansible.builtin.debug": {"msg": "end"}}]
    # As the survey does, this play makes the variables of hosts known to the next ones.
    first = {**last, "name": "Survey", "hosts": "all", "tasks": []}
    write(folder / "play.yml", [first, play, last])
    shutil.copytree(ROOT / "playbooks/tasks", folder / "playbooks/tasks")
    write(folder / "vars/roles.yml", {"slipway_roles": ["one", "two"]})
    shutil.copy(ROOT / "vars/rolling.yml", folder / "vars/rolling.yml")
    for name in ("one", "two", "host_metrics"):
        task = {"name": f"Say {name}", "ansible.builtin.debug": {"msg": name}}
        write(folder / f"roles/{name}/tasks/main.yml", [task])
    task = {"name": "Check", "ansible.builtin.debug": {"msg": "checked"}}
    test = {"that": f"inventory_hostname not in '{bad}'", "quiet": True}
    fail = {"name": "Fail", "ansible.builtin.assert": test}
    write(folder / "roles/host_verify/tasks/main.yml", [task, fail])
    hosts = {host: {"__slipway_survey": {"drift": roles}} for host, roles in DRIFT.items()}
    groups: dict[str, Any] = {
        "all": {
            "vars": inventory or {},
            "children": {
                "all_hosts": {"hosts": hosts},
                "slipway_drift": {"hosts": dict.fromkeys(DRIFT)},
                **{
                    f"slipway_apply_{role}": {
                        "hosts": {host: {} for host, roles in DRIFT.items() if role in roles}
                    }
                    for role in ("one", "two")
                },
            },
        }
    }
    write(folder / "hosts.yml", groups)
    done = subprocess.run(
        [
            *("ansible-playbook", "-i", "hosts.yml", "-c", "local", "play.yml"),
            *(word for name, value in extra.items() for word in ("-e", f"{name}={value}")),
        ],
        cwd=folder,
        env={
            "PATH": str(Path(shutil.which("ansible-playbook") or "").parent),
            "HOME": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if bad else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    said: list[str] = []
    for host, text in re.findall(r'^ok: \[(\w)\].*\n    "msg": "(\w+)"', done.stdout, re.M):
        said.append(f"{host} {text}")
    return said


def order_of(said: list[str], text: str) -> str:
    return "".join(line[0] for line in said if line.endswith(text))


def test_without_serial_all_hosts_are_one_batch(tmp_path: Path) -> None:
    said = run_site(tmp_path)
    texts = [line.split()[1] for line in said]
    order = ["one", "two", "survey", "checked", "end"]
    assert texts == sorted(texts, key=order.index)
    assert sorted(order_of(said, "checked")) == [*"abcde"]


@pytest.mark.parametrize(
    ("extra", "inventory", "sizes"),
    [
        ({"slipway_serial": 2}, {}, [2, 2, 1]),
        ({"slipway_serial": "40%"}, {}, [2, 2, 1]),
        ({}, {"slipway_serial": [1, 4]}, [1, 4]),
    ],
)
def test_a_batch_is_verified_before_the_next_one_begins(
    extra: dict[str, Any], inventory: dict[str, Any], sizes: list[int], tmp_path: Path
) -> None:
    said = run_site(tmp_path, inventory=inventory, **extra)
    checked = order_of(said, "checked")
    first = 0
    for size in sizes:
        batch = [*"abcde"][first : first + size]
        assert sorted(checked[first : first + size]) == batch
        lines = [number for number, line in enumerate(said) if line[0] in batch]
        ends = [number for number in lines if said[number].endswith("end")]
        work = [number for number in lines if number not in ends]
        assert work == [*range(work[0], work[0] + len(work))]
        first += size
    assert sorted(order_of(said, "end")) == [*"abcde"]


@pytest.mark.parametrize("variables", [{"ml_images_builder": ["d"]}, {"slurm_controller": "d"}])
def test_a_host_that_others_need_is_in_the_first_batch(
    variables: dict[str, Any], tmp_path: Path
) -> None:
    said = run_site(tmp_path, inventory=variables, slipway_serial=1)
    assert order_of(said, "checked") == "dabce"


@pytest.mark.parametrize(
    ("bad", "extra", "checked", "ended"),
    [
        ("a", {}, "ab", "bcde"),
        ("a", {"slipway_max_failures": 1}, "abcde", "bcde"),
        ("ac", {"slipway_max_failures": 1}, "abcd", "bde"),
        ("ac", {"slipway_max_failures": "40%"}, "abcde", "bde"),
        ("ac", {"slipway_max_failures": "39%"}, "abcd", "bde"),
        # Ansible stops, and leaves out the later plays.
        ("ab", {"slipway_max_failures": 3}, "ab", ""),
    ],
)
def test_no_batch_starts_after_too_many_failures(
    bad: str, extra: dict[str, Any], checked: str, ended: str, tmp_path: Path
) -> None:
    said = run_site(tmp_path, bad, slipway_serial=2, **extra)
    assert "".join(sorted(order_of(said, "checked"))) == checked
    assert "".join(sorted(order_of(said, "end"))) == ended


SITE, UPGRADE = "slipway_serial", "slipway_upgrade_serial"


def check(variables: dict[str, Any], used: str = SITE, hosts: int = 20) -> None:
    names = [f"gpu{number:02}" for number in range(hosts)]
    host = {"inventory_hostname": "gpu00", "groups": {"all": names}}
    batches.check({**host, **variables, batches.USED: used}, lambda value: value)


@pytest.mark.parametrize(
    ("variables", "used", "hosts"),
    [
        ({}, SITE, 20),
        ({"slipway_serial": 1}, SITE, 20),
        ({"slipway_serial": "25%", "slipway_max_failures": "10%"}, SITE, 20),
        ({"slipway_serial": [1, "5", "50%"], "slipway_max_failures": "1"}, SITE, 20),
        ({"slipway_serial": 1, "slipway_max_failures": 0}, SITE, 20),
        # Each command has its own variable.
        ({UPGRADE: 1, "slipway_serial": 5, "slipway_max_failures": 1}, SITE, 20),
        ({UPGRADE: 2, "slipway_serial": 1, "slipway_max_failures": 1}, UPGRADE, 20),
        ({"slipway_serial": 2, "slipway_max_failures": 1}, UPGRADE, 20),
        # So few hosts that a percentage means no failure, or one host.
        ({"slipway_serial": 1, "slipway_max_failures": "4%"}, SITE, 20),
        ({"slipway_serial": "10%", "slipway_max_failures": 2}, SITE, 1),
    ],
)
def test_good_batches(variables: dict[str, Any], used: str, hosts: int) -> None:
    check(variables, used, hosts)


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"slipway_serial": 0}, "slipway_serial: 0; expected a number of hosts"),
        ({"slipway_serial": "two"}, "slipway_serial: 'two'; expected"),
        ({"slipway_serial": "0%"}, "slipway_serial"),
        ({"slipway_serial": "101%"}, "slipway_serial"),
        ({"slipway_serial": True}, "slipway_serial"),
        ({"slipway_serial": []}, "slipway_serial"),
        ({"slipway_serial": [2, -1]}, "slipway_serial"),
        ({"slipway_serial": None}, "slipway_serial"),
        ({"slipway_serial": 1.5}, "slipway_serial"),
        ({"slipway_serial": "\u0662"}, "slipway_serial"),
        ({"slipway_upgrade_serial": "x"}, "slipway_upgrade_serial"),
        ({"slipway_serial": 2, "slipway_max_failures": -1}, "slipway_max_failures"),
        ({"slipway_serial": 2, "slipway_max_failures": [1]}, "slipway_max_failures"),
    ],
)
def test_batches_that_cannot_work_are_refused(variables: dict[str, Any], error: str) -> None:
    with pytest.raises(AnsibleActionFail, match=re.escape(error)):
        check(variables)
    # Also for one host, and in plays without batches.
    with pytest.raises(AnsibleActionFail, match=re.escape(error)):
        batches.check(variables, lambda value: value)


@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({}, SITE),
        ({}, UPGRADE),
        ({"slipway_serial": "1"}, SITE),
        ({"slipway_serial": "01"}, SITE),
        ({"slipway_serial": [1, "1"]}, SITE),
        ({"slipway_serial": "9%"}, SITE),
        ({UPGRADE: 4}, SITE),
        ({UPGRADE: 1, "slipway_serial": 4}, UPGRADE),
        # An upgrade without batches changes one host at a time.
        ({"slipway_serial": "100%"}, UPGRADE),
    ],
)
@pytest.mark.parametrize("failures", [1, "5%"])
def test_allowed_failures_without_effect_are_refused(
    variables: dict[str, Any], used: str, failures: Any
) -> None:
    error = f"slipway_max_failures: {failures} without batches of several hosts; .* {used} of 2"
    with pytest.raises(AnsibleActionFail, match=error):
        check({**variables, "slipway_max_failures": failures}, used)


@pytest.mark.parametrize(
    ("own", "first", "error"),
    [
        ({}, {}, ""),
        ({"slipway_serial": "2"}, {"slipway_serial": 2}, ""),
        (
            {"slipway_serial": 1},
            {"slipway_serial": 2},
            "slipway_serial: 1 for gpu07; expected 2 as for gpu00, the first host of the inventory."
            " Set slipway_serial for the group all. Nothing was changed.",
        ),
        ({}, {UPGRADE: 2}, f"{UPGRADE}: not set for gpu07; expected 2 as for gpu00"),
        ({"slipway_max_failures": 1}, {}, "slipway_max_failures: 1 for gpu07; expected not set"),
    ],
)
def test_batches_of_a_part_of_the_hosts_are_refused(
    own: dict[str, Any], first: dict[str, Any], error: str
) -> None:
    """A play reads its batches before it has a host: the value of the first host would decide."""
    variables = {**own, "inventory_hostname": "gpu07", "hostvars": {"gpu00": first}}
    variables["groups"] = {"all": ["gpu00", "gpu07"]}
    if not error:
        batches.check(variables, lambda value: value)
        return
    with pytest.raises(AnsibleActionFail, match=re.escape(error)):
        batches.check(variables, lambda value: value)


def test_the_plays_before_batches_name_the_variable_of_their_size() -> None:
    look = yaml.safe_load((ROOT / "playbooks/look.yml").read_text(encoding="utf-8"))[-1]
    assert look["vars"] == {batches.USED: SITE}
    for name in ("upgrade", "rollback"):
        plays = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text(encoding="utf-8"))
        assert plays[0]["vars"] == {batches.USED: UPGRADE}


@pytest.mark.parametrize("name", ["upgrade", "rollback"])
def test_metrics_are_refreshed_after_each_failure(name: str) -> None:
    plays = yaml.safe_load((ROOT / f"playbooks/{name}.yml").read_text(encoding="utf-8"))
    kinds = ("slipway.host.", "ansible.builtin.include_role")
    outside = [
        task["name"]
        for task in plays[2]["tasks"]
        if any(key.startswith(kinds) for key in task) and "block" not in task
    ]
    assert outside == []
    (block,) = [task for task in plays[2]["tasks"] if "block" in task]
    (refresh,) = block["always"]
    assert refresh["ansible.builtin.include_tasks"] == "tasks/refresh_metrics.yml"


@pytest.mark.parametrize(
    ("batch", "later"),
    [(["a", "b"], {"c", "d"}), (["b", "c"], {"d"}), (["a", "b", "c", "d"], set()), ([], set())],
)
def test_hosts_of_later_batches_build_nothing(batch: list[str], later: set[str]) -> None:
    play = {"ansible_play_hosts_all": [*"abcd"], "ansible_play_batch": batch}
    assert builders.find_later(play) == later
    same = {"__slipway_survey": {"images": {"jupyter": "1"}}}
    variables = {
        **play,
        "inventory_hostname": "b",
        "groups": {"all": [*"dcab"]},
        "hostvars": dict.fromkeys("abcd", same),
    }
    builder = builders.choose(["auto"], Candidate(None, {"jupyter": "1"}), variables)
    assert builder == next(host for host in "dca" if host not in later)
