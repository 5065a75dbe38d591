# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removal of driver, engine and container toolkit restores a host, with real apt and dpkg.

Packages, holds, and all files below the folders that the roles write to are compared before the
first run and after the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import gpu_host
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import Run, Site

pytestmark = pytest.mark.host

GROUP = "pytest-removal"
DRIVER, ENGINE, TOOLKIT = "nvidia_driver", "docker_engine", "nvidia_container_toolkit"
BASES = {"8xh100": "ubuntu-like-24.04", "8xb200": "ubuntu-like-24.04", "t4": "debian-13"}
DAEMON_JSON = "/etc/docker/daemon.json"
# What modules are built with, and a tool for networks: others may use them as well.
STAYS = ("linux-headers-", "infiniband-diags")
ABSENT = {f"{role}_state": "absent" for role in (DRIVER, ENGINE, TOOLKIT)}
# Everything that a role may write to, but for what the host itself writes there all the time.
FILES = """
find /etc /var/lib/slipway /usr/local/bin /run/cdi -type f -o -type l 2>/dev/null |
    grep -vE '^/etc/(ld.so.cache|(group|gshadow|passwd|shadow|subuid|subgid)-?|.pwd.lock)$' |
    sort
"""
PACKAGES = "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' | sort"


@dataclass(frozen=True)
class Found:
    """What is on a host: packages with their states, held ones, files."""

    packages: frozenset[str]
    held: frozenset[str]
    files: frozenset[str]

    def since(self, before: Found) -> list[str]:
        """Return what is here and was not there BEFORE."""
        new = (self.packages - before.packages) | (self.held - before.held)
        return sorted(new | (self.files - before.files))


def look(site: Site) -> Found:
    """Return what is on a host."""

    def lines(script: str) -> frozenset[str]:
        return frozenset(site.on(script).splitlines())

    return Found(lines(PACKAGES), lines("apt-mark showhold"), lines(FILES))


class RemovalSite(Site):
    """A simulated GPU host, and what was on it before the first run."""

    extra = {"slipway_roles": [DRIVER, ENGINE, TOOLKIT]}

    def __init__(self, model: str, group: Group, folder: Path) -> None:
        base = BASES[model]
        self.simulated = gpu_host.prepare(folder / model, model, base)
        mounts = self.simulated.mounts
        super().__init__(group.ensure(HostSpec(f"gone-{model}", base=base, mounts=mounts)), folder)
        cuda = model == "8xb200"
        self.variables = self.simulated.cuda_variables if cuda else self.simulated.variables
        # Somebody has a firewall, and stored something by an earlier engine.
        self.on(
            "apt-get -qq update; apt-get -qq install -y --no-install-recommends iptables >/dev/null"
        )
        self.on(
            "mkdir -p /var/lib/docker/volumes/theirs; touch /var/lib/docker/volumes/theirs/kept"
        )
        self.before = look(self)


@pytest.fixture(
    scope="module",
    params=[*(pytest.param(name, marks=pytest.mark.long) for name in ("8xh100", "t4")), "8xb200"],
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemovalSite]:
    group = Group(GROUP)
    group.remove()
    yield RemovalSite(request.param, group, tmp_path_factory.mktemp("removal"))
    group.remove()


@pytest.fixture(scope="module")
def removed(site: RemovalSite) -> Run:
    """The run that removes what the first run brought."""
    site.declare(**site.variables)
    site.converge()
    # The comparison detects the installed packages and files.
    brought = look(site).since(site.before)
    assert {"docker.io", "docker.io installed", DAEMON_JSON} < set(brought)
    assert [name for name in brought if name.startswith("/etc/apt/")]
    site.declare(**site.variables, **ABSENT)
    return site.converge()


def test_removal_leaves_the_host_as_it_was(site: RemovalSite, removed: Run) -> None:
    left = look(site).since(site.before)
    # Other programs may use the file. Only the settings in it are removed.
    assert [name for name in left if not name.startswith(STAYS)] == [DAEMON_JSON]
    assert json.loads(site.on(f"cat {DAEMON_JSON}")) == {}
    assert site.before.since(look(site)) == []
    site.on("test -e /var/lib/docker/volumes/theirs/kept")


def test_a_run_after_the_removal_changes_nothing(site: RemovalSite, removed: Run) -> None:
    assert site.plan() == (0, set())
