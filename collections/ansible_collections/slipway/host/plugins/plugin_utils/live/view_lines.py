# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of the live view: a pure function of the hosts' state, the terminal's size and time.

A line is a list of pairs: a text, and a style of the library rich. Widths are in terminal cells:
a Chinese character has two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ansible_collections.slipway.host.plugins.plugin_utils.live import (
    view_state,
)
from ansible_collections.slipway.host.plugins.plugin_utils.live.view_state import Host, Run
from rich.cells import cell_len, set_cell_size

Line = list[tuple[str, str]]

# From this width on, the progress has a column beside the step.
WIDE = 110
MAX_NAME, MAX_ROLE, MAX_STEP = 20, 25, 48
# Which hosts are shown if not all fit; failed hosts first.
RANKS = (
    *(view_state.FAILED, view_state.UNREACHABLE, view_state.RUNNING),
    *(view_state.IDLE, view_state.DONE, view_state.HELD),
)
STYLES = {
    view_state.FAILED: "bold red",
    view_state.UNREACHABLE: "bold red",
    view_state.RUNNING: "bold",
    view_state.IDLE: "dim",
    view_state.DONE: "green",
    view_state.HELD: "yellow",
}


def lines(run: Run, width: int, height: int, now: float) -> list[Line]:
    """Return the lines of the view, at most HEIGHT - 1, none wider than WIDTH - 1."""
    room = max(1, height - 2)
    hosts = sorted(run.hosts.values(), key=lambda host: host.name)
    shown = hosts if len(hosts) <= room else _busiest(hosts, room - 1)
    has_second_line = width < WIDE and 2 * len(shown) <= room
    widths = _Widths(shown)
    result = [_header(run, hosts, now)]
    for host in shown:
        result += _host(run, host, widths, width, now, has_second_line)
    if len(shown) < len(hosts):
        result.append(_others([host for host in hosts if host not in shown]))
    return [crop(line, width - 1) for line in result[: max(1, height - 1)]]


def duration(seconds: float) -> str:
    """Return seconds as minutes and seconds, or as hours, minutes and seconds."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def crop(line: Line, width: int) -> Line:
    """Return a line of at most WIDTH cells."""
    result: Line = []
    for text, style in line:
        size = cell_len(text)
        if size > width:
            return [*result, (set_cell_size(text, max(0, width)), style)]
        result.append((text, style))
        width -= size
    return result


def _split(text: str, width: int) -> tuple[str, str]:
    """Return the words of a text that fit into WIDTH cells, and the others."""
    words = text.split(" ")
    count = 1
    while count < len(words) and cell_len(" ".join(words[: count + 1])) <= width:
        count += 1
    return " ".join(words[:count]), " ".join(words[count:])


class _Widths:
    """The widths of the columns."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.name = min(MAX_NAME, max((cell_len(host.name) for host in hosts), default=0))
        self.role = min(MAX_ROLE, max((cell_len(host.role) for host in hosts), default=0))
        self.step = min(MAX_STEP, max((cell_len(host.step) for host in hosts), default=0))


def _busiest(hosts: Sequence[Host], count: int) -> list[Host]:
    """Return COUNT hosts, sorted by name: the failed ones, then those longest in their step."""
    order = sorted(hosts, key=lambda host: (RANKS.index(host.state), host.since))
    return sorted(order[: max(0, count)], key=lambda host: host.name)


def _header(run: Run, hosts: Sequence[Host], now: float) -> Line:
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    times = [run.remaining(host.name, now) for host in hosts if host.state not in RANKS[:2]]
    known = [seconds for seconds in times if seconds is not None]
    left = f", about {duration(max(known))} left" if known and max(known) > 0 else ""
    failed = sum(host.state in view_state.ENDED for host in hosts)
    return [
        (f"{duration(now - run.began)}  ", "bold"),
        (run.play or "Starting", "bold cyan"),
        (f"  {count}" if hosts else "", ""),
        (f", {failed} failed" if failed else "", "bold red"),
        (left, ""),
    ]


def _host(
    run: Run, host: Host, widths: _Widths, width: int, now: float, has_second_line: bool
) -> Iterator[Line]:
    """Yield the line of a host, and its progress below if there is room."""
    text = _text(run, host, now)
    line: Line = [
        (set_cell_size(host.name, widths.name), STYLES[host.state]),
        (f"  {duration(now - host.since):>5}" if host.state in _TIMED else " " * 7, ""),
    ]
    if host.state not in _TIMED:
        colon = ":" if host.state == view_state.HELD else ""
        line.append((f"  {host.state}{colon}", STYLES[host.state]))
        first, rest = text, ""
        if has_second_line:
            first, rest = _split(text, width - 3 - sum(cell_len(part) for part, _style in line))
        space = " " if colon else "  "
        yield [*line, (f"{space}{first}" if first else "", "")]
        if rest:
            yield [(f"  {rest}", "")]
        return
    if widths.role:
        line.append((f"  {set_cell_size(host.role, widths.role)}", "cyan"))
    if width >= WIDE:
        yield [*line, (f"  {set_cell_size(host.step, widths.step)}", ""), (f"  {text}", "yellow")]
    elif has_second_line:
        yield [*line, (f"  {host.step}", "")]
        if text:
            yield [(f"  {text}", "yellow")]
    else:
        yield [*line, (f"  {text or host.step}", "yellow" if text else "")]


_TIMED = (view_state.RUNNING, view_state.IDLE)


def _text(run: Run, host: Host, now: float) -> str:
    """Return what the host does within its step, why it waits, or how it ended."""
    if host.state in (*view_state.ENDED, view_state.HELD):
        return host.reason
    if host.state == view_state.DONE:
        return "1 change" if host.changed == 1 else f"{host.changed} changes"
    if host.state == view_state.RUNNING:
        return host.text or _usual(run, host, now)
    running = sorted(
        other.name for other in run.hosts.values() if other.state == view_state.RUNNING
    )
    more = f" and {len(running) - 1} more" if len(running) > 1 else ""
    return f"waits for {running[0]}{more}" if running else ""


def _usual(run: Run, host: Host, now: float) -> str:
    left = run.remaining(host.name, now)
    return f"about {duration(left)} left" if left else ""


def _others(hosts: Sequence[Host]) -> Line:
    counts = Counter(host.state for host in hosts)
    listed = ", ".join(f"{counts[state]} {state}" for state in RANKS if counts[state])
    return [(f"and {len(hosts)} more: {listed}", "dim")]
