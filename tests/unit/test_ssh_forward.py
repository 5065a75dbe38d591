# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SSH masters of a delivery: their files, ports, and what killed runs left."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import host_command, ssh_forward

Program = Callable[[str, str], None]
DEAD = 2**22 + 1  # Larger than any process ID.


class Connection:
    """An SSH connection of Ansible, with its options."""

    transport = "ssh"

    def __init__(self, folder: Path) -> None:
        self.options: dict[str, Any] = {
            "control_path_dir": str(folder),
            "ssh_executable": "ssh",
            "ssh_args": "-C",
            "reconnection_retries": 3,
        }
        self.opened: list[str] = []

    def get_option(self, name: str) -> Any:
        return self.options[name]

    def set_option(self, name: str, value: Any) -> None:
        self.options[name] = value

    def exec_command(self, command: str, in_data: bytes, sudoable: bool) -> None:
        self.opened.append(self.options["ssh_args"])


@pytest.fixture
def action() -> Iterator[Any]:
    # The path of a socket must be short; pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="ssh-") as folder:
        yield SimpleNamespace(_connection=Connection(Path(folder)))


def test_what_a_killed_run_left_is_ended_and_nothing_else(
    action: Any, program: Program, tmp_path: Path
) -> None:
    program("ssh", f"echo $* >>{tmp_path}/commands")
    folder = Path(action._connection.options["control_path_dir"])
    prefix = ssh_forward._prefix()
    dead = [f"{prefix}-00000000-{DEAD}.{suffix}" for suffix in ("ctl", "sock", "lock")]
    kept = [
        f"{prefix}-00000000-{os.getpid()}.ctl",
        f"slipway-ffffff-00000000-{DEAD}.ctl",
        "0123456789",
        f"{prefix}-x",
    ]
    for name in (*dead, *kept):
        (folder / name).touch()
    ssh_forward.end_old_runs(folder)
    assert {path.name for path in folder.iterdir()} == set(kept)
    commands = (tmp_path / "commands").read_text().splitlines()
    assert all(dead[0] in command for command in commands)
    released, ended = commands
    assert f"lease-*-{prefix.rpartition('-')[2]}-{DEAD};" in released
    assert "-O exit" in ended


def test_a_registry_whose_master_is_gone_is_ended_over_the_next_connection(
    action: Any, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("ssh", "exit 255")
    folder = Path(action._connection.options["control_path_dir"])
    names = {host: f"{ssh_forward._prefix()}-{ssh_forward._short(host)}" for host in ("a", "b")}
    for name in names.values():
        (folder / f"{name}-{DEAD}.lock").touch()
        (folder / f"{name}-{DEAD}.ctl").touch()
    ssh_forward.end_old_runs(folder)
    ssh_forward.end_old_runs(folder)
    left = {host: folder / f"{names[host]}-{DEAD}.left" for host in names}
    assert set(folder.iterdir()) == set(left.values())
    scripts: list[str] = []

    def run(_action: Any, script: str) -> host_command.Reply:
        scripts.append(script)
        # The first command fails.
        return host_command.Reply(255 if len(scripts) == 1 else 0, "", "")

    monkeypatch.setattr(host_command, "run", run)
    for _survey in range(3):
        ssh_forward.end_left(action, "a")
    assert list(folder.iterdir()) == [left["b"]]
    script, again = scripts
    assert script == again
    os.utime(left["b"], (0, 0))
    ssh_forward.end_old_runs(folder)
    assert list(folder.iterdir()) == []
    assert f"lease-*-{ssh_forward._prefix().rpartition('-')[2]}-{DEAD};" in script


def test_a_port_that_is_taken_is_skipped(action: Any, program: Program, tmp_path: Path) -> None:
    log = tmp_path / "commands"
    program("ssh", f"echo $* >>{log}; [ $(grep -c forward {log}) -gt 2 ]")
    with ssh_forward.forwarded_port(action, "gpu01", "/socket") as port:
        tried = [line for line in log.read_text().splitlines() if "forward" in line]
        assert len(tried) == 3
        assert f"-R 127.0.0.1:{port}:/socket" in tried[-1]
    assert "-O exit" in log.read_text().splitlines()[-1]
    (opened,) = action._connection.opened
    assert "ClearAllForwardings=yes" in opened
    # The options of the connection are as before.
    assert action._connection.options["ssh_args"] == "-C"
    assert action._connection.options["reconnection_retries"] == 3


def test_a_server_that_forwards_nothing_is_named(
    action: Any, program: Program, tmp_path: Path
) -> None:
    program("ssh", "echo refused by the server >&2; exit 255")
    with (
        pytest.raises(ssh_forward.NoDeliveryError, match=r"of gpu01: refused by the server; exp"),
        ssh_forward.forwarded_port(action, "gpu01", "/socket"),
    ):
        pytest.fail("no port is forwarded")


def test_a_registry_that_does_not_answer_is_no_offer(
    action: Any, program: Program, tmp_path: Path
) -> None:
    program("ssh", "exit 0")
    with pytest.raises(ssh_forward.NoDeliveryError, match="set AllowTcpForwarding yes"):
        ssh_forward.open_socket(action, "build01", 5000)


def test_other_connections_deliver_nothing(action: Any, program: Program) -> None:
    program("ssh", "exit 0")
    action._connection.transport = "local"
    with (
        pytest.raises(ssh_forward.NoDeliveryError, match="connection local; expected ssh"),
        ssh_forward.forwarded_port(action, "gpu01", "/socket"),
    ):
        pytest.fail("no port is forwarded")


def test_a_long_path_is_refused_with_the_setting_to_change(action: Any, tmp_path: Path) -> None:
    action._connection.options["control_path_dir"] = str(tmp_path / ("x" * 90))
    with pytest.raises(ssh_forward.NoDeliveryError, match="Set control_path_dir in"):
        ssh_forward.open_socket(action, "build01", 5000)
