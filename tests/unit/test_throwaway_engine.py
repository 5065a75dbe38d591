# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes, and the container engine of the controller."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils import _throwaway_engine as engine
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    CommandError,
    Commands,
    Completed,
    Engine,
    ThrowawayError,
)


class Scripted(Commands):
    """A machine with some commands installed, and answers to what is run."""

    def __init__(self, installed: set[str], answer: Callable[[tuple[str, ...]], int]) -> None:
        super().__init__()
        self.installed = installed
        self.answer = answer
        self.ran: list[tuple[str, ...]] = []
        self.env: Mapping[str, str] = {}

    def has(self, command: str) -> bool:
        return command in self.installed

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 600.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        self.ran.append(argv)
        self.env = env or {}
        completed = Completed(self.answer(argv), "", "no")
        if check and completed.rc != 0:
            raise CommandError(argv, completed)
        return completed


def test_command_gives_status_and_output() -> None:
    done = Commands().run("sh", "-c", "cat; echo word >&2; exit 3", stdin=b"in", check=False)
    assert done == Completed(3, "in", "word\n")


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        pytest.param(("sh", "-c", "echo why >&2; exit 3"), 3, "why", id="fails"),
        pytest.param(("sh", "-c", "echo out; exit 3"), 3, "out", id="says-it-on-stdout"),
        pytest.param(("false",), 1, "it wrote nothing", id="says-nothing"),
        pytest.param(("sleep", "5"), 124, "no end after 0.2 s", id="hangs"),
        pytest.param(("no-such-command",), 127, "is not installed", id="missing"),
    ],
)
def test_failing_command_is_an_error_that_tells(
    argv: tuple[str, ...], status: int, said: str
) -> None:
    with pytest.raises(CommandError, match=said) as caught:
        Commands().run(*argv, timeout=0.2)
    assert caught.value.completed.rc == status
    assert Commands().run(*argv, timeout=0.2, check=False).rc == status


def test_error_shortens_a_long_command() -> None:
    with pytest.raises(CommandError) as caught:
        Commands().run("false", *["--option"] * 100)
    assert len(str(caught.value)) < 200


def test_output_that_is_not_text_is_no_trouble() -> None:
    assert Commands().run("printf", r"\377").out == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("echo pulling; sleep 0.5; echo done", Completed(0, "pulling\ndone\n", "")),
        pytest.param("echo refused >&2; exit 1", Completed(1, "", "refused\n")),
        pytest.param("exec sleep 9", Completed(124, "", "no answer within 0.3 s")),
        pytest.param("echo pulling; exec sleep 9", Completed(124, "", "no end after 1 s")),
    ],
    ids=["speaks-and-ends", "fails-at-once", "never-speaks", "never-ends"],
)
def test_patience_depends_on_a_first_word(script: str, expected: Completed) -> None:
    started = time.monotonic()
    assert Commands().run_if_it_speaks("sh", "-c", script, within=0.3, timeout=1) == expected
    assert time.monotonic() - started < 5


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[int]:
    pid = Commands().start_daemon("sh", "-c", "echo up; exec sleep 60", log=tmp_path / "log")
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


def test_daemon_has_its_own_session_and_log(daemon: int, tmp_path: Path) -> None:
    assert os.getsid(daemon) == daemon
    assert engine.wait_until(lambda: (tmp_path / "log").read_text() == "up\n", 5)
    assert engine.wait_until(lambda: engine.process_name(daemon) == "sleep", 5)


def test_process_is_known_by_id_and_start_time(daemon: int) -> None:
    start = engine.process_start(daemon)
    assert start is not None
    assert engine.Mark(daemon, start).is_alive()
    assert not engine.Mark(daemon, "1").is_alive()
    assert not engine.Mark(daemon, "").is_alive()


def test_ended_process_is_not_alive_though_nobody_took_its_status() -> None:
    with subprocess.Popen(["true"]) as process:
        assert engine.wait_until(lambda: engine.process_start(process.pid) is None, 5)
        assert engine.process_name(process.pid) is None


@pytest.mark.parametrize(
    ("missing", "works", "expected"),
    [
        pytest.param([], True, [], id="all-there"),
        pytest.param(["dockerd"], True, ["install docker.io"], id="lists-are-there"),
        pytest.param(
            ["dockerd"],
            False,
            ["install docker.io", "update", "install docker.io"],
            id="no-or-old-lists",
        ),
        pytest.param(
            ["iptables", "ssh"],
            True,
            ["install iptables", "install openssh-client"],
            id="package-of-a-command",
        ),
    ],
)
def test_only_missing_packages_are_installed(
    monkeypatch: pytest.MonkeyPatch, missing: list[str], works: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    wanted = ["dockerd", "docker", "iptables", "ssh"]
    lists = works

    def answer(argv: tuple[str, ...]) -> int:
        nonlocal lists
        if "update" in argv:
            lists = True
        return 0 if lists else 100

    machine = Scripted({*wanted, "apt-get"} - {*missing}, answer)
    engine.install_commands(machine, *wanted)
    options = ("-o", "DPkg::Lock::Timeout=120", "--yes", "--no-install-recommends")
    ran = [" ".join(word for word in argv[1:] if word not in options) for argv in machine.ran]
    assert ran == expected


@pytest.mark.parametrize("has_systemd", [True, False])
def test_package_may_start_the_engine_only_by_systemd(
    monkeypatch: pytest.MonkeyPatch, has_systemd: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "systemd_runs", lambda: has_systemd)
    machine = Scripted({"apt-get"}, lambda argv: 0)
    engine.install_package(machine, "docker.io")
    assert machine.env.get("RUNLEVEL") == (None if has_systemd else "1")


@pytest.mark.parametrize(
    ("user", "installed"),
    [pytest.param(1000, {"apt-get"}, id="not-root"), pytest.param(0, set(), id="no-apt")],
)
def test_where_nothing_can_be_installed_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, user: int, installed: set[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(ThrowawayError, match="need the package openssh-client"):
        engine.install_commands(Scripted(installed, lambda argv: 0), "ssh")


@pytest.mark.parametrize(
    ("files", "names", "expected"),
    [
        pytest.param({}, {}, [], id="clean"),
        pytest.param({"docker.pid": "7"}, {7: "dockerd"}, [], id="engine-runs"),
        pytest.param({"docker.pid": "7"}, {}, ["docker.pid"], id="engine-is-gone"),
        pytest.param({"docker.pid": "7"}, {7: "bash"}, ["docker.pid"], id="its-id-was-reused"),
        pytest.param({"docker.pid": ""}, {}, ["docker.pid"], id="empty"),
        pytest.param(
            {"docker.pid": "7", "docker/containerd/containerd.pid": "8"},
            {7: "dockerd", 8: "dockerd"},
            ["docker/containerd/containerd.pid"],
            id="containerd-is-gone",
        ),
    ],
)
def test_leftovers_of_a_dead_engine_are_found(
    tmp_path: Path, files: dict[str, str], names: dict[int, str], expected: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert engine.leftovers(tmp_path, names.get) == [tmp_path / name for name in expected]


@pytest.mark.parametrize("listens", [True, False])
def test_socket_that_nobody_listens_on_is_a_leftover(tmp_path: Path, listens: bool) -> None:
    path = tmp_path / "containerd/containerd.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        if listens:
            server.listen()
        assert engine.leftovers(tmp_path) == ([] if listens else [path])


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    with (
        engine.locked(path),
        pytest.raises(ThrowawayError, match="another run has held"),
        engine.locked(path, seconds=0.1),
    ):
        pass
    with engine.locked(path, seconds=0.1):
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import fcntl, os, sys; handle = open(sys.argv[1], 'w');"
        "fcntl.flock(handle, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "lock"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    with engine.locked(path, seconds=0.1):
        assert path.exists()


def test_running_engine_is_used_as_it_is(tmp_path: Path) -> None:
    class Running(Scripted):
        def run(self, *argv: str, **options: object) -> Completed:
            assert argv[:2] == ("docker", "version")
            return Completed(0, "26.1.5\n", "")

    assert Engine(Running({"docker"}, lambda argv: 0), tmp_path).ensure() is False


@pytest.mark.parametrize(
    ("user", "docker_host", "said"),
    [
        pytest.param(1000, "", "only root can start one", id="not-root"),
        pytest.param(0, "tcp://10.0.0.1:2375", "DOCKER_HOST is tcp://10.0.0.1:2375", id="remote"),
    ],
)
def test_engine_that_cannot_be_started_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, docker_host: str, said: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    machine = Scripted({"docker", "apt-get"}, lambda argv: 1)
    with pytest.raises(ThrowawayError, match=said):
        Engine(machine, tmp_path).ensure()
    assert all(argv[:2] == ("docker", "version") for argv in machine.ran)


def test_engine_that_ends_at_once_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "systemd_runs", lambda: False)
    monkeypatch.setattr(engine, "leftovers", list)
    monkeypatch.setattr(engine, "PID_FILE", tmp_path / "docker.pid")

    class Broken(Scripted):
        def start_daemon(self, *argv: str, log: Path) -> int:
            assert argv == ("dockerd",)
            pid = super().start_daemon("sh", "-c", "echo no overlay here", log=log)
            assert engine.wait_until(lambda: engine.process_start(pid) is None, 5)
            return pid

    machine = Broken({"dockerd", "docker", "iptables"}, lambda argv: 1)
    with pytest.raises(ThrowawayError, match="no overlay here"):
        Engine(machine, tmp_path / "run").ensure()


@pytest.mark.parametrize(
    ("ours", "containers", "stops"),
    [
        pytest.param(True, "", True, id="ours-and-idle"),
        pytest.param(True, "c0ffee", False, id="in-use"),
        pytest.param(False, "", False, id="somebody-else's"),
    ],
)
def test_engine_is_stopped_only_if_ours_and_idle(
    tmp_path: Path, daemon: int, ours: bool, containers: str, stops: bool
) -> None:
    class Running(Scripted):
        def run(self, *argv: str, **options: object) -> Completed:
            return Completed(0, containers, "")

    machine = Engine(Running(set(), lambda argv: 0), tmp_path)
    if ours:
        mark = engine.Mark(daemon, engine.process_start(daemon) or "")
        machine.write_mark(mark)
    assert machine.stop_if_idle(dry_run=True) is stops
    assert engine.process_start(daemon) is not None
    assert machine.stop_if_idle() is stops
    assert (engine.process_start(daemon) is None) is stops
    assert machine.stop_if_idle() is False or not stops
