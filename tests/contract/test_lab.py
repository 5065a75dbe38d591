# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab is a package of its own: it imports no tests, no product code and no third party."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.contract.tree import ROOT

LAB = sorted((ROOT / "lab").rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def foreign_imports(source: str) -> list[str]:
    """Return the imports that are neither in the standard library nor in the lab."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or ".")
    allowed = {*sys.stdlib_module_names, "lab"}
    return sorted(module for module in modules if module.partition(".")[0] not in allowed)


def long_functions(source: str) -> list[str]:
    """Return the functions with more than MAX_FUNCTION_LINES lines."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]


@pytest.mark.parametrize("file", LAB, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_lab_file_stands_alone_and_is_short(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert foreign_imports(source) == []
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert long_functions(source) == []


def test_foreign_imports_are_named() -> None:
    source = "import os\nimport yaml\nfrom lab import hosts\nfrom tests.unit import x\n"
    assert foreign_imports(source) == ["tests.unit", "yaml"]


def test_a_long_function_is_named() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert long_functions(f"def long():\n{body}def short():\n    pass\n") == ["long"]
