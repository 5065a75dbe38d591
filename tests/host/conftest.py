# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throwaway host for site.yml, and the queries of the tests."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner
import pytest
import yaml

from lab.host_spec import HostSpec
from lab.hosts import Group, Host

ROOT = Path(__file__).resolve().parents[2]
# Two processes that run tests have a group each.
GROUP = "-".join(filter(None, ("pytest-site", os.environ.get("PYTEST_XDIST_WORKER"))))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4m1Yh0o2mYxD1vUX0Jq4p2l8mHhQn3eV6w0bq2y7Zk alice"
DECLARED: dict[str, Any] = {
    "ml_services_bind_address": "0.0.0.0",
    "user_access_groups": [{"name": "research"}],
    "user_access_users": [
        {"name": "alice", "docker": True, "groups": ["research"], "keys": [KEY]},
        {"name": "bob"},
    ],
}


Named = set[tuple[str, str, str]]
# A shell script that changes something of a host, and what plan must then name: role, kind, name.
Tamper = tuple[str, Named]


@dataclass(frozen=True)
class Run:
    """What one run of a playbook did."""

    status: str
    stats: Mapping[str, Any]
    events: list[Mapping[str, Any]] = field(repr=False)
    output: str = field(repr=False)

    def changed(self) -> set[str]:
        """Return ``role: task`` of each task that changed something."""
        return {
            f"{event['event_data'].get('role', '-')}: {event['event_data']['task']}"
            for event in self.events
            if event["event"] in ("runner_on_ok", "runner_item_on_ok")
            and event["event_data"]["res"].get("changed")
        }

    def round_trips(self) -> int:
        """Return how many tasks went to a host."""
        return sum(event["event"] == "runner_on_ok" for event in self.events)


class Site:
    """A host, its inventory, and the project's commands against it."""

    # Variables that are given on the command line of every run.
    extra: Mapping[str, Any] = {}
    # Roles whose tasks another role includes.
    includes: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.inventory = folder / "hosts.yml"

    @property
    def connection(self) -> dict[str, Any]:
        """How Ansible reaches the host."""
        options = f"-o UserKnownHostsFile={self.host.known_hosts_file} -o IdentitiesOnly=yes"
        return {
            "ansible_host": self.host.address,
            "ansible_user": self.host.user,
            "ansible_ssh_private_key_file": str(self.host.private_key_file),
            "ansible_ssh_common_args": options,
            "ansible_become": True,
        }

    def declare(self, **variables: Any) -> None:
        """Write the inventory with the host's connection and these variables."""
        hosts = {self.host.name: {**self.connection, **variables}}
        self.inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))

    def on(self, script: str) -> str:
        """Run a shell script on the host as root and return what it wrote."""
        command = self.host.ssh_command("sudo", "sh", "-ec", script)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def apply_tampers(self, rows: Mapping[str, Tamper]) -> Named:
        """Run the scripts of several tampers in their order; return all that plan must name."""
        self.on("\n".join(f"({script}\n)" for script, _named in rows.values()))
        names = [name for _script, named in rows.values() for name in named]
        assert len(names) == len(set(names)), "two tampers of one group have a name in common"
        return set(names)

    def ssh(self, user: str, *options: str) -> list[str]:
        """Return the words that connect as a user."""
        identity = ["-i", str(self.host.private_key_file)]
        target = f"{user}@{self.host.address}"
        return ["ssh", *self.host.ssh_options, *identity, *options, target]

    def try_as(self, user: str, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a script as a user, without a terminal."""
        return subprocess.run(
            [*self.ssh(user), script], input=stdin, capture_output=True, text=True, check=False
        )

    def as_user(self, user: str, script: str, stdin: str = "") -> str:
        """Run a script as a user, which must succeed; return what it wrote."""
        done = self.try_as(user, script, stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, playbook: str = "site.yml", *arguments: str, **extra: Any) -> Run:
        """Run a playbook through ansible-runner."""
        done = ansible_runner.run(
            # A folder for each run: ansible-runner remembers the arguments of the last one.
            private_data_dir=tempfile.mkdtemp(dir=self.folder),
            project_dir=str(ROOT),
            playbook=str(ROOT / playbook),
            inventory=str(self.inventory),
            cmdline=" ".join(arguments) or None,
            extravars={**self.extra, **extra},
            envvars={"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            quiet=True,
        )
        return Run(done.status, done.stats or {}, list(done.events), done.stdout.read())

    def converge(self, **extra: Any) -> Run:
        """Run site.yml, which must succeed."""
        run = self.run("site.yml", **extra)
        assert run.status == "successful", run.output
        return run

    def plan(self, *arguments: str) -> tuple[int, Named]:
        """Return the exit status of `slipway plan` and what it names: role, kind and name.

        It names what differs and what is in conflict.
        """
        done = subprocess.run(
            [
                *(str(ROOT / "slipway"), "plan", "--json", "-i", str(self.inventory)),
                *("-e", json.dumps(self.extra), *arguments),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
            check=False,
        )
        assert done.returncode != 1, done.stdout + done.stderr
        report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        named = {
            (role, one["kind"], one["name"])
            for entry in report.values()
            for part in ("differences", "conflicts")
            for role, found in entry[part].items()
            for one in found
        }
        return done.returncode, named

    def repair(self, rows: Mapping[str, Tamper]) -> None:
        """Apply tampers: plan names exactly them, one run repairs them and no other role acts.

        The next plan of the file proves that all of it is repaired, because it names nothing else.
        """
        named = self.apply_tampers(rows)
        assert self.plan() == (2, named)
        acted = {task.partition(":")[0] for task in self.converge().changed()}
        assert acted
        roles = {role for role, _kind, _name in named}
        assert acted <= roles.union(*(self.includes.get(role, ()) for role in roles))


@pytest.fixture(scope="session")
def group() -> Iterator[Group]:
    # The same folder each time, so that what an interrupted run left is found and removed.
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="session")
def site(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A fresh host."""
    return Site(group.ensure(HostSpec("site-1")), tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def converged(site: Site) -> Site:
    """The site after its first run; a test that changes it must bring it back."""
    site.declare(**DECLARED)
    before = site.on("dpkg --get-selections | sha256sum; ls /etc")
    checked = site.run("site.yml", "--check", "--diff")
    assert checked.status == "successful", checked.output
    assert not checked.stats["failures"] and not checked.stats["ignored"]
    assert site.on("dpkg --get-selections | sha256sum; ls /etc") == before
    site.converge()
    return site


def predict(site: Site) -> Any:
    request = urllib.request.Request(
        f"http://{site.host.address}:5000/predict",
        data=b'{"length": 5.1, "width": 2.4}',
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)
