# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first commands of a new user: a demo in a copy of the project."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests import page_commands
from tests.page_commands import Checkout

# Two first runs, which other tests have as well.
pytestmark = [pytest.mark.host, pytest.mark.long]

# How a command ends, unless with 0.
STATUS = {"./slipway verify -i inventory/demo": 2}


def test_each_command_with_a_demo_works(tmp_path: Path) -> None:
    checkout, address, printed = Checkout(tmp_path), "", {}
    try:
        for command in page_commands.run_by("test_each_command_with_a_demo_works"):
            done = checkout.run(command.replace("172.17.0.2", address or "172.17.0.2"))
            output = done.stdout + done.stderr
            assert done.returncode == STATUS.get(command, 0), f"{command}: {output}"
            if command == "./slipway demo":
                hosts = yaml.safe_load((checkout.folder / "inventory/demo/hosts.yml").read_text())
                address = hosts["demo"]["hosts"]["demo-1"]["ansible_host"]
                assert f"iris-api: http://{address}:5000/predict" in " ".join(output.split())
            printed[command] = output
    finally:
        checkout.run("./slipway demo --destroy")
    assert any('{"prediction":"virginica"}' in one for one in printed.values())
    assert "row" in printed["./slipway verify -i inventory/demo"]
