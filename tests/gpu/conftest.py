# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of the tests on a real GPU: SLIPWAY_GPU_REPORT names its file, without a suffix.

JSON goes to that name with ``.json``, a summary for docs/proven-on.md to the name with ``.md``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

REPORT = "SLIPWAY_GPU_REPORT"
RESULTS: dict[str, dict[str, Any]] = {}
FACTS: dict[str, Any] = {}

Record = Callable[[str, Any], None]


@pytest.fixture
def record() -> Record:
    """Return a function that adds a fact to the report."""
    return FACTS.__setitem__


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    result = RESULTS.setdefault(item.name, {"outcome": "passed", "reason": "", "seconds": 0.0})
    result["seconds"] = round(result["seconds"] + report.duration, 2)
    if not report.passed:
        result["outcome"] = report.outcome
        found = report.longrepr
        words = found[2] if isinstance(found, tuple) else str(found)
        result["reason"] = words.strip().splitlines()[-1] if report.skipped else words
    return report


def summary(facts: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    lines = ["| fact | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items() if is_short(value)]
    lines += ["", "| test | result | seconds | reason |", "|---|---|---|---|"]
    for name, result in results.items():
        reason = (result["reason"].splitlines() or [""])[-1]
        lines.append(f"| {name} | {result['outcome']} | {result['seconds']} | {reason} |")
    return "\n".join(lines) + "\n"


def is_short(value: object) -> bool:
    """Return whether a fact fits into a cell of a table."""
    return not isinstance(value, (dict, list)) and "\n" not in str(value)


def pytest_sessionfinish() -> None:
    target = os.environ.get(REPORT)
    if not target or not RESULTS:
        return
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "Python": platform.python_version(),
        **FACTS,
    }
    folder = Path(target).parent
    folder.mkdir(parents=True, exist_ok=True)
    document = {"facts": facts, "tests": RESULTS}
    Path(f"{target}.json").write_text(json.dumps(document, indent=2) + "\n")
    Path(f"{target}.md").write_text(summary(facts, RESULTS))
