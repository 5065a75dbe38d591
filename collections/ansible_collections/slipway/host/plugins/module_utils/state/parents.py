# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent folders of everything that root owns in the system's folders.

Whoever can write a parent folder can replace what is in it. So each parent must be a folder, no
link, owned by root, and not writable by group or others. Kinds name the paths that depend on their
parents (``Kind.guarded``). Folders outside the system's trees, such as homes and data disks, belong
to people and are handled by :mod:`paths`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ansible_collections.slipway.host.plugins.module_utils.state import attributes
from ansible_collections.slipway.host.plugins.module_utils.state.model import Answer, Change

SYSTEM_TREES = (*("/boot/", "/etc/", "/lib/", "/run/", "/usr/", "/var/lib/slipway/", "/var/run/"),)
# Links that distributions make.
SYSTEM_LINKS = frozenset({"/bin", "/lib", "/lib64", "/sbin", "/usr/sbin", "/var/run"})
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


def compare_parent(path: str, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a parent folder; a missing one will be made."""
    if path in answer.get("unsafe", {}):
        where, found, expected = answer["unsafe"][path]
        yield f"{where} is {found}", f"{expected}; move it out of the way"
        return
    state = answer.get("files", {}).get(path)
    if state is None or (state[0] == "link" and path in SYSTEM_LINKS):
        return
    for found, expected in attributes.compare(state, expected_attributes(path)):
        hint = "; move it out of the way" if state[0] == "link" else ""
        yield found, expected + hint
