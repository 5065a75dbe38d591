# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that finds no host or no task says so, and does not end as if it had done something."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.tree import ROOT

PLAYBOOKS = ["site.yml", "playbooks/verify.yml", "playbooks/upgrade.yml", "playbooks/rollback.yml"]
PLAYBOOKS += ["playbooks/remove.yml"]
PLAYBOOKS += sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("playbooks/images_*.yml"))


def play(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook from a FOLDER, with the project's settings."""
    return subprocess.run(
        ["ansible-playbook", *words],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_run_without_hosts_fails_and_says_why(playbook: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("gpu_servers: {hosts: {}}\n", encoding="utf-8")
    done = play("-i", str(inventory), playbook)
    assert done.returncode == 1
    assert "No host matched" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "WARNING" not in done.stderr + done.stdout


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/plan.yml", "playbooks/verify.yml"])
def test_a_run_whose_tags_no_task_has_fails_and_says_why(playbook: str) -> None:
    done = play("-i", "a,", "-c", "local", playbook, "--tags", "docker_engine")
    assert done.returncode == 1
    assert "No task matched --tags" in done.stderr


def test_an_inventory_that_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "good.yml").write_text("gpu_servers: {hosts: {}}\n", encoding="utf-8")
    (tmp_path / "broken.yml").write_text("gpu_servers: {hosts: [gpu01]}\n", encoding="utf-8")
    done = play("-i", "good.yml", "-i", "broken.yml", str(ROOT / "site.yml"), folder=tmp_path)
    assert done.returncode == 1
    assert "Completely failed to parse inventory source" in done.stderr
