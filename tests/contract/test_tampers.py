# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tamper matrix is complete: each kind and each of its fields has a tamper, or a reason."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import kinds, parents

from tests.contract.answer_tampers import ANSWER_TAMPERS, CLEAN
from tests.contract.tamper_fields import FIELDS, NOT_COMPARED
from tests.contract.test_owned_state import SURVEYED, Statements, statements
from tests.host import tampers
from tests.host.tampers import HOST_TAMPERS

__all__ = ["statements"]
COVERED = {tamper.covered for tamper in HOST_TAMPERS}
COVERED |= {tamper.covered for tamper in ANSWER_TAMPERS}
MODULES: list[ModuleType] = [module for module in (*kinds._ASKING, *kinds._OTHERS) if module.KINDS]


def known_fields(kind: str) -> set[str]:
    return {*FIELDS[kind], *NOT_COMPARED.get(kind, {})}


def test_each_kind_is_in_the_matrix() -> None:
    assert set(FIELDS) == {*kinds.ALL, parents.KIND}
    assert set(NOT_COMPARED) <= set(FIELDS)


@pytest.mark.parametrize("kind", FIELDS)
def test_each_field_of_a_kind_has_a_tamper(kind: str) -> None:
    tampered = {field for covered, field in COVERED if covered == kind}
    assert tampered == FIELDS[kind]
    assert not tampered & set(NOT_COMPARED.get(kind, {}))


def test_there_are_many_tampers() -> None:
    assert len(HOST_TAMPERS) + len(ANSWER_TAMPERS) >= 120
    names = [str(tamper) for tamper in (*HOST_TAMPERS, *ANSWER_TAMPERS)]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_each_field_that_a_role_declares_is_in_the_matrix(statements: Statements) -> None:
    unknown = {
        (role, kind, field)
        for owned in statements.values()
        for role in SURVEYED
        for kind, entries in owned[role].items()
        if kind != "refused"
        for entry in entries
        for field in entry
        if field not in known_fields(kind)
    }
    assert not unknown


def keys_read(module: ModuleType) -> Iterator[str]:
    """Yield the keys of entries that the file of a kind reads."""
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name("entry"), slice=ast.Constant(value=str(key))):
                yield key
            case ast.Call(
                func=ast.Attribute(value=ast.Name("entry"), attr="get"),
                args=[ast.Constant(value=str(key)), *_],
            ):
                yield key


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_each_field_that_a_comparison_reads_is_in_the_matrix(module: ModuleType) -> None:
    own = [kind.name for kind in module.KINDS]
    known = {field for kind in own for field in known_fields(kind)}
    assert set(keys_read(module)) - known - {"name", "path"} == set()


def test_the_host_of_the_matrix_declares_what_is_tampered_with() -> None:
    declared: dict[str, list[dict[str, Any]]] = tampers.statement()
    names = {
        (kind, str(entry[kinds.ALL[kind].by]))
        for kind, entries in declared.items()
        for entry in entries
    }
    named = {(tamper.kind, tamper.name) for tamper in HOST_TAMPERS}
    assert {one for one in named if one[0] != parents.KIND} == names
    without_fields = {kind for kind, fields in FIELDS.items() if not fields}
    covered = {subject.partition(" ")[0] for subject in CLEAN} | set(declared) | {parents.KIND}
    assert covered | without_fields == set(FIELDS)
