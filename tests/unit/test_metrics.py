# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of a host: format, labels, what stays of earlier checks, and the file."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.gpu.health import Finding
from ansible_collections.slipway.host.plugins.module_utils.host import metrics
from ansible_collections.slipway.host.plugins.module_utils.roles import host_metrics
from ansible_collections.slipway.host.plugins.module_utils.state import facts, paths
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Comparison,
    Difference,
)
from ansible_collections.slipway.host.plugins.modules import metrics as module
from ansible_collections.slipway.host.plugins.plugin_utils import measured

from tests.contract.tree import ROOT
from tests.unit.conftest import RunModule

GPU = {"uuid": "GPU-1", "model": "NVIDIA H100", "driver": "580.95.05", "memory": 2, "healthy": True}
VALUES: dict[str, Any] = {
    "version": "0.2.0",
    "drift": {"user_access": 2, "docker_engine": 0},
    "conflicts": {"user_access": 0, "docker_engine": 1},
    "faulty": False,
    "gpus": [GPU, {**GPU, "healthy": False}],
}
CHECKS = [
    {"id": "engine", "status": "passed"},
    {"id": "image", "status": "passed"},
    {"id": "image", "status": "failed"},
    {"id": "network", "status": "not_run"},
]
# A line of the exposition format.
LINE = re.compile(
    r'[a-z_]+(\{[a-z_]+="([^"\\\n]|\\[\\n"])*"(,[a-z_]+="([^"\\\n]|\\[\\n"])*")*\})? [0-9]+'
)


def samples(text: str) -> list[str]:
    """Return the samples of a text; each must have the form and come after its meaning."""
    found, described = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            described = line.split(" ")[2]
        else:
            assert LINE.fullmatch(line), line
            assert re.match(r"[a-z_]+", line)[0] == described  # type: ignore[index]
            found.append(line)
    assert text.endswith("\n")
    return found


def test_the_samples_of_a_run() -> None:
    assert samples(metrics.render(VALUES, CHECKS, "", 1000)) == [
        'slipway_info{version="0.2.0"} 1',
        "slipway_last_run_timestamp_seconds 1000",
        'slipway_drift{role="docker_engine"} 0',
        'slipway_drift{role="user_access"} 2',
        'slipway_conflicts{role="docker_engine"} 1',
        'slipway_conflicts{role="user_access"} 0',
        'slipway_health{check="engine"} 1',
        'slipway_health{check="gpu-health"} 1',
        'slipway_health{check="image"} 0',
        'slipway_health{check="network"} 1',
        "slipway_checks_timestamp_seconds 1000",
        'slipway_gpu_info{gpu="0",uuid="GPU-1",model="NVIDIA H100",driver_version="580.95.05"} 1',
        'slipway_gpu_info{gpu="1",uuid="GPU-1",model="NVIDIA H100",driver_version="580.95.05"} 1',
        'slipway_gpu_memory_bytes{gpu="0"} 2097152',
        'slipway_gpu_memory_bytes{gpu="1"} 2097152',
        'slipway_gpu_health{gpu="0"} 1',
        'slipway_gpu_health{gpu="1"} 0',
    ]


def test_results_of_checks_stay_without_new_ones() -> None:
    first = metrics.render(VALUES, CHECKS, "", 1000)
    second = samples(metrics.render({**VALUES, "faulty": True}, [], first, 2000))
    assert 'slipway_health{check="image"} 0' in second
    # Measured by each run.
    assert 'slipway_health{check="gpu-health"} 0' in second
    assert "slipway_checks_timestamp_seconds 1000" in second
    assert "slipway_last_run_timestamp_seconds 2000" in second
    third = samples(metrics.render(VALUES, CHECKS[:1], "\n".join(second), 3000))
    assert not [line for line in third if "image" in line]


@pytest.mark.parametrize(
    "earlier",
    [
        "",
        "\x00\xff",
        'slipway_health{check="a"} 2',
        'slipway_health{check="a",b="c"} 1',
        "x" * 9999,
    ],
)
def test_a_damaged_file_gives_no_samples(earlier: str) -> None:
    assert samples(metrics.render({}, [], earlier, 1)) == ["slipway_last_run_timestamp_seconds 1"]


@pytest.mark.parametrize(
    "model",
    ['a"} 1\nevil{x="', "\\", "line\nline", "\udcff", "é\u202e", "x" * 9999, "\r\t\x1b[31m"],
)
def test_texts_of_hosts_stay_within_their_label(model: str) -> None:
    text = metrics.render({"gpus": [{**GPU, "model": model}]}, [], "", 1)
    text.encode()
    assert len(samples(text)) == 4
    assert len(text) < 1200


def test_a_survey_is_measured() -> None:
    compared = {
        "docker_engine": Comparison([Difference("files", "a", "b", "c")], []),
        "ml_data": Comparison([], []),
    }
    gpus = [
        {"address": "0000:01:00.0", "name": "T4", "memory": 5, "health": "fault"},
        {"address": "", "name": "missing", "memory": 0, "health": "missing"},
    ]
    seen = {"gpus": gpus, "driver": {"version": "580"}}
    answer = {"health": {"smi": {"gpus": {"00000000:01:00.0": {"uuid": "GPU-1"}}}}}
    finding = Finding("0000:01:00.0", "a", "b", "c")
    owned = {"host_metrics": {"files": [{"path": "/a"}]}}
    found = measured.measure(owned, compared, [finding], seen, answer)
    assert found["drift"] == {"docker_engine": 1, "ml_data": 0}
    assert found["faulty"]
    assert [(one["uuid"], one["healthy"]) for one in found["gpus"]] == [
        ("GPU-1", False),
        ("", False),
    ]
    # Without a driver, nothing is known of the health.
    assert "faulty" not in measured.measure(owned, compared, [], seen, {})
    for files in ([], [{"path": "/a", "state": "absent"}]):
        assert measured.measure({"host_metrics": {"files": files}}, compared, [], seen, {}) == {}


def test_the_version_is_that_of_the_collection() -> None:
    galaxy = ROOT / "collections/ansible_collections/slipway/host/galaxy.yml"
    assert measured.collection_version() == yaml.safe_load(galaxy.read_text())["version"]


def plan(folder: str, state: str = "present", recorded: tuple[str, ...] = ()) -> dict[str, Any]:
    owned: dict[str, Any] = host_metrics.plan(
        {"metrics_files": [*recorded]},
        {"host_metrics_folder": folder, "host_metrics_state": state},
    )["owned"]
    return owned


def test_the_plan() -> None:
    assert plan("") == {"refused": [], "files": []}
    assert plan("/a/b/")["files"] == [{"path": "/a/b/slipway.prom"}]
    assert plan("/a", "absent")["files"] == [{"path": "/a/slipway.prom", "state": "absent"}]


@pytest.mark.parametrize(
    ("folder", "state", "present", "absent"),
    [
        ("/a", "present", ["/a"], []),
        ("/a/", "present", ["/a"], []),
        ("/b", "present", ["/b"], ["/a"]),
        ("", "present", [], ["/a"]),
        ("", "absent", [], ["/a"]),
        ("/b", "absent", [], ["/a", "/b"]),
    ],
)
def test_a_recorded_file_that_is_no_longer_declared_is_absent(
    folder: str, state: str, present: list[str], absent: list[str]
) -> None:
    assert plan(folder, state, ("/a/slipway.prom",))["files"] == [
        *({"path": f"{one}/slipway.prom"} for one in present),
        *({"path": f"{one}/slipway.prom", "state": "absent"} for one in absent),
    ]


@pytest.mark.parametrize("path", ["/etc/passwd", "/a/../etc/slipway.prom", "slipway.prom", "", "/"])
def test_a_damaged_record_removes_no_other_file(path: str) -> None:
    assert plan("", recorded=(path,))["files"] == []


@pytest.mark.parametrize("content", ["", "{", "{}", '"/a"', "[1]", '["/a", null]', "[[]]"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "record").write_text(content)
    assert facts.read_metrics_record(str(tmp_path / "record")) == []


@pytest.mark.parametrize("folder", ["a", "/", "//", "/a/../etc", "./a", "~/a"])
def test_a_folder_must_be_an_absolute_path(folder: str) -> None:
    assert "expected an absolute path" in plan(folder)["refused"][0]


def test_the_file_is_written_whole_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "slipway.prom"
    module.settle({"path": str(file), "state": "file"}, VALUES, CHECKS)
    first = file.stat()
    assert (first.st_mode & 0o777, first.st_uid) == (0o644, os.geteuid())
    module.settle({"path": str(file), "state": "file"}, VALUES, [])
    assert file.stat().st_ino != first.st_ino
    assert 'slipway_health{check="image"} 0' in file.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["slipway.prom"]
    module.settle({"path": str(file), "state": "absent"}, {}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_link_of_a_user_is_not_followed(tmp_path: Path) -> None:
    theirs, secret = tmp_path / "theirs", tmp_path / "secret"
    theirs.mkdir()
    theirs.chmod(0o777)
    secret.write_text("keep")
    (theirs / "slipway.prom").symlink_to(secret)
    with pytest.raises(paths.UnsafePathError):
        module.settle({"path": str(theirs / "slipway.prom"), "state": "file"}, VALUES, [])
    assert secret.read_text() == "keep"


def run_recorded(run_module: RunModule, folder: Path, **arguments: Any) -> dict[str, Any]:
    """Run the module with its record in a FOLDER."""
    return run_module(module, record=str(folder / "record/metrics.json"), **arguments)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to root")


@needs_root
def test_only_a_file_that_differs_from_its_declaration_is_a_change(
    tmp_path: Path, run_module: RunModule
) -> None:
    file = tmp_path / "folder/slipway.prom"
    declared: dict[str, Any] = {
        "files": [{"path": str(file)}],
        "values": VALUES,
        "checks": CHECKS,
    }
    run = partial(run_recorded, run_module, tmp_path)
    predicted = run(check=True, **declared)
    assert (predicted["changed"], file.parent.exists()) == (True, False)
    assert f"files {file}: missing" in predicted["diff"][0]["prepared"]
    assert run(**declared)["paths"] == [str(file)]
    # New values are no change, and are written.
    again = run(**{**declared, "values": {**VALUES, "faulty": True}})
    assert (again["changed"], again["diff"]) == (False, [])
    assert 'slipway_health{check="gpu-health"} 0' in file.read_text()
    before = file.read_bytes()
    assert not run(check=True, **declared)["changed"]
    assert file.read_bytes() == before
    file.chmod(0o666)
    assert run(**declared)["changed"]
    assert file.stat().st_mode & 0o777 == 0o644
    absent: dict[str, Any] = {"files": [{"path": str(file), "state": "absent"}]}
    assert run(check=True, **absent)["changed"]
    assert file.exists()
    assert run(**absent)["changed"]
    assert not run(**absent)["changed"]


@needs_root
def test_files_are_recorded_until_they_are_removed(tmp_path: Path, run_module: RunModule) -> None:
    run, record = partial(run_recorded, run_module, tmp_path), tmp_path / "record/metrics.json"
    first, second = str(tmp_path / "a/slipway.prom"), str(tmp_path / "b/slipway.prom")
    run(check=True, files=[{"path": first}])
    assert not record.exists()
    run(files=[{"path": first}])
    assert record.stat().st_mode & 0o777 == 0o600
    assert facts.read_metrics_record(str(record)) == [first]
    run(files=[{"path": second}, {"path": first, "state": "absent"}])
    assert facts.read_metrics_record(str(record)) == [second]
    run(files=[{"path": second, "state": "absent"}])
    assert not record.exists()
    assert not Path(first).exists() and not Path(second).exists()


@needs_root
def test_a_file_that_cannot_be_removed_stays_recorded(
    tmp_path: Path, run_module: RunModule
) -> None:
    run, record = partial(run_recorded, run_module, tmp_path), tmp_path / "record/metrics.json"
    file = tmp_path / "a/slipway.prom"
    run(files=[{"path": str(file)}])
    file.parent.rename(tmp_path / "kept")
    file.parent.symlink_to(tmp_path / "kept")
    os.lchown(file.parent, 1500, 1500)
    done = run(files=[{"path": str(file), "state": "absent"}])
    assert done["failed"]
    assert facts.read_metrics_record(str(record)) == [str(file)]


@needs_root
def test_what_is_in_the_way_is_a_conflict(tmp_path: Path, run_module: RunModule) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o777)
    os.chown(theirs, 1500, 1500)
    (theirs / "slipway.prom").symlink_to("/etc/passwd")
    for check in (True, False):
        files = [{"path": f"{theirs}/slipway.prom"}]
        done = run_recorded(run_module, tmp_path, check=check, files=files)
        assert done["failed"]
        assert "found a symbolic link to /etc/passwd" in done["msg"]
    assert (theirs / "slipway.prom").is_symlink()
