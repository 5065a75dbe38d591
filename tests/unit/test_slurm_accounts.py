# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of a Slurm cluster: plan, database, what sacctmgr is asked to do, and their modules."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.roles import slurm, slurmdbd
from ansible_collections.slipway.host.plugins.module_utils.slurm import parts
from ansible_collections.slipway.host.plugins.module_utils.slurm.declaration import SlurmError
from ansible_collections.slipway.host.plugins.module_utils.state import (
    facts,
    slurm_accounts,
    slurm_database,
)
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state_slurm
from ansible_collections.slipway.host.plugins.module_utils.state.model import ConflictError
from ansible_collections.slipway.host.plugins.modules import slurm_accounts as accounts_module
from ansible_collections.slipway.host.plugins.modules import slurm_database as database_module

from tests.unit.conftest import RunModule
from tests.unit.role_options import options as role_options
from tests.unit.test_slurm import content, node
from tests.unit.test_slurm import plan as cluster_plan

VISION = {"name": "vision", "members": ["alice"], "share": 2, "gpus": 4}
LAB = {"name": "lab", "members": ["alice", "bob"], "gpus_per_member": 1, "jobs_per_member": 3}
ROOT = [["root", "", "", "1", "", ""], ["root", "root", "", "1", "", ""]]
AS_DECLARED = [
    *ROOT,
    ["vision", "", "root", "2", "cpu=100,gres/gpu=4", ""],
    ["vision", "alice", "", "1", "", ""],
    ["lab", "", "root", "1", "", "3"],
    ["lab", "alice", "", "1", "gres/gpu=1", "3"],
    ["lab", "bob", "", "1", "gres/gpu=1", "3"],
]
RECORD = {"vision": ["alice"], "lab": ["alice", "bob"]}
DEFAULTS = {"alice": "vision", "bob": "lab", "root": "root"}


def steps(
    accounts: list[Any],
    rows: list[list[str]],
    record: Mapping[str, Any] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the arguments of sacctmgr for a declaration, each as one line."""
    entry = {"cluster": "lab1", "accounts": accounts}
    found = {"rows": rows, "defaults": DEFAULTS if defaults is None else defaults}
    answer = {
        "slurm_accounts": {"lab1": found},
        "texts": {slurm_accounts.RECORD: json.dumps(RECORD if record is None else record)},
    }
    return [" ".join(step.arguments) for step in slurm_accounts.list_steps(entry, answer)]


def change(position: int, **values: str) -> list[list[str]]:
    """Return the declared rows with other values in one of them."""
    names = ("account", "user", "parent", "share", "gpus", "jobs")
    rows = [[*row] for row in AS_DECLARED]
    for name, value in values.items():
        rows[position][names.index(name)] = value
    return rows


def test_accounts_as_declared_need_no_step() -> None:
    assert steps([VISION, LAB], AS_DECLARED) == []


@pytest.mark.parametrize(
    ("accounts", "rows", "record", "expected"),
    [
        (
            [VISION],
            ROOT,
            {},
            [
                "add account vision cluster=lab1 fairshare=2 grptres=gres/gpu=4 maxjobs=-1",
                "add user alice account=vision cluster=lab1 fairshare=1 grptres=gres/gpu=-1 "
                "maxjobs=-1",
                "",
            ],
        ),
        (
            [VISION, LAB],
            change(2, gpus="gres/gpu=8", share="1"),
            RECORD,
            [
                "modify account where name=vision cluster=lab1 set fairshare=2 "
                "grptres=gres/gpu=4 maxjobs=-1"
            ],
        ),
        (
            [VISION, LAB],
            change(6, jobs="100"),
            RECORD,
            [
                "modify user where name=bob account=lab cluster=lab1 set fairshare=1 "
                "grptres=gres/gpu=1 maxjobs=3"
            ],
        ),
        # A member leaves, then a whole account. Members of others keep an account.
        (
            [VISION, {**LAB, "members": ["alice"]}],
            AS_DECLARED,
            RECORD,
            ["delete user where name=bob account=lab cluster=lab1", ""],
        ),
        (
            [VISION],
            AS_DECLARED,
            RECORD,
            [
                "delete user where name=alice account=lab cluster=lab1",
                "delete user where name=bob account=lab cluster=lab1",
                "delete account where name=lab cluster=lab1",
                "",
            ],
        ),
        (
            [VISION],
            AS_DECLARED,
            {"vision": ["alice"], "lab": ["alice"]},
            ["delete user where name=alice account=lab cluster=lab1", ""],
        ),
        ([VISION], [*AS_DECLARED, ["sub", "", "lab", "1", "", ""]], {"lab": []}, [""]),
        # Others made all of lab.
        ([VISION], AS_DECLARED, {"vision": ["alice"]}, []),
    ],
)
def test_sacctmgr_gets_only_what_differs(
    accounts: list[Any], rows: list[list[str]], record: Mapping[str, Any], expected: list[str]
) -> None:
    assert steps(accounts, rows, record) == expected


@pytest.mark.parametrize(
    ("default", "repaired"), [("vision", False), ("lab", True), ("", True), ("theirs", False)]
)
def test_the_first_account_is_the_default_unless_others_chose_theirs(
    default: str, repaired: bool
) -> None:
    set_default = "modify user where name=alice cluster=lab1 set defaultaccount=vision"
    found = steps([VISION, LAB], AS_DECLARED, defaults={**DEFAULTS, "alice": default})
    assert found == ([set_default] if repaired else [])


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"a": 1}'])
def test_a_broken_record_removes_nothing(text: str | None) -> None:
    assert slurm_accounts.read_record(text) == {}


def test_accounts_of_others_are_named_and_stay() -> None:
    entry = {"cluster": "lab1", "accounts": [VISION]}
    rows = [*AS_DECLARED, ["vision", "eve", "", "1", "", ""]]
    record = json.dumps({"vision": ["alice"]})
    answer = {
        "slurm_accounts": {"lab1": {"rows": rows, "defaults": DEFAULTS}},
        "texts": {slurm_accounts.RECORD: record},
    }
    assert [*slurm_accounts.inform_accounts(entry, answer)] == [
        f"Slurm has {what}, which slurm_accounts does not declare"
        for what in (
            "account lab",
            "user alice in account lab",
            "user bob in account lab",
            "user eve in account vision",
        )
    ]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Put a program in front of PATH."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_accounts_are_read_of_one_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "lab1|root||||1||\nlab1|vision|alice|||1|gres/gpu=1|5\nother|x||||1||\nlab1|v|a|p||1||"
    script = (
        f'case "$*" in *associations*) echo {shlex.quote(lines)};; *) echo "alice|vision";; esac'
    )
    install(tmp_path, monkeypatch, "sacctmgr", script)
    assert slurm_accounts.ask_accounts("lab1") == {
        "rows": [["root", "", "", "1", "", ""], ["vision", "alice", "", "1", "gres/gpu=1", "5"]],
        "defaults": {"alice": "vision"},
    }
    for broken in ("exit 1", "echo one"):
        install(tmp_path, monkeypatch, "sacctmgr", broken)
        assert slurm_accounts.ask_accounts("lab1") is None
    (tmp_path / "sacctmgr").unlink()
    assert slurm_accounts.ask_accounts("lab1") is None


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of accounts, in a folder of this test."""
    path = tmp_path / "state/accounts.json"
    monkeypatch.setattr(slurm_accounts, "RECORD", str(path))
    return path


# A database of accounts in files: it knows how to add an account.
SACCTMGR = """
cd $(dirname $0)
case "$*" in
    *list*associations*) cat rows;;
    *list*users*) echo 'root|root';;
    *"add account vision"*) echo "$*" >>calls; echo 'lab1|vision|||root|2|gres/gpu=4|' >>rows;;
    *) echo "Job(s) active, cancel job(s) before remove" >&2; exit 1;;
esac
"""


def test_accounts_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: RunModule, record: Path
) -> None:
    install(tmp_path, monkeypatch, "sacctmgr", SACCTMGR)
    (tmp_path / "rows").write_text("lab1|root||||1||\n")
    entries = [{"cluster": "lab1", "accounts": [{**VISION, "members": []}]}]
    checked = run_module(accounts_module, entries=entries, _ansible_check_mode=True)
    assert (checked["changed"], record.exists()) == (True, False)
    first = run_module(accounts_module, entries=entries)
    assert first["changed"]
    assert "account vision: missing" in first["diff"]["prepared"]
    assert json.loads(record.read_text()) == {"vision": []}
    assert not run_module(accounts_module, entries=entries)["changed"]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_refusal_of_sacctmgr_is_told_and_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_module: RunModule, record: Path
) -> None:
    install(tmp_path, monkeypatch, "sacctmgr", SACCTMGR)
    (tmp_path / "rows").write_text("lab1|old|||root|1||\n")
    record.parent.mkdir()
    record.write_text('{"old": []}')
    found = run_module(accounts_module, entries=[{"cluster": "lab1", "accounts": []}])
    assert "found account old; expected none" in found["msg"]
    assert "Job(s) active" in found["msg"]
    assert json.loads(record.read_text()) == {"old": []}
    install(tmp_path, monkeypatch, "sacctmgr", "exit 1")
    silent = run_module(accounts_module, entries=[{"cluster": "lab1", "accounts": []}])
    assert "found no answer of slurmdbd" in silent["msg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accounts": [VISION], "accounting": False}, "found accounts without slurm_accounting"),
        ({"accounts": [VISION, VISION]}, "found vision, vision; expected each name once"),
        ({"accounts": [{**VISION, "name": "Vision"}]}, "account 'Vision': invalid name"),
        ({"accounts": [{**VISION, "name": "root"}]}, "other than root"),
        ({"accounts": [{**VISION, "members": ["a b"]}]}, "member 'a b' is not a valid user name"),
        ({"accounts": [{**VISION, "members": ["a,b"]}]}, "member 'a,b' is not a valid user name"),
        ({"accounts": [{**VISION, "members": ["-x"]}]}, "member '-x' is not a valid user name"),
        ({"accounts": [{**VISION, "share": 0}]}, "share is 0; expected a number from 1"),
        ({"accounts": [{**VISION, "gpus": -1}]}, "gpus is -1; expected a number from 0"),
        ({"fair_share": {"half_life": "604800"}}, "half_life is '604800'"),
        ({"fair_share": {"half_life": "UNLIMITED"}}, "half_life is 'UNLIMITED'"),
        ({"fair_share": {"weight": -1}}, "slurm_fair_share: weight is -1"),
    ],
)
def test_accounts_that_slurm_cannot_have_are_refused(
    changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(SlurmError) as caught:
        cluster_plan(**{"accounting": True, **changes})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "lines", "missing"),
    [
        ({}, [], ["AccountingStorage", "Priority"]),
        (
            {"accounting": True},
            ["AccountingStorageHost=192.0.2.4", "PriorityDecayHalfLife=7-00:00:00"],
            ["Enforce="],
        ),
        (
            {
                "accounting": True,
                "accounts": [VISION],
                "fair_share": {"weight": 5, "half_life": "1-0"},
            },
            [
                "AccountingStorageEnforce=associations,limits",
                "PriorityWeightFairshare=5",
                "PriorityWeightAge=1000",
                "PriorityDecayHalfLife=1-0",
            ],
            [],
        ),
    ],
)
def test_slurm_conf_names_the_database(
    changes: Mapping[str, Any], lines: list[str], missing: list[str]
) -> None:
    found = cluster_plan(**changes)
    written = content(found, parts.FILES["slurm"])
    assert set(lines) <= set(written.splitlines())
    assert not [word for word in missing if word in written]
    drop_in = content(found, "/etc/systemd/system/slurmctld.service.d/slipway.conf")
    assert ("clustername" in drop_in) == bool(changes)
    accounts = [
        {"cluster": "slipway", "accounts": changes.get("accounts", [])} for _ in changes and "1"
    ]
    assert found["owned"]["slurm_accounts"] == accounts


def database_plan(name: str = "head", state: str = "", **changes: Any) -> dict[str, Any]:
    """Return the plan of the role slurmdbd."""
    options = {
        **role_options("slurmdbd"),
        "slurm_accounting": True,
        "slurm_controller": "head",
        **changes,
    }
    host = {"inventory_name": name, "slurmdbd": state, "systemd": True}
    return slurmdbd.plan(host, options)


def test_only_the_controller_has_the_database() -> None:
    owned = database_plan()["owned"]
    config = next(entry for entry in owned["files"] if entry["path"] == slurmdbd.CONFIG)
    assert (config["owner"], config["mode"]) == ("slurm", "0600")
    assert "Pass" not in config["content"]
    for changes in (
        {"name": "gpu02"},
        {"slurm_accounting": None},
        {"slurm_state": "absent"},
        {"slurmdbd_state": "absent", "slurm_accounting": False},
    ):
        assert database_plan(**changes) == {"owned": {"refused": []}, "remove": False}


def test_a_slurmdbd_of_others_is_a_conflict_and_a_used_one_stays() -> None:
    assert [*database_plan(state="foreign")["owned"]] == ["refused", "obstacles"]
    host: dict[str, Any] = {"inventory_name": "head", "slurmdbd": "foreign"}
    host["fact_of_hosts"] = {"head": node("head")}
    declared = {"controller": "head", "nodes": ["head"], "accounting": True}
    assert slurm.plan(host, role_options("slurm", **declared))["owned"] == {"refused": []}
    with pytest.raises(slurmdbd.SlurmdbdError, match="Set slurm_accounting: false"):
        database_plan(state="managed", slurmdbd_state="absent")
    removal = database_plan(state="managed", slurmdbd_state="absent", slurm_state="absent")
    assert removal["remove"]
    assert {entry["name"] for entry in removal["owned"]["packages"]} == {"slurmdbd"}
    # slurmdbd needs munge, which the role slurm removes.
    host = {"inventory_name": "head", "slurm": True, "slurmdbd": "managed"}
    leaving = slurm.plan(host, role_options("slurm", state="absent"))["owned"]["packages"]
    assert {"name": "slurmdbd", "state": "absent"} in leaving


def test_who_configures_slurmdbd(tmp_path: Path) -> None:
    record, config = tmp_path / "record", tmp_path / "slurmdbd.conf"
    assert facts.read_slurmdbd(str(record), str(config)) == ""
    config.touch()
    assert facts.read_slurmdbd(str(record), str(config)) == "foreign"
    record.mkdir()
    assert facts.read_slurmdbd(str(record), str(config)) == "managed"


def test_a_user_of_others_is_a_conflict() -> None:
    counts = {"database": 0, "user": 1, "socket": 1, "rights": 0}
    with pytest.raises(ConflictError, match="found a user that Slipway did not make"):
        [
            *slurm_database.compare_databases(
                {"name": "slipwayslurm"}, {"slurm_databases": {"slipwayslurm": counts}}
            )
        ]


# Answers counts from a file, and keeps other statements.
MARIADB = """
cd $(dirname $0)
for statements; do :; done
case "$statements" in
    *CONCAT_WS*) cat counts;;
    *) echo "$statements" >>calls; echo 1 1 1 1 0 0 >counts;;
esac
"""


@pytest.fixture
def mariadb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the client of MariaDB; returns its folder."""
    monkeypatch.setattr(database_module, "INSTALLED", str(tmp_path / "state/installed"))
    install(tmp_path, monkeypatch, "mariadb", MARIADB)
    (tmp_path / "counts").write_text("0 0 0 0 0 0")
    return tmp_path


def test_the_database_is_made_once(mariadb: Path, run_module: RunModule) -> None:
    entries = [{"name": "slipwayslurm"}]
    assert run_module(database_module, entries=entries, _ansible_check_mode=True)["changed"]
    assert not (mariadb / "calls").exists()
    assert run_module(database_module, entries=entries, installed=True)["changed"]
    assert not run_module(database_module, entries=entries)["changed"]
    (statements,) = (mariadb / "calls").read_text().splitlines()
    assert "IDENTIFIED VIA unix_socket" in statements
    assert (mariadb / "state/installed").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("counts", "installed", "drops", "removes_server"),
    [
        ("1 1 1 1 0 0", True, True, True),
        ("1 1 1 1 0 0", False, True, False),
        ("1 1 1 1 1 0", True, True, False),
        ("1 1 1 1 0 1", True, True, False),
        # Nothing of Slipway: the user is somebody else's.
        ("0 1 1 0 0 0", True, False, False),
        ("0 0 0 0 0 0", True, False, True),
    ],
)
def test_what_others_use_is_not_removed(
    mariadb: Path,
    run_module: RunModule,
    counts: str,
    installed: bool,
    drops: bool,
    removes_server: bool,
) -> None:
    (mariadb / "counts").write_text(counts)
    if installed:
        (mariadb / "state").mkdir()
        (mariadb / "state/installed").touch()
    found = run_module(database_module, entries=[{"name": "slipwayslurm"}], state="absent")
    assert (found["changed"], found["removes_server"]) == (drops, removes_server)
    assert (mariadb / "calls").exists() == drops


def test_a_database_of_a_running_cluster_stays(
    mariadb: Path, monkeypatch: pytest.MonkeyPatch, run_module: RunModule
) -> None:
    (mariadb / "slurm.conf").write_text(f"A=b\n{database_module.USES_DATABASE}\n")
    configuration = str(mariadb / "slurm.conf")
    monkeypatch.setattr(state_slurm, "CONFIGURATIONS", (configuration,))
    found = run_module(database_module, entries=[{"name": "slipwayslurm"}], state="absent")
    assert "whose jobs are recorded in the database" in found["msg"]
    assert not (mariadb / "calls").exists()
