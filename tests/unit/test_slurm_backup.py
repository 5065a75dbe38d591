# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backup controller of Slurm and the shared folder of both controllers."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.slurm import config, parts
from ansible_collections.slipway.host.plugins.module_utils.slurm.declaration import SlurmError
from ansible_collections.slipway.host.plugins.module_utils.state import reading
from ansible_collections.slipway.host.plugins.module_utils.state import slurm as state

from tests.unit.role_options import options as role_options
from tests.unit.test_slurm import content, node
from tests.unit.test_slurm import plan as cluster_plan

FOLDER, SEEN = "/srv/slurm", [7, 1234]
BACKUP = {"backup_controller": "spare", "state_folder": FOLDER}


def plan(name: str, known: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the plan of host NAME: head and spare are controllers, gpu02 runs jobs."""
    hosts = {host: node(host, folder=SEEN) for host in ("head", "spare", "gpu02")}
    declared = {"nodes": ["gpu02"], **BACKUP, **changes}
    return cluster_plan(name, known={**hosts, **(known or {})}, **declared)


def names(found: Mapping[str, Any], kind: str, key: str = "name") -> dict[str, str]:
    """Return the names of owned entries with their states."""
    return {entry[key]: entry.get("state", "present") for entry in found["owned"][kind]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backup_controller": "head"}, "backup_controller: found head, the controller itself"),
        ({"state_folder": ""}, "a backup without slurm_state_folder; expected both"),
        *(
            ({"state_folder": path}, "slurm_state_folder: found .*absolute path of letters")
            for path in ("/", "srv", "/a/../b", "/a/", "//a", "/a b", "/a'b", "/$a", "/a\n", "/a%n")
        ),
    ],
)
def test_options_that_cannot_be_applied_are_refused(
    changes: Mapping[str, Any], message: str
) -> None:
    for name in ("head", "gpu02"):
        with pytest.raises(SlurmError, match=message):
            plan(name, **changes)
    with pytest.raises(SlurmError, match=message):
        plan("head", managed=True, state="absent", **changes)


def test_both_controllers_have_the_same_configuration() -> None:
    written = content(plan("head"), parts.FILES["slurm"])
    assert written.index("SlurmctldHost=head(192.0.2.4)\nSlurmctldHost=spare(192.0.2.5)\n") > 0
    assert f"StateSaveLocation={FOLDER}/slipway\n" in written
    for path in parts.FILES.values():
        assert content(plan("head"), path) == content(plan("spare"), path)
    for host in ("gpu02", "spare"):
        drop_in = content(plan(host, nodes=["spare", "gpu02"]), config.DROP_INS["slurmd"])
        assert "--conf-server 192.0.2.4:6817,192.0.2.5:6817" in drop_in


def test_a_backup_has_the_part_of_a_node_that_fetches_the_key() -> None:
    found = plan("spare", known={"spare": node("spare", folder=SEEN, munge_key="")})
    assert list(found["parts"]) == ["node"]
    assert found["parts"]["node"]["fetches_key"]
    assert list(names(found, "packages")) == ["munge", "slurmctld", "slurm-client"]
    daemon = found["owned"]["units"][-1]
    assert (daemon["name"], daemon["reads"]) == ("slurmctld.service", [*parts.FILES.values()])
    # It must not make the folder, and has no records of nodes.
    assert "ExecStartPre" not in content(found, config.DROP_INS["slurmctld"])
    assert state.NODES not in names(found, "files", "path")
    both = plan("spare", nodes=["spare"])
    assert [*names(both, "units")] == ["munge.service", "slurmctld.service", "slurmd.service"]
    assert set(names(both, "packages").values()) == {"present"}


def test_a_host_that_is_no_controller_has_no_slurmctld() -> None:
    found = plan("gpu02")
    assert names(found, "packages")["slurmctld"] == "absent"
    absent = {path for path, value in names(found, "files", "path").items() if value == "absent"}
    assert absent == {config.DROP_INS["slurmctld"], *parts.FILES.values()}


@pytest.mark.parametrize(
    ("changes", "spare", "message"),
    [
        ({}, {}, ""),
        # Out of reach: its record has no folder.
        ({}, {"folder": "unset"}, ""),
        ({}, {"folder": None}, f"no folder {FOLDER} on a shared file system on host spare"),
        ({}, {"folder": []}, f"{FOLDER} on host spare, where others than root can change names"),
        ({}, {"folder": [7, 1235]}, f"different folders {FOLDER} on hosts head, spare"),
        ({"backup_controller": ""}, {"folder": [7, 1235]}, ""),
    ],
)
def test_controllers_must_have_the_same_folder(
    changes: Mapping[str, Any], spare: Mapping[str, Any], message: str
) -> None:
    fact = node("spare", **{"folder": SEEN, **spare})
    if fact["folder"] == "unset":
        del fact["folder"]
    for name in ("head", "gpu02"):
        if message:
            with pytest.raises(SlurmError, match=message):
                plan(name, {"spare": fact}, **changes)
        else:
            assert plan(name, {"spare": fact}, **changes)["parts"]


@pytest.mark.parametrize(
    ("current", "folder", "moves"),
    [
        (state.LOCAL_STATE, FOLDER, True),
        (f"{FOLDER}/slipway", FOLDER, True),
        (f"{FOLDER}/slipway", "/mnt/other", False),
        (f"{FOLDER}/slipway", "", False),
        (5, "", False),
    ],
)
def test_jobs_move_to_a_shared_folder_and_not_from_it(
    current: Any, folder: str, moves: bool
) -> None:
    head = {"head": node("head", folder=SEEN, jobs_folder=current)}
    changes = {"backup_controller": "", "state_folder": folder}
    if moves:
        assert "controller" in plan("head", head, **changes)["parts"]
    else:
        with pytest.raises(SlurmError, match=r"expected the parent folder of .*Change it back"):
            plan("head", head, **changes)


def test_a_backup_out_of_reach_is_recorded_but_is_no_node() -> None:
    recorded = json.loads(content(plan("head"), state.NODES))
    assert {host: one["runs_jobs"] for host, one in recorded.items()} == {
        "spare": False,
        "gpu02": True,
    }
    head = {"head": node("head", folder=SEEN, nodes=recorded)}
    assert plan("head", head)["leaves"] == []
    again = plan("head", {**head, "spare": None})
    assert content(again, parts.FILES["slurm"]) == content(plan("head"), parts.FILES["slurm"])
    # Its jobs end if a node becomes a backup that runs no jobs.
    recorded["spare"]["runs_jobs"] = True
    assert plan("head", head)["leaves"] == ["spare"]


@pytest.mark.parametrize(
    ("name", "changes", "ends_cluster", "shared"),
    [
        ("head", {"state": "absent"}, True, True),
        ("spare", {"state": "absent"}, True, False),
        ("spare", {"backup_controller": ""}, False, False),
        ("head", {"state": "absent", "backup_controller": "", "state_folder": ""}, True, False),
    ],
)
def test_only_the_end_of_a_cluster_ends_its_jobs(
    name: str, changes: Mapping[str, Any], ends_cluster: bool, shared: bool
) -> None:
    found = plan(name, managed=True, **changes)
    assert (found["remove"], found["ends_cluster"]) == (True, ends_cluster)
    absent = names(found, "files", "path")
    assert (f"{FOLDER}/slipway" in absent) == shared
    assert FOLDER not in absent


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A folder that is not on the file system of /."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_shared_folder_is_known_by_its_number_and_change_time(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everybody can write to /dev/shm.
    assert state.ask_folder(str(mounted)) == []
    monkeypatch.setattr(reading, "is_trusted_folder", lambda _folder: True)
    seen = state.ask_folder(str(mounted))
    assert seen == [mounted.stat().st_ino, mounted.stat().st_ctime_ns]
    assert state.ask_folder(f"{mounted}/none") is None
    assert state.ask_folder("/") is None
    (mounted / "entry").mkdir()
    assert state.ask_folder(str(mounted)) != seen


def start(shared: Path, local: Path) -> int:
    """Run the command before the start of slurmctld as systemd does; return its status."""
    options = role_options("slurm", controller="head", state_folder=str(shared))
    lines = config.controller_drop_in(options, is_primary=True).splitlines()
    (line,) = (line for line in lines if line.startswith("ExecStartPre="))
    command = line.removeprefix("ExecStartPre=+").replace("$$", "$").replace("%%", "%")
    words = shlex.split(command.replace(state.LOCAL_STATE, str(local)))
    return subprocess.run(words, check=False).returncode


def test_the_first_start_moves_the_jobs_and_the_next_keeps_them(
    mounted: Path, tmp_path: Path
) -> None:
    (tmp_path / "job_state").write_text("old")
    # What an interrupted start left.
    (mounted / "slipway.part").mkdir()
    (mounted / "slipway.part/half").touch()
    assert start(mounted, tmp_path) == 0
    assert [*mounted.rglob("*")] == [mounted / "slipway", mounted / "slipway/job_state"]
    (mounted / "slipway/job_state").write_text("new")
    assert start(mounted, tmp_path) == 0
    assert (mounted / "slipway/job_state").read_text() == "new"


def test_slurmctld_does_not_start_where_nothing_is_mounted(tmp_path: Path) -> None:
    local = Path("/")
    if tmp_path.stat().st_dev != local.stat().st_dev:
        pytest.skip("the folder of tests is not on the file system of /")
    assert start(tmp_path, tmp_path) != 0
    assert list(tmp_path.iterdir()) == []
    assert start(tmp_path / "none", tmp_path) != 0
