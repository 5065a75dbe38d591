# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The small faults that tools/mutants.py puts into a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutants import Coverage
from tools.mutations import find_mutants


def mutated(source: str) -> list[str]:
    """Return the source with each of its mutants."""
    code = source.encode()
    return [
        (code[: one.start] + one.text.encode() + code[one.end :]).decode()
        for one in find_mutants(code)
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f(a < b)", ["None", "f(a <= b)"]),
        ("f(a is not b)", ["None", "f(a is b)"]),
        ("x = a and b or c", ["x = None", "x = a or b or c", "x = a and b and c"]),
        ("x = not y", ["x = None", "x = bool(y)"]),
        ("return 1", ["return None", "return (2)"]),
        ("x += y", ["x = y"]),
        ("raise E", ["None"]),
        ("if a: break", ["if not (a): break", "if a: continue"]),
        ("x = [a for a in b if a]", ["x = None", "x = [a for a in b if not (a)]"]),
        ('"""Documentation."""', []),
        ("Alias = Mapping[str, int]", []),
        ("if TYPE_CHECKING:\n    import a", []),
        ("TYPE_CHECKING = False", []),
        (
            "def f(a: 'text' = 'b') -> 'c':\n    pass",
            ["def f(a: 'text' = 'mutated') -> 'c':\n    pass"],
        ),
    ],
)
def test_each_fault_changes_one_thing(source: str, expected: list[str]) -> None:
    assert mutated(source) == expected


def test_a_fault_has_the_lines_of_its_statement() -> None:
    source = b"x = {\n    1: a,\n}\nif (b and\n    c):\n    d()\n"
    lines = {one.text: (one.lines.start, one.lines.stop) for one in find_mutants(source)}
    assert lines["(2)"] == (1, 4)
    assert lines["or"] == (4, 7)


def test_offsets_are_bytes() -> None:
    assert mutated('f("\u00e4", 1)')[-1] == 'f("\u00e4", (2))'


def test_lines_without_tests_have_the_tests_of_the_line_before() -> None:
    coverage = Coverage({"f.py": {"1": ["a"], "5": ["b"]}}, {"a": 1.0, "b": 2.0})
    tests = [coverage.tests_of(Path("f.py"), range(line, line + 1)) for line in (0, 1, 3, 5, 9)]
    assert tests == [{}, {"a": 1.0}, {"a": 1.0}, {"b": 2.0}, {"b": 2.0}]
