# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text of a run for people: failures, messages of tasks, and lines without a terminal.

Text of hosts is escaped: it cannot move the cursor or look like another line of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils import unreachable

# Lines of a program's output that a failure shows; the log has all of them.
SHOWN_OUTPUT = 40
NAMED_HOSTS = 6
# Keys of a result with the output of programs, and their headings.
_OUTPUTS = (
    *(("stderr", "stderr"), ("stdout", "stdout"), ("output", "output")),
    *(("module_stderr", "stderr of the module"), ("module_stdout", "stdout of the module")),
)
_PREFIXES = ("Task failed: ", "Module failed: ", "Action failed: ")


def safe_lines(text: object) -> list[str]:
    """Return the lines of a text of a host, escaped."""
    return [escape_control(line.expandtabs()) for line in str(text).splitlines()]


def one_line(text: object) -> str:
    """Return a text of a host as one escaped line."""
    return " ".join(safe_lines(text)).strip()


def message_of(result: Mapping[str, Any]) -> str:
    """Return the message of a failed task without what Ansible puts before it.

    For an unreachable host, the message says what to do.
    """
    message = result.get("msg", "")
    text = "\n".join(map(str, message)) if isinstance(message, list) else str(message)
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return unreachable.explain(text) if result.get("unreachable") else text.strip()


def failure(host: str, label: str, result: Mapping[str, Any], outcome: str = "FAILED") -> list[str]:
    """Return a failure: the message complete, then the output of the program."""
    message = message_of(result)
    lines = [f"{outcome} {host}: {label}", *(f"  {line}" for line in safe_lines(message))]
    for key, heading in _OUTPUTS:
        output = str(result.get(key) or "").strip()
        if output and output not in message:
            lines += _output(heading, safe_lines(output))
    if len(lines) == 1:
        lines.append("  no message; see the log, or run again with -v")
    return lines


def _output(heading: str, lines: Sequence[str]) -> Iterator[str]:
    left_out = len(lines) - SHOWN_OUTPUT
    yield f"  {heading}:" + (f" (the log has {left_out} more lines)" if left_out > 0 else "")
    yield from (f"    {line}" for line in lines[-SHOWN_OUTPUT:])


def debug_message(host: str, result: Mapping[str, Any]) -> list[str]:
    """Return the lines that a task of ansible.builtin.debug prints for a host."""
    if "msg" in result:
        message = result["msg"]
        text = "\n".join(map(str, message)) if isinstance(message, list) else str(message)
    else:
        text = "\n".join(
            f"{name}: {value}"
            for name, value in result.items()
            if not name.startswith("_ansible") and name not in ("changed", "failed")
        )
    lines = safe_lines(text)
    return [f"{host}: {lines[0]}"] if len(lines) == 1 else [f"{host}:", *lines]


def names(hosts: Iterable[str]) -> str:
    """Return the names of hosts, at most NAMED_HOSTS of them."""
    ordered = sorted(set(hosts))
    more = f" and {len(ordered) - NAMED_HOSTS} more" if len(ordered) > NAMED_HOSTS else ""
    return ", ".join(ordered[:NAMED_HOSTS]) + more


class Events:
    """The events of a run as lines, where no view can be drawn: none twice in a row."""

    def __init__(self) -> None:
        self._changed: list[str] = []
        self._label = ""
        self._role = ""
        self._last = ""

    def play(self, name: str) -> list[str]:
        """Return the lines for the start of a play."""
        self._role = ""
        return [*self.end_task(), *self.line(name)]

    def task(self, label: str, role: str) -> list[str]:
        """Return the lines for the start of a task: its role, if this is the first task of it."""
        lines = self.end_task()
        self._label = label
        if role and role != self._role:
            lines += self.line(f"role {role}")
        self._role = role
        return lines

    def change(self, host: str) -> None:
        """Record that the task changed a host."""
        self._changed.append(host)

    def end_task(self) -> list[str]:
        """Return the line for the hosts that the last task changed."""
        hosts, self._changed = self._changed, []
        return self.line(f"changed {names(hosts)}: {self._label}") if hosts else []

    def line(self, text: str) -> list[str]:
        """Return a line, nothing if it is equal to the last one."""
        if text == self._last:
            return []
        self._last = text
        return [text]
