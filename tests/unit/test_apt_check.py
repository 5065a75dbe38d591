# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of others that make apt ignore signatures or holds are found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host import apt_check

OWN = 'Unattended-Upgrade::Package-Blacklist {\n    "nvidia-";\n    "linux-(image|headers)-";\n};\n'
CLEAR = "#clear Unattended-Upgrade::Package-Blacklist;\n"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with apt's configuration, which the real apt-config reads."""
    conf = tmp_path / "apt.conf.d"
    conf.mkdir()
    (tmp_path / "sources.list.d").mkdir()
    (conf / "60slipway-nvidia-driver").write_text(f"// Slipway\n{OWN}")
    if shutil.which("apt-config") is None:
        pytest.skip("needs apt-config")
    # apt reads this file first, then the folder that it names.
    (tmp_path / "first").write_text(f'Dir::Etc "{tmp_path}";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "first"))
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    assert "Package-Blacklist" in dumped.stdout
    return tmp_path


def check(apt: Path) -> str:
    return apt_check.check(str(apt / "apt.conf.d"), str(apt))


def test_usual_settings_pass(apt: Path) -> None:
    (apt / "apt.conf.d/50unattended").write_text(
        'Unattended-Upgrade::Package-Blacklist { "vim"; };\nAPT::Get::AllowUnauthenticated "0";\n'
    )
    assert check(apt) == "no setting defeats signatures or holds"


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("99x", 'APT::Get::AllowUnauthenticated "true";', "found APT::Get::AllowUnauthenticated"),
        ("99x", "Acquire::AllowInsecureRepositories yes;", "Acquire::AllowInsecureRepositories"),
        ("99x", CLEAR, r"do not skip linux-\(image\|headers\)-, nvidia-: found a later file"),
        ("99x", f'{CLEAR}Unattended-Upgrade::Package-Blacklist {{ "nvidia-"; }};', "skip linux-"),
    ],
)
def test_settings_that_defeat_ours_fail(apt: Path, file: str, text: str, problem: str) -> None:
    (apt / "apt.conf.d" / file).write_text(f"{text}\n")
    with pytest.raises(ValueError, match=problem):
        check(apt)


def test_a_reset_before_our_file_does_no_harm(apt: Path) -> None:
    (apt / "apt.conf.d/20x").write_text(CLEAR)
    assert check(apt) == "no setting defeats signatures or holds"


@pytest.mark.parametrize(
    ("name", "text", "trusted"),
    [
        ("a.list", "deb [arch=amd64 trusted=yes] http://x y z\n", True),
        ("a.list", "# deb [trusted=yes] http://x y z\n", False),
        ("a.list", "deb [trusted=no] http://x y z\n", False),
        ("a.sources", "Types: deb\nURIs: http://x\nTrusted: yes\n", True),
        ("a.sources", "Types: deb\nURIs: http://x\n#Trusted: yes\n", False),
    ],
)
def test_sources_without_signatures_are_named(
    apt: Path, name: str, text: str, trusted: bool
) -> None:
    (apt / "sources.list.d" / name).write_text(text)
    assert (name in check(apt)) == trusted
