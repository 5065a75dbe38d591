# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine of the survey with all kinds of owned things, as the action plugin uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import (
    engine,
    facts,
    kinds,
    model,
    probe,
)

Owned = Mapping[str, Sequence[Mapping[str, Any]]]


def check(role: str, owned: Owned) -> None:
    """Raise OwnedStateError for owned state of an unknown form."""
    engine.check(role, owned, kinds.ALL)


def question(statements: Sequence[Owned]) -> dict[str, list[Any]]:
    """Return the question that covers these statements."""
    return engine.question(statements, kinds.ALL)


def answer(asked: Mapping[str, Any], reach: Sequence[str] = (), timeout: float = 5) -> Any:
    """Return the answer of this machine, as the script of the survey prints it."""
    return {
        "facts": facts.ask_facts(list(reach), timeout),
        **probe.answer(asked, kinds.ASKS),
    }


def compare(
    statements: Mapping[str, Owned], found: Mapping[str, Any], known: Sequence[model.Conflict] = ()
) -> dict[str, model.Comparison]:
    """Return where an answer differs from the owned state of roles, and what is in the way."""
    return engine.compare(statements, found, kinds.ALL, known)


def differences(owned: Owned, found: Mapping[str, Any]) -> list[model.Difference]:
    """Return where an answer differs from owned state."""
    return engine.differences(owned, found, kinds.ALL)


def without_conflicts(
    statements: Mapping[str, Owned], compared: Mapping[str, model.Comparison]
) -> Mapping[str, Owned]:
    """Return owned state without entries in conflict and those that wait for them."""
    return engine.without_conflicts(statements, compared, kinds.ALL)
