# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Type, owner, group and mode of a path: one declaration and one comparison for all kinds.

A host answers for each path with ``[type, mode, owner, group, digest, uid, gid]``, see
:func:`files.ask_state`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Change

FILE, FOLDER = "file", "directory"
# Write permission of the group and of others.
WRITABLE = 0o022


@dataclass(frozen=True)
class Attributes:
    """What a path must be.

    ``owner`` and ``group`` are names, or numbers in digits. There may be several, the first is the
    one to set; None allows any. The mode has at least the bits ``least`` and at most ``most``.
    """

    type: str = FILE
    owner: str | tuple[str, ...] | None = "root"
    group: str | tuple[str, ...] | None = "root"
    least: int = 0
    most: int = 0o7777

    def repaired_mode(self, mode: int) -> int:
        """Return a mode with the missing bits added and the surplus bits removed."""
        return mode & self.most | self.least


def exact(type_: str, owner: str, group: str, mode: str) -> Attributes:
    """Return attributes with one mode, in octal digits."""
    return Attributes(type_, owner, group, int(mode, 8), int(mode, 8))


def compare(state: Sequence[Any] | None, expected: Attributes) -> Iterator[Change]:
    """Yield the differences of a path; STATE is the answer of the host, None for nothing."""
    if state is None:
        yield MISSING, f"a {expected.type}"
        return
    kind, mode, owner, group, _digest, uid, gid = state
    if kind != expected.type:
        yield f"a {kind}", f"a {expected.type}"
        return
    yield from _compare_mode(mode, expected)
    for what, name, number, allowed in (
        ("owner", owner, uid, expected.owner),
        ("group", group, gid, expected.group),
    ):
        names = (allowed,) if isinstance(allowed, str) else allowed
        if names and name not in names and str(number) not in names:
            yield f"{what} {name}", " or ".join(names)


def _compare_mode(mode: str, expected: Attributes) -> Iterator[Change]:
    bits = int(mode, 8)
    surplus, missing = bits & ~expected.most, expected.least & ~bits
    if not (surplus or missing):
        return
    if expected.least == expected.most:
        yield f"mode {mode}", f"{expected.most:04o}"
    elif surplus and not surplus & ~WRITABLE:
        yield f"mode {mode}", "not writable by group or others"
    else:
        yield f"mode {mode}", f"at least {expected.least:04o}, at most {expected.most:04o}"
