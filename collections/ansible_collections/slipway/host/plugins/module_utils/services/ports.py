# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports of a host that services publish: which clash, and in which order to replace containers.

PRIVATE to the collection; standard library only, because it runs on hosts as well. A port is text:
address and port with a colon between, such as ``127.0.0.1:5000``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ANY_ADDRESS = ("", "0.0.0.0", "::", "[::]")


def clash(port: str, other: str) -> bool:
    """Whether two containers cannot publish both ports at the same time."""
    (address, _separator, number), (other_address, _separator, other_number) = (
        port.rpartition(":"),
        other.rpartition(":"),
    )
    everywhere = address in ANY_ADDRESS or other_address in ANY_ADDRESS
    same_address = everywhere or address.strip("[]") == other_address.strip("[]")
    return number == other_number and same_address


def order_replacements(
    projects: Iterable[Mapping[str, Any]], published: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """Yield each project with the projects whose containers must stop before it starts.

    PUBLISHED are the ports of each project's containers now. A project that frees a port comes
    before the project that needs it, so that no service is down for longer than the replacement of
    its container. Only where projects swap ports in a circle, one of them is stopped first.
    """
    waiting = list(projects)
    while waiting:
        blocked = [(project, _blockers(project, waiting, published)) for project in waiting]
        project, to_stop = next((entry for entry in blocked if not entry[1]), blocked[0])
        yield project, to_stop
        waiting.remove(project)
        published = {name: ports for name, ports in published.items() if name not in to_stop}


def _blockers(
    project: Mapping[str, Any],
    others: Iterable[Mapping[str, Any]],
    published: Mapping[str, Sequence[str]],
) -> list[str]:
    """Return the names of the other projects that publish a port of this project."""
    return [
        other["name"]
        for other in others
        if other["name"] != project["name"]
        and any(clash(a, b) for a in project["ports"] for b in published.get(other["name"], ()))
    ]
