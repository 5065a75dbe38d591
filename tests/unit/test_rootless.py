# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines without root: what is done for one, in which order, as whom, and what is taken back."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless
from ansible_collections.slipway.host.plugins.module_utils.state import reading, started
from ansible_collections.slipway.host.plugins.modules import rootless_docker

from tests.unit import survey
from tests.unit.conftest import RunModule

Program = Callable[[str, str], None]
SOCKET = "unix:///run/user/54321/docker.sock"
COMPLETE = [True, 65536, 65536, SOCKET, 7.0]
ENGINES = [{"user": "ada", "reads": ["/etc/x"]}]


class Machine:
    """What the module finds, and what it told the programs of the host."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.state: list[Any] = COMPLETE
        self.changed = 6.0
        self.digest = "digest"

    def told(self) -> list[str]:
        """Return the commands since the last question, those of the user after ``ada:``."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer as the probe does."""
        return {
            "engine": None,
            "rootless": dict.fromkeys(question.get("rootless", ()), self.state),
            "users": {name: [54321, 54321, "/", ""] for name in question.get("users", ())},
            "reads": {path: [self.changed, self.digest] for path in question.get("reads", ())},
            "starts": {name: started.ask_start(name) for name in question.get("starts", ())},
        }


@pytest.fixture
def machine(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, only_root_writes: None
) -> Machine:
    machine = Machine(tmp_path)
    for name in ("usermod", "loginctl", "systemctl"):
        program(name, f'echo {name} "$@" >>{machine.log}')
    # Without who it is and the environment, which another test looks at.
    program(
        "runuser",
        f'shift 5; while case "$1" in *=*) ;; *) false;; esac; do shift; done;'
        f'echo ada: "$@" >>{machine.log};'
        f'case "$*" in *"inspect --format"*) echo rootless;; *inspect*) exit 1;; esac',
    )
    entry = SimpleNamespace(pw_uid=54321, pw_gid=54321, pw_dir="/home/ada")
    monkeypatch.setattr(pwd, "getpwnam", {"ada": entry}.__getitem__)
    monkeypatch.setattr(
        rootless_docker.HERE, "look", lambda owned: machine.answer(survey.question([owned]))
    )
    monkeypatch.setattr(reading, "read_word", lambda _path: "eve:100000:65536\n")
    monkeypatch.setattr(rootless, "FOLDER", str(tmp_path / "rootless"))
    monkeypatch.setattr(started, "RECORDS", str(tmp_path / "started"))
    return machine


START = [
    "ada: systemctl --user daemon-reload",
    "ada: systemctl --user reset-failed docker.service",
    "ada: systemctl --user restart docker.service",
]
CONTEXT = [
    "ada: docker context inspect rootless",
    f"ada: docker context create rootless --docker host={SOCKET}",
    "ada: docker context use rootless",
]
PS = f"ada: docker --host {SOCKET} ps --quiet"
INFO = f"ada: docker --host {SOCKET} info --format={{{{.LiveRestoreEnabled}}}}"
IDS = "usermod --add-subuids 165536-231071 --add-subgids 165536-231071 ada"


@pytest.mark.parametrize(
    ("state", "changed", "told"),
    [
        (COMPLETE, 6.0, None),
        ([False, 65536, 65536, SOCKET, 7.0], 6.0, ["loginctl enable-linger ada"]),
        ([True, 0, 65536, SOCKET, 7.0], 6.0, [IDS]),
        ([True, 65536, 65536, SOCKET, 0.0], 6.0, START),
        ([True, 65536, 65536, SOCKET, 7.0], 8.0, [PS, *START]),
        ([True, 65536, 65536, "", 7.0], 6.0, CONTEXT),
        ([False, 0, 0, "", 0.0], 6.0, [IDS, "loginctl enable-linger ada", *START, *CONTEXT]),
    ],
)
def test_only_missing_parts_of_an_engine_are_created(
    run_module: RunModule,
    machine: Machine,
    state: list[Any],
    changed: float,
    told: list[str] | None,
) -> None:
    machine.state, machine.changed = state, changed
    would = run_module(rootless_docker, check=True, engines=ENGINES)
    assert machine.told() == []
    result = run_module(rootless_docker, engines=ENGINES)
    assert would["changed"] == result["changed"] == (told is not None)
    assert result["users"] == (["ada"] if told else [])
    did = [line for line in machine.told() if line != "systemctl start user@54321.service"]
    assert did == (told or [])


def test_the_content_of_a_configuration_decides_about_a_restart(
    run_module: RunModule, machine: Machine
) -> None:
    machine.changed = 9e9
    assert run_module(rootless_docker, engines=ENGINES)["changed"]
    assert machine.told()[-len(START) :] == START
    # A time to come, or none that was known, restarts nothing twice.
    assert not run_module(rootless_docker, engines=ENGINES)["changed"]
    machine.digest = "another"
    machine.changed = 6.0
    assert run_module(rootless_docker, check=True, engines=ENGINES)["changed"]
    assert run_module(rootless_docker, engines=ENGINES)["changed"]
    assert machine.told()[-len(START) :] == START
    assert not run_module(rootless_docker, engines=ENGINES)["changed"]


@pytest.mark.parametrize(
    ("policy", "containers", "live_restore", "asked", "waits"),
    [
        ("idle", "c1 c2", "false", [PS, INFO], "2 containers of ada run. Run again when they"),
        ("idle", "c1", "true", [PS, INFO], ""),
        ("idle", "", "false", [PS], ""),
        ("always", "c1", "false", [], ""),
        ("never", "", "false", [], "docker_engine_restart is never"),
    ],
)
def test_an_engine_with_running_containers_is_not_restarted(
    run_module: RunModule,
    machine: Machine,
    program: Program,
    policy: str,
    containers: str,
    live_restore: str,
    asked: list[str],
    waits: str,
) -> None:
    program(
        "runuser",
        f'shift 5; while case "$1" in *=*) ;; *) false;; esac; do shift; done;'
        f'echo ada: "$@" >>{machine.log};'
        f'case "$*" in *"ps --quiet") echo {containers};; *info*) echo {live_restore};; esac',
    )
    machine.changed = 8.0
    result = run_module(rootless_docker, engines=ENGINES, restart=policy)
    did = [line for line in machine.told() if line != "systemctl start user@54321.service"]
    assert did == [*asked, *([] if waits else START)]
    (waiting,) = result.get("slipway_waiting", [""])
    assert waits in waiting
    assert result["changed"] == (not waits)
    # What waits is found again by the next run.
    again = run_module(rootless_docker, check=True, engines=ENGINES, restart=policy)
    assert again["changed"] == bool(waits)


def test_an_engine_that_does_not_start_says_why(
    run_module: RunModule, machine: Machine, program: Program
) -> None:
    machine.state = [True, 65536, 65536, SOCKET, 0.0]
    program("runuser", 'case "$*" in *restart*) echo no luck >&2; exit 1;; esac')
    program("journalctl", 'echo "$@" | grep -q _UID=54321 && echo newuidmap: not permitted')
    result = run_module(rootless_docker, engines=ENGINES)
    assert result["failed"]
    assert result["msg"] == "Cannot start the engine of ada: no luck\nnewuidmap: not permitted"


def test_a_user_who_is_not_there_is_an_error_but_not_beforehand(
    run_module: RunModule, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.state = None  # type: ignore[assignment] # as the probe says it
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    assert run_module(rootless_docker, check=True, engines=ENGINES)["changed"]
    message = run_module(rootless_docker, engines=ENGINES)["msg"]
    assert message.startswith("Cannot set up the engine of ada: the user does not exist.")


def test_the_engines_of_others_are_taken_down_and_forgotten_last(
    run_module: RunModule, machine: Machine
) -> None:
    folder = Path(rootless.FOLDER)
    asked: dict[str, Any] = {"engines": [{"user": "eve"}], "state": "absent"}
    assert not run_module(rootless_docker, **asked)["changed"]
    folder.mkdir()
    for name in ("ada", "eve", "gone"):
        (folder / f"{name}.json").touch()
    assert run_module(rootless_docker, check=True, **asked)["changed"]
    assert machine.told() == [] and len(list(folder.iterdir())) == 3
    assert run_module(rootless_docker, **asked)["changed"]
    assert machine.told() == [
        "ada: docker context inspect --format={{.Name}}",
        "ada: docker context use default",
        "ada: docker context rm --force rootless",
        "loginctl disable-linger ada",
        "loginctl show-user --property=Sessions --value ada",
        "systemctl stop user@54321.service",
    ]
    assert [file.name for file in folder.iterdir()] == ["eve.json"]
    assert not run_module(rootless_docker, **asked)["changed"]


def test_obstacles_are_named_before_a_change(run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "setting").write_text("0\n")
    obstacle = {"path": str(tmp_path / "setting"), "holds": "^0$", "why": "switch it on"}
    asked: dict[str, Any] = {"engines": [], "obstacles": [obstacle], "state": "absent"}
    assert run_module(rootless_docker, **asked)["msg"] == "switch it on."
    (tmp_path / "setting").write_text("1\n")
    assert not run_module(rootless_docker, **asked)["changed"]


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        ([], (100000, 165535)),
        (["", "broken\nada:x:y\n"], (100000, 165535)),
        (["ada:100000:65536\n", ""], (165536, 231071)),
        (["ada:100000:65536\n", "ada:200000:10\neve:1:2\n"], (200010, 265545)),
    ],
)
def test_new_subordinate_ids_are_nobody_elses(texts: list[str], ids: tuple[int, int]) -> None:
    assert rootless.free_range(texts) == ids


def test_commands_in_a_home_run_as_its_owner_in_a_clean_environment() -> None:
    words = rootless.as_user("ada", "/home/ada", 1500, ["docker", "ps"])
    assert words[:6] == ["runuser", "-u", "ada", "--", "env", "-i"]
    assert "HOME=/home/ada" in words and "XDG_RUNTIME_DIR=/run/user/1500" in words
    assert words[-2:] == ["docker", "ps"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_that_command_line_does_so() -> None:
    script = ["sh", "-c", "id --user; echo $HOME"]
    entry = pwd.getpwnam("nobody")
    words = rootless.as_user("nobody", "/none", entry.pw_uid, script)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(entry.pw_uid), "/none"]
