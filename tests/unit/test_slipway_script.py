# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script `slipway`: paths in its arguments are relative to the caller's folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
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
    tools = ("tools/images.sh", "tools/nearest.sh", "tools/rolling.sh", "tools/upgrade.sh")
    for name in ("slipway", *tools, "inventory/hosts.example.yml", *WANTED):
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
        # Paths of a bundle are for the tool that checks it, see the next test.
        (["-e", "ml_images_bundle=a"], ["-e", "ml_images_bundle=a"]),
        ([], []),
        (["", "*", "$HOME"], ["", "*", "$HOME"]),
        (
            ["--serial", "2", "--check"],
            ["-e", "slipway_serial=2 slipway_upgrade_serial=2", "--check"],
        ),
        (
            ["--serial=25%", "--max-failures", "1"],
            [
                *("-e", "slipway_serial=25% slipway_upgrade_serial=25%"),
                *("-e", "slipway_max_failures=1"),
            ],
        ),
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


@pytest.mark.parametrize("words", [["--out", "a b"], ["--out=a b"]])
def test_the_file_of_an_export_is_relative_to_the_caller(
    checkout: Path, tmp_path: Path, words: list[str]
) -> None:
    (checkout / "tools/export.py").write_text(STAND_IN, encoding="utf-8")
    (checkout / ".slipway/env/bin/python").symlink_to(sys.executable)
    command = [str(checkout / "slipway"), "export", "ray", *words, "-i", "hosts.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    folder, target, *found = json.loads(done.stdout)
    assert (folder, target) == (str(checkout), "ray")
    assert ("=".join(found[:-2]), found[-1]) == (f"--out={tmp_path}/a b", f"{tmp_path}/hosts.yml")


@pytest.mark.parametrize("words", [["--bundle", "b 1,2.tar"], ["--bundle=b 1,2.tar"]])
@pytest.mark.parametrize("verb", ["site", "plan", "verify", "upgrade", "rollback", "remove"])
def test_a_run_with_a_bundle_checks_it_first(
    checkout: Path, tmp_path: Path, verb: str, words: list[str]
) -> None:
    (checkout / "tools/with_bundle.py").write_text(STAND_IN, encoding="utf-8")
    (checkout / ".slipway/env/bin/python").symlink_to(sys.executable)
    command = [str(checkout / "slipway"), verb, "--limit", "a", *words, "--signer", "k"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    folder, *found = json.loads(completed.stdout)
    assert (folder, found.pop(0)) == (str(checkout), verb)
    assert "=".join(found[2:-2]) == f"--bundle={tmp_path}/b 1,2.tar"
    assert found[-2:] == ["--signer", f"{tmp_path}/k"]


@pytest.mark.parametrize("words", [["--bundle", "b,1", "--signer=k"], ["--bundle=b,1"]])
def test_setup_uses_a_python_for_which_the_bundle_has_wheels(
    checkout: Path, tmp_path: Path, words: list[str], program: Callable[[str, str], None]
) -> None:
    (checkout / ".slipway/env.stamp").unlink()
    for version in ("3.13", "3.12"):
        # find_python asks each program for its version; setup then starts the tool.
        script = (
            f'case "$2" in *{version}*) exit 0 ;; *version_info*) exit 1 ;; esac\n'
            f'echo {version} "$@" >>{tmp_path}/asked\n'
            'case "$3" in -) echo 3.11 3.12 ;; *) exit 1 ;; esac'
        )
        program(f"python{version}", script)
    done = subprocess.run(
        [str(checkout / "slipway"), "setup", *words],
        cwd=tmp_path,
        env={**os.environ, "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    tool, signer = f"{checkout}/tools/bundle_setup.py", f" {tmp_path}/k" * ("--signer=k" in words)
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"3.13 {tool} {tmp_path}/b,1 -{signer}",
        f"3.12 {tool} {tmp_path}/b,1 {checkout}/.slipway/wheels{signer}",
    ]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--bundle"], "setup: --bundle: no file given; expected its path"),
        (["--bundel", "a"], "setup: unknown option: --bundel; expected --bundle FILE or"),
    ],
)
def test_wrong_options_of_setup_are_refused(checkout: Path, words: list[str], error: str) -> None:
    done = run_script(checkout, "setup", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr


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


@pytest.mark.parametrize("words", [["--serial"], ["--serial", "two"], ["--max-failures=5%%"]])
@pytest.mark.parametrize("verb", ["site", "upgrade", "rollback"])
def test_batches_of_no_number_are_refused(checkout: Path, verb: str, words: list[str]) -> None:
    done = run_script(checkout, verb, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected a number of hosts such as 2, or a percentage such as 25%." in done.stderr


def run_script(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(checkout / "slipway"), *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["plann"], "unknown verb: plann; expected one of: .* Did you mean plan?"),
        (["site plan"], "unknown verb: site plan; .* Did you mean site?"),
        (["-v"], "unknown verb: -v; expected one of: .* test run. ./slipway help "),
        (["images", "bild"], "images: unknown verb: bild; .* Did you mean build?"),
        (["images", "xyz"], "images: unknown verb: xyz; .* prune. ./slipway images --help "),
    ],
)
def test_an_unknown_verb_is_refused_with_the_nearest(
    checkout: Path, words: list[str], error: str
) -> None:
    done = run_script(checkout, *words)
    pattern = ".*".join(map(re.escape, error.split(".*")))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(f"^slipway: {pattern}", done.stderr, re.M)


def test_the_help_of_site_is_ours(checkout: Path) -> None:
    shutil.rmtree(checkout / ".slipway")
    for option in ("-h", "--help"):
        done = run_script(checkout, "site", option)
        assert done.stdout.startswith("Usage: ./slipway site ")
        assert done.returncode == 0
    # No environment is made for a help text.
    assert not (checkout / ".slipway").exists()


def test_the_inventory_is_a_copy_of_the_example(checkout: Path) -> None:
    inventory = checkout / "inventory/hosts.yml"
    done = run_script(checkout, "site")
    assert "created inventory/hosts.yml" in done.stderr
    assert inventory.read_bytes() == (ROOT / "inventory/hosts.example.yml").read_bytes()
    inventory.write_text("mine: {}\n", encoding="utf-8")
    assert run_script(checkout, "site").stderr == ""
    assert inventory.read_text(encoding="utf-8") == "mine: {}\n"


def test_output_that_does_not_block_is_made_to_block(checkout: Path) -> None:
    """Ansible refuses it: a killed ssh leaves a terminal like that."""
    program = checkout / ".slipway/env/bin/ansible-playbook"
    program.write_text(
        f"#!{sys.executable}\nimport os\nprint([os.get_blocking(n) for n in (0, 1, 2)])\n",
        encoding="utf-8",
    )
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    command = ["sh", str(checkout / "slipway"), "site"]
    with os.fdopen(read, encoding="utf-8") as output:
        with os.fdopen(write, "w") as pipe:
            subprocess.run(command, stdin=read, stdout=pipe, stderr=pipe, check=True)
        assert output.readlines()[-1] == "[True, True, True]\n"


def test_git_ignores_the_files_of_an_inventory() -> None:
    names = ["hosts.yml", "group_vars/all.yml", "host_vars/gpu01/gpus.yml", "demo/hosts.yml"]
    paths = [f"inventory/{name}" for name in names]
    command = ["git", "check-ignore", *paths, "inventory/hosts.example.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == paths


def test_a_plan_without_hosts_prints_only_the_reason(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("gpu_servers: {hosts: {}}\n", encoding="utf-8")
    demo = tmp_path / "inventory/demo/hosts.yml"
    for message in ("set another inventory with -i.", "host of the demo: -i inventory/demo"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools/plan.py"), "-i", "hosts.yml"],
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("[ERROR]: No host matched")
        assert done.stderr.strip().endswith(message)
        demo.parent.mkdir(parents=True, exist_ok=True)
        demo.touch()
