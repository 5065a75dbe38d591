# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container engine of this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from lab import engine
from lab.commands import Completed
from lab.engine import Engine, EngineProcess
from lab.errors import LabError
from lab.processes import process_start, wait_until
from tests.unit.scripted_commands import ScriptedCommands


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        pytest.param({}, {}, [], id="clean"),
        pytest.param({"docker.pid": "7"}, {7: "dockerd"}, [], id="engine-runs"),
        pytest.param({"docker.pid": "7"}, {}, ["docker.pid"], id="engine-is-gone"),
        pytest.param({"docker.pid": "7"}, {7: "bash"}, ["docker.pid"], id="reused-pid"),
        pytest.param({"docker.pid": ""}, {}, ["docker.pid"], id="empty"),
        pytest.param(
            {"docker.pid": "7", "docker/containerd/containerd.pid": "8"},
            {7: "dockerd", 8: "dockerd"},
            ["docker/containerd/containerd.pid"],
            id="containerd-is-gone",
        ),
    ],
)
def test_stale_files_of_a_dead_engine(
    tmp_path: Path, files: dict[str, str], names: dict[int, str], expected: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert engine.stale_files(tmp_path, names.get) == [tmp_path / name for name in expected]


@pytest.mark.parametrize("listens", [True, False])
def test_socket_without_a_listener_is_stale(tmp_path: Path, listens: bool) -> None:
    path = tmp_path / "containerd/containerd.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        if listens:
            server.listen()
        assert engine.stale_files(tmp_path) == ([] if listens else [path])


def test_running_engine_is_used_unchanged(tmp_path: Path) -> None:
    class Running(ScriptedCommands):
        def run(self, *argv: str, **options: object) -> Completed:
            assert argv[:2] == ("docker", "version")
            return Completed(0, "26.1.5\n", "")

    assert Engine(Running({"docker"}, lambda argv: 0), tmp_path).ensure() is False


@pytest.mark.parametrize(
    ("user", "docker_host", "said"),
    [
        pytest.param(1000, "", "only root can start one", id="not-root"),
        pytest.param(
            0, "tcp://10.0.0.1:2375", "no Docker Engine answers at tcp://10.0.0.1:2375", id="remote"
        ),
    ],
)
def test_missing_engine_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, docker_host: str, said: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    machine = ScriptedCommands({"docker", "apt-get"}, lambda argv: 1)
    with pytest.raises(LabError, match=said):
        Engine(machine, tmp_path).ensure()
    assert all(argv[:2] == ("docker", "version") for argv in machine.ran)


def test_error_of_a_failing_engine_contains_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "systemd_runs", lambda: False)
    monkeypatch.setattr(engine, "stale_files", list)
    monkeypatch.setattr(engine, "PID_FILE", tmp_path / "docker.pid")

    class Broken(ScriptedCommands):
        def start_daemon(self, *argv: str, log: Path) -> int:
            assert argv == ("dockerd",)
            pid = super().start_daemon("sh", "-c", "echo no overlay here", log=log)
            assert wait_until(lambda: process_start(pid) is None, 5)
            return pid

    machine = Broken({"dockerd", "docker", "iptables"}, lambda argv: 1)
    with pytest.raises(LabError, match="no overlay here"):
        Engine(machine, tmp_path / "run").ensure()


@pytest.mark.parametrize(
    ("ours", "containers", "stops"),
    [
        pytest.param(True, "", True, id="idle"),
        pytest.param(True, "c0ffee", False, id="in-use"),
        pytest.param(False, "", False, id="foreign"),
    ],
)
def test_only_an_idle_engine_of_the_lab_is_stopped(
    tmp_path: Path, daemon: int, ours: bool, containers: str, stops: bool
) -> None:
    class Running(ScriptedCommands):
        def run(self, *argv: str, **options: object) -> Completed:
            # Another engine, which DOCKER_HOST may name, has no containers.
            is_own = argv[:3] == ("docker", "--host", "unix:///var/run/docker.sock")
            return Completed(0, containers if is_own else "", "")

    machine = Engine(Running(set(), lambda argv: 0), tmp_path)
    if ours:
        process = EngineProcess(daemon, process_start(daemon) or "")
        machine.write_process(process)
    assert machine.stop_if_idle(dry_run=True) is stops
    assert process_start(daemon) is not None
    assert machine.stop_if_idle() is stops
    assert (process_start(daemon) is None) is stops
    assert machine.stop_if_idle() is False or not stops
