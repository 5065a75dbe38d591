# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a shell command on a host as root, in Slipway's environment, and return only its output."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.host import environment

# The start files of a shell, a banner or a PAM module may print before and after the output.
BEGIN, END = "--- slipway: begin of output ---", "--- slipway: end of output ---"
PROMPT = "waiting for privilege escalation prompt"
# sudo-rs of Ubuntu 25.10 and 26.04: ansible#85837, ansible#86849, semaphore#4077 (2026).
NO_PROMPT = (
    "The host may be too busy to answer in time: set more seconds as timeout in ansible.cfg. Or "
    "its sudo is sudo-rs, whose question for the password Ansible does not know: set "
    "ansible_become_exe: sudo.ws in the inventory of this host"
)
_SETTINGS = " ".join(f"{name}={shlex.quote(text)}" for name, text in environment.FIXED.items())
_PROLOGUE = f"umask {environment.UMASK:03o}; export {_SETTINGS}; echo {shlex.quote(BEGIN)}"
_EPILOGUE = f"status=$?; echo; echo {shlex.quote(END)}; exit $status"


@dataclass(frozen=True)
class Reply:
    """The result of a command: ``status`` is 255 if ssh could not reach the host.

    ``error`` is what to show a person after a failure.
    """

    status: int
    output: str
    error: str


def run(action: ActionBase, command: str, data: bytes = b"\n") -> Reply:
    """Run COMMAND, a shell script of one or several lines, with DATA as its standard input.

    DATA is never empty: without data, ssh allocates a terminal, which changes line ends.
    """
    # Python as COMMAND ends when its input ends, so COMMAND needs no shell of its own.
    try:
        reply = action._low_level_execute_command(
            f"{_PROLOGUE}\n{{ {command}\n}}\n{_EPILOGUE}", in_data=data, sudoable=True
        )
    except AnsibleError as error:
        if PROMPT not in str(error):
            raise
        raise type(error)(f"{str(error).rstrip(' .:')}. {NO_PROMPT}") from None
    _before, _begin, rest = reply["stdout"].partition(f"{BEGIN}\n")
    output, end, _after = rest.rpartition(f"\n{END}\n")
    if not end:
        output = rest
    return Reply(int(reply["rc"]), output, (reply["stderr"] or output or reply["stdout"]).strip())
