# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual machines with their own kernel: a reboot by the role, and a real DKMS build.

Real are the kernel, its modules and their loading, the reboot, apt and DKMS.  The PCI tree is made
up and lies over the real one.  NVIDIA's module does not load where there is no GPU, so the reboot
is tried with stand-ins that DKMS builds and the kernel loads.

Emulation makes these tests slow: `./slipway test --vm` runs them, and nothing else does.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import dkms_driver, pci_tree, virtual_machine
from lab.apt_repository import Key, Repository
from tests.host.conftest import Site

pytestmark = [pytest.mark.host, pytest.mark.vm]

SEEN = "/srv/stand-in"
MODEL = "t4"
SUITES = ("trixie", "trixie-updates")
# Lies over the real devices from before the first service on, at each boot.
PCI_MOUNT = f"""\
[Unit]
Description=Devices of a simulated host (stand-in)
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target

[Mount]
What={SEEN}/pci/bus/pci/devices
Where=/sys/bus/pci/devices
Type=none
Options=bind

[Install]
WantedBy=sysinit.target
"""
MOUNT_UNIT = "sys-bus-pci-devices.mount"
REBOOT = "nvidia_driver: Reboot to load the NVIDIA module"


class GuestSite(Site):
    """A virtual machine with a made-up GPU."""

    def __init__(self, guest: virtual_machine.Guest, folder: Path) -> None:
        super().__init__(guest, folder)
        self.guest = guest
        self.stand_ins = folder / "stand-ins"
        pci_tree.build(self.stand_ins / "pci", pci_tree.MODELS[MODEL], flat=True)

    @property
    def connection(self) -> dict[str, Any]:
        return {**super().connection, "ansible_port": self.guest.port}

    def send(self) -> None:
        """Copy the stand-ins to the guest, and show it the PCI tree."""
        tar = subprocess.run(
            ["tar", "-C", self.stand_ins, "--exclude=gnupg", "-c", "."],
            capture_output=True,
            check=True,
        )
        unpack = f"mkdir -p {SEEN} && tar -C {SEEN} --no-same-owner -x"
        command = self.guest.ssh_command("sudo", "sh", "-c", unpack)
        subprocess.run(command, input=tar.stdout, check=True)
        self.on(
            f"cat >/etc/systemd/system/{MOUNT_UNIT} <<'END'\n{PCI_MOUNT}END\n"
            f"systemctl enable --now --quiet {MOUNT_UNIT}"
        )

    def boot_id(self) -> str:
        return self.on("cat /proc/sys/kernel/random/boot_id")

    def loaded(self, module: str) -> bool:
        return self.on(f"lsmod | grep -c '^{module} ' || true") == "1"


# --- the reboot --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rebooting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSite]:
    """A guest whose kernel loads nouveau at each boot, as udev makes it where a GPU is."""
    folder = tmp_path_factory.mktemp("reboot")
    with virtual_machine.guest("reboot", folder) as guest:
        site = GuestSite(guest, folder)
        # A role after the driver's, to see that the run went on.
        site.extra = {"slipway_roles": ["nvidia_driver", "user_access"]}
        key = Key(site.stand_ins, "key")
        archive = Repository(site.stand_ins / "archive", key, "Debian", "Debian", SUITES)
        archive.publish(dkms_driver.packages())
        site.send()
        # The real driver, which the guest's own sources have, does not load without a GPU.
        site.on("sed -i 's/ contrib .*//' /etc/apt/sources.list")
        site.on("echo nouveau >/etc/modules-load.d/gpu.conf; modprobe nouveau")
        site.declare(
            nvidia_driver_repository={
                "url": f"file://{SEEN}/archive",
                "key_url": f"file://{SEEN}/{key.file.name}",
                "fingerprint": key.fingerprint,
            },
            user_access_users=[{"name": "alice"}],
        )
        yield site


def test_a_host_without_permission_to_reboot_waits(rebooting: GuestSite) -> None:
    before = rebooting.boot_id()
    assert rebooting.loaded("nouveau")
    run = rebooting.run("site.yml", nvidia_driver_reboot="never")
    assert run.status == "failed"
    assert "nouveau uses the GPUs until the next boot. Reboot the host" in run.output
    assert rebooting.boot_id() == before
    # All but the reboot is done: DKMS built the module for the kernel that runs.
    kernel, version = rebooting.on("uname -r; modinfo -F version nvidia").split()
    assert version == dkms_driver.VERSION
    assert rebooting.on("modinfo -F vermagic nvidia").split()[0] == kernel
    assert not rebooting.loaded("nvidia")


def test_the_next_run_reboots_the_host_and_finishes(rebooting: GuestSite) -> None:
    before = rebooting.boot_id()
    run = rebooting.converge()
    assert rebooting.boot_id() != before
    assert REBOOT in run.changed()
    assert not rebooting.loaded("nouveau")
    assert rebooting.on("cat /sys/module/nvidia/version") == dkms_driver.VERSION
    rebooting.on("systemctl is-active nvidia-persistenced; test -c /dev/nvidia0; id alice")
    assert "nvidia-smi lists 1 of 1" in run.output


def test_the_run_after_the_reboot_changes_nothing(rebooting: GuestSite) -> None:
    before = rebooting.boot_id()
    assert rebooting.plan() == (0, set())
    assert rebooting.converge(slipway_survey=False).changed() == set()
    assert rebooting.boot_id() == before


# --- the real driver ---------------------------------------------------------------------------

# What the role installs for a T4 on Debian 13. DKMS builds the modules when the disk is made, for
# the guest's kernel and with the guest's compiler, but by this machine's processor: in the guest
# itself, on a busy machine, it had made 15 of 208 objects after 50 minutes.
DRIVER = ("nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced")


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestSite]:
    """A guest with Debian's real driver, and a GPU that is not there."""
    folder = tmp_path_factory.mktemp("driver")
    with virtual_machine.guest("driver", folder, *DRIVER) as guest:
        site = GuestSite(guest, folder)
        site.extra = {"slipway_roles": ["nvidia_driver"]}
        site.send()
        site.declare()
        yield site


def test_debians_driver_is_built_for_the_guests_kernel(driven: GuestSite) -> None:
    kernel = driven.on("uname -r")
    version = driven.on("modinfo -F version nvidia-current")
    assert driven.on("modinfo -F vermagic nvidia-current").split()[0] == kernel
    assert driven.on("modinfo -F license nvidia-current") == "NVIDIA"
    built = driven.on("dkms status nvidia-current")
    assert built.startswith(f"nvidia-current/{version}, {kernel}, x86_64: installed")


def test_the_role_adopts_the_driver_and_reports_the_loaded_module(driven: GuestSite) -> None:
    run = driven.run("site.yml")
    # The kernel takes the module, which looks for a GPU.
    assert run.status == "failed"
    assert "modprobe nvidia failed" in run.output
    assert "No such device" in run.output
    assert "NVRM: No NVIDIA GPU found" in driven.on("journalctl --quiet --dmesg --grep NVRM")
    held = driven.on("apt-mark showhold").splitlines()
    assert set(DRIVER) <= set(held)
