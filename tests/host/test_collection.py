# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed collection, in an empty folder with only ansible-core and the collection file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.host.conftest import DECLARED, ROOT, Named, Site, predict
from tests.host.test_site import TAMPERED
from tools import build_collection

pytestmark = pytest.mark.host

# One tamper for files, packages, settings, accounts and containers each.
KINDS = (
    "a file edited",
    "a hold dropped",
    "a key of daemon.json changed",
    "a member that nobody listed",
    "a container stopped",
)
ROWS = {name: row for group in TAMPERED.values() for name, row in group.items() if name in KINDS}
# A run with --long tries the others alone. In the ordinary run, the first site runs them all.
SHORT = ("ml_images", "user_access")
ROLES = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.long)
    for name in sorted(path.name for path in (ROOT / "roles").iterdir())
]


class Installed:
    """An environment with ansible-core, an empty folder and an empty home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.programs = folder / "env/bin"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")
        } | {"HOME": str(folder / "home"), "PATH": f"{self.programs}:{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        core = f"ansible-core=={metadata.version('ansible-core')}"
        self.execute("pip", "install", "--quiet", core, HOME=os.environ.get("HOME", "/"))

    def execute(self, *command: str, **environment: str) -> str:
        """Run a command in the empty folder, which must succeed; return its output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def play(self, playbook: str, *arguments: str) -> str:
        """Run a playbook and return its output."""
        return self.execute("ansible-playbook", playbook, "-i", "inventory.yml", *arguments)

    def plan(self) -> Named:
        """Return what `slipway.host.plan` names: role, kind and name."""
        report = self.folder / "report.json"
        callback = {"ANSIBLE_CALLBACKS_ENABLED": "slipway.host.summary"}
        plan = ("ansible-playbook", "slipway.host.plan", "-i", "inventory.yml")
        self.execute(*plan, SLIPWAY_REPORT=str(report), **callback)
        return {
            (role, one["kind"], one["name"])
            for entry in json.loads(report.read_text()).values()
            for role, found in entry["differences"].items()
            for one in found
        }


def changes(output: str) -> int:
    """Return the number of changed tasks in the output of ansible-playbook."""
    return sum(map(int, re.findall(r"changed=(\d+)", output)))


@pytest.fixture(scope="module")
def host(group: Group, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fresh host of this file's own."""
    site = Site(group.ensure(HostSpec("collection-1")), tmp_path_factory.mktemp("collection"))
    site.declare(**DECLARED)
    yield site
    group.remove("collection-1")


@pytest.fixture(scope="module")
def installed(host: Site) -> Installed:
    """The collection after the commands of the README: installed, and run on a fresh host."""
    environment = Installed(host.folder)
    file = build_collection.build(environment.folder)
    (environment.folder / "inventory.yml").write_text(host.inventory.read_text())
    script = "\n".join(page_commands.run_by("test_only_ansible_core_is_installed"))
    environment.execute("sh", "-ec", script)
    file.unlink()
    return environment


def test_only_ansible_core_is_installed(installed: Installed) -> None:
    packages = installed.execute("pip", "list", "--format=freeze")
    assert "ansible-core==" in packages
    assert "jsonschema" not in packages
    assert [path.name for path in installed.folder.iterdir()] == ["inventory.yml"]


def test_api_answers_from_the_image_of_the_collections_catalogue(
    installed: Installed, host: Site
) -> None:
    assert predict(host) == {"prediction": "virginica"}


def test_second_run_changes_nothing(installed: Installed) -> None:
    assert installed.plan() == set()
    assert changes(installed.play("slipway.host.site")) == 0


@pytest.mark.long
def test_site_without_the_survey_changes_nothing(installed: Installed) -> None:
    output = installed.play("slipway.host.site", "-e", "slipway_survey=false")
    assert "slipway.host.ml_services : " in output
    assert changes(output) == 0


def test_plan_names_and_site_repairs_tampered_things(installed: Installed, host: Site) -> None:
    assert len(ROWS) == len(KINDS)
    named = host.apply_tampers(ROWS)
    assert installed.plan() == named
    output = installed.play("slipway.host.plan")
    assert all(name in output for _role, _kind, name in named)
    assert changes(installed.play("slipway.host.site")) > 0
    assert installed.plan() == set()
    assert predict(host) == {"prediction": "virginica"}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_alone_finds_its_state_and_the_catalogue(installed: Installed, role: str) -> None:
    play = [{"hosts": "all", "gather_facts": False, "roles": [f"slipway.host.{role}"]}]
    file = installed.folder / "alone.yml"
    file.write_text(json.dumps(play))
    try:
        assert changes(installed.play(file.name)) == 0
    finally:
        file.unlink()


def test_verify_fails_on_drift(installed: Installed, host: Site) -> None:
    installed.play("slipway.host.verify")
    with pytest.raises(AssertionError, match="Drift in docker_engine; expected none"):
        installed.play("slipway.host.verify", "-e", "docker_engine_hold=false")


def test_images_are_listed(installed: Installed) -> None:
    output = installed.play("slipway.host.images_list")
    assert re.search(r"^iris-api:cpu +", output, flags=re.M), output
