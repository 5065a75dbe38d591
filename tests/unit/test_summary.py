# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the table at the end of a run says went wrong."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.callback.summary import first_line

from tests.contract.tree import ROOT

LOOP = """
- name: Compare hosts with the declared state
  hosts: all
  gather_facts: false
  tasks:
    - name: Fail for one of them
      ansible.builtin.assert:
        that: item != "lab"
        fail_msg: there is no group {{ item }}
      loop: [docker, lab, research]
"""


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"msg": "Task failed: Module failed: no room"}, "no room"),
        ({"msg": "no room\non /srv"}, "no room"),
        ({"msg": ""}, "see above"),
        ({}, "see above"),
    ],
)
def test_an_error_is_one_line_of_what_happened(result: dict[str, Any], line: str) -> None:
    assert first_line(result) == line


def test_of_a_loop_the_item_that_failed_is_told(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(LOOP, encoding="utf-8")
    report = tmp_path / "report.json"
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "SLIPWAY_REPORT": str(report)}
    subprocess.run(
        ["ansible-playbook", "-i", "a,", "-c", "local", "play.yml"],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
    )
    assert json.loads(report.read_text())["a"]["error"] == "there is no group lab"
