# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An emulated arm64 host with a GB10: two runs, and no emulator registered on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab import emulation
from lab.errors import LabError
from tests import page_commands
from tests.host.conftest import KEY
from tests.page_commands import Checkout

# Every program of the host takes several times as long.
pytestmark = [pytest.mark.host, pytest.mark.long]

REGISTERED = Path("/proc/sys/fs/binfmt_misc")
DRIVER = "linux-modules-nvidia-580-server-open-nvidia-hwe-24.04"
# Setuid programs work, and what is installed is for arm64.
SCRIPT = f"""\
#!/bin/sh
uname -m
sudo -u alice sudo -n true 2>&1 | grep -o "password is required"
dpkg-query --show --showformat="\\${{Architecture}}\\n" {DRIVER} docker.io
docker version --format "{{{{.Server.Arch}}}}"
"""


def test_an_emulated_gb10_host_converges(tmp_path: Path) -> None:
    try:
        emulation.check_machine()
    except LabError as error:
        pytest.skip(str(error))
    before = sorted(REGISTERED.iterdir())
    checkout = Checkout(tmp_path)
    make, again = page_commands.run_by("test_an_emulated_gb10_host_converges")
    users = [{"name": "alice", "docker": True, "keys": [KEY]}]
    declared = checkout.folder / "inventory/demo/host_vars/demo-1.yml"
    declared.parent.mkdir()
    declared.write_text(yaml.safe_dump({"user_access_users": users}))
    (checkout.folder / "script").write_text(SCRIPT)
    try:
        made = checkout.run(make)
        output = " ".join((made.stdout + made.stderr).split())
        assert made.returncode == 0, output
        assert "NVIDIA GB10" in output
        assert "GPUs: not tried: host_verify_containers is false" in output
        assert sorted(REGISTERED.iterdir()) == before
        seen = checkout.run("ansible all -i inventory/demo -b -m script -a script")
        printed = yaml.safe_load(seen.stdout.partition("=>")[2])["stdout"]
        assert " ".join(printed.split()) == "aarch64 password is required arm64 arm64 arm64"
        # All roles, without the survey.
        second = checkout.run(again, SLIPWAY_OUTPUT="ansible")
        assert second.returncode == 0, second.stdout + second.stderr
        assert "changed=0 " in second.stdout
    finally:
        checkout.run("./slipway demo --destroy")
    assert sorted(REGISTERED.iterdir()) == before
    assert not (checkout.folder / "inventory/demo/hosts.yml").exists()
