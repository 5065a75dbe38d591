# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forward a port between two hosts over their SSH connections, by way of the controller.

A socket on the controller leads to a port of one host; a port on loopback of another host leads to
that socket. Both belong to SSH masters of their own, which Ansible's connection plugin starts with
its own settings: keys, passwords, jump hosts. The next run ends what a killed run left; without
one, it ends by itself when no connection uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import re
import shlex
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import registry
from ansible_collections.slipway.host.plugins.plugin_utils import host_command

# Seconds without a connection after which a master ends: other hosts may still build.
IDLE_SECONDS = 3600
# Ports of the other host, from a number that its name gives: an interrupted pull finds it again.
FIRST_PORT, PORTS, ATTEMPTS = 20000, 10000, 5
# ssh adds 17 characters to the path of a master while it starts; a socket has at most 107.
MAX_PATH = 90
ANSWER_SECONDS = 20
SUFFIXES = ("ctl", "sock", "lock")
# Of the file for a registry that a killed run left on a host.
LEFT = ".left"


class NoDeliveryError(AnsibleActionFail):
    """Images cannot be delivered between these hosts."""


def run_of_worker() -> int:
    """Return the process ID of the run that this process works for; raise if the run has ended."""
    run = multiprocessing.parent_process()
    if run is None or run.pid is None:
        return os.getpid()
    if not run.is_alive():
        raise AnsibleActionFail("The run was ended.")
    return run.pid


def _prefix() -> str:
    """Return how the names of files of this machine begin: others may share the folder."""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"slipway-{hashlib.sha256((space + boot).encode()).hexdigest()[:6]}"
    return "slipway-"


def lease_of(host: str) -> str:
    """Return the name of the lease of a host in this run: host, machine and run."""
    return f"{_short(host)}-{_prefix().rpartition('-')[2]}-{run_of_worker()}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _file(action: ActionBase, subject: str, suffix: str) -> Path:
    """Return the path of a file of this run, beside Ansible's own sockets."""
    folder = Path(action._connection.get_option("control_path_dir")).expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{_prefix()}-{_short(subject)}-{run_of_worker()}.{suffix}"
    if len(os.fsencode(path)) > MAX_PATH:
        raise NoDeliveryError(
            f"path of a socket: {len(os.fsencode(path))} bytes in {folder}; expected at most "
            f"{MAX_PATH}. Set control_path_dir in ansible.cfg to a folder with a shorter path."
        )
    return path


def socket_file(action: ActionBase, subject: str) -> Path:
    """Return the path of a socket of this run; the next run removes it if this one is killed."""
    return _file(action, subject, "sock")


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


def _open(action: ActionBase, control: Path) -> None:
    """Start a master without forwards, those of the user's own configuration included."""
    if action._connection.transport != "ssh":
        raise NoDeliveryError(
            f"connection {action._connection.transport}; expected ssh, over which images are "
            "delivered. Set ml_images_builder: [] to build on each host."
        )
    # A killed run may have left a socket, beside which ssh would start no master.
    control.unlink(missing_ok=True)
    path = shlex.quote(f'ControlPath="{_literal(control)}"')
    options = (
        f"-o ControlMaster=yes -o {path} -o ControlPersist={IDLE_SECONDS} "
        "-o ClearAllForwardings=yes -o StreamLocalBindUnlink=yes"
    )
    with _settings(action, options):
        try:
            action._connection.exec_command("true", in_data=b"\n", sudoable=False)
        except AnsibleConnectionFailure as error:
            raise NoDeliveryError(f"cannot open a further connection of ssh: {error}") from None


def _literal(path: Path) -> str:
    """Return a path in which ssh replaces nothing."""
    return str(path).replace("%", "%%")


def _control(control: Path, *words: str) -> str | None:
    """Send a command to a master; return None if it did it, else what ssh says."""
    return _by_master(control, "-O", *words, "slipway")


def _by_master(control: Path, *words: str) -> str | None:
    # No configuration: this ssh connects to the socket only, and the host's name does not matter.
    command = ["ssh", "-F", "none", "-o", f'ControlPath="{_literal(control)}"', *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return (done.stderr.strip() or "no reason given") if done.returncode else None


def open_socket(action: ActionBase, host: str, port: int) -> Path:
    """Return a socket on the controller that leads to the registry on PORT of the host of ACTION.

    The processes of a run share it. Raise NoDeliveryError if the registry does not answer.
    """
    control, path, lock = (_file(action, host, suffix) for suffix in SUFFIXES)
    end_old_runs(control.parent)
    with _locked(lock) as content:
        if content.read() != str(port) or _control(control, "check"):
            _control(control, "exit")
            _open(action, control)
            path.unlink(missing_ok=True)
            error = _control(control, "forward", "-L", f"{path}:127.0.0.1:{port}")
            if error:
                raise NoDeliveryError(f"ssh cannot forward a port of {host}: {error}")
            content.seek(0)
            content.truncate()
            content.write(str(port))
            content.flush()
    _check_registry(path, host)
    return path


def _check_registry(path: Path, host: str) -> None:
    """Fail unless a registry answers on a socket: a server refuses a forward when it is used."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(str(path))
        connection.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
        answer = connection.recv(64)
    if b" 200 " not in answer:
        raise NoDeliveryError(
            f"the registry on {host} does not answer over ssh; expected a forwarded port. In "
            "sshd_config of that host, set AllowTcpForwarding yes."
        )


def close_socket(action: ActionBase, host: str) -> None:
    """End the master of :func:`open_socket` and remove its files."""
    control, path, lock = (_file(action, host, suffix) for suffix in SUFFIXES)
    with _locked(lock) as content:
        _control(control, "exit")
        content.truncate()
        control.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


@contextmanager
def forwarded_port(action: ActionBase, host: str, path: str) -> Iterator[int]:
    """Yield a port on loopback of the host of ACTION that leads to a socket on the controller.

    Raise NoDeliveryError if the host's server forwards no port.
    """
    control = _file(action, f"{host} pulls", "ctl")
    end_old_runs(control.parent)
    _open(action, control)
    try:
        yield _forward(control, host, path)
    finally:
        _control(control, "exit")
        control.unlink(missing_ok=True)


def _forward(control: Path, host: str, path: str) -> int:
    first, error = zlib.crc32(host.encode()) % PORTS, None
    for attempt in range(ATTEMPTS):
        port = FIRST_PORT + (first + attempt) % PORTS
        error = _control(control, "forward", "-R", f"127.0.0.1:{port}:{path}")
        if error is None:
            return port
    raise NoDeliveryError(
        f"ssh cannot forward a port of {host}: {error}; expected a port on loopback. In "
        "sshd_config of that host, set AllowTcpForwarding yes."
    )


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with path.open("a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        yield lock


def end_old_runs(folder: Path) -> None:
    """End what runs on this machine that were killed left: registries, masters and their files.

    Where the master is gone too, a file for :func:`end_left` remains.
    """
    name = re.compile(re.escape(_prefix()) + rf"-[0-9a-f]{{8}}-(\d+)\.({'|'.join(SUFFIXES)})")
    matches = map(name.fullmatch, (path.name for path in folder.glob(f"{_prefix()}-*")))
    dead = [match for match in matches if match and not Path(f"/proc/{match[1]}").exists()]
    # The lock belongs to a builder: its registry is ended over the master that is still there.
    for match in sorted(dead, key=lambda match: match[2] != "lock"):
        path = folder / match[0]
        if match[2] == "lock" and not _release(path.with_suffix(".ctl"), _leases_of(match[1])):
            path.rename(path.with_suffix(LEFT))
        elif match[2] == "ctl":
            _control(path, "exit")
        path.unlink(missing_ok=True)
    for path in folder.glob(f"slipway-*{LEFT}"):
        # Its registry has ended by itself.
        if time.time() - path.stat().st_mtime > registry.LIFE_SECONDS:
            path.unlink(missing_ok=True)


def _leases_of(run: str) -> str:
    return f"*-{_prefix().rpartition('-')[2]}-{run}"


def _release(control: Path, leases: str) -> bool:
    """Give leases back over a master; return whether the host did it."""
    script = shlex.quote(registry.release_script(leases))
    as_root = f'if [ "$(id -u)" = 0 ]; then sh -c {script}; else sudo -n sh -c {script}; fi'
    return _by_master(control, "-o", "BatchMode=yes", "slipway", as_root) is None


def end_left(action: ActionBase, host: str) -> None:
    """End the registry on the host of ACTION that killed runs left, if their masters are gone."""
    if action._connection.transport != "ssh":
        return
    folder = Path(action._connection.get_option("control_path_dir")).expanduser()
    for path in folder.glob(f"{_prefix()}-{_short(host)}-*{LEFT}"):
        script = registry.release_script(_leases_of(path.stem.rpartition("-")[2]))
        if host_command.run(action, script).status == 0:
            path.unlink(missing_ok=True)
