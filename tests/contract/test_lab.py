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


@pytest.mark.parametrize("file", LAB, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_lab_file_stands_alone(file: Path) -> None:
    assert foreign_imports(file.read_text(encoding="utf-8")) == []


def test_foreign_imports_are_named() -> None:
    source = "import os\nimport yaml\nfrom lab import hosts\nfrom tests.unit import x\n"
    assert foreign_imports(source) == ["tests.unit", "yaml"]
