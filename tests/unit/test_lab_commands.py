# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands of this machine, and the packages of missing commands."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab import commands as lab_commands
from lab.commands import CommandError, Commands, Completed, install_commands, install_package
from lab.errors import LabError
from lab.processes import process_name, wait_until
from tests.unit.scripted_commands import ScriptedCommands


def test_command_returns_status_and_output() -> None:
    done = Commands().run("sh", "-c", "cat; echo word >&2; exit 3", stdin=b"in", check=False)
    assert done == Completed(3, "in", "word\n")


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        pytest.param(("sh", "-c", "echo why >&2; exit 3"), 3, "why", id="fails"),
        pytest.param(("sh", "-c", "echo out; exit 3"), 3, "out", id="says-it-on-stdout"),
        pytest.param(("false",), 1, "no output", id="says-nothing"),
        pytest.param(("sleep", "5"), 124, "still running after 0.2 s", id="hangs"),
        pytest.param(("no-such-command",), 127, "is not installed", id="missing"),
    ],
)
def test_failing_command_is_an_error_with_its_output(
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


def test_binary_output_is_decoded_with_replacements() -> None:
    assert Commands().run("printf", r"\377").out == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("echo pulling; sleep 0.5; echo done", Completed(0, "pulling\ndone\n", "")),
        pytest.param("echo refused >&2; exit 1", Completed(1, "", "refused\n")),
        pytest.param("exec sleep 9", Completed(124, "", "no output after 0.3 s")),
        pytest.param("echo pulling; exec sleep 9", Completed(124, "", "still running after 1 s")),
    ],
    ids=["ends", "fails", "no-output", "no-end"],
)
def test_command_has_a_time_limit_for_its_first_output(script: str, expected: Completed) -> None:
    started = time.monotonic()
    assert (
        Commands().run_with_output_deadline("sh", "-c", script, first_output=0.3, timeout=1)
        == expected
    )
    assert time.monotonic() - started < 5


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

    machine = ScriptedCommands({*wanted, "apt-get"} - {*missing}, answer)
    install_commands(machine, *wanted)
    options = ("-o", "DPkg::Lock::Timeout=120", "--yes", "--no-install-recommends")
    ran = [" ".join(word for word in argv[1:] if word not in options) for argv in machine.ran]
    assert ran == expected


@pytest.mark.parametrize("has_systemd", [True, False])
def test_package_starts_the_engine_only_by_systemd(
    monkeypatch: pytest.MonkeyPatch, has_systemd: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lab_commands, "systemd_runs", lambda: has_systemd)
    machine = ScriptedCommands({"apt-get"}, lambda argv: 0)
    install_package(machine, "docker.io")
    assert machine.env.get("RUNLEVEL") == (None if has_systemd else "1")


@pytest.mark.parametrize(
    ("user", "installed"),
    [pytest.param(1000, {"apt-get"}, id="not-root"), pytest.param(0, set(), id="no-apt")],
)
def test_error_names_the_package_that_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch, user: int, installed: set[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(LabError, match="cannot install the package openssh-client"):
        install_commands(ScriptedCommands(installed, lambda argv: 0), "ssh")


def test_daemon_has_its_own_session_and_log(daemon: int, tmp_path: Path) -> None:
    assert os.getsid(daemon) == daemon
    assert wait_until(lambda: (tmp_path / "log").read_text() == "up\n", 5)
    assert wait_until(lambda: process_name(daemon) == "sleep", 5)
