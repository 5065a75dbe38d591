# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Molecule scenarios as host tests.

The other host tests apply all roles as well, most of them by site.yml. So an ordinary run has two
scenarios, which show that the harness works; a run with --long has all of them.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.contract.tree import ROOT

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    "scenarios",
    [
        pytest.param(["user_access", "nvidia_driver"], id="two"),
        pytest.param([], id="all", marks=pytest.mark.long),
    ],
)
def test_scenarios_pass(scenarios: list[str]) -> None:
    command = ["sh", "tests/run.sh", "--molecule", *scenarios]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
