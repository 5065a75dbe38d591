# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles state as their owned state is what the survey understands, on every platform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds

from tests.contract.owned_state import PLATFORMS
from tests.contract.tree import ROOT, load
from tests.unit import survey

Statements = dict[str, dict[str, dict[str, Any]]]
SURVEYED: list[str] = load(ROOT / "vars/roles.yml")["slipway_roles"]


@pytest.fixture(scope="module")
def statements() -> Statements:
    """Return platform to role to what the role states."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract.owned_state"],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: Statements = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("role", SURVEYED)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_statement_is_understood(statements: Statements, platform: str, role: str) -> None:
    owned = statements[platform][role]
    survey.check(role, owned)
    assert not owned.get("refused")
    # What was templated as text where data belongs would be asked for letter by letter.
    for entries in owned.values():
        assert isinstance(entries, list)
        assert all(isinstance(entry, dict) for entry in entries)
    assert survey.question([owned])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_no_two_roles_own_the_same(statements: Statements, platform: str) -> None:
    owners: dict[tuple[str, str], str] = {}
    for role, owned in statements[platform].items():
        for kind, entries in engine.entries_of(owned):
            for entry in entries:
                thing = kind, str(entry[kinds.ALL[kind].by])
                assert owners.setdefault(thing, role) == role, f"{thing} has two owners"
