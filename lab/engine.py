# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker Engine that throwaway hosts run on.

A running engine is used unchanged. Otherwise Debian's package is installed and dockerd is started:
by systemd where systemd runs, else in a process session of its own. Files that a killed engine left
are removed first; the engine's data stays.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.commands import (
    OUTPUT_TAIL_LINES,
    Commands,
    Completed,
    install_commands,
    systemd_runs,
)
from lab.errors import LabError
from lab.processes import locked, process_name, process_start, runtime_folder, wait_until

PID_FILE = Path("/var/run/docker.pid")
# Where an engine that the lab starts listens, whatever engine DOCKER_HOST and contexts name.
OWN_SOCKET = "unix:///var/run/docker.sock"
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def stale_files(
    run: Path = Path("/var/run"), name_of: Callable[[int], str | None] = process_name
) -> list[Path]:
    """List the files under `run` by which a dead engine keeps a new engine from starting.

    dockerd refuses to start while the process of its PID file exists, whatever that process is
    now. dockerd also waits in vain for a containerd whose PID file or system socket exists.
    """
    stale = [
        pid_file
        for pid_file, name in (
            (run / "docker.pid", "dockerd"),
            (run / "docker/containerd/containerd.pid", "containerd"),
        )
        if pid_file.exists() and not _is_process(pid_file, name, name_of)
    ]
    system_socket = run / "containerd/containerd.sock"
    if system_socket.exists() and not _socket_answers(system_socket):
        stale.append(system_socket)
    return stale


def _is_process(pid_file: Path, name: str, name_of: Callable[[int], str | None]) -> bool:
    try:
        return name_of(int(pid_file.read_text(encoding="ascii"))) == name
    except (OSError, ValueError):
        return False


def _socket_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class EngineProcess:
    """The dockerd that the lab started. PIDs are reused; PID and start time together are not."""

    pid: int
    start: str

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return bool(self.start) and process_start(self.pid) == self.start


class Engine:
    """The Docker Engine of this machine."""

    def __init__(self, commands: Commands | None = None, run_folder: Path | None = None) -> None:
        self.commands = commands or Commands()
        self._run_folder = run_folder or runtime_folder()
        self._log = self._run_folder / "dockerd.log"
        self._process_file = self._run_folder / "dockerd.json"

    @property
    def lock(self) -> Path:
        """The lock file for everything that users of the engine share, such as base images."""
        return self._run_folder / "lock"

    def docker(
        self, *argv: str, stdin: bytes = b"", timeout: float = 600.0, check: bool = True
    ) -> Completed:
        """Run a docker command."""
        return self.commands.run("docker", *argv, stdin=stdin, timeout=timeout, check=check)

    def lines(self, *argv: str) -> list[str]:
        """Run a docker command and return the lines of its output."""
        return self.docker(*argv).out.split()

    def version(self) -> str | None:
        """Return the engine's version, None when no engine answers."""
        answer = self.docker("version", "--format", "{{.Server.Version}}", timeout=15, check=False)
        return answer.out.strip() or None if answer.rc == 0 else None

    def ensure(self) -> bool:
        """Start an engine unless one answers; return whether an engine was started.

        Raises LabError with the end of the engine's log when the engine does not start.
        """
        if self.version():
            return False
        remote = os.environ.get("DOCKER_HOST")
        if remote:
            raise LabError(
                f"no Docker Engine answers at {remote} (DOCKER_HOST). Start that engine, or unset"
                " DOCKER_HOST to use an engine on this machine."
            )
        if os.geteuid() != 0:
            raise LabError(
                "no Docker Engine answers, and only root can start one. Start the engine and check"
                " that `docker info` succeeds as this user, or run this command as root."
            )
        install_commands(self.commands, "dockerd", "docker", "iptables")
        if systemd_runs():
            self.commands.run("systemctl", "start", "docker")
        elif not _is_process(PID_FILE, "dockerd", process_name):
            self._start()
        self._wait()
        return True

    def _start(self) -> None:
        for path in stale_files():
            path.unlink()
        self._run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = self.commands.start_daemon("dockerd", log=self._log)
        self.write_process(EngineProcess(pid, process_start(pid) or ""))

    def _wait(self) -> None:
        process = self._read_process()

        def answers_or_ended() -> bool:
            return self.version() is not None or (process is not None and not process.is_alive())

        if not wait_until(answers_or_ended, START_SECONDS) or self.version() is None:
            raise LabError(
                f"the Docker Engine did not start. The end of {self._log}: {self._log_tail()}"
            )

    def _log_tail(self) -> str:
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(no log; see `journalctl -u docker`)"
        return "\n".join(text.splitlines()[-OUTPUT_TAIL_LINES:])

    def write_process(self, process: EngineProcess) -> None:
        """Record the engine process that the lab may stop."""
        self._process_file.write_text(json.dumps(asdict(process)), encoding="ascii")

    def _read_process(self) -> EngineProcess | None:
        try:
            return EngineProcess(**json.loads(self._process_file.read_text(encoding="ascii")))
        except (OSError, ValueError, TypeError):
            return None

    def stop_if_idle(self, dry_run: bool = False) -> bool:
        """Stop the engine if the lab started it and no container is left.

        Returns whether the engine was stopped, in a dry run whether it would be.
        """
        with locked(self.lock):
            process = self._read_process()
            if process is None or not process.is_alive():
                return False
            if self.lines("--host", OWN_SOCKET, "ps", "--all", "--quiet"):
                return False
            if not dry_run:
                os.kill(process.pid, signal.SIGTERM)
                if not wait_until(lambda: not process.is_alive(), STOP_SECONDS):
                    raise LabError(
                        f"the Docker Engine (process {process.pid}) did not stop within"
                        f" {STOP_SECONDS:g} s"
                    )
                self._process_file.unlink()
            return True
