# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container engine that throwaway hosts run on, and the commands that drive it.

A running engine is used as it is. Where none answers, Debian's package is installed and dockerd is
started: by systemd where it runs, else in a process session of its own. What a killed engine left
behind is cleared away first; its data stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

# Where the package of each command is not called like the command.
PACKAGE_OF_COMMAND: Mapping[str, str] = {
    "dockerd": "docker.io",
    "docker": "docker-cli",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
PID_FILE = Path("/var/run/docker.pid")
ENGINE_START_SECONDS = 60.0
ENGINE_STOP_SECONDS = 30.0
LOCK_SECONDS = 900.0
LOG_TAIL_LINES = 12
COMMAND_WIDTH = 100


class ThrowawayError(Exception):
    """Something a person has to know or do; the message says what."""


class BaseUnavailableError(ThrowawayError):
    """The base asked for cannot be had here and now; the message is the reason."""


@dataclass(frozen=True)
class Completed:
    """A command that has ended: its exit status and what it wrote."""

    rc: int
    out: str
    err: str


class CommandError(ThrowawayError):
    """A command that failed or ran out of time."""

    def __init__(self, argv: tuple[str, ...], completed: Completed) -> None:
        self.completed = completed
        said = (completed.err.strip() or completed.out.strip() or "it wrote nothing").splitlines()
        command = textwrap.shorten(" ".join(argv), COMMAND_WIDTH)
        super().__init__(
            f"`{command}` ended with status {completed.rc}: " + "\n".join(said[-LOG_TAIL_LINES:])
        )


class Commands:
    """Every process the harness starts is started here, so that tests can put a stand-in."""

    def __init__(self) -> None:
        # A user's PATH often lacks the sbin folders, where dockerd and iptables live.
        path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"
        self._env = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}

    def has(self, command: str) -> bool:
        """Tell whether a command is installed."""
        return shutil.which(command, path=self._env["PATH"]) is not None

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 600.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command to its end, at most `timeout` seconds.

        Raises CommandError when it fails and `check` is set. A command that is not installed
        counts as failed with status 127, one that ran out of time as failed with status 124.
        """
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
                env={**self._env, **(env or {})},
            )
            completed = Completed(done.returncode, _text(done.stdout), _text(done.stderr))
        except FileNotFoundError:
            completed = Completed(127, "", f"{argv[0]} is not installed")
        except subprocess.TimeoutExpired:
            completed = Completed(124, "", f"no end after {timeout:g} s")
        if check and completed.rc != 0:
            raise CommandError(argv, completed)
        return completed

    def run_if_it_speaks(self, *argv: str, within: float, timeout: float) -> Completed:
        """Run a command that must write its first output `within` seconds, and end by `timeout`.

        For a pull: a registry that answers may take minutes to send an image, one that does not
        answer should cost seconds. Status 124 means that one of the two limits was passed.
        """
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._env,
            ) as process,
        ):
            assert process.stdout is not None  # it is a pipe
            try:
                if not select.select([process.stdout], [], [], within)[0]:
                    return Completed(124, "", f"no answer within {within:g} s")
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                return Completed(124, "", f"no end after {timeout:g} s")
            finally:
                process.kill()
            errors.seek(0)
            return Completed(process.returncode, _text(out), _text(errors.read()))

    def start_daemon(self, *argv: str, log: Path) -> int:
        """Start a process that outlives this one and writes a new `log`; return its id."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd="/",
                start_new_session=True,
            )
        return process.pid


def _text(output: bytes) -> str:
    return output.decode("utf-8", errors="replace")


def install_commands(commands: Commands, *wanted: str) -> None:
    """Install the packages of those commands that are missing; see install_package."""
    for command in wanted:
        # Asked anew each time: in some releases docker.io brings the docker command along.
        if not commands.has(command):
            install_package(commands, PACKAGE_OF_COMMAND.get(command, command))


def install_package(commands: Commands, package: str) -> None:
    """Install a package of this machine's distribution.

    Raises ThrowawayError when this needs rights or an apt that are not there.
    """
    if os.geteuid() != 0 or not commands.has("apt-get"):
        raise ThrowawayError(
            f"throwaway hosts need the package {package} on this machine; install it, or run this "
            "again as root on Debian or Ubuntu"
        )
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    if not systemd_runs():
        # Without systemd the package would start an engine through its init script; in
        # "single-user mode" invoke-rc.d leaves that to us.
        env["RUNLEVEL"] = "1"
    apt_get = ("apt-get", "-o", "DPkg::Lock::Timeout=120")
    install = (*apt_get, "install", "--yes", "--no-install-recommends", package)
    if commands.run(*install, env=env, check=False).rc != 0:
        # Package lists are missing or too old.
        commands.run(*apt_get, "update", env=env)
        commands.run(*install, env=env)


def systemd_runs() -> bool:
    """Tell whether systemd is this machine's init, as sd_booted(3) does."""
    return Path("/run/systemd/system").is_dir()


def process_name(pid: int) -> str | None:
    """Return the name of a live process of this machine itself, None when there is none.

    A container's process does not count: an engine that runs in a throwaway host is seen here too.
    """
    try:
        is_here = Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    stat = _process_stat(pid) if is_here else None
    return stat[0] if stat else None


def process_start(pid: int) -> str | None:
    """Return when a live process was started, in clock ticks since boot (proc_pid_stat(5))."""
    stat = _process_stat(pid)
    return stat[1] if stat else None


def _process_stat(pid: int) -> tuple[str, str] | None:
    """Return name and start of a process that has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold any character.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] == "Z" else (name, fields[19])


def leftovers(
    run: Path = Path("/var/run"), name_of: Callable[[int], str | None] = process_name
) -> list[Path]:
    """List the files under `run` by which a dead engine would keep a new one from starting.

    dockerd refuses to start while the process of its pid file exists, whatever that process is
    now; it waits in vain for a containerd whose pid file or system socket is there.
    """
    found = []
    for pid_file, name in (
        (run / "docker.pid", "dockerd"),
        (run / "docker/containerd/containerd.pid", "containerd"),
    ):
        if pid_file.exists() and not _is_process(pid_file, name, name_of):
            found.append(pid_file)
    system_socket = run / "containerd/containerd.sock"
    if system_socket.exists() and not _socket_answers(system_socket):
        found.append(system_socket)
    return found


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


def wait_until(test: Callable[[], bool], seconds: float, pause: float = 0.2) -> bool:
    """Ask `test` again and again; return whether it came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not test():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def runtime_dir() -> Path:
    """Return the folder for what is shared by all checkouts and ends with this machine's uptime."""
    if os.geteuid() == 0:
        return Path("/run/slipway")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache") / "slipway"


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock file `path`; the lock ends with the block or with the process.

    Raises ThrowawayError when another process holds it for longer than `seconds`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as handle:
        if not wait_until(lambda: _try_lock(handle.fileno()), seconds, pause=0.5):
            raise ThrowawayError(
                f"another run has held {path} for {seconds:g} s; end it (see `fuser {path}`) "
                "and try again"
            )
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Mark:
    """The engine that was started here: an id may be recycled, id and start time are not."""

    pid: int
    start: str

    def is_alive(self) -> bool:
        """Tell whether that process still runs."""
        return bool(self.start) and process_start(self.pid) == self.start


class Engine:
    """The Docker Engine of this machine."""

    def __init__(self, commands: Commands | None = None, run_dir: Path | None = None) -> None:
        self.commands = commands or Commands()
        self._run_dir = run_dir or runtime_dir()

    @property
    def lock(self) -> Path:
        """The lock for what all users of the engine share: itself, and the base images."""
        return self._run_dir / "lock"

    @property
    def _log(self) -> Path:
        return self._run_dir / "dockerd.log"

    @property
    def _mark(self) -> Path:
        return self._run_dir / "dockerd.json"

    def docker(
        self, *argv: str, stdin: bytes = b"", timeout: float = 600.0, check: bool = True
    ) -> Completed:
        """Run a docker command."""
        return self.commands.run("docker", *argv, stdin=stdin, timeout=timeout, check=check)

    def lines(self, *argv: str) -> list[str]:
        """Run a docker command and return the lines it wrote."""
        return self.docker(*argv).out.split()

    def version(self) -> str | None:
        """Return the engine's version, None when no engine answers."""
        answer = self.docker("version", "--format", "{{.Server.Version}}", timeout=15, check=False)
        return answer.out.strip() or None if answer.rc == 0 else None

    def ensure(self) -> bool:
        """See to it that an engine answers; return whether it had to be started.

        Raises ThrowawayError when it cannot be, with the end of its log.
        """
        if self.version():
            return False
        remote = os.environ.get("DOCKER_HOST")
        if remote:
            raise ThrowawayError(
                f"DOCKER_HOST is {remote}, and no engine answers there; start it, or unset "
                "DOCKER_HOST to use an engine on this machine"
            )
        if os.geteuid() != 0:
            raise ThrowawayError(
                "no Docker Engine answers, and only root can start one: start it, see that "
                "`docker info` works for you, or run this again as root"
            )
        install_commands(self.commands, "dockerd", "docker", "iptables")
        if systemd_runs():
            self.commands.run("systemctl", "start", "docker")
        elif not _is_process(PID_FILE, "dockerd", process_name):
            self._start()
        self._wait()
        return True

    def _start(self) -> None:
        for path in leftovers():
            path.unlink()
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = self.commands.start_daemon("dockerd", log=self._log)
        self.write_mark(Mark(pid, process_start(pid) or ""))

    def _wait(self) -> None:
        mark = self._mark_read()

        def answers_or_ended() -> bool:
            return self.version() is not None or (mark is not None and not mark.is_alive())

        if not wait_until(answers_or_ended, ENGINE_START_SECONDS) or self.version() is None:
            raise ThrowawayError(
                f"the Docker Engine did not answer; the end of {self._log} says: {self._log_tail()}"
            )

    def _log_tail(self) -> str:
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "(there is no log; see `journalctl -u docker`)"
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def write_mark(self, mark: Mark) -> None:
        """Note which engine is this harness's own to stop."""
        self._mark.write_text(json.dumps(asdict(mark)), encoding="ascii")

    def _mark_read(self) -> Mark | None:
        try:
            return Mark(**json.loads(self._mark.read_text(encoding="ascii")))
        except (OSError, ValueError, TypeError):
            return None

    def stop_if_idle(self, dry_run: bool = False) -> bool:
        """End the engine if this harness started it and no container is left on it.

        Returns whether it was ended, or would have been in a dry run.
        """
        with locked(self.lock):
            mark = self._mark_read()
            if mark is None or not mark.is_alive() or self.lines("ps", "--all", "--quiet"):
                return False
            if not dry_run:
                os.kill(mark.pid, signal.SIGTERM)
                if not wait_until(lambda: not mark.is_alive(), ENGINE_STOP_SECONDS):
                    raise ThrowawayError(f"the Docker Engine (process {mark.pid}) does not end")
                self._mark.unlink()
            return True
