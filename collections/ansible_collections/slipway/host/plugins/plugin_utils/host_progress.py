# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show the progress of a module while it runs: a thread reads the status file of its host.

A module that ends at once, as in a run without changes, costs no further round trip.
"""

from __future__ import annotations

import contextlib
import copy
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.host import status
from ansible_collections.slipway.host.plugins.plugin_utils import (
    host_command,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    progress_channel,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.progress_channel import Message

# Seconds until the first look.
PATIENCE = 1.5
# The command on the host waits for news, but not longer than so many looks.
LOOKS, LOOK_PAUSE = 20, "0.2"
# Seconds between two commands, so that fast progress costs little.
PAUSE = 0.4


def host_of(action: ActionBase) -> str:
    """Return the name of the host of ACTION in the inventory."""
    variables = action._templar.available_variables or {}
    return str(variables.get("inventory_hostname", "host"))


def wait_script(path: str, last: str, is_new: str = "false") -> str:
    """Return the shell script that waits until the line of a status file is not LAST.

    It also ends if the command IS_NEW succeeds, and after LOOKS. It sets the variable ``line``; the
    file of a process that was killed counts as empty.
    """
    return (
        f"n=0; while :; do line=; read -r pid line 2>/dev/null <{path} && "
        'kill -0 "$pid" 2>/dev/null || line=; '
        f'[ "$line" = {shlex.quote(last)} ] && [ $n -lt {LOOKS} ] && ! {is_new} || break; '
        f"n=$((n + 1)); sleep {LOOK_PAUSE}; done"
    )


@contextmanager
def watch(action: ActionBase) -> Iterator[None]:
    """Show the progress of the module that the block runs, if a callback shows progress."""
    if not progress_channel.is_open():
        yield
        return
    ended = threading.Event()
    # The module has ended its commands when the thread may still wait for its own: a daemon.
    thread = threading.Thread(target=_follow, args=(_separate(action), ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(PAUSE)


def _separate(action: ActionBase) -> ActionBase:
    """Return a copy of ACTION whose commands do not disturb those of the original."""
    twin = copy.copy(action)
    twin._connection = copy.copy(action._connection)
    twin._connection.become = copy.copy(action._connection.become)
    return twin


def _follow(action: ActionBase, ended: threading.Event) -> None:
    """Send each new line of the host's status file, until the module has ended."""
    host, last, pause = host_of(action), "", PATIENCE
    script = '; printf "%s" "$line"'
    # A host that cannot answer now fails the module itself.
    with contextlib.suppress(AnsibleError, OSError):
        while not ended.wait(pause):
            pause = PAUSE
            reply = host_command.run(action, wait_script(status.PATH, last) + script)
            line = reply.output.strip()
            if line != last and not ended.is_set():
                progress_channel.send(Message(host, "now", line))
            last = line
