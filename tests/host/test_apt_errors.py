# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures of apt on real hosts: each error has its reason, and no data is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from lab.apt_repository import File, Key, Package, Repository
from lab.host_spec import HostSpec, Mount
from lab.hosts import Group
from lab.state_folder import group_folder
from tests.host.conftest import Site

pytestmark = pytest.mark.host

GROUP = "pytest-apt"
SEEN = "/srv/apt"
PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - name: Install
      slipway.host.held_packages:
        packages: "{{ declared }}"
        refresh: "{{ refresh }}"
        lock_timeout: "{{ lock_timeout }}"
"""
# Takes a lock as apt does; lets it go after some seconds, and says so.
HOLDER = """\
import fcntl, pathlib, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
pathlib.Path("/run/taken").touch()
time.sleep(float(sys.argv[2]))
pathlib.Path("/run/let-go").touch()
"""
LARGE = {"/opt/large/file": File("x" * 3_000_000)}
PACKAGES = (
    Package("good", "1"),
    Package("patient", "1", scripts={"preinst": "test -e /run/let-go"}),
    # What a power cut or a closed session does to dpkg.
    Package("killer", "1", scripts={"postinst": "mkdir /run/killed || exit 0; kill -KILL $PPID"}),
    Package("fails-once", "1", scripts={"postinst": "! mkdir /run/failed 2>/dev/null"}),
    Package("large-to-fetch", "1", files=LARGE),
    Package("large-to-unpack", "1", fields={"Replaces": "large-to-fetch"}, files=LARGE),
)


class AptSite(Site):
    """A host whose only source is a stand-in."""

    def source(self, name: str, address: str, key: str = "key.asc") -> None:
        """Declare a source."""
        entry = f"Types: deb\nURIs: {address}\nSuites: ./\nSigned-By: {SEEN}/{key}\n"
        self.on(f"cat >/etc/apt/sources.list.d/{name}.sources <<'END'\n{entry}END")

    def hold_lock(self, file: str, seconds: int) -> str:
        """Take a lock for some time; return the process that holds it."""
        self.on(f"rm -f /run/taken /run/let-go; cat >/run/holder.py <<'END'\n{HOLDER}END")
        self.on(
            f"systemd-run --quiet --collect --unit=holder python3 /run/holder.py {file} {seconds}\n"
            "until [ -e /run/taken ]; do sleep 0.1; done"
        )
        return self.on("systemctl show --property=MainPID --value holder.service")

    def install(self, *names: str, refresh: bool = False, lock_timeout: int = 60) -> dict[str, Any]:
        """Install and hold packages; return what the module did."""
        file = self.folder / "install.yml"
        file.write_text(PLAYBOOK)
        declared = [{"name": name, "hold": True} for name in names]
        run = self.run(str(file), declared=declared, refresh=refresh, lock_timeout=lock_timeout)
        ends = ("runner_on_ok", "runner_on_failed")
        (event,) = [event for event in run.events if event["event"] in ends]
        failed = event["event"] == "runner_on_failed"
        return {**event["event_data"]["res"], "failed": failed}

    def state(self, name: str) -> str:
        """Return the selection and state of a package in dpkg, empty for an unknown package."""
        return self.on(f"dpkg-query -W -f '${{db:Status-Want}} ${{db:Status-Status}}' {name} || :")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AptSite]:
    state = group_folder(GROUP)
    # The same folder each time: a host that an interrupted run left sees this very one.
    folder = state / "repository"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    key = Key(folder / "trusted", "key")
    shutil.copy(key.file, folder)
    shutil.copy(Key(folder / "foreign", "other").file, folder)
    Repository(folder / "main", key, "Stand-in", "Stand-in").publish(PACKAGES)
    unsigned = folder / "unsigned"
    unsigned.mkdir()
    (unsigned / "Release").write_text("Origin: Stand-in\n")
    group = Group(GROUP, state)
    group.remove("apt-1")
    spec = HostSpec("apt-1", mounts=(Mount(str(folder), SEEN, read_only=True),))
    site = AptSite(group.ensure(spec), tmp_path_factory.mktemp("apt"))
    site.declare()
    # Nothing here comes back by being asked again.
    site.on("echo 'Acquire::Retries \"0\";' >/etc/apt/apt.conf.d/90once")
    yield site
    group.remove()


@pytest.fixture
def site(host: AptSite) -> Iterator[AptSite]:
    """The host with its one good source, and nothing known of others."""
    host.on("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*")
    # Unlike with file:, packages are fetched, as those of a server are.
    host.source("good", f"copy:{SEEN}/main")
    yield host
    host.on("systemctl stop holder.service 2>/dev/null || :; umount --quiet /opt || :")
    host.on("umount --quiet /var/cache/apt/archives || :")


@pytest.mark.parametrize("file", ["/var/lib/dpkg/lock-frontend", "/var/lib/apt/lists/lock"])
def test_the_holder_of_the_lock_is_named(site: AptSite, file: str) -> None:
    holder = site.hold_lock(file, 600)
    result = site.install("good", refresh="lists" in file, lock_timeout=1)
    assert result["failed"]
    who = f"After 1 seconds process {holder} (/usr/bin/python3 /run/holder.py {file} 600) still"
    assert who in result["msg"]
    assert site.state("good") == ""


@pytest.mark.parametrize("file", ["/var/lib/dpkg/lock-frontend", "/var/cache/apt/archives/lock"])
def test_a_lock_is_waited_for(site: AptSite, file: str) -> None:
    site.on("apt-get -qq update; apt-mark -qq unhold patient; apt-get -qq purge patient >/dev/null")
    site.hold_lock(file, 4)
    result = site.install("patient")
    # Its own script makes sure that the lock was let go before.
    assert not result["failed"], result
    assert site.state("patient") == "hold installed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("killer", "dpkg exited unexpectedly", id="killed"),
        pytest.param("fails-once", "error processing package fails-once", id="failed"),
    ],
)
def test_an_interrupted_installation_is_finished(site: AptSite, name: str, words: str) -> None:
    result = site.install(name)
    assert result["failed"]
    assert words in result["msg"]
    again = site.install(name)
    assert not again["failed"], again
    assert again["slipway_note"] == f"finished an interrupted installation: {name}"
    assert site.state(name) == "hold installed"
    assert not site.install(name)["changed"]
    assert site.on("dpkg --audit") == ""


def test_an_unreachable_source_is_named(site: AptSite) -> None:
    site.source("bad", "http://127.0.0.1:9/")
    result = site.install("nowhere")
    assert result["failed"]
    assert "Unable to locate package nowhere" in result["msg"]
    assert "apt source http://127.0.0.1:9/./InRelease: download failed" in result["msg"]
    assert "Make it reachable from the host" in result["msg"]


def test_an_unused_source_may_be_unreachable(site: AptSite) -> None:
    site.source("bad", "http://127.0.0.1:9/")
    assert not site.install("good", refresh=True)["failed"]


@pytest.mark.parametrize(
    ("folder", "key"),
    [
        pytest.param("main", "other.asc", id="another key"),
        pytest.param("main", "missing.asc", id="no key"),
        pytest.param("unsigned", "key.asc", id="no signature"),
    ],
)
def test_an_untrusted_source_is_named(site: AptSite, folder: str, key: str) -> None:
    site.source("good", f"copy:{SEEN}/{folder}", key)
    result = site.install("nowhere")
    assert result["failed"]
    assert f"apt source copy:{SEEN}/{folder}: not signed by the key" in result["msg"]


@pytest.mark.parametrize(
    ("name", "full"),
    [("large-to-fetch", "/var/cache/apt/archives"), ("large-to-unpack", "/opt")],
)
def test_a_full_disk_is_named_and_the_next_run_finishes(
    site: AptSite, name: str, full: str
) -> None:
    site.on(f"mount -t tmpfs -o size=1m tmpfs {full}")
    result = site.install(name)
    site.on(f"umount {full}")
    assert result["failed"]
    assert f"File system {full} (" in result["msg"]
    assert "Free some space" in result["msg"]
    assert site.state(name) in ("", "install not-installed")
    assert not site.install(name)["failed"]
    assert site.state(name) == "hold installed"
    assert site.on("dpkg --audit") == ""
