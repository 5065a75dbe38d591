# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all kinds of owned things share: how a kind is described, and how drift is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Entry: TypeAlias = Mapping[str, Any]
Answer: TypeAlias = Mapping[str, Any]
Change: TypeAlias = "tuple[str, str]"
Ask: TypeAlias = "Callable[[list[Any], dict[str, Any]], Any]"

MISSING = "missing"


class OwnedStateError(ValueError):
    """The owned state of a role has an unknown form."""


class ConflictError(ValueError):
    """Something that the role does not own is in the way: a person must decide.

    A comparison raises it for a whole entry. It yields the error for a part of an entry, such as
    one of several links; ``part`` is then the name of that part. ``missing`` is a path that must
    be there first: no conflict if another entry makes that path in the same run.
    """

    def __init__(self, reason: str, part: str = "", missing: str = "") -> None:
        super().__init__(reason)
        self.part, self.missing = part, missing


def phrase(kind: str, name: str) -> str:
    """Return kind and name of an owned thing for people: a compose project is one service."""
    return f"{'services' if kind == 'projects' else kind} {name}"


@dataclass(frozen=True)
class Difference:
    """One owned thing that differs from the declared state.

    ``kind`` is the list that declares it, ``name`` identifies it, ``found`` and ``expected`` are
    for people. Neither ever has the content of a file.
    """

    kind: str
    name: str
    found: str
    expected: str

    def __str__(self) -> str:
        """Return the difference as one line for a person."""
        return f"{phrase(self.kind, self.name)}: {self.found}, should be {self.expected}"


@dataclass(frozen=True)
class Conflict:
    """Something in the way of one owned thing.

    ``kind`` and ``name`` identify the owned thing, ``reason`` says what is in the way and what to
    do. ``blocks`` are the other owned things, as ``kind name``, that differ and wait for this one.
    """

    kind: str
    name: str
    reason: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What a role has to change on a host, and what it cannot change because of a conflict."""

    differences: list[Difference]
    conflicts: list[Conflict]


def no_needs(_entry: Entry, _answer: Answer) -> Iterable[tuple[str, str]]:
    """Need no other owned thing."""
    return ()


def no_further(_entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    """Ask for nothing beside the name of an entry."""
    return iter(())


def no_information(_entry: Entry, _answer: Answer) -> Iterator[str]:
    """Report nothing beside the drift of an entry."""
    return iter(())


def no_paths(_entry: Entry) -> tuple[str, ...]:
    """Return no paths whose parent folders must be root's."""
    return ()


@dataclass(frozen=True)
class Kind:
    """One kind of owned thing: what is asked for on the host and how it is compared.

    ``name`` is the list in the owned state, ``by`` the key of an entry that names it and goes into
    the question ``asks``. ``compare`` yields pairs of what was found and what was expected.
    ``further`` yields further questions with their names. A comparison raises or yields
    ConflictError where something else is in the way. ``needs`` returns kind and name of owned
    things without which an entry cannot be made; the key ``needs`` of an entry has more of them.
    ``inform`` yields sentences about what others configured for the thing: no drift, and Slipway
    leaves it in place. ``guarded`` returns the paths whose parent folders must be root's, see
    :mod:`parents`.
    """

    name: str
    by: str
    asks: str
    compare: Callable[[Entry, Answer], Iterator[Change | ConflictError]]
    further: Callable[[Entry], Iterator[tuple[str, Iterable[Any]]]] = no_further
    inform: Callable[[Entry, Answer], Iterator[str]] = no_information
    guarded: Callable[[Entry], Iterable[str]] = no_paths
    needs: Callable[[Entry, Answer], Iterable[tuple[str, str]]] = no_needs
