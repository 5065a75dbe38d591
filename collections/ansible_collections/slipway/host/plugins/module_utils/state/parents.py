# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent folders of everything that root owns in the system's folders.

Whoever can write a parent folder can replace what is in it. So each parent must be owned by root,
and not writable by group or others. Kinds name the paths that depend on their parents
(``Kind.guarded``). Folders outside the system's trees, such as homes and data disks, belong to
people and are handled by :mod:`paths`.

A link in the place of a parent is followed if root alone decides where it leads: an administrator
moved ``/var/lib`` to another disk. Any other link is a conflict of what is below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ansible_collections.slipway.host.plugins.module_utils.state import attributes
from ansible_collections.slipway.host.plugins.module_utils.state.model import Answer, Change

SYSTEM_TREES = (*("/boot/", "/etc/", "/lib/", "/run/", "/usr/", "/var/lib/slipway/", "/var/run/"),)
# Programs without root's rights read files in these.
OPEN_FOLDERS = frozenset(
    {
        "/etc/apt/keyrings",
        "/etc/slipway",
        "/usr/local/lib/slipway",
        "/usr/local/lib/slipway/slipway_ml",
    }
)
KIND = "parent_folders"


def expected_attributes(path: str) -> attributes.Attributes:
    """Return what a parent folder must be."""
    least = 0o755 if path in OPEN_FOLDERS else 0
    most = 0o7777 & ~attributes.WRITABLE
    return attributes.Attributes(attributes.FOLDER, "root", None, least, most)


def parents_of(paths: Iterable[str]) -> list[str]:
    """Return all parent folders of paths in the system's trees, the upper ones first."""
    parents: set[str] = set()
    for path in paths:
        if path.startswith(SYSTEM_TREES):
            while path := path.rpartition("/")[0]:
                parents.add(path)
            parents.add("/")
    return sorted(parents)


def obstacle_of(guarded: Iterable[str], answer: Answer) -> Sequence[str] | None:
    """Return the first parent of guarded paths that root must not follow, None if there is none.

    It is a list of path, what was found and what was expected.
    """
    unsafe: Mapping[str, Sequence[str]] = answer.get("unsafe", {})
    return next((unsafe[path] for path in parents_of(guarded) if path in unsafe), None)


def compare_parent(path: str, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a parent folder; a missing one will be made."""
    state = answer.get("parents", {}).get(path)
    if state is not None:
        yield from attributes.compare(state, expected_attributes(path))
