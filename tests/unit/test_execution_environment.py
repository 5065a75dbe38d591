# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The execution environment for AWX: its files exist, and its steps find all locked versions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import tomllib  # type: ignore[import-not-found] # mypy looks with the oldest host's eyes
import yaml

from tests.contract.tree import ROOT

DEFINITION = ROOT / "tools/execution-environment.yml"
FOLDER = "/tmp/slipway"


def test_each_requirement_of_a_run_has_its_locked_version(tmp_path: Path) -> None:
    definition = yaml.safe_load(DEFINITION.read_text())
    copied = tmp_path / "slipway"
    for file in definition["additional_build_files"]:
        source = DEFINITION.parent / file["src"]
        target = tmp_path / file["dest"] / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (step,) = (
        step
        for step in definition["additional_build_steps"]["prepend_base"]
        if "requirements.lock" in step
    )
    commands = step.removeprefix("RUN ").partition(" && python -m pip")[0]
    for place in ("constraints.txt", "requirements.txt"):
        commands = commands.replace(f">/tmp/{place}", f">{tmp_path}/{place}")
    commands = commands.replace(FOLDER, str(copied)).replace("python -c", f"{sys.executable} -c")
    subprocess.run(["sh", "-euc", commands], check=True)
    wanted = (tmp_path / "requirements.txt").read_text().splitlines()
    assert wanted == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = (tmp_path / "constraints.txt").read_text().splitlines()
    locked = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.M)
    assert [pin.partition("==")[0] for pin in pins] == locked
    assert {re.split(r"[<>=]", name)[0] for name in wanted} <= set(locked)
    # The tool that installs the collections reads them beside its folder.
    assert {path.name for path in copied.iterdir()} >= {"requirements.yml", "tools"}
    assert (copied / "tools/collections.lock").exists()
