# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages about a new role and a new option are followed word for word, in a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract.tree import ROOT

COPIED = (
    "collections",
    "images",
    "lab",
    "molecule",
    "playbooks",
    "roles",
    "tests",
    "tools",
    "vars",
)
FILES = (".gitignore", "ansible.cfg", "pyproject.toml", "README.md", "site.yml")
MODULE_UTILS = "collections/ansible_collections/slipway/host/plugins/module_utils"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the project without its environment and its history."""
    for folder in COPIED:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path)
    # Some rules are for the files that git does not ignore.
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str]]:
    """Return path and content of the blocks of a page that are introduced by a path."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"`([a-z_/.A-Z]+)`[^`:]*:\n\n```[a-z]+\n(.*?)```", text, re.DOTALL)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a copy, with its settings."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(folder / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )


def passes(folder: Path, *arguments: str) -> str:
    done = run(folder, "-m", "pytest", "-q", "-p", "no:xdist", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_role_of_the_page_works(copy: Path) -> None:
    found = blocks("add-a-role.md")
    assert len(found) >= 9
    for path, content in found:
        assert max(map(len, content.splitlines())) <= 100, path
        file = copy / re.sub("^module_utils", MODULE_UTILS, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    roles = copy / "vars/roles.yml"
    roles.write_text(roles.read_text() + "  - node_exporter\n")
    assert yaml.safe_load(roles.read_text())["slipway_roles"][-1] == "node_exporter"
    readme = run(copy, "tools/role_readme.py")
    assert readme.returncode == 0, readme.stderr
    assert "`node_exporter_address`" in (copy / "roles/node_exporter/README.md").read_text()
    assert "4 passed" in passes(copy, "tests/unit/test_node_exporter.py")
    passes(copy, "tests/contract/test_owned_state.py", "-k", "node_exporter")
    passes(copy, "tests/contract/test_words.py", "-k", "node_exporter")
    passes(copy, "tests/contract/test_roles.py", "-k", "node_exporter")


def test_the_option_of_the_page_works(copy: Path) -> None:
    found = dict(blocks("add-an-option.md"))
    role = copy / "roles/docker_engine"
    defaults, spec = role / "defaults/main.yml", role / "meta/argument_specs.yml"
    defaults.write_text(
        defaults.read_text() + "\n" + found["roles/docker_engine/defaults/main.yml"]
    )
    spec.write_text(spec.read_text() + found["roles/docker_engine/meta/argument_specs.yml"])
    plan = copy / MODULE_UTILS / "roles/docker_engine.py"
    old = "    settings = _combined("
    text = plan.read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(old)]
    (new,) = (block for path, block in found.items() if path.endswith("s/docker_engine.py"))
    plan.write_text(text.replace(line + "\n", new))
    test = copy / "tests/unit/test_docker_engine.py"
    test.write_text(test.read_text() + "\n\n" + found["tests/unit/test_docker_engine.py"])
    assert run(copy, "tools/role_readme.py").returncode == 0
    assert "2 passed" in passes(copy, "tests/unit/test_docker_engine.py", "-k", "debug_log")
    passes(copy, "tests/contract/test_roles.py", "-k", "docker_engine")
