# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of a host that services are found at: who is in whose way, and who goes first.

PRIVATE to the collection; the standard library alone, since it runs on hosts as well. A place is an
address and a port with a colon between, such as ``127.0.0.1:5000``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ANY_ADDRESS = ("", "0.0.0.0", "::", "[::]")


def clash(one: str, other: str) -> bool:
    """Whether both places cannot be had at once."""
    (address, _, port), (second, _, its_port) = one.rpartition(":"), other.rpartition(":")
    everywhere = address in ANY_ADDRESS or second in ANY_ADDRESS
    return port == its_port and (everywhere or address.strip("[]") == second.strip("[]"))


def turns(
    projects: Iterable[Mapping[str, Any]], held: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """Yield projects so that each finds its ports free, and whose containers to stop before it.

    HELD is what the containers of each project have now. One that leaves a port goes before the one
    that gets it, so that nobody is down for longer than it takes to replace a container; only where
    they go round in a circle somebody has to be stopped.
    """
    waiting = list(projects)
    while waiting:
        ways = [(project, _in_the_way(project, waiting, held)) for project in waiting]
        project, stopped = next((way for way in ways if not way[1]), ways[0])
        yield project, stopped
        waiting.remove(project)
        held = {name: places for name, places in held.items() if name not in stopped}


def _in_the_way(
    project: Mapping[str, Any],
    others: Iterable[Mapping[str, Any]],
    held: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return the names of the others whose containers have a port that a project wants."""
    return [
        other["name"]
        for other in others
        if other["name"] != project["name"]
        and any(clash(a, b) for a in project["ports"] for b in held.get(other["name"], ()))
    ]
