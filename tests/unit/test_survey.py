# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of the survey, with what a host answers in place of a host."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.task import Task
from ansible.template import Templar, trust_as_template
from ansible_collections.slipway.host.plugins.action import survey
from ansible_collections.slipway.host.plugins.module_utils.state import kinds, model, space
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    host_command,
    role_plans,
    roles,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import overview

from tests.unit.gpu_facts import facts

ALICE = {"name": "alice", "uid": 1500, "home": "/home/alice"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4m1Yh0o2mYxD1vUX0Jq4p2l8mHhQn3eV6w0bq2y7Zk a"
ABSENT = "user_access: users alice: missing, should be a user"
HOST = {**facts("none"), "root": True, "docker_package": "docker.io", "docker_version": "26.1.5"}
SNAP = {**HOST, "docker_snap": True}


class Host:
    """Answers questions as a host does on which nothing declared is there."""

    def __init__(self, *known: dict[str, Any]) -> None:
        self.known = list(known)
        self.asked: list[tuple[set[str], list[str]]] = []
        self.users: dict[str, Any] = {}
        self.users_of_host: dict[str, Any] = {}
        self.apt = ""
        self.groups: list[list[str]] = []
        self.health: dict[str, Any] = {}
        self.space: dict[str, int | None] = {}

    def __call__(self, _action: Any, question: dict[str, Any], reach: Any = ()) -> Any:
        self.asked.append((set(question), list(reach)))
        found = self.known[min(len(self.asked), len(self.known)) - 1]
        if "users_of_host" in question:
            simulated = {" ".join(words): self.apt for words in question["apt_simulations"]}
            users = self.users_of_host or dict.fromkeys(question["users_of_host"])
            return {"facts": found, "users_of_host": users, "apt_simulations": simulated}
        answer = {key: dict.fromkeys(map(str, names)) for key, names in question.items()}
        if "health" in question:
            answer["health"] = self.health
        if "projects" in question:
            nothing: dict[str, Any] = {"containers": [], "record": None, "limits": []}
            answer["projects"] = dict.fromkeys(question["projects"], nothing)
            answer["addresses"] = dict.fromkeys(question.get("addresses", ()), True)
        answer["space"] = self.space
        answer["users"] = {name: self.users.get(name) for name in question.get("users", ())}
        return {"facts": found, "engine": None, "unsafe": {}, **answer}


ARGUMENTS = ("expect_no_drift", "compare", "fail_on_conflict")
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(HOST)
    monkeypatch.setattr(ask_host, "ask", host)

    def add_group(_self: Any, name: str, parent_group_names: list[str]) -> None:
        host.groups.append([name, *parent_group_names])

    # ansible-core 2.21 and later; it needs a running task.
    monkeypatch.setattr(survey.ActionModule, "add_group", add_group, raising=False)
    return host


@pytest.fixture
def run(host: Host) -> Run:
    """Return the function that surveys the host for variables and arguments of the task."""

    def run(remembered: Any = None, **given: Any) -> dict[str, Any]:
        arguments = {key: given.pop(key) for key in ARGUMENTS if key in given}
        task = Task()
        task.args = {"roles": given.pop("roles", ["user_access"]), **arguments}
        if task.args["roles"] is None:
            del task.args["roles"]
        variables = {"inventory_hostname": "gpu01", "user_access_users": [ALICE], **given}
        if remembered:
            variables["ansible_facts"] = {"slipway": remembered}
        templar = Templar(loader=DataLoader(), variables=variables)
        connection: Any = SimpleNamespace(
            transport="local", _shell=SimpleNamespace(tmpdir=None), has_pipelining=True
        )
        nothing: Any = None
        action = survey.ActionModule(task, connection, nothing, nothing, templar, nothing)
        result: dict[str, Any] = action.run(None, variables)
        return result

    return run


def test_drift_is_told_by_role_and_the_host_joins_the_group(run: Run, host: Host) -> None:
    result = run()
    parents = ["slipway_drift", "slipway_apply_user_access"]
    assert host.groups == [["_and_".join(parents), *parents]]
    assert result["drift"] == ["user_access"]
    assert {"kind": "users", "name": "alice", "found": "missing", "expected": "a user"} in (
        result["differences"]["user_access"]
    )
    assert (result["add_group"], result["parent_groups"]) == ("_and_".join(parents), parents)
    assert result["ansible_facts"] == {"slipway": HOST}
    assert not result["changed"]


def test_a_host_for_which_nobody_is_declared_is_surveyed(
    run: Run, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def answer(_action: Any, question: dict[str, Any], reach: Any = ()) -> Any:
        asked.update(question)
        found = Host.__call__(host, _action, question, reach)
        return {key: value for key, value in found.items() if key != "users" or key in question}

    monkeypatch.setattr(ask_host, "ask", answer)
    assert run(user_access_users=[])["drift"] == []
    assert "users" not in asked


def test_a_host_without_drift_joins_no_group(run: Run, host: Host) -> None:
    result = run(user_access_users=[], user_access_docker_exclusive=False)
    assert (result["drift"], result["differences"]) == ([], {})
    assert "add_group" not in result


def test_a_sick_gpu_is_no_drift_and_the_host_joins_its_own_group(run: Run, host: Host) -> None:
    gpu = {"loaded": "580.95.05", "recorded": 2}
    host.known = [{**facts("t4", recorded=2), "root": True, "systemd": True}]
    host.known[0]["gpu"].update(gpu)
    host.health = {
        "smi": {"status": 0, "gpus": {}},
        "log": ["NVRM: Xid (PCI:0000:3b:00): 79, pid=7, off the bus\x1b"],
    }
    result = run(user_access_users=[], user_access_docker_exclusive=False)
    assert result["differences"] == {}
    assert host.groups == [["slipway_fault", "all"]]
    missing, lost, logged = result["health"]
    assert missing["found"] == "1 GPUs are on the PCI bus"
    assert lost["found"] == "the GPU is on the PCI bus, but the driver does not list it"
    assert (logged["where"], logged["warning"]) == ("0000:3b:00.0", False)
    assert "Xid 79" in logged["found"]


def test_a_host_with_accepted_faults_alone_joins_no_group(run: Run, host: Host) -> None:
    host.known = [{**facts("t4", recorded=2), "root": True, "systemd": True}]
    host.known[0]["gpu"].update({"loaded": "580.95.05", "recorded": 2})
    (address,) = (row[0] for row in host.known[0]["gpu"]["devices"])
    host.health = {"smi": {"status": 0, "gpus": {address: {}}}}
    entry = {"fault": "1 GPUs are on the PCI bus", "reason": trust_as_template("{{ 'RMA' }} 7")}
    result = run(user_access_users=[], host_verify_accepted_faults=[entry])
    (finding,) = result["health"]
    assert (finding["warning"], finding["accepted"]) == (True, "Accepted: RMA 7")
    assert host.groups == []


@pytest.mark.parametrize(
    ("model", "gpu"), [("none", {}), ("t4", {}), ("t4", {"recorded": 1, "loaded": ""})]
)
def test_nothing_is_asked_of_a_driver_that_is_not_loaded(
    model: str, gpu: dict[str, Any], run: Run, host: Host
) -> None:
    host.known = [{**facts(model), "root": True, "systemd": True}]
    host.known[0]["gpu"].update(gpu)
    assert run(user_access_users=[])["health"] == []
    assert all("health" not in asked for asked, _reach in host.asked)


def test_with_remembered_facts_one_question_is_enough(run: Run, host: Host) -> None:
    run(remembered=HOST)
    assert len(host.asked) == 1
    assert "users" in host.asked[0][0]


def test_without_remembered_facts_the_host_is_asked_for_them_first(run: Run, host: Host) -> None:
    run(roles=["docker_engine"])
    (keys, reach), (_keys, nowhere), _disturbed = host.asked
    assert keys == set()
    assert len(reach) == 1 and reach[0].endswith("/gpg")
    assert nowhere == []


def test_a_fresh_host_is_asked_for_servers_that_an_earlier_run_left_out(
    run: Run, host: Host
) -> None:
    fresh = {**HOST, "docker_package": "", "docker_version": "", "reachable": {}}
    host.known = [fresh]
    run(remembered=fresh, roles=["docker_engine"])
    ((_keys, (url,)), *_others) = host.asked
    answered = {**fresh, "reachable": {url.replace("{distribution}", "ubuntu"): False}}
    host.known, host.asked = [answered], []
    run(remembered=answered, roles=["docker_engine"])
    assert not [reach for _keys, reach in host.asked if reach]


def test_with_a_bundle_no_vendor_is_chosen_because_of_an_earlier_run(
    run: Run, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://download.docker.com/linux/ubuntu/gpg"
    fresh = {**HOST, "docker_package": "", "docker_version": "", "reachable": {url: True}}
    host.known = [{**fresh, "reachable": {}}]
    monkeypatch.setattr(declared, "open_packages", lambda *_words: "bundle")
    monkeypatch.setattr(declared, "refuse_missing_packages", lambda *_words: None)
    result = run(remembered=fresh, roles=["docker_engine"])
    assert result["ansible_facts"]["slipway"]["reachable"] == {}
    assert "keyrings" not in {one["kind"] for one in result["differences"]["docker_engine"]}


def test_facts_that_are_no_longer_true_are_asked_for_again(run: Run, host: Host) -> None:
    old = {**HOST, "kernel": "5.15.0-1-amd64"}
    result = run(remembered=old)
    assert result["ansible_facts"]["slipway"] == HOST
    assert len(host.asked) == 3


def test_a_host_that_changes_all_the_time_is_not_asked_for_ever(run: Run, host: Host) -> None:
    host.known = [{**HOST, "kernel": str(number)} for number in range(20)]
    run()
    # Three times the facts, and three times the state.
    assert len(host.asked) == 6


def test_a_refused_setting_ends_the_run_before_a_change(run: Run, host: Host) -> None:
    host.known = [SNAP]
    with pytest.raises(AnsibleActionFail) as caught:
        run(roles=["docker_engine"])
    assert str(caught.value).startswith("docker_engine: Docker is installed as a snap")
    assert str(caught.value).endswith("Nothing was changed.")
    # Nothing was asked but facts.
    assert [keys for keys, _reach in host.asked] == [set()]


def test_after_the_roles_a_refusal_does_not_say_that_nothing_was_changed(
    run: Run, host: Host
) -> None:
    host.known = [SNAP]
    wrong: dict[str, Any]
    for wrong in ({"roles": ["docker_engine"]}, {"user_access_usres": []}):
        with pytest.raises(AnsibleActionFail) as caught:
            run(expect_no_drift=True, **wrong)
        assert "Nothing was changed" not in str(caught.value)


def test_a_refusal_from_remembered_facts_is_asked_again(run: Run, host: Host) -> None:
    """The reason may be gone since the facts were remembered."""
    result = run(remembered=SNAP, roles=["docker_engine"])
    assert result["ansible_facts"]["slipway"] == HOST
    assert [bool(keys) for keys, _reach in host.asked] == [False, True, True]


def test_an_error_from_remembered_facts_is_asked_again(run: Run, host: Host) -> None:
    """The host got a GPU since the facts were remembered, and a service may use it."""
    service = {"name": "notebooks", "image": "jupyter", "gpus": [0]}
    given = {"roles": ["ml_services"], "ml_services_instances": [service]}
    host.known = [{**HOST, **facts("t4")}]
    assert run(remembered=HOST, **given)["ansible_facts"]["slipway"] == host.known[0]
    host.known = [HOST]
    with pytest.raises(AnsibleActionFail, match="GPU 0 does not exist"):
        run(remembered=HOST, **given)


def test_after_the_roles_nothing_may_differ(run: Run, host: Host) -> None:
    with pytest.raises(AnsibleActionFail, match="still differs") as caught:
        run(expect_no_drift=True)
    assert ABSENT in str(caught.value)
    run(expect_no_drift=True, user_access_users=[], user_access_docker_exclusive=False)


def test_a_host_is_asked_whom_a_change_disturbs(run: Run, host: Host) -> None:
    host.users_of_host = {
        "containers": {"live_restore": False, "containers": []},
        "gpu_processes": [],
        "sessions": [{"user": "carol", "terminal": "pts/0", "from": ""}],
    }
    host.apt = "Remv podman-docker [1.0]\n"
    result = run(remembered=HOST, roles=["docker_engine"])
    assert [keys for keys, _reach in host.asked][1:] == [{"users_of_host", "apt_simulations"}]
    effect = "would be removed (is 1.0; no role declares this package)"
    assert result["consequences"] == [
        {"kind": "restart", "name": "docker.service", "effect": "would restart"},
        {"kind": "package", "name": "podman-docker", "effect": effect},
        {"kind": "session", "name": "carol", "effect": "is logged in at pts/0"},
    ]


def test_a_change_that_disturbs_nobody_needs_no_further_question(run: Run, host: Host) -> None:
    assert run(remembered=HOST)["consequences"] == []
    assert len(host.asked) == 1


@pytest.mark.parametrize(
    ("name", "registered", "fails"),
    [
        ("__user_access_x", {"slipway_waiting": ["restart waits"]}, False),
        ("__user_access_x", {"results": [{"slipway_waiting": ["restart waits"]}]}, False),
        ("__user_access_x", {"slipway_waiting": []}, True),
        ("__docker_engine_x", {"slipway_waiting": ["restart waits"]}, True),
    ],
)
def test_after_the_roles_only_a_role_that_waits_may_differ(
    run: Run, name: str, registered: Any, fails: bool
) -> None:
    if fails:
        with pytest.raises(AnsibleActionFail, match="still differs"):
            run(expect_no_drift=True, **{name: registered})
    else:
        result = run(expect_no_drift=True, **{name: registered})
        assert result["consequences"] == []
        # The acceptance checks do not try what waits.
        assert result["declared"]["waiting"] == ["user_access"]


def test_without_the_comparison_every_role_runs(run: Run) -> None:
    result = run(compare=False, user_access_users=[], user_access_docker_exclusive=False)
    assert result["drift"] == ["user_access"]
    assert result["parent_groups"] == ["slipway_drift", "slipway_apply_user_access"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"user_access_usres": []}, "did you mean user_access_users"),
        ({"user_access_users": "alice"}, "user_access_users must be a list"),
        ({"user_access_users": [{"name": "root", "state": "absent"}]}, "Root cannot be removed"),
        ({"host_verify_accepted_fault": []}, "did you mean host_verify_accepted_faults"),
        ({"host_verify_accepted_faults": [{"fault": "x"}]}, "missing required arguments: reason"),
        (
            {"host_verify_accepted_faults": [{"fault": "x", "reason": "y", "until": "z"}]},
            "until: found z; expected a date",
        ),
    ],
)
def test_impossible_settings_end_the_run(
    run: Run, host: Host, variables: dict[str, Any], words: str
) -> None:
    with pytest.raises(AnsibleActionFail, match=words):
        run(remembered=HOST, **variables)
    # Nothing was asked but facts.
    assert all(keys == set() for keys, _reach in host.asked)


MOVED = {"alice": [1500, 1500, "/elsewhere/alice", "/bin/bash", ""]}


def test_a_conflict_stands_beside_the_drift(run: Run, host: Host) -> None:
    host.users = MOVED
    result = run(user_access_users=[{"name": "alice", "keys": [KEY]}, {"name": "bob"}])
    (conflict,) = result["conflicts"]["user_access"]
    assert conflict["kind"] == "lines"
    assert "Set 'home: /elsewhere/alice'" in conflict["reason"]
    assert ("users", "bob") in {
        (one["kind"], one["name"]) for one in result["differences"]["user_access"]
    }
    parents = ["slipway_drift", "slipway_conflict", "slipway_apply_user_access"]
    assert host.groups == [["_and_".join(parents), *parents]]


def test_a_conflict_alone_is_no_work_for_a_role(run: Run, host: Host) -> None:
    host.users = MOVED
    declared = {"user_access_docker_exclusive": False, "user_access_limits": []}
    result = run(user_access_users=[{"name": "alice", "keys": [KEY]}], **declared)
    assert (result["drift"], list(result["conflicts"])) == ([], ["user_access"])
    assert host.groups == [["slipway_conflict", "all"]]
    # After the roles, what is in conflict is not what they left undone.
    run(user_access_users=[{"name": "alice", "keys": [KEY]}], expect_no_drift=True, **declared)


def test_a_conflict_that_a_role_met_is_told_after_it(run: Run, host: Host) -> None:
    met = {
        "kind": "users",
        "name": "alice",
        "reason": "home folder of alice: found a \x1b[2J link.",
    }
    declared: dict[str, Any] = {"user_access_docker_exclusive": False, "user_access_limits": []}
    for result in ({"conflicts": [met]}, {"results": [{"conflicts": [met]}, {"skipped": True}]}):
        found = run(expect_no_drift=True, __user_access_x=result, **declared)
        assert [one["reason"] for one in found["conflicts"]["user_access"]] == [
            "home folder of alice: found a \\x1b[2J link."
        ]


def test_an_upgrade_stops_at_a_conflict(run: Run, host: Host) -> None:
    host.users = MOVED
    with pytest.raises(AnsibleActionFail, match="Set 'home: /elsewhere/alice'"):
        run(user_access_users=[{"name": "alice", "keys": [KEY]}], fail_on_conflict=True)


def test_all_wrong_settings_are_named_together(run: Run, host: Host) -> None:
    with pytest.raises(AnsibleActionFail) as caught:
        run(user_access_usres=[], user_access_users="alice")
    unknown, wrong = str(caught.value).split("; role")
    assert "did you mean user_access_users" in unknown
    assert "must be a list" in wrong and wrong.endswith(". Nothing was changed.")


@pytest.mark.parametrize(
    ("variables", "drift"),
    [
        ({"slipway_roles": ["user_access"]}, ["user_access"]),
        ({"slipway_roles": trust_as_template("{{ ['user_access'] }}")}, ["user_access"]),
        ({"slipway_roles": ["user_access"], "user_access_users": []}, []),
        (
            {"slipway_roles": ["user_access"], "user_access_users": [], "slipway_survey": False},
            ["user_access"],
        ),
    ],
)
def test_roles_and_comparison_come_from_variables(
    run: Run, variables: dict[str, Any], drift: list[str]
) -> None:
    assert run(roles=None, user_access_docker_exclusive=False, **variables)["drift"] == drift


def test_without_roles_the_survey_names_the_missing_argument(run: Run, host: Host) -> None:
    with pytest.raises(AnsibleActionFail, match="no roles; expected the argument 'roles'"):
        run(roles=None)
    assert host.asked == []


def test_settings_may_use_facts_of_the_host(run: Run, host: Host) -> None:
    name = "{{ ansible_facts['slipway'].distribution | lower }}"
    users = [{"name": trust_as_template(name)}]
    result = run(remembered=HOST, user_access_users=users)
    assert {entry["name"] for entry in result["differences"]["user_access"]} >= {"ubuntu"}


@pytest.mark.parametrize("roles", [["user_access"], ["user_access", "docker_engine"]])
def test_settings_may_use_facts_in_the_first_survey(run: Run, host: Host, roles: list[str]) -> None:
    name = "{{ ansible_facts['slipway'].distribution | lower }}"
    url = trust_as_template(f"https://{name}.example.org")
    mirror = {"url": url, "key_url": url, "fingerprint": "A" * 40}
    users = [{"name": trust_as_template(name)}]
    result = run(roles=roles, user_access_users=users, docker_engine_repository=mirror)
    assert {entry["name"] for entry in result["differences"]["user_access"]} >= {"ubuntu"}
    questions = [(keys, urls) for keys, urls in host.asked if "users_of_host" not in keys]
    assert [keys == set() for keys, _urls in questions] == [True, True, False]
    assert len(questions[1][1]) == len(roles) - 1


def test_a_setting_that_has_no_value_is_named_before_and_after_the_first_question(
    run: Run, host: Host
) -> None:
    for value in ("{{ nobody }}", "{{ ansible_facts['slipway'].nothing }}"):
        users = [{"name": trust_as_template(value)}]
        for remembered in (None, HOST):
            with pytest.raises(AnsibleActionFail, match="Cannot evaluate variable user_access_us"):
                run(remembered=remembered, user_access_users=users)


def test_an_old_name_of_an_option_works_with_a_warning(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(role_plans.display, "warning", warnings.append)
    limits = [{"who": "*", "nofile": 4096}]
    assert run(user_access_limits=limits)["drift"] == ["user_access"]
    assert any("who" in warning and "applies_to" in warning for warning in warnings)


def test_a_service_whose_image_nobody_builds_is_in_conflict(run: Run, host: Host) -> None:
    result = run(roles=["ml_services"], ml_services_instances=[{"name": "iris-api"}])
    (conflict,) = result["conflicts"]["ml_services"]
    assert conflict["reason"].startswith("ml_services_instances: service iris-api needs image")
    assert result["drift"] == []


def test_a_service_that_does_not_run_has_no_address(run: Run, host: Host) -> None:
    roles = ["ml_images", "ml_services"]
    result = run(roles=roles, ml_images_present=["iris-api"], ml_services_instances=None)
    assert (result["urls"], result["drift"]) == ({}, roles)


def test_a_full_host_is_refused_if_it_has_drift(run: Run, host: Host) -> None:
    host.space = {"/tmp": 5 << 20}
    with pytest.raises(AnsibleActionFail) as caught:
        run()
    assert str(caught.value) == (
        "no space left in /tmp: found 5 MiB free; expected at least 16 MiB, free inodes and a file "
        "system that is not read-only. Free some space, then run again. Nothing was changed."
    )
    # A host as declared is not changed.
    assert run(user_access_users=[], user_access_docker_exclusive=False)["drift"] == []


@pytest.mark.parametrize(
    ("free", "folder"),
    [
        ({"/tmp": 99, "/var/tmp": 99, "/etc": 99, "/var/lib": 99}, ""),
        ({"/tmp": None, "/var/tmp": None}, ""),
        # Python does not take a folder in which it cannot write at all.
        ({"/tmp": 0, "/var/tmp": 99}, ""),
        ({"/tmp": 1, "/var/tmp": 99}, "/tmp"),
        ({"/tmp": 0, "/var/tmp": 0}, "/tmp"),
        ({"/tmp": 0, "/var/tmp": 1}, "/var/tmp"),
        ({"/tmp": 99, "/etc": 0, "/var/lib": 99}, "/etc"),
        ({"/tmp": 99, "/etc": 99, "/var/lib": 15}, "/var/lib"),
    ],
)
def test_the_first_folder_without_space_is_named(free: dict[str, int | None], folder: str) -> None:
    in_bytes = {name: None if size is None else size << 20 for name, size in free.items()}
    assert space.find_full(in_bytes).startswith(f"no space left in {folder}:" if folder else "")
    assert bool(space.find_full(in_bytes)) is bool(folder)


@pytest.mark.parametrize(
    ("changes", "free"),
    [({}, 40960), ({"f_flag": 1}, 0), ({"f_files": 8, "f_ffree": 0}, 0), ({"f_files": 0}, 40960)],
    ids=["space", "read-only", "no inodes", "no limit of inodes"],
)
def test_space_for_root(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], free: int
) -> None:
    disk = {"f_bfree": 10, "f_frsize": 4096, "f_flag": 0, "f_files": 8, "f_ffree": 2, **changes}
    monkeypatch.setattr(os, "statvfs", lambda _folder: SimpleNamespace(**disk))
    assert space.ask_space("/tmp") == free


def test_a_host_without_docker_has_no_addresses_of_services() -> None:
    answer = {"engine": "no such file", "projects": None}
    assert overview.service_urls({}, {}, answer) == {}


NOTHING_IN_THE_WAY = model.Comparison([], [])


@pytest.mark.parametrize(
    ("compared", "urls"),
    [
        (NOTHING_IN_THE_WAY, {"web": "http://a:1/", "api": "http://a:2/"}),
        (
            model.Comparison([model.Difference("files", "web", "missing", "a file")], []),
            {"web": "http://a:1/", "api": "http://a:2/"},
        ),
        (
            model.Comparison([model.Difference("projects", "web", "missing", "running")], []),
            {"api": "http://a:2/"},
        ),
        (
            model.Comparison([], [model.Conflict("projects", "api", "no.")]),
            {"web": "http://a:1/"},
        ),
        (
            model.Comparison([], [model.Conflict("mounts", "/srv", "no.", ("projects web",))]),
            {"api": "http://a:2/"},
        ),
    ],
    ids=["running", "another difference", "not running", "in conflict", "waiting"],
)
def test_only_services_that_run_as_declared_have_addresses(
    compared: model.Comparison, urls: dict[str, str]
) -> None:
    projects = [
        {"name": "web", "urls": {"web": "http://a:1/"}},
        {"name": "api", "urls": {"api": "http://a:2/"}},
    ]
    owned: Any = {"ml_services": {"projects": projects}, "user_access": {}}
    assert overview.service_urls(owned, {"ml_services": compared}, {}) == urls


def test_a_service_that_is_starting_has_no_address() -> None:
    projects = [{"name": name, "urls": {name: f"http://{name}/"}} for name in ("web", "api", "old")]
    answer = {
        "projects": {
            "web": {"containers": [{"health": "starting"}]},
            "api": {"containers": [{"health": "healthy"}]},
            "old": {"containers": [{"health": ""}]},
        }
    }
    compared = {"ml_services": NOTHING_IN_THE_WAY}
    found = overview.service_urls({"ml_services": {"projects": projects}}, compared, answer)
    assert set(found) == {"api", "old"}


# The question on its way to the host.


def ask(reply: dict[str, Any], variables: Any = None, commands: list[str] | None = None) -> Any:
    if reply.get("rc") != 255:
        reply["stdout"] = f"{host_command.BEGIN}\n{reply['stdout']}\n{host_command.END}\n"

    def execute(command: str, in_data: bytes, sudoable: bool) -> dict[str, Any]:
        assert in_data and sudoable
        (commands if commands is not None else []).append(command)
        return {"stderr": "", "rc": 0, **reply}

    action: Any = SimpleNamespace(
        _templar=SimpleNamespace(available_variables=variables),
        _low_level_execute_command=execute,
    )
    return ask_host.ask(action, {})


@pytest.mark.parametrize(
    ("variables", "python"),
    [
        (None, "/usr/bin/python3"),
        ({"ansible_python_interpreter": None}, "/usr/bin/python3"),
        ({"ansible_python_interpreter": "/opt/python"}, "/opt/python"),
    ],
)
def test_the_python_of_the_host_runs_the_script(variables: Any, python: str) -> None:
    commands: list[str] = []
    ask({"stdout": json.dumps({"facts": {"root": True}})}, variables, commands)
    (command,) = commands
    assert f"{{ {python} -I -S -\n}}" in command
    with pytest.raises(AnsibleActionFail, match=f"expected {python}, and root rights"):
        ask({"stdout": "nonsense"}, variables)


def test_an_answer_needs_root() -> None:
    answer = {"facts": {"root": True}}
    assert ask({"stdout": json.dumps(answer)}) == answer
    with pytest.raises(AnsibleActionFail, match="ansible_become"):
        ask({"stdout": json.dumps({"facts": {"root": False}})})


def test_a_host_that_cannot_be_reached_is_unreachable() -> None:
    with pytest.raises(AnsibleConnectionFailure, match="no route"):
        ask({"stdout": "", "stderr": "no route to host", "rc": 255})


def test_a_host_that_cannot_answer_fails() -> None:
    with pytest.raises(AnsibleActionFail, match="no python3 here"):
        ask({"stdout": "no python3 here", "rc": 127})


def test_all_remaining_differences_are_named() -> None:
    drift = {
        "docker_engine": [model.Difference("packages", "docker-ce", "missing", "installed")],
        "user_access": [model.Difference("users", "alice", "missing", "a user")],
        "ml_data": [],
    }
    with pytest.raises(AnsibleActionFail) as caught:
        survey.expect_no_drift(drift)
    package, user = str(caught.value).split("; ")
    assert package.endswith("docker_engine: packages docker-ce: missing, should be installed")
    assert user.startswith("user_access: users alice: missing, should be a user. Run again")
    survey.expect_no_drift(drift, ["docker_engine", "user_access"])


def test_what_is_equal_for_all_hosts_is_read_before_their_processes_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    survey.preload()
    modules = [
        role_plans.load_module(name) for name in ("ml_aliases", "ml_services", "docker_engine")
    ]
    shared = [option for module in modules for option in module.SHARED_OPTIONS]

    def refuse(path: Path, *_words: Any, **_options: Any) -> Any:
        raise AssertionError(f"{path} is read again for each host")

    for name in ("read_text", "glob", "open"):
        monkeypatch.setattr(Path, name, refuse)
    assert ask_host.script({key: [] for key in kinds.MODULE_OF_KEY})
    assert all(map(roles.owner, shared)) and shared
    assert all(read() for read in modules[0].PRELOAD)
