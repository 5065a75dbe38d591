# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/docker-stacks-tests, with stand-ins for Docker and Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools/docker-stacks-tests"
# Each call is one line of the log. The Python of the new environment is a stand-in, too.
STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >>"$LOG"
[ "$2" != venv ] || { mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/pip"; }
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Return exit code, messages, and the calls of other programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("docker", "python3"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    done = subprocess.run(
        [str(TOOL), *arguments],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(log), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


def test_the_tests_run_on_a_tag_that_is_removed(tmp_path: Path) -> None:
    (tmp_path / "stacks/tests/by_image/scipy-notebook").mkdir(parents=True)
    code, _, calls = run(tmp_path, str(tmp_path / "stacks"), "lab/own:1", "-k", "pandoc")
    tag = "quay.io/slipway/scipy-notebook"
    assert code == 0
    assert (calls[0], calls[-1]) == (f"docker tag lab/own:1 {tag}", f"docker image rm {tag}")
    (tests,) = [call for call in calls if "pytest -p" in call]
    assert " -k pandoc tests/by_image/docker-stacks-foundation " in tests
    assert "--registry quay.io --owner slipway --image scipy-notebook" in tests
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "programs", "stacks"]


def test_the_default_is_the_complete_image(tmp_path: Path) -> None:
    (tmp_path / "stacks/tests/by_image/scipy-notebook").mkdir(parents=True)
    _, _, calls = run(tmp_path, str(tmp_path / "stacks"))
    assert calls[0].startswith("docker tag slipway/jupyter-full:cpu ")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    code, said, calls = run(tmp_path, str(tmp_path))
    assert (code, calls) == (2, [])
    assert said == f"docker-stacks-tests: {tmp_path}: no checkout of docker-stacks\n"


def test_without_arguments_the_usage_is_shown(tmp_path: Path) -> None:
    code, said, calls = run(tmp_path)
    assert (code, calls) == (2, [])
    assert said.startswith("docker-stacks-tests CHECKOUT [IMAGE")
