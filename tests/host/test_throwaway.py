# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway hosts: create, restart and remove real containers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.engine import Engine
from lab.host_spec import HostSpec, Mount
from lab.hosts import Action, Group, Host

pytestmark = pytest.mark.host


def on(host: Host, script: str) -> str:
    """Run a shell script on a host, as its user, and return what it wrote."""
    done = subprocess.run(
        host.ssh_command("sh", "-ec", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    name = "pytest-throwaway"
    # The same folder each time, so that what an interrupted run left is found and removed.
    group = Group(name)
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    devices = tmp_path_factory.mktemp("pci")
    # pytest's folders are for their owner only, and the host's user is another one.
    devices.chmod(0o755)
    (devices / "0000:65:00.0").mkdir()
    (devices / "0000:65:00.0/vendor").write_text("0x10de\n")
    return devices


@pytest.fixture(scope="module")
def spec(devices: Path) -> HostSpec:
    mount = Mount(str(devices), "/sys/bus/pci/devices", read_only=True)
    return HostSpec("one", hostname="gpu01", mounts=(mount,))


@pytest.fixture(scope="module")
def host(group: Group, spec: HostSpec) -> Host:
    return group.ensure(spec)


def test_host_is_a_server_with_systemd_and_apt(host: Host) -> None:
    assert on(host, "id -un; hostname") == "operator\ngpu01"
    assert on(host, "sudo systemctl is-system-running") == "running"
    assert on(host, ". /etc/os-release; echo $ID $VERSION_ID") == "debian 13"
    on(host, "python3 -c 'import apt'")


def test_host_has_its_devices(host: Host) -> None:
    assert on(host, "cat /sys/bus/pci/devices/*/vendor") == "0x10de"


def test_password_and_root_logins_are_rejected(host: Host) -> None:
    settings = on(host, "sudo sshd -T")
    assert "passwordauthentication no" in settings
    assert "permitrootlogin no" in settings


def test_ssh_refuses_a_host_with_another_key(host: Host, tmp_path: Path) -> None:
    command = host.ssh_command("true")
    forged = tmp_path / "known_hosts"
    forged.write_text(f"{host.address} {host.private_key_file.with_suffix('.pub').read_text()}")
    known = next(i for i, word in enumerate(command) if word.startswith("UserKnownHostsFile="))
    command[known] = f"UserKnownHostsFile={forged}"
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 255
    assert "verification failed" in refused.stderr


def test_a_second_run_changes_nothing(group: Group, spec: HostSpec, host: Host) -> None:
    assert group.pending_action(spec) is Action.KEEP
    again = group.ensure(spec)
    assert not again.changed
    assert again.address == host.address


def test_second_host_is_separate(group: Group, host: Host) -> None:
    second = group.ensure(HostSpec("two"))
    identity = "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub"
    assert set(on(host, identity).split()).isdisjoint(on(second, identity).split())
    # Each one's systemd has a control group tree of its own.
    tree = "systemctl show --property ControlGroup --value ssh.service; hostname"
    assert on(second, tree) != on(host, tree)
    assert group.remove("two")
    assert on(host, "sudo systemctl is-system-running") == "running"


def test_stopped_host_is_started_with_its_data(group: Group, spec: HostSpec, host: Host) -> None:
    on(host, "sudo touch /var/lib/docker/kept /etc/kept")
    engine = Engine()
    (container,) = engine.lines("ps", "--quiet", f"--filter=label=slipway.state={group.state.path}")
    engine.docker("kill", container)
    assert group.pending_action(spec) is Action.START
    back = group.ensure(spec)
    assert back.changed
    on(back, "test -e /var/lib/docker/kept && test -e /etc/kept")


def test_removal_removes_containers_and_files(group: Group, spec: HostSpec) -> None:
    group.ensure(spec)
    label = f"--filter=label=slipway.state={group.state.path}"
    engine = Engine()
    assert len(engine.lines("volume", "ls", "--quiet", label)) == 2
    assert group.remove()
    assert engine.lines("volume", "ls", "--quiet", label) == []
    assert engine.lines("ps", "--all", "--quiet", label) == []
    assert not group.state.path.exists()
