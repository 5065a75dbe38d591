# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script `slipway`: paths in its arguments are relative to the caller's folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.tree import ROOT

WANTED = ("requirements.lock", "requirements.yml", "tools/collections.lock")
STAND_IN = (
    f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n"
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose ansible-playbook prints its folder and its arguments."""
    folder = tmp_path / "check out"
    for name in ("slipway", "tools/images.sh", "tools/upgrade.sh", *WANTED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    program = folder / ".slipway/env/bin/ansible-playbook"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN, encoding="utf-8")
    program.chmod(0o755)
    content = b"".join((folder / name).read_bytes() for name in WANTED)
    stamp = subprocess.run(["cksum"], input=content, capture_output=True, check=True).stdout
    (folder / ".slipway/env.stamp").write_bytes(stamp)
    return folder


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["-i", "my hosts.yml"], ["-i", "HERE/my hosts.yml"]),
        (["-i", "/srv/hosts.yml"], ["-i", "/srv/hosts.yml"]),
        (["-i", "gpu01,"], ["-i", "gpu01,"]),
        (["--inventory", "../lab"], ["--inventory", "HERE/../lab"]),
        (["-i", "a", "-i", "b", "--check"], ["-i", "HERE/a", "-i", "HERE/b", "--check"]),
        (["-e", "@a.json"], ["-e", "@HERE/a.json"]),
        (["--extra-vars", "@/a.json"], ["--extra-vars", "@/a.json"]),
        (["-e", '{"a": "x y"}'], ["-e", '{"a": "x y"}']),
        (["-e", "a=b"], ["-e", "a=b"]),
        (["--vault-password-file", "p"], ["--vault-password-file", "HERE/p"]),
        (["--inventory=a", "-ib", "-e@c"], ["--inventory=HERE/a", "-iHERE/b", "-e@HERE/c"]),
        (["--extra-vars=@a", "--extra-vars=a=b"], ["--extra-vars=@HERE/a", "--extra-vars=a=b"]),
        (["--limit", "gpu01", "-i"], ["--limit", "gpu01", "-i"]),
        ([], []),
        (["", "*", "$HOME"], ["", "*", "$HOME"]),
    ],
)
def test_paths_are_relative_to_the_caller(
    checkout: Path, tmp_path: Path, words: list[str], arguments: list[str]
) -> None:
    here = tmp_path / "some where"
    here.mkdir()
    command = [str(checkout / "slipway"), "site", *words]
    completed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=here)
    folder, playbook, *found = json.loads(completed.stdout)
    assert (folder, playbook) == (str(checkout), "site.yml")
    assert found == [word.replace("HERE", str(here)) for word in arguments]


def test_the_report_of_verify_is_relative_to_the_caller(checkout: Path, tmp_path: Path) -> None:
    (checkout / "tools/verify.py").write_text(STAND_IN, encoding="utf-8")
    (checkout / ".slipway/env/bin/python").symlink_to(sys.executable)
    for words in (["--report", "a.json"], ["--report=a.json"]):
        command = [str(checkout / "slipway"), "verify", *words, "-i", "hosts.yml"]
        completed = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        folder, *found = json.loads(completed.stdout)
        assert folder == str(checkout)
        assert "=".join(found[:-2]) == f"--report={tmp_path}/a.json"
        assert found[-2:] == ["-i", f"{tmp_path}/hosts.yml"]


ENVIRONMENT = (
    f"#!{sys.executable}\nimport os\n"
    "names = ('ANSIBLE_STDOUT_CALLBACK', 'SLIPWAY_STATE')\n"
    "print(*(os.environ.get(name, '-') for name in names))\n"
)


@pytest.mark.parametrize(
    ("words", "chosen", "callback"),
    [
        (["site"], {}, "slipway.host.live"),
        (["images", "build"], {}, "slipway.host.live"),
        (["upgrade"], {"ANSIBLE_STDOUT_CALLBACK": "oneline"}, "oneline"),
    ],
)
def test_the_view_is_the_default_of_the_verbs(
    checkout: Path, words: list[str], chosen: dict[str, str], callback: str
) -> None:
    (checkout / ".slipway/env/bin/ansible-playbook").write_text(ENVIRONMENT, encoding="utf-8")
    kept = {name: text for name, text in os.environ.items() if name != "ANSIBLE_STDOUT_CALLBACK"}
    completed = subprocess.run(
        [str(checkout / "slipway"), *words],
        env={**kept, **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout == f"{callback} {checkout}/.slipway\n"


def test_paths_of_other_verbs(checkout: Path, tmp_path: Path) -> None:
    for words in (["images", "build", "jupyter"], ["upgrade", "docker_engine"]):
        command = [str(checkout / "slipway"), *words, "-i", "hosts.yml"]
        completed = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert json.loads(completed.stdout)[-2:] == ["-i", f"{tmp_path}/hosts.yml"]
