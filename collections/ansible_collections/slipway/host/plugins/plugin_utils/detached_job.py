# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work on a host, from an action plugin: started detached, and followed from here."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils import ask_host, host_command

# Seconds between two looks at the progress.
PACE = 1.0

display = Display()


def carry_out(action: ActionBase, work: str, program: str, job: bytes) -> dict[str, Any]:
    """Send JOB to a folder of its own below WORK, start PROGRAM there, and return its result.

    JOB is an archive of :func:`_job.packed`, PROGRAM the name of a module in it.  What it writes to
    ``progress`` is told as it comes.
    """
    folder = f"{work}/{time.time_ns()}"
    start = f"{ask_host.interpreter(action)} -E -s -m {program} {folder}"
    # Jobs of controllers that went away are removed after a week.
    # The archive travels as text: a connection's standard input may not be clean for bytes.
    _command(
        action,
        f"umask 077; mkdir -p {folder} && cd {folder} && "
        f"find {work} -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {{}} + && "
        "base64 -d | tar -xz && : >progress && "
        f"{{ setsid {start} >log 2>&1 </dev/null & echo $! >pid; }}",
        base64.encodebytes(job),
    )
    # A program that is gone without a result was killed.
    look = (
        f"cd {folder}; kill -0 $(cat pid) 2>/dev/null && alive=1; "
        'cat result.json 2>/dev/null || [ "$alive" ] || echo \'{"killed": true}\'; '
        "echo; echo ----; tail -c +%d progress"
    )
    variables = action._templar.available_variables or {}
    host, told = variables.get("inventory_hostname", "host"), 0
    try:
        while True:
            outcome, _, news = _command(action, look % (told + 1)).partition("----\n")
            told += len(news.encode())
            for line in news.splitlines():
                display.display(f"{host}: {escape_control(line)}")
            if outcome.strip():
                done: dict[str, Any] = json.loads(outcome)
                if "killed" in done:
                    raise AnsibleActionFail("the work was killed; run again to finish it")
                return done
            time.sleep(PACE)
    finally:
        # Between the result and the end of the program there is nothing but a moment.
        _command(
            action,
            f"cd /; [ ! -e {folder}/result.json ] && kill -0 $(cat {folder}/pid) 2>/dev/null || "
            f"rm -rf {folder}",
        )


def _command(action: ActionBase, script: str, data: bytes = b"\n") -> str:
    """Run a shell script on the host as root; return its output or fail."""
    reply = host_command.run(action, script, data)
    if reply.status != 0:
        raise AnsibleActionFail(f"the host could not be reached: {reply.error}")
    return reply.output
