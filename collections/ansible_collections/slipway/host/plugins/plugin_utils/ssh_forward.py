# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forward a port between two hosts over their SSH connections, by way of the controller.

A socket on the controller leads to a port of one host; a port on loopback of another host leads to
that socket. Both belong to SSH masters of their own, which Ansible's connection plugin starts with
its own settings: keys, passwords, jump hosts. The next run ends the masters of a killed run;
without one, they end by themselves when no connection uses them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# Seconds without a connection after which a master ends.
IDLE_SECONDS = 600
# Ports of the other host, from a number that its name gives: an interrupted pull finds it again.
FIRST_PORT, PORTS, ATTEMPTS = 20000, 10000, 5
# A file: what it is about, the process ID of the run, what it is.
FILE = re.compile(r"slipway-[0-9a-f]{8}-(\d+)\.(?:ctl|sock|lock)")


def _file(action: ActionBase, subject: str, suffix: str) -> Path:
    """Return the path of a file of this run, beside Ansible's own sockets.

    Short: the path of a socket has at most about 100 characters.
    """
    folder = Path(action._connection.get_option("control_path_dir")).expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = hashlib.sha256(subject.encode()).hexdigest()[:8]
    # The parent of this process is the run.
    return folder / f"slipway-{about}-{os.getppid()}.{suffix}"


@contextmanager
def _settings(action: ActionBase, options: str) -> Iterator[None]:
    """Put ssh OPTIONS before those of the connection: ssh takes the first value of each."""
    connection = action._connection
    former = {name: connection.get_option(name) for name in ("ssh_args", "reconnection_retries")}
    try:
        connection.set_option("ssh_args", f"{options} {former['ssh_args'] or ''}")
        connection.set_option("reconnection_retries", 0)
        yield
    finally:
        for name, value in former.items():
            connection.set_option(name, value)


def _check_connection(action: ActionBase, host: str) -> None:
    if action._connection.transport != "ssh":
        raise AnsibleActionFail(
            f"connection of {host}: {action._connection.transport}; expected ssh, over which "
            "images are delivered. Set ml_images_builder: [] to build on each host."
        )


def _open(action: ActionBase, control: Path, forward: str) -> None:
    """Start a master with a forward; raise AnsibleConnectionFailure if there is no forward."""
    options = (
        f"-o ControlMaster=yes -o ControlPath={control} -o ControlPersist={IDLE_SECONDS} "
        f"-o ExitOnForwardFailure=yes -o StreamLocalBindUnlink=yes {forward}"
    )
    with _settings(action, options):
        action._connection.exec_command("true", in_data=b"\n", sudoable=False)


def _is_alive(control: Path) -> bool:
    return control.exists() and _control(control, "check")


def _control(control: Path, command: str) -> bool:
    """Send a command to a master; return whether it did it."""
    # The host's name does not matter: ssh only talks to the socket.
    words = ["ssh", "-o", f"ControlPath={control}", "-O", command, "slipway"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def open_socket(action: ActionBase, host: str, port: int) -> Path:
    """Return a socket on the controller that leads to PORT of the host of ACTION.

    Several processes of a run share it.
    """
    _check_connection(action, host)
    control, socket = _file(action, host, "ctl"), _file(action, host, "sock")
    _end_old_runs(control.parent)
    with _locked(control.with_suffix(".lock")):
        if not _is_alive(control):
            _open(action, control, f"-L {socket}:127.0.0.1:{port}")
    return socket


def close_socket(action: ActionBase, host: str) -> None:
    """End the master of :func:`open_socket` and remove its files."""
    control = _file(action, host, "ctl")
    with _locked(control.with_suffix(".lock")):
        _control(control, "exit")
        for suffix in ("ctl", "sock", "lock"):
            _file(action, host, suffix).unlink(missing_ok=True)


@contextmanager
def forwarded_port(action: ActionBase, host: str, socket: str) -> Iterator[int]:
    """Yield a port on loopback of the host of ACTION that leads to a socket on the controller."""
    _check_connection(action, host)
    control = _file(action, f"{host} pulls", "ctl")
    _end_old_runs(control.parent)
    first = zlib.crc32(host.encode()) % PORTS
    try:
        for attempt in range(ATTEMPTS):
            port = FIRST_PORT + (first + attempt) % PORTS
            try:
                _open(action, control, f"-R 127.0.0.1:{port}:{socket}")
                break
            except AnsibleConnectionFailure as error:
                if attempt == ATTEMPTS - 1:
                    raise AnsibleActionFail(
                        f"ssh cannot forward a port of {host}: {error}; expected a forwarded port "
                        "on loopback. In sshd_config of that host, set AllowTcpForwarding yes."
                    ) from None
        yield port
    finally:
        _control(control, "exit")
        control.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end_old_runs(folder: Path) -> None:
    """End the masters of runs that were killed, and remove their files."""
    for path in folder.glob("slipway-*"):
        match = FILE.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            if path.suffix == ".ctl":
                _control(path, "exit")
            path.unlink(missing_ok=True)
