# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`./slipway remove`: the host is as before the first run, and people keep what is theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.contract.tree import ROOT
from tests.host.conftest import Run, Site
from tests.host.test_removal import DAEMON_JSON, Found, look

pytestmark = pytest.mark.host

GROUP = "pytest-remove"
# Packages of tools that other programs may use as well, and perl: the builder needs it for a base
# image, and apt keeps it because other packages suggest it.
STAYS = {"bash-completion", "zstd", "ca-certificates"}
PERL = {"perl", "perl-modules-5.40", "libperl5.40", "libgdbm6t64", "libgdbm-compat4t64"}
MODEL = "/srv/shared/data/words/words.txt"
DECLARED = {
    "user_access_groups": [{"name": "lab"}],
    "user_access_users": [{"name": "alice", "groups": ["lab"], "docker": True}],
    "user_access_shared_folders": [{"group": "lab"}],
    "user_access_limits": [{"applies_to": "@lab", "nofile": 1024}],
    "ml_data_archives": [{"name": "words", "path": "/var/tmp/words.tar"}],
    "ml_images_present": ["iris-api"],
    "host_metrics_folder": "/var/lib/metrics",
}


def remove(site: Site, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    """Run `./slipway remove` on the host, with an ANSWER to its question."""
    return subprocess.run(
        ["./slipway", "remove", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=answer,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_INVENTORY": str(site.inventory),
            "SLIPWAY_OUTPUT": "ansible",
        },
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    group = Group(GROUP)
    group.remove()
    site = Site(group.ensure(HostSpec("gpu01")), tmp_path_factory.mktemp("remove"))
    site.declare(**DECLARED)
    # Somebody has a firewall; the packages of Docker need the same program.
    site.on("apt-get -qq update; apt-get -qq install -y --no-install-recommends iptables")
    site.on("echo word >/var/tmp/words.txt")
    site.on("tar -C /var/tmp -cf /var/tmp/words.tar words.txt")
    yield site
    group.remove()


@pytest.fixture(scope="module")
def before(site: Site) -> Found:
    """The host before the first run."""
    return look(site)


@pytest.fixture(scope="module")
def provisioned(site: Site, before: Found) -> Run:
    run = site.converge()
    site.on("docker volume create theirs")
    return run


@pytest.fixture(scope="module")
def removed(site: Site, provisioned: Run) -> str:
    """The output of the removal."""
    # The removal finds the file of metrics by its record.
    site.on("test -e /var/lib/metrics/slipway.prom")
    site.declare(**{name: DECLARED[name] for name in DECLARED if name != "host_metrics_folder"})
    metrics = {("host_metrics", "files", "/var/lib/metrics/slipway.prom")}
    assert site.plan() == (2, metrics)
    refused = remove(site)
    assert refused.returncode == 1
    assert "Nothing was changed" in refused.stderr
    check, act = page_commands.run_by("test_the_host_is_as_before_the_first_run")
    checked = remove(site, *check.split()[2:])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert site.plan() == (2, metrics)
    site.on("docker run --detach --name theirs --entrypoint sleep slipway/iris-api:cpu 3600")
    stopped = remove(site, "--yes")
    assert stopped.returncode not in (0, 1), stopped.stdout + stopped.stderr
    table = re.split(r"^HOST +RESULT", stopped.stdout, flags=re.MULTILINE)[1]
    assert "is using its referenced image" in table
    assert site.on("docker inspect --format '{{.State.Status}}' theirs") == "running"
    site.on("docker rm --force theirs")
    done = remove(site, *act.split()[2:], answer="remove\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: 1 host with nothing left to remove." in done.stdout
    return done.stdout


def test_the_host_is_as_before_the_first_run(site: Site, before: Found, removed: str) -> None:
    after = look(site)
    packages = {name.partition(" ")[0] for name in after.packages - before.packages}
    assert packages <= STAYS | PERL
    files = set(site.on(f"dpkg-query -L {' '.join(sorted(packages))}").splitlines())
    assert after.files - before.files - files == {DAEMON_JSON}
    assert after.held == before.held
    assert json.loads(site.on(f"cat {DAEMON_JSON}")) == {}
    assert before.since(after) == []
    site.on("! test -e /etc/slipway && ! test -e /var/lib/slipway")


def test_people_keep_accounts_data_and_volumes(site: Site, removed: str) -> None:
    assert "lab" in site.on("id -nG alice").split()
    site.on(f"test -d /home/alice && grep -q word {MODEL}")
    site.on("test -d /var/lib/docker/volumes/theirs")


def test_a_second_removal_changes_nothing(site: Site, removed: str) -> None:
    again = remove(site, "--yes")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "changed=0" in again.stdout


def test_data_sets_are_deleted_on_request(site: Site, removed: str) -> None:
    done = remove(site, "--yes", "--data")
    assert done.returncode == 0, done.stdout + done.stderr
    site.on(f"! test -e {MODEL}")
