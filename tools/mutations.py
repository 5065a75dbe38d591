# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small faults that can be put into a Python source, see tools/mutants.py."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

# Operator as written, and what replaces it.
OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
# Parts of the syntax tree that do not run as part of a test.
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "bases", "type_params"}


class Mutant(NamedTuple):
    """TEXT replaces the bytes START to END of a file, in a statement on the lines LINES."""

    start: int
    end: int
    text: str
    lines: range


def find_mutants(source: bytes) -> list[Mutant]:
    """Return the mutants of a Python source in the order of their lines."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(finder.mutants, key=lambda mutant: mutant.start)


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.mutants: list[Mutant] = []
        self.lines = range(0)
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def visit(self, node: ast.AST) -> None:
        outer = self.lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno if body else node.end_lineno or node.lineno
            self.lines = range(node.lineno, end + 1)
        super().visit(node)
        self.lines = outer

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name not in SKIPPED_FIELDS:
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, ast.AST):
                        self.visit(part)

    def visit_If(self, node: ast.If) -> None:
        if self._code(node.test) != "TYPE_CHECKING":
            self._negate(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._negate(condition)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, node.comparators, strict=False):
            self._replace_operator(operator, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._replace_operator(node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._replace_operator(node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._replace(node, f"bool({self._code(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace(node, f"({node.value + 1})")
        elif isinstance(node.value, (str, bytes)):
            self._replace(node, "b'mutated'" if isinstance(node.value, bytes) else "'mutated'")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._replace(node, "'mutated'")

    def visit_Return(self, node: ast.Return) -> None:
        self._replace_value(node.value)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        # Names for types, and for people who read the file.
        if isinstance(node.value, ast.Subscript) and node.col_offset == 0:
            return
        if self._code(node.targets[0]) in ("__all__", "TYPE_CHECKING"):
            return
        self._replace_value(node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, f"{self._code(node.target)} = {self._code(node.value)}")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        # A constant that is a statement is documentation.
        if not isinstance(node.value, ast.Constant):
            self._replace(node, "None")
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "None")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "break")

    def _offsets(self, node: Any) -> tuple[int, int]:
        start = self.line_starts[node.lineno - 1] + node.col_offset
        return start, self.line_starts[node.end_lineno - 1] + node.end_col_offset

    def _code(self, node: ast.AST) -> str:
        start, end = self._offsets(node)
        return self.source[start:end].decode()

    def _replace(self, node: ast.AST, text: str) -> None:
        start, end = self._offsets(node)
        self._add(start, end, text)

    def _replace_value(self, value: ast.expr | None) -> None:
        if value is not None and self._code(value) not in ("None", "()", "[]", "{}"):
            self._replace(value, "None")

    def _replace_operator(self, operator: ast.AST, left: ast.AST, right: ast.AST) -> None:
        old, new = OPERATORS.get(type(operator), ("", ""))
        start, end = self._offsets(left)[1], self._offsets(right)[0]
        between = self.source.find(old.encode(), start, end)
        if old and between >= 0:
            self._add(between, between + len(old), new)

    def _negate(self, condition: ast.expr) -> None:
        # The operators of these have mutants of their own.
        if not isinstance(condition, (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant)):
            self._replace(condition, f"not ({self._code(condition)})")

    def _add(self, start: int, end: int, text: str) -> None:
        self.mutants.append(Mutant(start, end, text, self.lines))
