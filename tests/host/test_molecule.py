# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All molecule scenarios as one host test: beside another file, because their hosts mostly wait."""

from __future__ import annotations

import subprocess

import pytest

from tests.contract.tree import ROOT

pytestmark = pytest.mark.host


def test_all_scenarios_pass() -> None:
    command = ["sh", "tests/run.sh", "--molecule"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
