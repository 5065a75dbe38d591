# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of docs/bundle.md that check a bundle before any code in it runs."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import signature

from tests.contract.tree import ROOT

SECTION = (
    (ROOT / "docs/bundle.md")
    .read_text(encoding="utf-8")
    .partition("\n## Use a bundle\n")[2]
    .partition("\n## ")[0]
)
COMPARE, UNPACK, _CHECK = re.findall(r"(?ms)^```sh\n(.*?)^```", SECTION)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The keys of the maker and of somebody who changed files on the stick."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("maker", "attacker"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return {name: folder / name for name in ("maker", "attacker")}


def read_text(key: Path) -> str:
    return signature.read_key(Path(f"{key}.pub"))


def write_stick(folder: Path, key: Path) -> None:
    """Write a bundle whose project is signed with a key."""
    project = io.BytesIO()
    with tarfile.open(fileobj=project, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("slipway/file"))
    content = project.getvalue()
    signed = signature.sign(content, key, signature.PROJECT_NAMESPACE)
    with tarfile.open(folder / "bundle.tar", "w") as opened:
        for name, data in (("project.tar", content), ("project.tar.sig", signed)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))


def run(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-ec", commands.partition("cd slipway")[0]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_commands_unpack_a_project_of_the_compared_key(
    tmp_path: Path, keys: dict[str, Path]
) -> None:
    write_stick(tmp_path, keys["maker"])
    (tmp_path / "bundle.tar.pub").write_text(f"{read_text(keys['maker'])}\n")
    fingerprint = signature.fingerprint(read_text(keys["maker"]))
    assert run(COMPARE, tmp_path).stdout.split()[1] == fingerprint
    assert run(UNPACK, tmp_path).returncode == 0
    assert (tmp_path / "slipway/file").exists()


@pytest.mark.parametrize(
    "text",
    [
        "MAKER\n",
        "MAKER\nATTACKER\n",
        "ATTACKER\nMAKER\n",
        # ssh-keygen -l skips these first lines, or reads the file bundle.tar.pub.pub.
        'namespaces="slipway-project" ATTACKER PRIVATE KEY\nMAKER\n',
        'namespaces="PRIVATE KEY"\tATTACKER\nMAKER\n',
        'cert-authority,namespaces="slipway-project" ATTACKER\nMAKER\n',
        "# PRIVATE KEY\nMAKER\n",
    ],
)
def test_no_file_on_the_stick_adds_a_trusted_key(
    tmp_path: Path, keys: dict[str, Path], text: str
) -> None:
    write_stick(tmp_path, keys["attacker"])
    maker, attacker = map(read_text, (keys["maker"], keys["attacker"]))
    text = text.replace("MAKER", maker).replace("ATTACKER", attacker)
    (tmp_path / "bundle.tar.pub").write_text(text)
    for name in ("bundle.tar.allowed_signers", "signers"):
        (tmp_path / name).write_text(f"slipway-bundle {attacker}\n")
    for name in ("bundle.tar.pub.pub", "signer.pub.pub"):
        (tmp_path / name).write_text(f"{maker}\n")
    compared = run(COMPARE, tmp_path).stdout
    run(UNPACK, tmp_path)
    assert (tmp_path / "slipway").exists() == (signature.fingerprint(attacker) in compared)
