# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the owned state of roles with a host: one question, one answer, the differences.

The owned state of a role is a mapping of lists, one for each kind; the file of a kind describes its
entries. ``refused`` is no kind: its sentences say why the role cannot work on a host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.state import parents, probe
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Ask,
    Change,
    Comparison,
    Conflict,
    ConflictError,
    Difference,
    Entry,
    Kind,
    OwnedStateError,
)
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

Owned: TypeAlias = "Mapping[str, Sequence[Entry]]"
Kinds: TypeAlias = "Mapping[str, Kind]"
# Kind and name of an owned thing.
Name: TypeAlias = "tuple[str, str]"
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
                for asks, more in (("ctimes", entry.get("since", ())), *kind.further(entry)):
                    if more:
                        names.setdefault(asks, set()).update(more)
        if folders := parent_folders(owned, kinds):
            names.setdefault("parents", set()).update(folders)
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


def compare(
    statements: Mapping[str, Owned],
    answer: Answer,
    kinds: Kinds,
    known: Sequence[Conflict] = (),
) -> dict[str, Comparison]:
    """Return where a host differs from the owned state of each role, and what is in the way.

    STATEMENTS are owned state by role. KNOWN are conflicts that the answer does not show, such as
    those that a role met when it ran. Differences are in the declared order, those of parent
    folders first. An entry in conflict, and all that needs it, is not a difference: its role leaves
    it alone.
    """
    items = [
        _compare_entry(role, kinds[name], entry, answer)
        for role, owned in statements.items()
        for name, entries in entries_of(owned)
        for entry in entries
    ]
    _accept_paths_to_come(items)
    for item in items:
        item.conflicts += [conflict for conflict in known if item.is_named(conflict)]
    causes = _find_causes(items, answer)
    blocks: dict[Name, list[str]] = {}
    for item in items:
        if item.changes and item.name in causes and not item.is_blocked:
            blocks.setdefault(causes[item.name], []).append(" ".join(item.name))
    workable: dict[str, dict[str, list[Entry]]] = {role: {} for role in statements}
    for item in items:
        if not item.is_blocked and item.name not in causes:
            workable[item.role].setdefault(item.kind.name, []).append(item.entry)
    result = {
        role: Comparison(parent_differences(owned, answer, kinds), [])
        for role, owned in workable.items()
    }
    told: set[tuple[str, str]] = set()
    for item in items:
        for conflict in item.conflicts:
            # Several entries may be below one link of a user.
            if (item.role, conflict.reason) not in told:
                told.add((item.role, conflict.reason))
                names = blocks.get((conflict.kind, conflict.name), ())
                waiting = tuple(dict.fromkeys(names))
                result[item.role].conflicts.append(replace(conflict, blocks=waiting))
        if not item.is_blocked and item.name not in causes:
            result[item.role].differences.extend(item.differences())
    return result


def without_conflicts(
    statements: Mapping[str, Owned], compared: Mapping[str, Comparison], kinds: Kinds
) -> dict[str, Owned]:
    """Return owned state by role without the entries in conflict and those that wait for them."""
    blocked = {
        name
        for comparison in compared.values()
        for one in comparison.conflicts
        for name in (f"{one.kind} {one.name}", *one.blocks)
    }
    return {
        role: {
            kind: [
                entry
                for entry in entries
                if kind == REFUSED or f"{kind} {entry[kinds[kind].by]}" not in blocked
            ]
            for kind, entries in owned.items()
        }
        for role, owned in statements.items()
    }


def differences(owned: Owned, answer: Answer, kinds: Kinds) -> list[Difference]:
    """Return where a host differs from owned state; raise ConflictError for the first conflict."""
    comparison = compare({"": owned}, answer, kinds)[""]
    for conflict in comparison.conflicts:
        raise ConflictError(conflict.reason)
    return comparison.differences


@dataclass
class _Item:
    """One entry of owned state with its changes and conflicts."""

    role: str
    kind: Kind
    entry: Entry
    changes: list[Change]
    conflicts: list[Conflict]
    missing: str = ""

    @property
    def name(self) -> Name:
        """Return kind and name of the entry."""
        return self.kind.name, str(self.entry[self.kind.by])

    @property
    def is_blocked(self) -> bool:
        """Return whether a conflict is in the way of the whole entry, not only of a part."""
        return any((conflict.kind, conflict.name) == self.name for conflict in self.conflicts)

    def is_named(self, conflict: Conflict) -> bool:
        """Return whether a conflict is about this entry, and not told yet."""
        return (conflict.kind, conflict.name) == self.name and not self.is_blocked

    def differences(self) -> Iterator[Difference]:
        """Yield the changes of the entry, safe for a terminal."""
        for found, expected in self.changes:
            yield Difference(self.kind.name, *map(escape_control, (self.name[1], found, expected)))


def _compare_entry(role: str, kind: Kind, entry: Entry, answer: Answer) -> _Item:
    """Return an entry with its changes and its conflicts."""
    item = _Item(role, kind, entry, [], [])

    def note(error: ConflictError) -> None:
        # A host may answer with anything; a terminal must only show it.
        reason = escape_control(str(error).rstrip("."))
        item.conflicts.append(Conflict(kind.name, error.part or item.name[1], f"{reason}."))
        item.missing = error.missing

    try:
        for change in _obstacles(entry, kind, answer) or kind.compare(entry, answer):
            if isinstance(change, ConflictError):
                note(change)
            else:
                item.changes.append(change)
    except ConflictError as error:
        note(error)
    return item


def _accept_paths_to_come(items: Sequence[_Item]) -> None:
    """Turn conflicts about missing paths into changes, if another entry makes that path.

    A path is made by an entry for itself or for a folder above it, and by content in it. A mount of
    another service is no content.
    """
    made = [
        (f"{item.entry['path']}/", item.kind.name != "mounts")
        for item in items
        if item.changes
        and not item.conflicts
        and "path" in item.entry
        and item.entry.get("state") != "absent"
    ]
    for item in items:
        missing = f"{item.missing}/"
        if item.missing and any(
            missing.startswith(path) or (is_content and path.startswith(missing))
            for path, is_content in made
        ):
            item.conflicts.clear()
            item.changes.append((MISSING, "there"))


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
    """Raise ConflictError for something in the way that root must not follow or overwrite.

    A path that must be absent is a change: the role removes the name, whatever it is.
    """
    unsafe: Mapping[str, Sequence[str]] = answer.get("unsafe", {})
    for path in (entry[kind.by], entry.get("source")):
        if path is not None and path in unsafe:
            if entry.get("state") == "absent":
                return [("present", "absent")]
            raise ConflictError(str(UnsafePathError(*unsafe[path])))
    if obstacle := parents.obstacle_of(kind.guarded(entry), answer):
        raise ConflictError(str(UnsafePathError(*obstacle)))
    return []


def _find_causes(items: Sequence[_Item], answer: Answer) -> dict[Name, Name]:
    """Return the entries that wait for others, each with the entry in conflict.

    The key ``together`` of an entry names parts that are made together with it or not at all.
    """
    in_conflict = {(conflict.kind, conflict.name) for item in items for conflict in item.conflicts}
    causes: dict[Name, Name] = {}
    waiting = [(item, _needs_of(item, answer)) for item in items]
    found = True
    while found:
        found = False
        for item, needs in waiting:
            parts = [_pair(part) for part in item.entry.get("together", ())]
            missing = [causes.get(need, need) for need in needs if need in {*in_conflict, *causes}]
            missing += [name for name in (*parts, item.name) if name in in_conflict]
            if not missing:
                continue
            cause = missing[0]
            for name in (item.name, *parts):
                if name != cause and name not in causes:
                    causes[name] = cause
                    found = True
    return causes


def _needs_of(item: _Item, answer: Answer) -> list[Name]:
    return [
        *map(_pair, item.entry.get("needs", ())),
        *item.kind.needs(item.entry, answer),
    ]


def _pair(words: Sequence[str]) -> Name:
    """Return kind and name from data that came through JSON or a template."""
    kind, name = words
    return str(kind), str(name)
