# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts of aliases on a host of a Slurm cluster: as a job, by the same command on the job's host.

The command line reaches that host in a variable of the job's environment, which only its user can
read.  Slurm shows the program and its arguments of every job to everybody.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api, guard, labels, several_hosts, slurm, start
from .caller import home_folder, user_name
from .engine import Docker
from .errors import MlError, reason
from .settings import Alias, Layer

if TYPE_CHECKING:
    import subprocess

COMMANDS = "/usr/local/bin"
# The words after the name of the alias, as JSON.
WORDS = "SLIPWAY_JOB_WORDS"
# srun ends with this status if it cannot run the job; programs rarely do.
SRUN_FAILED = 253
# Slurm's reasons of a job whose program ended with a status, or by a signal.
PROGRAM_FAILED, PROGRAM_KILLED = "NonZeroExitCode", "RaisedSignal"
# While the epilog removes the containers of a job, Slurm does not show how the job ended.
COMPLETING, COMPLETING_SECONDS = "COMPLETING", 15.0
# Signals that reach the programs of the job, as the docker command passes them on.
PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1),
    signal.SIGUSR2,
)
# The waiting job is looked up after this time, then at growing intervals, up to the longest.
FIRST_LOOK, LONGEST_PAUSE = 0.5, 15.0
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")


def is_in_job(environment: Mapping[str, str]) -> bool:
    """Return whether this process runs on the host of a job; a shell of salloc does not."""
    return bool(environment.get("SLURM_JOB_ID") and environment.get("SLURMD_NODENAME"))


def words_of_job(words: Sequence[str]) -> list[str]:
    """Return the command line of an alias: that of its job, else WORDS."""
    if is_in_job(os.environ) and WORDS in os.environ:
        # Another alias that the program of the job starts has its own words.
        return [str(word) for word in json.loads(os.environ.pop(WORDS))]
    return list(words)


def start_alias(
    docker: Docker, alias: Alias, arguments: argparse.Namespace, words: Sequence[str]
) -> int:
    """Start an alias as a job, or in the job of this process; return the exit status.

    A start without GPUs needs no job, and an image without a gpu variant only if it asks for GPUs.
    """
    merged = start.merge_settings(alias, arguments)
    if is_in_job(os.environ):
        return start_in_job(docker, alias, arguments, merged)
    hosts = several_hosts.count_hosts(arguments.hosts)
    if merged["gpus"] == "free" and alias.variant != "gpu" and hosts == 1:
        merged["gpus"] = "none"
    request = slurm.make_request(merged, hosts)
    several_hosts.check_start(alias, request)
    if not request.gpus:
        return start.start(docker, alias, arguments, (), merged)
    if arguments.show:
        print(" ".join(srun_words(request, alias.name, "")))
        return 0
    check_access(docker)
    os.environ[WORDS] = json.dumps(list(words))
    if arguments.detach:
        return submit(docker, alias, request)
    return run_job(docker, alias, request)


def start_in_job(docker: Docker, alias: Alias, arguments: argparse.Namespace, merged: Layer) -> int:
    """Start the container of an alias in the job of this process; return the exit status."""
    arguments.detach = False
    several_hosts.check_step(os.environ, several_hosts.count_hosts(arguments.hosts), alias.name)
    merged = settings_in_job(merged, os.environ)
    options = [f"--label={labels.JOB}={os.environ['SLURM_JOB_ID']}", *limits(docker)]
    if several_hosts.is_part(os.environ):
        alias = several_hosts.on_network_of_host(alias)
        number = len(merged["gpus"].split(","))
        options += several_hosts.options(os.environ, number, docker.contact)
    return start.start(docker, alias, arguments, options, merged)


def settings_in_job(merged: Layer, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a start in a job: its GPUs, and its limits instead of the person's.

    Raise MlError if the job has fewer GPUs than the setting asks for.
    """
    ids = gpus_of_job(environment, numbers_of_gpus(DRIVER_GPUS))
    number = slurm.count_gpus(merged["gpus"])
    if merged["gpus"] == "free":
        number = len(ids)
    if number > len(ids):
        raise MlError(
            f"gpus is {number}; expected at most {len(ids)}, the number of GPUs of job "
            f"{environment['SLURM_JOB_ID']} on this host. Ask Slurm for more, or change --gpus"
        )
    kept = {key: value for key, value in merged.items() if key not in ("memory", "cpus")}
    return {**kept, "gpus": ",".join(ids[:number]) or "none"}


def gpus_of_job(environment: Mapping[str, str], numbers: Mapping[str, str]) -> list[str]:
    """Return the GPUs of a job on this host by the numbers that docker and the toolkit use.

    Slurm counts device files.  NUMBERS is from :func:`numbers_of_gpus`.
    """
    listed = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or ""
    return [numbers.get(minor, minor) for minor in listed.split(",") if minor.isdecimal()]


def numbers_of_gpus(folder: Path) -> dict[str, str]:
    """Return the number of each GPU in the order of its PCI address, by its device file's number.

    It has no entries if the driver describes no GPU; then both numbers are the same.
    """
    numbers: dict[str, str] = {}
    try:
        files = sorted(folder.glob("*/information"))
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    except OSError:
        return {}
    for text in texts:
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        numbers[fields.get("Device Minor", "").strip()] = str(len(numbers))
    return numbers


def limits(docker: Docker) -> list[str]:
    """Return the options that give a container the CPUs and the memory of the job.

    The engine starts it outside the job's control group.
    """
    cpus, memory = slurm_limits(os.environ, os.sched_getaffinity(0), os.cpu_count() or 1)
    if not (cpus or memory):
        return []
    (info,) = docker.get(dict, "/info")
    return [
        *([f"--cpuset-cpus={cpus}"] if cpus and info.get("CPUSet") else []),
        *([f"--memory={memory}m"] if memory and info.get("MemoryLimit") else []),
    ]


def slurm_limits(environment: Mapping[str, str], cpus: set[int], total: int) -> tuple[str, int]:
    """Return the CPUs of a job, empty without a limit, and its memory in MiB on this host."""

    def number(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdecimal() else 0

    memory = number("SLURM_MEM_PER_NODE") or (
        number("SLURM_MEM_PER_CPU") * number("SLURM_CPUS_ON_NODE")
    )
    return ",".join(map(str, sorted(cpus))) if len(cpus) < total else "", memory


def check_access(docker: Docker) -> None:
    """Raise MlError for a caller who may not use Docker; a controller may have no engine."""
    if os.path.exists(api.find_socket() or api.DEFAULT_SOCKET):
        docker.send(api.Request("/_ping"))


def request_options(request: slurm.Request, name: str, comment: str) -> list[str]:
    """Return the options by which srun and sbatch ask for a job."""
    return [
        f"--job-name={name}",
        *([f"--comment={comment}"] if comment else []),
        *request.options,
    ]


def srun_words(request: slurm.Request, name: str, comment: str) -> list[str]:
    """Return the command that runs an alias as a job, in the terminal of this process."""
    terminal = start.is_terminal(0) and start.is_terminal(1)
    # Two times: without Slurm's lines about the exit status of the program.
    alone = ["--quiet", *(["--pty"] if terminal else [])]
    return [
        *("srun", "--quiet", *request_options(request, name, comment)),
        # Ctrl-C reaches the program at once; the job's CPUs are those of its container.
        *("--disable-status", "--cpu-bind=none"),
        # The first program that fails ends those on the other hosts.
        *(alone if request.hosts == 1 else ["--kill-on-bad-exit=1"]),
        f"{COMMANDS}/{name}",
    ]


def submit(docker: Docker, alias: Alias, request: slurm.Request) -> int:
    """Submit an alias as a job without a terminal, and print its number."""
    folder = Path.cwd() if os.access(".", os.W_OK) else home_folder()
    # A batch script runs on the first host only.
    each = "srun --quiet --cpu-bind=none --kill-on-bad-exit=1 " if request.hosts > 1 else ""
    status, output, errors = slurm.run((
        *("sbatch", "--parsable", *request_options(request, alias.name, "")),
        # In the pattern of a file name, % begins a field.
        f"--output={str(folder).replace('%', '%%')}/%x-%j.out",
        f"--wrap=exec {each}{COMMANDS}/{alias.name}",
    ))  # fmt: skip
    if status:
        raise refusal(docker, errors, request)
    number = output.strip().partition(";")[0]
    print(number)
    print(
        f"{alias.name}: job {number} is in the queue; its output goes to "
        f"{folder}/{alias.name}-{number}.out. To end it, run: ml cancel {number}",
        file=sys.stderr,
    )
    return 0


def refusal(docker: Docker, errors: str, request: slurm.Request) -> MlError:
    """Return the error for the error output of srun or sbatch."""
    user = user_name(os.getuid())
    sentence = slurm.explain_refusal(errors, request, user, docker.contact)
    return MlError(sentence or f"Slurm refuses the job: {slurm.last_line(errors)}")


def run_job(docker: Docker, alias: Alias, request: slurm.Request) -> int:
    """Run an alias as a job to its end; return the exit status of its program."""
    # A shell of salloc has an allocation already, whose job has another comment.
    comment = "" if os.environ.get("SLURM_JOB_ID") else f"slipway-{os.urandom(8).hex()}"
    words = srun_words(request, alias.name, comment)
    os.environ["SLURM_EXIT_ERROR"] = str(SRUN_FAILED)
    watcher = None
    if comment and not guard.survives_hangup():
        watcher = guard.start_watcher(lambda *_end: cancel_own(comment), lambda: None)
    waiting = Waiting(docker, alias.name, request, comment)
    status = run_in_foreground(docker, words, waiting)
    if watcher:
        os.kill(watcher, signal.SIGKILL)
    if status < 0 and comment:
        # Slurm does not notice that srun was killed.
        cancel_own(comment)
    return explain_end(docker, alias.name, request, waiting, abs(status) + 128 * (status < 0))


class Waiting:
    """What a person sees while a job waits: the place in the queue."""

    def __init__(self, docker: Docker, name: str, request: slurm.Request, comment: str) -> None:
        """Set the job to look for, by its comment."""
        self.docker, self.name, self.request, self.comment = docker, name, request, comment
        self.pause = FIRST_LOOK
        self.shown = ""
        self.over = not comment

    def look(self) -> None:
        """Show the place in the queue if it changed, until the job runs."""
        number, state, host, _reason = find_own(self.comment)
        if state == slurm.WAITING:
            self.pause = min(self.pause * 1.5, LONGEST_PAUSE)
            # The controller may restart; srun waits for it.
            with suppress(MlError):
                jobs = slurm.list_jobs(self.docker.contact)
                self.show(slurm.describe_place(jobs, number, self.request))
        elif number:
            self.over = True
            if self.shown:
                self.show(f"job {number} starts on {host}", end="\n")

    def show(self, text: str, end: str = "") -> None:
        """Show a sentence: in a terminal in the place of the last one, else if it is new."""
        if not text or text == self.shown:
            return
        self.shown = text
        if start.is_terminal(2):
            columns = os.get_terminal_size(2).columns or 80
            line = f"{self.name}: {text}"[: columns - 1]
            print(f"\r\x1b[K{line}", end=end and "\r\n", file=sys.stderr, flush=True)
        else:
            print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def find_own(comment: str) -> tuple[str, str, str, str]:
    """Return number, state, hosts and Slurm's reason of the caller's job; empty texts for none."""
    _status, output, _errors = slurm.run((
        *("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%N|%r|%k"),
    ))  # fmt: skip
    for line in output.splitlines():
        fields = line.strip().split("|")
        if len(fields) == 5 and fields[4] == comment:
            return fields[0], fields[1], fields[2], fields[3]
    return "", "", "", ""


def find_end(comment: str) -> tuple[str, str, str, str]:
    """Return the same as :func:`find_own`, after Slurm knows how the job ended."""
    deadline = time.monotonic() + COMPLETING_SECONDS
    while True:
        number, state, hosts, why = find_own(comment)
        is_known = state != COMPLETING or why.startswith((PROGRAM_FAILED, PROGRAM_KILLED))
        if is_known or time.monotonic() >= deadline:
            return number, state, hosts, why
        time.sleep(guard.POLL_SECONDS)


def cancel_own(comment: str) -> None:
    """Cancel the job with a comment, after its client died or lost its connection."""
    deadline = time.monotonic() + guard.APPEAR_SECONDS
    while True:
        number, state, _host, _reason = find_own(comment)
        if number and state not in slurm.ENDS:
            slurm.run(("scancel", number))
        if number or time.monotonic() >= deadline:
            return
        time.sleep(guard.POLL_SECONDS)


def run_in_foreground(docker: Docker, words: Sequence[str], waiting: Waiting) -> int:
    """Run srun to its end, and pass signals on; return its exit status, or less than 0.

    Ctrl-C in a terminal reaches srun without this process.  Another signal goes to the program of
    the job by Slurm, because srun would end the job at once.
    """
    import subprocess

    caught = {signal.SIGCHLD, *PASSED_ON}
    if guard.survives_hangup():
        caught.discard(signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    # Blocked signals must have a handler, or the kernel drops them.
    signal.signal(signal.SIGCHLD, lambda *_signal: None)
    try:
        process = subprocess.Popen(
            words,
            # This process has no threads.
            preexec_fn=lambda: signal.pthread_sigmask(  # noqa: PLW1509
                signal.SIG_UNBLOCK, caught
            ),
            # Under nohup, the end of the terminal must not reach srun.
            start_new_session=guard.survives_hangup(),
        )
    except (OSError, ValueError) as error:
        raise MlError(f"cannot run srun: {reason(error, 'srun')}. Tell {docker.contact}") from None
    while process.poll() is None:
        caught_signal = signal.sigtimedwait(caught, 3600 if waiting.over else waiting.pause)
        if caught_signal is None:
            if not waiting.over:
                waiting.look()
        elif caught_signal.si_signo != signal.SIGCHLD:
            pass_on(caught_signal, process, waiting)
    return process.returncode


def pass_on(
    caught: signal.struct_siginfo, process: subprocess.Popen[bytes], waiting: Waiting
) -> None:
    """Pass a signal on to the program of the job; one of the terminal has reached srun already."""
    if caught.si_pid == 0:
        return
    number, state, _host, _reason = find_own(waiting.comment) if waiting.comment else ("",) * 4
    if state == slurm.RUNNING:
        name = signal.Signals(caught.si_signo).name.removeprefix("SIG")
        slurm.run(("scancel", f"--signal={name}", number))
    else:
        process.send_signal(caught.si_signo)


def explain_end(
    docker: Docker, name: str, request: slurm.Request, waiting: Waiting, status: int
) -> int:
    """Print why Slurm ended a job, or did not start it; return the exit status of the alias."""
    if waiting.shown and not waiting.over and start.is_terminal(2):
        print(file=sys.stderr)
    if status == 0 or not waiting.comment:
        return status
    number, state, hosts, why = find_end(waiting.comment)
    if ending := slurm.ENDS.get(state, ""):
        if not hosts:
            print(f"{name}: job {number} left the queue: {ending}", file=sys.stderr)
            return 128 + signal.SIGINT
        print(f"{name}: job {number} on {hosts} ended: {ending}", file=sys.stderr)
    if status != SRUN_FAILED or why == PROGRAM_FAILED:
        return status
    if hosts:
        raise MlError(
            f"Slurm cannot run job {number} on {hosts}; expected {user_name(os.getuid())} with the "
            f"same user number on all hosts and the controller. Ask {docker.contact}"
        )
    test = ("srun", "--test-only", *request_options(request, name, ""), "true")
    _status, _output, errors = slurm.run(test)
    raise refusal(docker, errors, request)
