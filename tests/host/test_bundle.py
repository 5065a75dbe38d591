# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of docs/bundle.md: a controller without any network interface installs Slipway."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.host.conftest import ROOT

pytestmark = pytest.mark.host

PAGE = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """Return the blocks of commands of a section of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"(?ms)^```sh\n(.*?)^```", section)


def run(script: str, folder: Path, *prefix: str, **environment: str) -> str:
    """Run commands, which must succeed; return all output."""
    done = subprocess.run(
        [*prefix, "sh", "-ec", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_controller_without_network_is_set_up_from_a_bundle(tmp_path: Path) -> None:
    maker, stick, controller = (tmp_path / name for name in ("maker", "stick, blue", "controller"))
    for folder in (maker, stick, controller):
        folder.mkdir()
    slipway = f"'{ROOT}/slipway'"
    first, second = (block.replace("./slipway", slipway) for block in commands("Make a bundle"))
    environment = dict(os.environ, XDG_STATE_HOME=str(maker))
    shown = run(first, stick, **environment)
    assert "bundle.tar: " in shown and "key SHA256:" in shown
    assert "keep bundle.tar beside it" in run(second, stick, **environment)
    assert (stick / "bundle-2.tar").stat().st_size < (stick / "bundle.tar").stat().st_size / 10

    # Nothing of this machine: no settings of pip and no key that is trusted.
    bare = {"HOME": str(controller), "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    without_network = ("unshare", "--net")
    interfaces = run("tail -n +3 /proc/net/dev", stick, *without_network, **bare)
    assert [line.split(":")[0].strip() for line in interfaces.splitlines()] == ["lo"]
    fingerprint, unpack, check = commands("Use a bundle")
    assert run(fingerprint, stick, **bare).split()[1] in shown
    run(unpack, stick, *without_network, **bare)
    project = stick / "slipway"
    assert "files match" in run(check, project, *without_network, **bare)
    difference = check.replace("bundle.tar ", "bundle-2.tar ")
    assert "of them in bundle.tar" in run(difference, project, *without_network, **bare)
    version = run("./slipway run ansible-playbook --version", project, *without_network, **bare)
    assert f"{project}/.slipway/env/" in version
    files = "./slipway run ansible-doc community.docker.docker_image >/dev/null"
    run(files, project, *without_network, **bare)
