# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./slipway plan`: what goes to which stream, and the exit status, whatever Ansible does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.contract.tree import ROOT

CLEAN = '{"a": {"state": "no_drift", "differences": {}, "urls": {}, "notes": []}}'
DOWN = '{"a": {"state": "unreachable", "differences": {}, "urls": {}, "notes": [], "error": "no"}}'
Program = Callable[[str, str], None]


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools/plan.py"), *arguments], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("script", "report", "status", "words"),
    [
        (f"echo '{CLEAN}' >$SLIPWAY_REPORT", CLEAN, 0, ""),
        (f"echo '{DOWN}' >$SLIPWAY_REPORT; exit 4", DOWN, 1, ""),
        ("echo '{}' >$SLIPWAY_REPORT; echo nobody", "{}", 1, "nobody\n"),
        ("echo broken inventory >&2; exit 4", "{}", 1, "broken inventory\n"),
        (f"echo '{CLEAN}' >$SLIPWAY_REPORT; echo crash >&2; exit 250", CLEAN, 1, "crash\n"),
    ],
    ids=["no drift", "unreachable", "no host", "no run", "a run that broke off"],
)
def test_json_is_json_whatever_happened(
    program: Program, script: str, report: str, status: int, words: str
) -> None:
    program("ansible-playbook", script)
    done = plan("--json")
    assert (done.returncode, json.loads(done.stdout)) == (status, json.loads(report))
    assert done.stderr == words


def test_a_warning_is_passed_on_beside_the_plan(program: Program) -> None:
    warning = "[WARNING]: Unable to parse hosts.yml as an inventory source"
    program(
        "ansible-playbook", f"echo '{CLEAN}' >$SLIPWAY_REPORT; echo '{warning}' >&2; echo more >&2"
    )
    done = plan()
    assert (done.returncode, done.stderr) == (0, f"{warning}\n")
    assert "no drift" in done.stdout


def test_the_path_of_the_page_is_the_last_line(program: Program) -> None:
    page = "Fleet page: /srv/slipway/reports/index.html"
    program("ansible-playbook", f"echo '{CLEAN}' >$SLIPWAY_REPORT; echo; echo '{page}'")
    assert plan().stdout.endswith(f"\n\n{page}\n")
    assert page not in plan("--json").stdout


def test_a_closed_pipe_causes_no_traceback(program: Program) -> None:
    program("ansible-playbook", f"echo '{CLEAN}' >$SLIPWAY_REPORT")
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} {ROOT}/tools/plan.py | true"],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("option", ["-v", "-vvv", "--verbose"])
def test_a_verbose_plan_lists_the_files_of_ml(program: Program, option: str) -> None:
    files = [
        {"kind": "files", "name": f"/usr/local/lib/slipway/{name}", "found": "a", "expected": "b"}
        for name in ("ml", "api.py")
    ]
    report = {"a": {**json.loads(CLEAN)["a"], "differences": {"ml_aliases": files}}}
    program("ansible-playbook", f"echo '{json.dumps(report)}' >$SLIPWAY_REPORT")
    assert "program ml, 2 files" in plan("--limit", "a").stdout
    assert all(file["name"] in plan(option).stdout for file in files)
