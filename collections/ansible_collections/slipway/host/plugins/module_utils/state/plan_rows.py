# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The differences of a role as the table of plan shows them: similar ones share a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.slipway.host.plugins.module_utils.state.model import phrase

Difference = Mapping[str, str]

# The folder of the program ml: users of Slipway know the program, not its files.
PROGRAM = "/usr/local/lib/slipway/"


def grouped(differences: Sequence[Difference], verbose: bool = False) -> list[str]:
    """Return a phrase for each difference; packages, and files of the program ml, share one.

    Only differences with the same found and expected state share a phrase. VERBOSE lists each.
    """
    groups: dict[tuple[str, ...], list[Difference]] = {}
    for position, one in enumerate(differences):
        subject = "" if verbose else _subject(one)
        key = (subject, one["found"], one["expected"]) if subject else (str(position),)
        groups.setdefault(key, []).append(one)
    return [_describe(several) for several in groups.values()]


def _subject(one: Difference) -> str:
    """Return what differences have in common that share a phrase, empty for one of its own."""
    if one["kind"] == "packages":
        return "packages"
    return PROGRAM if one["kind"] == "files" and one["name"].startswith(PROGRAM) else ""


def _describe(several: Sequence[Difference]) -> str:
    first = several[0]
    if len(several) == 1:
        thing = phrase(first["kind"], first["name"])
    elif first["kind"] == "packages":
        thing = f"packages {', '.join(one['name'] for one in several)}"
    else:
        thing = f"program ml, {len(several)} files (-v lists them)"
    return f"{thing}: {first['found']} -> {first['expected']}"
