# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's own apt repository, from a stand-in: choice, key, pin, hold and removal by real apt.

The stand-in's packages bear Docker's names and hold nothing but units that start: Debian's engine
conflicts with Docker's command, so it cannot stand behind it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.roles.docker_engine import (
    VENDOR_PACKAGES,
)

from lab.apt_repository import File, Key, Package, Repository
from lab.host_spec import HostSpec, Mount
from lab.hosts import Group
from lab.state_folder import group_folder
from tests.host.conftest import Run, Site

pytestmark = pytest.mark.host

GROUP = "pytest-docker"
SEEN = "/srv/docker"
UNITS = {
    "docker.socket": "[Socket]\nListenStream=/run/stand-in.sock\n"
    "[Install]\nWantedBy=sockets.target\n",
    "docker.service": "[Unit]\nRequires=docker.socket\n[Service]\nExecStart=/bin/sleep infinity\n"
    "ExecReload=/bin/true\n"
    "[Install]\nWantedBy=multi-user.target\n",
}
NAMES = " ".join(UNITS)


class DockerSite(Site):
    """A host that only the engine's role looks after."""

    extra = {"slipway_roles": ["docker_engine"]}


def stand_in(name: str) -> Package:
    """Return one of Docker's packages; the engine's brings its units, as the real one does."""
    version = "5:29.7.2-1~debian.13~trixie"
    if name != "docker-ce":
        return Package(name, version, component="stable")
    files = {f"/usr/lib/systemd/system/{unit}": File(text) for unit, text in UNITS.items()}
    scripts = {
        "postinst": f"systemctl daemon-reload; systemctl enable --now {NAMES}",
        "prerm": f"systemctl disable --now {NAMES}",
        "postrm": "systemctl daemon-reload",
    }
    return Package(name, version, files=files, scripts=scripts, component="stable")


@pytest.fixture(scope="module")
def folder() -> Path:
    # The same folder each time: a host that an interrupted run left sees this very one.
    folder = group_folder(GROUP) / "repository"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def key(folder: Path) -> Key:
    key = Key(folder, "docker")
    # Packages of an earlier version of this test are not taken for today's.
    shutil.rmtree(folder / "linux", ignore_errors=True)
    repository = Repository(folder / "linux/debian", key, "Docker", "Docker CE", ("trixie",))
    repository.publish(map(stand_in, VENDOR_PACKAGES))
    return key


@pytest.fixture(scope="module")
def docker_site(
    folder: Path, key: Key, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerSite]:
    group = Group(GROUP)
    mount = Mount(str(folder), SEEN, read_only=True)
    yield DockerSite(
        group.ensure(HostSpec("docker-1", mounts=(mount,))), tmp_path_factory.mktemp("docker")
    )
    group.remove()


def converge(site: Site, **extra: Any) -> Run:
    """Run the role alone, as in somebody else's playbook: there is no engine to prove here."""
    playbook = site.folder / "engine.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  roles: [docker_engine]\n")
    run = site.run(str(playbook), **extra)
    assert run.status == "successful", run.output
    return run


def declared(key: Key, **more: Any) -> dict[str, Any]:
    repository = {
        "url": f"file://{SEEN}/linux/{{distribution}}",
        "key_url": f"file://{SEEN}/docker.asc",
        "fingerprint": key.fingerprint,
    }
    return {"docker_engine_repository": repository, **more}


def test_another_key_is_an_error_and_changes_nothing(docker_site: Site, key: Key) -> None:
    repository = declared(key)["docker_engine_repository"]
    docker_site.declare(docker_engine_repository={**repository, "fingerprint": "0" * 40})
    run = docker_site.run("site.yml")
    assert run.status == "failed"
    assert f"has the fingerprint {key.fingerprint}; expected {'0' * 40}" in " ".join(
        run.output.split()
    )
    assert docker_site.on("ls /etc/apt/keyrings /etc/apt/sources.list.d") == (
        "/etc/apt/keyrings:\n\n/etc/apt/sources.list.d:"
    )


def test_reachable_repository_is_chosen_and_its_set_held(docker_site: Site, key: Key) -> None:
    docker_site.declare(**declared(key))
    run = converge(docker_site)
    assert "Docker packages come from the apt repository of Docker" in run.output
    assert set(docker_site.on("apt-mark showhold").split()) == set(VENDOR_PACKAGES)
    assert "trixie/stable" in docker_site.on("apt-cache policy docker-ce")
    assert docker_site.on("systemctl is-active docker.service") == "active"


# A second file for the repository, as other instructions and tools write it: with this key under
# another name, apt refuses to work at all.
LIST = "/etc/apt/sources.list.d/docker-ce.list"
OTHER_KEY = "/usr/share/keyrings/docker-archive-keyring.asc"
LINE = f"deb [arch=amd64 signed-by={OTHER_KEY}] file://{SEEN}/linux/debian trixie stable"
UPDATE = "apt-get -qq update 2>&1 || true"


@pytest.mark.parametrize("installed", [False, True])
def test_a_second_list_of_the_repository_is_replaced(
    docker_site: Site, key: Key, installed: bool
) -> None:
    docker_site.declare(**declared(key))
    if not installed:
        docker_site.declare(**declared(key), docker_engine_state="absent")
        converge(docker_site)
        docker_site.declare(**declared(key), docker_engine_source="docker")
    docker_site.on(f"cp {SEEN}/docker.asc {OTHER_KEY}; echo '{LINE}' >{LIST}")
    assert ("Conflicting values set for option Signed-By" in docker_site.on(UPDATE)) == installed
    status, named = docker_site.plan()
    assert status == 2 and ("docker_engine", "files", LIST) in named
    converge(docker_site)
    assert docker_site.on(UPDATE) == ""
    assert docker_site.on("ls /etc/apt/sources.list.d") == "docker.sources"
    assert docker_site.plan() == (0, set())


def test_a_list_that_also_names_other_repositories_is_left_for_a_person(
    docker_site: Site, key: Key
) -> None:
    other = "deb [trusted=yes] file:///srv/nothing ./"
    docker_site.declare(**declared(key))
    before = docker_site.on("ls -l --time-style=full-iso /etc/apt/sources.list.d")
    docker_site.on(f"printf '%s\\n' '{LINE}' '{other}' >{LIST}")
    run = docker_site.run("site.yml")
    assert run.status == "failed"
    assert LIST in run.output and run.changed() == set()
    docker_site.on(f"rm {LIST}")
    assert docker_site.on("ls -l --time-style=full-iso /etc/apt/sources.list.d") == before


def test_second_run_keeps_the_chosen_repository(docker_site: Site) -> None:
    assert docker_site.plan() == (0, set())
    assert converge(docker_site).changed() == set()


def test_removal_removes_repository_key_and_packages(docker_site: Site, key: Key) -> None:
    docker_site.declare(
        **declared(key), docker_engine_source="docker", docker_engine_state="absent"
    )
    converge(docker_site)
    assert docker_site.on("apt-mark showhold") == ""
    assert docker_site.on("ls /etc/apt/sources.list.d /etc/apt/keyrings") == (
        "/etc/apt/keyrings:\n\n/etc/apt/sources.list.d:"
    )
    gone = docker_site.on("dpkg-query -W -f '${Package} ' 'docker-ce*' containerd.io 2>&1 || true")
    assert "docker-ce " not in gone.replace("no packages found", "")
    assert "50m" not in docker_site.on("cat /etc/docker/daemon.json 2>/dev/null || true")
    assert docker_site.plan() == (0, set())
