# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of the lab: options, JSON results and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import __main__ as command_line
from lab import emulation, gpu_host, hosts, pci_tree, state_folder
from lab.bases import EMULATION_FOLDER
from lab.engine import Engine
from lab.errors import LabError
from tests.unit.fake_docker import FakeDocker

Run = Callable[..., dict[str, Any]]
ENSURE = ("host", "ensure", "--group", "demo", "--name", "web")
REMOVE = ("host", "remove", "--group", "demo")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDocker:
    machine = FakeDocker()
    monkeypatch.setattr(hosts, "Engine", lambda: Engine(machine, tmp_path / "run"))
    monkeypatch.setattr(hosts, "_answers_ssh", lambda address: True)
    monkeypatch.setattr(hosts, "cgroup_options", lambda: ((), ("/sbin/init",)))
    monkeypatch.setattr(hosts, "controller_certificates", lambda *_: {})
    monkeypatch.setattr(state_folder, "PROJECT", tmp_path)
    monkeypatch.setattr(gpu_host, "Commands", lambda: machine)
    return machine


@pytest.fixture
def run(machine: FakeDocker, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed; return its result."""

    def run(*argv: str) -> dict[str, Any]:
        assert command_line.main(argv) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_ensure_prints_the_connection_and_the_change(run: Run, tmp_path: Path) -> None:
    created = run(*ENSURE)
    folder = tmp_path / ".slipway/hosts/demo"
    assert created == {
        "changed": True,
        "base": "debian-13",
        "address": "172.17.0.3",
        "user": "operator",
        "private_key_file": str(folder / "id_ed25519"),
        "known_hosts_file": str(folder / "known_hosts"),
        "ssh_common_args": (
            f"-o 'UserKnownHostsFile=\"{folder}/known_hosts\"'"
            " -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
        ),
        "system_state": "running",
        "variables": {},
    }
    assert run(*ENSURE) == {**created, "changed": False}


def test_check_reports_changes_and_makes_none(run: Run, machine: FakeDocker) -> None:
    assert run(*ENSURE, "--check") == {"changed": True, "base": "debian-13"}
    assert machine.containers == {}
    created = run(*ENSURE)
    assert run(*ENSURE, "--check") == {**created, "changed": False}
    assert run(*REMOVE, "--check") == {"changed": True}
    assert len(machine.containers) == 1


def test_an_emulated_host_runs_each_program_in_its_user_namespace(
    run: Run, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulation, "base_for", lambda base, architecture: f"{base}-{architecture}")
    monkeypatch.setattr(emulation, "check_machine", lambda: None)
    created = run(*ENSURE, "--architecture", "arm64")
    assert (created["base"], created["variables"]) == ("debian-13-arm64", emulation.VARIABLES)
    (started,) = (argv for argv in machine.ran if argv[:3] == ("docker", "run", "--detach"))
    init = emulation.start(EMULATION_FOLDER, "/sbin/init")
    assert started[-len(init) :] == init
    entered = [argv for argv in machine.ran if argv[:2] == ("docker", "exec")]
    assert entered
    assert all(set(emulation.join()) <= set(argv) for argv in entered)


def test_a_machine_that_cannot_emulate_makes_nothing(
    machine: FakeDocker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise LabError("cannot emulate arm64: kernel 6.1.0; expected 6.7 or later.")

    monkeypatch.setattr(emulation, "base_for", lambda base, architecture: f"{base}-{architecture}")
    monkeypatch.setattr(emulation, "check_machine", refuse)
    assert command_line.main([*ENSURE, "--architecture", "arm64", "--gpu", "gb10"]) == 1
    assert "lab: cannot emulate arm64: kernel 6.1.0" in capsys.readouterr().err
    assert machine.ran == []


def test_list_names_the_hosts_of_a_group_by_number(run: Run) -> None:
    assert run("host", "list", "--group", "demo") == {"hosts": []}
    for name in ("demo-10", "demo-2"):
        run("host", "ensure", "--group", "demo", "--name", name)
    assert run("host", "list", "--group", "demo") == {"hosts": ["demo-2", "demo-10"]}


def test_remove_is_idempotent(run: Run, machine: FakeDocker, tmp_path: Path) -> None:
    run(*ENSURE)
    assert run(*REMOVE, "--name", "other") == {"changed": False}
    assert run(*REMOVE, "--purge", "--stop-engine") == {"changed": True}
    assert (machine.containers, machine.images) == ({}, {})
    assert not (tmp_path / ".slipway/hosts/demo").exists()
    assert run(*REMOVE, "--purge", "--stop-engine") == {"changed": False}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(
            (*ENSURE, "--gpu", "h1000"),
            "lab: unknown GPU model 'h1000'; expected one of none, t4, 2xh100, 8xv100",
            id="model",
        ),
        pytest.param(
            ("host", "ensure", "--group", "demo", "--name", "Web", "--gpu", "t4"),
            "lab: invalid host name 'Web'",
            id="name",
        ),
        pytest.param(("host", "remove", "--group", "../x"), "lab: invalid group name", id="group"),
    ],
)
def test_invalid_value_is_an_error_that_changes_nothing(
    machine: FakeDocker,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    argv: tuple[str, ...],
    message: str,
) -> None:
    assert command_line.main(argv) == 1
    assert capsys.readouterr().err.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_gpu_host_has_its_stand_ins_in_the_state_folder(
    run: Run, machine: FakeDocker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Simulated:
        mounts = ()
        variables = {"source": "archive"}
        cuda_variables = {"source": "cuda"}

    prepared = []

    def prepare(folder: Path, model: str, base: str) -> Simulated:
        folder.mkdir(parents=True, exist_ok=True)
        prepared.append((folder, model, base))
        return Simulated()

    monkeypatch.setattr(gpu_host, "prepare", prepare)
    monkeypatch.setattr(gpu_host, "describe", lambda folder, base: Simulated())
    options = (*ENSURE, "--base", "ubuntu-like-24.04", "--gpu", "t4")
    assert run(*options, "--check") == {"changed": True, "base": "ubuntu-like-24.04"}
    assert prepared == []
    assert run(*options)["variables"] == {"source": "archive"}
    folder = tmp_path / ".slipway/hosts/demo/stand-ins/web/t4-ubuntu-like-24.04"
    assert prepared == [(folder, "t4", "ubuntu-like-24.04")]
    assert run(*options, "--check")["changed"] is False
    assert len(prepared) == 1
    assert run(*ENSURE, "--gpu", "8xb200")["variables"] == {"source": "cuda"}
    assert run(*REMOVE) == {"changed": True}
    assert not folder.exists()


def test_every_model_for_the_cuda_repository_exists() -> None:
    assert set(command_line.CUDA_MODELS) <= set(pci_tree.MODELS)
