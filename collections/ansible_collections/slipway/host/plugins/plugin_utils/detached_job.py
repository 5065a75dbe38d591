# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a long job on a host: start it detached from the connection, then show its progress."""

from __future__ import annotations

import base64
import json
import shlex
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    host_command,
    host_progress,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    progress_channel,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.progress_channel import Message

# Seconds between two reads of the progress; a read waits on the host for news.
POLL_SECONDS = 0.4
# Seconds that a result waits for a controller; if its run was killed, nobody reads the result.
RESULT_SECONDS = 600
# What the programs do, for people.
ACTIVITIES = {"builder": "build of images", "worker": "download of data"}

display = Display()


def run_job(action: ActionBase, work: str, program: str, job: bytes) -> dict[str, Any]:
    """Send JOB to a new folder below WORK, start PROGRAM there, and return its result.

    JOB is an archive of :func:`host.job.pack`, PROGRAM the name of a module in it. Each line that
    the program writes to ``progress`` is displayed. Raise AnsibleActionFail if the program was
    killed.
    """
    folder = f"{work}/{time.time_ns()}"
    # The archive is sent as text: not every connection passes arbitrary bytes to standard input.
    _run_command(
        action,
        _start_script(ask_host.interpreter(action), work, folder, program),
        base64.encodebytes(job),
    )
    host, displayed_bytes, status = host_progress.host_of(action), 0, ""
    name = program.rpartition(".")[2]
    progress_channel.send(Message(host, "job", ACTIVITIES.get(name, name)))
    try:
        while True:
            output = _run_command(action, _read_script(folder, displayed_bytes, status))
            outcome, _separator, rest = output.partition("----\n")
            new_status, _newline, progress = rest.partition("\n")
            displayed_bytes += len(progress.encode())
            for line in progress.splitlines():
                _show(host, line)
            if new_status != status:
                status = new_status
                progress_channel.send(Message(host, "now", status))
            if outcome.strip():
                result: dict[str, Any] = json.loads(outcome)
                if "killed" in result:
                    raise AnsibleActionFail(
                        f"The job {name} on the host was killed; run again to finish it."
                    )
                if "removed" in result:
                    raise AnsibleActionFail(
                        f"The job {name} on the host: found no result; expected one, which is "
                        f"removed {RESULT_SECONDS} s after the end of the job. The controller did "
                        "not read it in time. Run again."
                    )
                return result
            time.sleep(POLL_SECONDS)
    finally:
        # A program that wrote its result ends at once, so its folder can be removed.
        _run_command(
            action,
            f"cd /; [ ! -e {folder}/result.json ] && kill -0 $(cat {folder}/pid) 2>/dev/null || "
            f"rm -rf {folder}",
        )


def _show(host: str, line: str) -> None:
    """Show a line of the progress: in the view of the run, or else as a line of the output."""
    if not progress_channel.send(Message(host, "line", line)):
        display.display(f"{host}: {escape_control(line)}")


def _read_script(folder: str, displayed_bytes: int, status: str) -> str:
    """Return the script that waits for news of a job and prints its result, status and progress.

    A program that ended without a result was killed. Without the folder, its result was removed.
    The status is no news if no callback shows it: each read costs the controller CPU.
    """
    news = "status" if progress_channel.is_open() else "/dev/null"
    return (
        f"cd {folder} 2>/dev/null || {{ echo '{{\"removed\": true}}'; exit; }}; "
        f"is_new() {{ [ -e result.json ] || ! kill -0 $(cat pid) 2>/dev/null || "
        f"[ $(wc -c <progress) -gt {displayed_bytes} ]; }}; "
        f"{host_progress.wait_script(news, status, 'is_new')}; "
        "kill -0 $(cat pid) 2>/dev/null && alive=1; "
        'cat result.json 2>/dev/null || [ "$alive" ] || echo \'{"killed": true}\'; '
        f'echo; echo ----; printf "%s\\n" "$line"; tail -c +{displayed_bytes + 1} progress'
    )


def _start_script(python: str, work: str, folder: str, program: str) -> str:
    """Return the shell script that unpacks a job from standard input and starts it.

    A job whose controller went away is removed a while after its end, one that was killed by the
    next job. Jobs of a host that restarted are removed after a week.
    """
    # However the program ends, its own processes and its secrets do not outlive it.
    start = (
        f"{python} -E -s -m {program} {folder} & "
        "echo $! >pid.new; mv pid.new pid; wait $!; "
        f"trap '' TERM; kill -TERM 0; rm -rf {folder}/secrets {folder}/job.json; seconds=0; "
        f"while [ -e {folder}/result.json ] && [ $seconds -lt {RESULT_SECONDS} ]; do "
        "sleep 1; seconds=$((seconds + 1)); done; "
        f"[ ! -e {folder}/result.json ] || rm -rf {folder}"
    )
    return (
        f"umask 077; mkdir -p {folder} && cd {folder} && "
        f"for pid in {work}/*/pid; do [ ! -e $pid ] || [ -e ${{pid%/*}}/result.json ] || "
        f"kill -0 $(cat $pid) 2>/dev/null || rm -rf ${{pid%/*}}; done; "
        f"find {work} -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {{}} + && "
        "base64 -d | tar -xz && : >progress && "
        f"{{ setsid sh -c {shlex.quote(start)} >log 2>&1 </dev/null & }} && "
        "until [ -s pid ]; do sleep 0.02; done"
    )


def _run_command(action: ActionBase, script: str, data: bytes = b"\n") -> str:
    """Run a shell script on the host as root; return its output or fail."""
    reply = host_command.run(action, script, data)
    if reply.status != 0:
        raise AnsibleActionFail(f"Cannot run a command on the host: {reply.error}")
    return reply.output
