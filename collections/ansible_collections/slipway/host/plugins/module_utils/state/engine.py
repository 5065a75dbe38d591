# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the owned state of roles with a host: one question, one answer, the differences.

The owned state of a role is a mapping of lists, one for each kind; the file of a kind describes its
entries. ``refused`` is no kind: its sentences say why the role cannot work on a host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.state import parents, probe
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Answer,
    Ask,
    Change,
    Difference,
    Entry,
    Kind,
    OwnedStateError,
)
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

Owned: TypeAlias = "Mapping[str, Sequence[Entry]]"
Kinds: TypeAlias = "Mapping[str, Kind]"
REFUSED = "refused"


def by_name(*groups: Sequence[Kind]) -> dict[str, Kind]:
    """Return kinds by the name of their list."""
    return {kind.name: kind for kinds in groups for kind in kinds}


def entries_of(owned: Owned) -> Iterator[tuple[str, Sequence[Entry]]]:
    """Yield the lists of a role's owned state that declare things."""
    return ((name, entries) for name, entries in owned.items() if name != REFUSED)


def check(role: str, owned: Owned, kinds: Kinds) -> None:
    """Raise OwnedStateError for an unknown kind or an entry without a name."""
    for name, entries in entries_of(owned):
        if name not in kinds:
            raise OwnedStateError(
                f"role {role}: unknown kind '{name}' of owned state; expected one of "
                f"{', '.join(sorted(kinds))}"
            )
        for entry in entries:
            if kinds[name].by not in entry:
                raise OwnedStateError(f"role {role}: an entry of {name} lacks '{kinds[name].by}'")


def question(statements: Sequence[Owned], kinds: Kinds) -> dict[str, list[Any]]:
    """Return the one question to the host that covers the owned state of several roles."""
    names: dict[str, set[Any]] = {}
    for owned in statements:
        for name, entries in entries_of(owned):
            kind = kinds[name]
            for entry in entries:
                names.setdefault(kind.asks, set()).add(entry[kind.by])
                for asks, more in (("mtimes", entry.get("since", ())), *kind.further(entry)):
                    if more:
                        names.setdefault(asks, set()).update(more)
        if folders := parent_folders(owned, kinds):
            names.setdefault("files", set()).update(folders)
    return {asks: sorted(values) for asks, values in names.items()}


def guarded(owned: Owned, kinds: Kinds) -> list[str]:
    """Return the paths of a role's owned state whose parent folders must be root's."""
    return [
        path
        for name, entries in entries_of(owned)
        for entry in entries
        for path in kinds[name].guarded(entry)
    ]


def parent_folders(owned: Owned, kinds: Kinds) -> list[str]:
    """Return the parent folders that must be root's for a role's owned state."""
    return parents.parents_of(guarded(owned, kinds))


def parent_differences(owned: Owned, answer: Answer, kinds: Kinds) -> list[Difference]:
    """Return where the parent folders of a role's owned state differ."""
    return [
        Difference(parents.KIND, *map(escape_control, (path, found, expected)))
        for path in parent_folders(owned, kinds)
        for found, expected in parents.compare_parent(path, answer)
    ]


def look(statements: Sequence[Owned], kinds: Kinds, asks: Mapping[str, Ask]) -> Answer:
    """Return the answer of this very host, for modules."""
    return probe.answer(question(statements, kinds), asks)


def differences(owned: Owned, answer: Answer, kinds: Kinds) -> list[Difference]:
    """Return where a host differs from the owned state of a role: parent folders, then entries.

    Raise DaemonJsonError, with line and column, for a broken JSON file, and ConflictError where
    something else is in the way. An obstacle that a user created is a difference: it must not keep
    the rest of the host from being compared.
    """
    return parent_differences(owned, answer, kinds) + [
        # A host may answer with anything; a terminal must only show it.
        Difference(name, *map(escape_control, (str(entry[kinds[name].by]), found, expected)))
        for name, entries in entries_of(owned)
        for entry in entries
        for found, expected in _obstacles(entry, kinds[name], answer)
        or kinds[name].compare(entry, answer)
    ]


def information(statements: Sequence[Owned], answer: Answer, kinds: Kinds) -> list[str]:
    """Return sentences about what others configured for owned things, each once."""
    sentences = (
        sentence
        for owned in statements
        for name, entries in entries_of(owned)
        for entry in entries
        for sentence in kinds[name].inform(entry, answer)
    )
    return [escape_control(sentence) for sentence in dict.fromkeys(sentences)]


def _obstacles(entry: Entry, kind: Kind, answer: Answer) -> list[Change]:
    """Return the obstacle that a user created; the probe did not read the path behind it."""
    unsafe: Mapping[str, Sequence[str]] = answer.get("unsafe", {})
    for path in (entry[kind.by], entry.get("source")):
        if path is not None and path in unsafe:
            where, found, expected = unsafe[path]
            if entry.get("state") == "absent":
                return [("present", "absent")]
            return [(f"{where} is {found}", f"{expected}; move it out of the way")]
    return []
