# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose only way out is SSH gets its packages from a bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import reading

from lab.containers import container_name
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import DECLARED, ROOT, Site
from tools import bundle, bundle_contents

pytestmark = pytest.mark.host

ROLES = ["docker_engine", "user_access"]
# All of apt's files, packages and temporary folders on a host, and what listens there.
APT = "find /etc/apt /var/lib/apt /var/cache/apt -type f -printf '%p %s\\n' | sort; dpkg -l"
LEFT = "ls -d /tmp/slipway-* /var/tmp/slipway-* /var/lib/slipway/*apt* 2>/dev/null || true"
LISTENING = "ss -Hltnp | grep sshd | grep -v ':22 ' || true"


class ClosedHost:
    """The network of a host, of which everything but SSH is dropped and counted."""

    def __init__(self, container: str) -> None:
        command = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
        self.pid = subprocess.check_output(command, text=True).strip()
        for program in ("iptables", "ip6tables"):
            self.filter(program, "-A OUTPUT ! -o lo -p tcp --sport 22 -j ACCEPT")
            self.filter(program, "-A OUTPUT -o eth0 -j DROP")

    def filter(self, program: str, words: str) -> str:
        command = ["nsenter", "--net", "--target", self.pid, program, "-t", "raw", *words.split()]
        return subprocess.check_output(command, text=True)

    def dropped(self) -> list[str]:
        """Return the rules that dropped packets, with their number."""
        lines = [
            line
            for program in ("iptables", "ip6tables")
            for line in self.filter(program, "-nvxL OUTPUT").splitlines()
        ]
        return [line for line in lines if " DROP " in line and line.split()[0] != "0"]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    group = Group("pytest-packages")
    group.remove()
    yield group
    group.remove()


def make_site(group: Group, name: str, folder: Path) -> Site:
    (folder / name).mkdir()
    site = Site(group.ensure(HostSpec(name)), folder / name)
    site.extra = {"slipway_roles": ROLES}
    site.declare(**DECLARED)
    return site


def options(site: Site) -> list[str]:
    return ["-i", str(site.inventory), "-e", json.dumps(site.extra)]


def make_bundle(site: Site, target: Path) -> str:
    """Write a bundle with the packages of a host; return the output of apt's files there."""
    before = site.on(APT)
    for number in (1, 2):
        os.set_blocking(number, True)
    assert bundle.main([str(target), "--packages", *options(site)]) == 0
    assert (site.on(APT), site.on(LEFT)) == (before, "")
    return before


def damage_package(made: Path, name: str) -> Path:
    """Return a copy of a bundle with one changed byte in a package."""
    opened = reading.open_bundle(made)
    (entry,) = (one for one in opened.manifest.files if f"/pool/{name}_" in one.path)
    content = bytearray(made.read_bytes())
    content[opened.offsets[entry.path] + entry.size // 2] ^= 1
    damaged = made.with_name("damaged.tar")
    damaged.write_bytes(content)
    return damaged


def run_site(site: Site, made: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "slipway"), "site", "--bundle", str(made), *options(site)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_a_host_without_a_network_is_provisioned_from_a_bundle(
    group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the wheels of the controller, see tests/host/test_bundle.py.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(bundle_contents, "download_wheels", lambda python, folder: [])
    monkeypatch.setattr(
        bundle_contents, "download_collections", lambda folder: Path(shutil.copy(__file__, folder))
    )
    made = tmp_path / "b.tar"
    make_bundle(make_site(group, "maker-1", tmp_path), made)
    site = make_site(group, "closed-2", tmp_path)
    network = ClosedHost(container_name("closed-2", group.group, group.state.path))
    sources = site.on("cd /etc/apt && find . -type f -exec sha256sum {} +")

    first = run_site(site, made)
    assert first.returncode == 0, first.stdout + first.stderr
    assert network.dropped() == []
    assert site.on("docker info --format '{{.ServerVersion}}'")
    assert site.on("apt-mark showhold").split() == sorted(
        ["docker-buildx", "docker-cli", "docker-compose", "docker.io", "iptables"]
    )
    assert site.on("cd /etc/apt && find . -type f -exec sha256sum {} +") == sources
    assert (site.on(LEFT), site.on(LISTENING)) == ("", "")
    again = site.run("site.yml", ml_images_bundle=str(made))
    assert (again.status, again.changed()) == ("successful", set()), again.output
    assert network.dropped() == []

    # A package that the bundle lacks is refused before any change.
    site.on("dpkg --purge docker-buildx; apt-get clean")
    site.extra = {"slipway_roles": [*ROLES, "ml_aliases"]}
    refused = site.run("site.yml", ml_images_bundle=str(made))
    assert (refused.status, refused.changed()) == ("failed", set())
    missing = "has no package bash-completion, zstd for debian-trixie-x86_64"
    assert missing in refused.output and "Nothing was changed." in refused.output

    # apt compares packages with the index. `site --bundle` refuses the file first.
    site.extra = {"slipway_roles": ROLES}
    damaged = damage_package(made, "docker-buildx")
    command_line = run_site(site, damaged)
    assert command_line.returncode == 1
    assert re.search(r"site: .*/docker-buildx_\S+ is damaged: .*Nothing was", command_line.stderr)
    failed = site.run("site.yml", ml_images_bundle=str(damaged))
    assert (failed.status, failed.changed()) == ("failed", set())
    assert "docker-buildx" in failed.output and "Hash" in failed.output
    assert site.run("site.yml", ml_images_bundle=str(made)).changed() == {
        "docker_engine: Install Docker packages"
    }
    assert (site.on(LEFT), site.on(LISTENING), network.dropped()) == ("", "", [])

    # The filter works: without a bundle, the host looks for a way out.
    site.on("getent hosts download.example.org || true")
    assert network.dropped() != []
