# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of a run do now: changed by events, read by :mod:`view_lines`.

Times are seconds of one clock, such as ``time.monotonic()``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

RUNNING, IDLE, DONE, FAILED, UNREACHABLE = "running", "idle", "done", "failed", "unreachable"
HELD = "held"
ENDED = (FAILED, UNREACHABLE)


@dataclass
class Host:
    """A host of the run.

    ``since`` is when the current step began, ``role_since`` the current role. ``text`` is the
    progress within the step, ``job`` the work that goes on if the controller stops, ``pending`` the
    roles that follow, ``reason`` the first line of an error, or why the host is held.
    """

    name: str
    state: str = IDLE
    role: str = ""
    step: str = ""
    since: float = 0.0
    role_since: float = 0.0
    role_changed: bool = False
    text: str = ""
    job: str = ""
    changed: int = 0
    reason: str = ""
    pending: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RoleEnd:
    """A role that ended on a host after SECONDS."""

    host: str
    role: str
    seconds: float
    changed: bool


class Run:
    """All hosts of a run. ``usual`` are the seconds that a role took before, by host and role."""

    def __init__(self, began: float, usual: Mapping[str, Mapping[str, float]]) -> None:
        self.began = began
        self.usual = usual
        self.play = ""
        self.hosts: dict[str, Host] = {}
        self.ended_roles: list[RoleEnd] = []

    def host(self, name: str) -> Host:
        """Return a host; a new one is idle."""
        return self.hosts.setdefault(name, Host(name))

    def start_play(self, name: str, now: float) -> None:
        """Begin a play: no role of the play before goes on."""
        self.play = name
        for host in self.hosts.values():
            self._end_role(host, now)

    def start_step(self, name: str, role: str, step: str, now: float) -> None:
        """Begin a task on a host."""
        host = self.host(name)
        if role != host.role:
            self._end_role(host, now)
            host.role, host.role_since = role, now
        if role in host.pending:
            host.pending = host.pending[host.pending.index(role) + 1 :]
        host.state, host.step, host.since, host.text, host.job = RUNNING, step, now, "", ""

    def end_step(self, name: str, changed: bool, now: float) -> None:
        """End a task that did not fail."""
        host = self.host(name)
        host.changed += changed
        host.role_changed = host.role_changed or changed
        if host.state not in ENDED:
            host.state, host.since, host.text, host.job = IDLE, now, "", ""

    def fail(self, name: str, state: str, reason: str, now: float) -> None:
        """End a host: STATE is FAILED or UNREACHABLE."""
        host = self.host(name)
        host.state, host.reason, host.since, host.text, host.job = state, reason, now, "", ""

    def hold(self, name: str, reason: str) -> None:
        """End a host that a person keeps out of runs."""
        host = self.host(name)
        host.state, host.reason = HELD, reason

    def progress(self, name: str, text: str) -> None:
        """Set the progress within the step of a host."""
        self.host(name).text = text

    def plan_roles(self, name: str, roles: Iterable[str]) -> None:
        """Record which roles will run on a host."""
        self.host(name).pending = list(roles)

    def end(self, now: float) -> None:
        """End the run."""
        for host in self.hosts.values():
            self._end_role(host, now)
            if host.state not in (*ENDED, HELD):
                host.state = DONE

    def _end_role(self, host: Host, now: float) -> None:
        if host.role and host.state not in ENDED:
            seconds = now - host.role_since
            self.ended_roles.append(RoleEnd(host.name, host.role, seconds, host.role_changed))
        host.role, host.role_changed = "", False

    def remaining(self, name: str, now: float) -> float | None:
        """Return the seconds that a host still needs, None if a role of it never ran before."""
        host = self.hosts[name]
        if not host.role or host.state not in (RUNNING, IDLE):
            return None
        times = [self._usual(name, role) for role in [host.role, *host.pending]]
        if any(seconds is None for seconds in times):
            return None
        current, *later = (seconds or 0.0 for seconds in times)
        return max(0.0, current - (now - host.role_since)) + sum(later)

    def _usual(self, host: str, role: str) -> float | None:
        """Return the last time of a role on a host, or else the median of other hosts."""
        times = self.usual.get(role, {})
        if host in times or not times:
            return times.get(host)
        return sorted(times.values())[len(times) // 2]
