# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run commands on this machine, and install the packages of missing commands."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import progress
from lab.errors import LabError

# Commands whose package has another name.
PACKAGE_OF_COMMAND: Mapping[str, str] = {
    "dockerd": "docker.io",
    "docker": "docker-cli",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
OUTPUT_TAIL_LINES = 12
COMMAND_WIDTH = 100


@dataclass(frozen=True)
class Completed:
    """Exit status and output of a command that has ended."""

    rc: int
    out: str
    err: str


class CommandError(LabError):
    """A command that failed or exceeded its time limit."""

    def __init__(self, argv: tuple[str, ...], completed: Completed) -> None:
        self.completed = completed
        output = (completed.err.strip() or completed.out.strip() or "no output").splitlines()
        command = textwrap.shorten(" ".join(argv), COMMAND_WIDTH)
        super().__init__(
            f"`{command}` failed with status {completed.rc}: "
            + "\n".join(output[-OUTPUT_TAIL_LINES:])
        )


class Commands:
    """Starts every process of the lab, so that tests can replace them all."""

    def __init__(self) -> None:
        # A user's PATH often lacks the sbin folders, where dockerd and iptables live.
        path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"
        self._env = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}

    def is_installed(self, command: str) -> bool:
        """Return whether a command is installed."""
        return shutil.which(command, path=self._env["PATH"]) is not None

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        timeout: float = 600.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command for at most `timeout` seconds.

        Raises CommandError when the command fails and `check` is set. A missing command fails
        with status 127, a command that exceeds the time limit with status 124.
        """
        progress.show(textwrap.shorten(" ".join(argv), COMMAND_WIDTH))
        try:
            process = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
                env={**self._env, **(env or {})},
            )
            completed = Completed(process.returncode, _text(process.stdout), _text(process.stderr))
        except FileNotFoundError:
            completed = Completed(127, "", f"{argv[0]} is not installed")
        except subprocess.TimeoutExpired:
            completed = Completed(124, "", f"still running after {timeout:g} s")
        if check and completed.rc != 0:
            raise CommandError(argv, completed)
        return completed

    def run_with_output_deadline(
        self, *argv: str, first_output: float, timeout: float
    ) -> Completed:
        """Run a command that must write within `first_output` seconds and end within `timeout`.

        For `docker pull`: a registry that answers may take minutes to send an image; a registry
        that does not answer must cost seconds only. Status 124 means that a limit was exceeded.
        """
        progress.show(textwrap.shorten(" ".join(argv), COMMAND_WIDTH))
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
            assert process.stdout is not None  # stdout is a pipe
            try:
                if not select.select([process.stdout], [], [], first_output)[0]:
                    return Completed(124, "", f"no output after {first_output:g} s")
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                return Completed(124, "", f"still running after {timeout:g} s")
            finally:
                process.kill()
            errors.seek(0)
            return Completed(process.returncode, _text(out), _text(errors.read()))

    def start_daemon(self, *argv: str, log: Path) -> int:
        """Start a process that outlives this one and writes a new `log`; return its ID."""
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


def install_commands(commands: Commands, *names: str) -> None:
    """Install the packages of the commands that are missing; see install_package."""
    for name in names:
        # Checked one by one: in some releases docker.io also installs the docker command.
        if not commands.is_installed(name):
            install_package(commands, PACKAGE_OF_COMMAND.get(name, name))


def install_package(commands: Commands, package: str) -> None:
    """Install a package of this machine's distribution.

    Raises LabError without root or without apt-get.
    """
    if os.geteuid() != 0 or not commands.is_installed("apt-get"):
        raise LabError(
            f"cannot install the package {package} on this machine: root and apt-get are required."
            " Install the package, or run this command as root on Debian or Ubuntu."
        )
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    if not systemd_runs():
        # Without systemd the package would start an engine by its init script; in "single-user
        # mode" invoke-rc.d starts nothing.
        env["RUNLEVEL"] = "1"
    apt_get = ("apt-get", "-o", "DPkg::Lock::Timeout=120")
    install = (*apt_get, "install", "--yes", "--no-install-recommends", package)
    if commands.run(*install, env=env, check=False).rc != 0:
        # The package lists are missing or too old.
        commands.run(*apt_get, "update", env=env)
        commands.run(*install, env=env)


def systemd_runs() -> bool:
    """Return whether systemd is this machine's init, as sd_booted(3) does."""
    return Path("/run/systemd/system").is_dir()
