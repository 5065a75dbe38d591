# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plays `upgrade` and `rollback` with real apt, on simulated GPU hosts.

Archives hold one version at a time here, as Ubuntu's does: once the newer packages are there, the
older ones are nowhere but on the hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import gpu_host, nvidia_packages
from lab.apt_repository import Package
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.host.conftest import Run, Site
from tests.page_commands import Checkout

pytestmark = pytest.mark.host

GROUP = "pytest-upgrade"
MODEL, BASE = "8xh100", "ubuntu-like-24.04"
UPGRADE, ROLLBACK = "playbooks/upgrade.yml", "playbooks/rollback.yml"
ROLES = {
    "slipway_roles": [
        *("nvidia_driver", "docker_engine", "nvidia_container_toolkit", "host_metrics"),
    ]
}
METRICS = "/var/lib/metrics"
OLD, NEW = nvidia_packages.BRANCHES[580]
BETWEEN = "580.175.01"
OLD_TOOLKIT, NEW_TOOLKIT = nvidia_packages.TOOLKIT_VERSIONS
RECORD = "/var/lib/slipway/upgrade/record.json"
# What is installed of the sets: wanted state, name and version.
STATE = (
    "dpkg-query -W -f '${db:Status-Want} ${Package} ${Version} ${db:Status-Status}\\n' "
    "'*nvidia*' 'docker*' linux-image-generic | grep ' installed$'"
)


Packages = dict[str, tuple[str, str]]


def fragile(package: Package) -> Package:
    """Return a package of which one cannot be configured on a host that says so."""
    if package.name != "nvidia-utils-580-server":
        return package
    return replace(package, scripts={"postinst": "test ! -e /run/broken"})


class UpgradeSite(Site):
    """A simulated GPU host whose archives are its own."""

    extra = ROLES

    def __init__(self, name: str, group: Group, folder: Path) -> None:
        self.simulated = gpu_host.prepare(
            folder / name, MODEL, BASE, newest=False, server=gpu_host.SERVER
        )
        self.simulated.toolkit.withdraw(NEW_TOOLKIT)
        mounts = self.simulated.mounts
        super().__init__(group.ensure(HostSpec(name, base=BASE, mounts=mounts)), folder)
        self.inventory = folder / f"{name}.yml"
        self.declare()

    def declare(self, **variables: Any) -> None:
        """Write the inventory, with what leads to the stand-in archives."""
        toolkit = {"nvidia_container_toolkit_version": OLD_TOOLKIT}
        declared = {**self.simulated.variables, **toolkit, "host_metrics_folder": METRICS}
        super().declare(**{**declared, **variables})

    def release(self) -> None:
        """Let the archives have the newer versions, and lose the older ones."""
        simulated = self.simulated
        simulated.archive.publish(map(fragile, nvidia_packages.ubuntu()))
        simulated.archive.publish([Package("docker-compose-v2", "99.1-1")])
        simulated.archive.withdraw(OLD, f"{nvidia_packages.UBUNTU_KERNEL_PACKAGE}+1", "99.0-1")
        simulated.toolkit.publish(nvidia_packages.toolkit())
        simulated.toolkit.withdraw(OLD_TOOLKIT)

    def packages(self) -> Packages:
        """Return what dpkg wants of each package of the set, and its version."""
        lines = (line.split() for line in self.on(STATE).splitlines())
        return {name: (want, version) for want, name, version, _state in lines}

    def record(self) -> dict[str, Any]:
        """Return the record of the last upgrade."""
        return dict(json.loads(self.on(f"cat {RECORD}")))

    def driver(self) -> tuple[str, str]:
        """Return the version of the loaded driver, and of the one that containers are given."""
        told = self.on("grep -oE 'STAND_IN=[0-9.]+' /run/cdi/nvidia.yaml")
        return self.on("cat /sys/module/nvidia/version"), told.removeprefix("STAND_IN=")

    def measured_drivers(self) -> set[str]:
        """Return the versions of the driver in the metrics of the host, one for each GPU."""
        return set(re.findall(r'driver_version="([^"]*)"', self.on(f"cat {METRICS}/slipway.prom")))

    def upgraded(self, **extra: Any) -> Run:
        """Upgrade, which must succeed."""
        run = self.run(UPGRADE, **extra)
        assert run.status == "successful", run.output
        return run


class Both(Site):
    """Two hosts in one inventory."""

    extra = ROLES

    def __init__(self, *sites: UpgradeSite) -> None:
        self.folder = sites[0].folder
        self.inventory = self.folder / "both.yml"
        declared = [yaml.safe_load(site.inventory.read_text())["all"]["hosts"] for site in sites]
        hosts = {name: variables for one in declared for name, variables in one.items()}
        self.inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))


def told(run: Run) -> str:
    """Return all that a run said, without colours and as words with single spaces."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.output).split())


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upgrade")


@pytest.fixture(scope="module")
def site(group: Group, folder: Path) -> UpgradeSite:
    """A host with the older versions, whose archives have nothing newer yet."""
    site = UpgradeSite("up-1", group, folder)
    site.converge()
    return site


@pytest.fixture(scope="module")
def first(site: UpgradeSite) -> Packages:
    """Its packages before any upgrade."""
    return site.packages()


def test_a_host_with_the_newest_packages_is_unchanged(site: UpgradeSite, first: Packages) -> None:
    assert site.upgraded().changed() == set()
    assert site.packages() == first
    site.on(f"test ! -e {RECORD}")


def test_check_mode_lists_upgrades_and_changes_nothing(site: UpgradeSite, first: Packages) -> None:
    site.release()
    site.declare(nvidia_container_toolkit_version=NEW_TOOLKIT)
    lists = "cd /var/lib/apt/lists; ls -l --time-style=full-iso"
    before = site.on(lists)
    run = site.run(UPGRADE, "--check")
    assert run.status == "successful", run.output
    said = told(run)
    assert f"{OLD}-0ubuntu0.24.04.1 -> {NEW}-0ubuntu0.24.04.1: libnvidia-cfg1-580-server" in said
    assert "99.0-1 -> 99.1-1: docker-compose-v2" in said
    assert f"{OLD_TOOLKIT}-1 -> {NEW_TOOLKIT}-1: libnvidia-container-tools" in said
    assert site.packages() == first
    assert site.on(lists) == before
    site.on(f"test ! -e {RECORD}")


# What has to stop an upgrade before anything changes: how it comes about, how it ends, and words.
STOPS = {
    "a GPU in use": (
        "systemd-run --quiet --unit=training sh -c 'exec sleep 900 </dev/nvidia0'",
        "systemctl stop training",
        "The GPUs are in use: process",
    ),
    "an unreachable archive": (
        "systemctl stop stand-in-server",
        "systemctl start stand-in-server; sleep 1",
        # One source or several, whichever this host has by now.
        "Cannot find the newest versions. apt source",
    ),
    "an archive that lost what its index names": (
        "mv /srv/stand-in/archive/pool /srv/stand-in/archive/away",
        "mv /srv/stand-in/archive/away /srv/stand-in/archive/pool",
        f"Failed to fetch {gpu_host.SERVER}/archive/pool",
    ),
    "no room": (
        "mount -t tmpfs -o size=4k tmpfs /var/cache/apt/archives",
        "umount /var/cache/apt/archives",
        "Free some space",
    ),
}


@pytest.mark.parametrize(("begin", "end", "words"), STOPS.values(), ids=STOPS.keys())
def test_an_impossible_upgrade_changes_nothing(
    site: UpgradeSite, first: Packages, begin: str, end: str, words: str
) -> None:
    site.on(begin)
    run = site.run(UPGRADE)
    site.on(end)
    assert run.status == "failed"
    assert words in told(run)
    assert "No package was changed" in told(run)
    assert site.packages() == first


@pytest.fixture(scope="module")
def other(group: Group, site: UpgradeSite, first: Packages) -> UpgradeSite:
    """A second host like the first one."""
    other = UpgradeSite("up-2", group, site.folder)
    other.converge()
    other.release()
    other.declare(nvidia_container_toolkit_version=NEW_TOOLKIT)
    assert other.packages() == first
    return other


def test_the_first_failure_stops_the_run_and_names_the_rollback(
    site: UpgradeSite, other: UpgradeSite, first: Packages
) -> None:
    site.on("touch /run/broken")
    run = Both(site, other).run(UPGRADE)
    assert set(run.stats["failures"]) == {"up-1"}
    said = told(run)
    assert "up-1: 'Upgrade driver packages' failed:" in said
    assert "error processing package nvidia-utils-580-server" in said
    assert "To restore the previous packages: ./slipway rollback --limit up-1" in said
    assert other.packages() == first
    # Half of it has the newer version, and none of it was let go.
    held = set(site.on("apt-mark showhold").split())
    assert {name for name, (want, _version) in first.items() if want == "hold"} <= held


def test_a_rollback_needs_no_archive(site: UpgradeSite, first: Packages) -> None:
    # Without apt's cache too: the previous packages are kept elsewhere.
    site.on("rm /var/cache/apt/archives/*nvidia*-580*")
    run = site.run(ROLLBACK)
    assert run.status == "successful", run.output
    assert site.packages() == first
    assert site.driver() == (OLD, OLD)
    assert site.on("dpkg --audit") == ""
    assert site.run(ROLLBACK).changed() == set()


def test_a_driver_that_the_kernel_cannot_load_fails_the_upgrade(
    site: UpgradeSite, first: Packages
) -> None:
    site.on("rm /run/broken; touch /run/stand-in.stuck")
    run = site.run(UPGRADE)
    assert run.status == "failed"
    assert "cannot unload kernel module nvidia_uvm" in told(run)
    assert "./slipway rollback --limit up-1" in told(run)
    assert site.record()["state"] == "upgrading"
    site.on("rm /run/stand-in.stuck")


def test_the_next_run_upgrades_both_hosts(
    site: UpgradeSite, other: UpgradeSite, first: Packages
) -> None:
    both = Both(site, other)
    run = both.run(UPGRADE)
    assert run.status == "successful", run.output
    for host in (site, other):
        packages = host.packages()
        assert packages["nvidia-utils-580-server"] == ("hold", f"{NEW}-0ubuntu0.24.04.1")
        assert packages["nvidia-container-toolkit"] == ("hold", f"{NEW_TOOLKIT}-1")
        assert packages["docker-compose-v2"] == ("hold", "99.1-1")
        # Firmware has its version in its name.
        assert f"nvidia-firmware-580-server-{OLD}" not in packages
        wants = {name: want for name, (want, _version) in packages.items() if name in first}
        assert wants == {name: first[name][0] for name in wants}
        assert host.driver() == (NEW, NEW)
        assert host.measured_drivers() == {NEW}
        host.on("systemctl is-active nvidia-persistenced nvidia-fabricmanager docker")
        assert host.plan() == (0, set())
    # The rollback record of the first upgrade still has the first version.
    before = site.record()["packages"]["nvidia-utils-580-server"]
    assert before["version"] == f"{OLD}-0ubuntu0.24.04.1"
    assert site.record()["state"] == "proven"
    assert both.run(UPGRADE).changed() == set()


def test_rolled_back_packages_are_not_upgraded_silently(site: UpgradeSite, first: Packages) -> None:
    site.on("apt-get clean")
    run = site.run(ROLLBACK)
    assert run.status == "successful", run.output
    assert site.packages() == first
    assert site.driver() == (OLD, OLD)
    words = f"Declare {OLD_TOOLKIT} (nvidia_container_toolkit_version)"
    assert words in told(run)
    refused = site.run("site.yml")
    assert refused.status == "failed"
    assert words in told(refused)
    # The driver stays without being named: what is installed stays.
    # The pin is still that of the version which was declared then.
    site.declare()
    pin = "/etc/apt/preferences.d/slipway-nvidia-container-toolkit.pref"
    assert site.plan() == (2, {("nvidia_container_toolkit", "files", pin)})
    site.converge()
    assert site.plan() == (0, set())
    assert site.packages() == first


@pytest.mark.long
def test_the_commands_of_the_page_work(site: UpgradeSite, tmp_path: Path) -> None:
    site.release()
    site.declare(nvidia_container_toolkit_version=NEW_TOOLKIT)
    checkout = Checkout(tmp_path)
    checkout.declare(site.inventory, site.host.name, "gpu01")
    for command in page_commands.run_by("test_the_commands_of_the_page_work"):
        done = checkout.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if command == "./slipway upgrade":
            assert site.driver() == (NEW, NEW)
            assert site.measured_drivers() == {NEW}
    assert site.driver() == (OLD, OLD)
    # The declared toolkit is newer than the previous one, so a run is refused until it is declared.
    site.declare()
    site.converge()
    assert site.measured_drivers() == {OLD}


def test_upgrade_to_another_branch_and_rollback(site: UpgradeSite, first: Packages) -> None:
    (branch,) = nvidia_packages.BRANCHES[595][1:]
    site.declare(nvidia_driver_branch="595")
    site.upgraded(slipway_upgrade=["nvidia_driver"])
    assert site.driver() == (branch, branch)
    assert not [name for name in site.packages() if "-580" in name]
    run = site.run(ROLLBACK)
    assert run.status == "successful", run.output
    assert site.packages() == first
    assert site.driver() == (OLD, OLD)
    assert "Declare the previous version (nvidia_driver_branch" in told(run)
    site.declare()
    assert site.plan() == (0, set())


@pytest.mark.long
def test_a_version_that_only_an_unreachable_archive_may_have(
    site: UpgradeSite, first: Packages
) -> None:
    begin, end, _words = STOPS["an unreachable archive"]
    site.declare(nvidia_driver_version=BETWEEN)
    site.on(begin)
    run = site.run("site.yml")
    site.on(end)
    assert run.status == "failed"
    assert f"no usable source has version {BETWEEN}-*. No package was installed" in told(run)
    assert "download failed" in told(run)
    assert site.packages() == first
    # The pin for that version went ahead of it, and goes back with the wish.
    site.declare()
    site.converge()
    assert site.plan() == (0, set())
    assert site.packages() == first


def test_an_interrupted_dpkg_is_detected_and_finished(other: UpgradeSite) -> None:
    """Its database says that all is installed; its journal says what it was doing."""
    name = "nvidia-utils-580-server"
    # What dpkg leaves when it is killed between two writes of its database.
    other.on(
        f"sed -n '/^Package: {name}$/,/^$/p' /var/lib/dpkg/status | "
        "sed 's/^Status: .*/Status: hold ok half-configured/' >/var/lib/dpkg/updates/0001"
    )
    assert other.plan() == (2, {("nvidia_driver", "packages", name)})
    run = other.converge()
    assert f"finished an interrupted installation: {name}" in told(run)
    assert other.on("dpkg --audit; ls /var/lib/dpkg/updates") == ""
    assert other.plan() == (0, set())
