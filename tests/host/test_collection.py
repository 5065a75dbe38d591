# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed collection, in an empty folder with only ansible-core and the collection file.

The accounts of its host have settings of their own, which change neither what a run does nor what
the survey finds.
"""

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
# The variable is one of the settings below.
ROWS = {
    name: (f"unset DOCKER_HOST; {script}", named)
    for group in TAMPERED.values()
    for name, (script, named) in group.items()
    if name in KINDS
}
# A run with --long tries the others alone. In the ordinary run, the first site runs them all.
SHORT = ("ml_images", "user_access")
ROLES = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.long)
    for name in sorted(path.name for path in (ROOT / "roles").iterdir())
]

# Each line is from a public report: a greeting in a shell's start file, a closed umask for all
# sessions, variables of Python and of Docker.
LOGIN = r"""
sed -i '1i echo Welcome to {host}; printf no-line-end' ~operator/.bashrc
for kind in common-session common-session-noninteractive; do
    echo 'session required pam_umask.so umask=077' >>/etc/pam.d/$kind
done
cat >>/etc/environment <<END
PYTHONPATH=/nowhere
DOCKER_HOST=tcp://192.0.2.1:2375
LC_ALL=de_DE.UTF-8
END
echo 'Defaults env_keep += "PYTHONPATH DOCKER_HOST LC_ALL"' >/etc/sudoers.d/zz-kept
"""
OTHER_ENGINE = """
unset DOCKER_HOST
mkdir -p /run/other
# With --bridge none, this engine would remove the bridge of the other one.
ip link add other0 type bridge
ip address add 10.98.0.1/24 dev other0
setsid dockerd --host unix:///run/other/docker.sock --data-root /run/other/data --bridge other0 \
    --exec-root /run/other/exec --pidfile /run/other/pid --iptables=false >/run/other/log 2>&1 &
until docker --host unix:///run/other/docker.sock info >/dev/null 2>&1; do sleep 0.2; done
docker context create other --docker host=unix:///run/other/docker.sock >/dev/null
docker context use other >/dev/null
docker buildx create --name container --driver docker-container --use >/dev/null
"""
AWAY = """
unset DOCKER_HOST
kill "$(cat /run/other/pid)"
ip link delete other0
docker context use default >/dev/null 2>&1
docker buildx rm container >/dev/null 2>&1 || true
docker context rm other >/dev/null
"""
READERS = "/etc/slipway /usr/local/lib/slipway /etc/apt/keyrings /etc/docker"


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
    """A host of this file's own, whose accounts had settings before the first run."""
    site = Site(group.ensure(HostSpec("collection-1")), tmp_path_factory.mktemp("collection"))
    site.declare(**DECLARED)
    site.on(LOGIN.format(host=site.host.name))
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


def test_users_can_read_what_was_installed_under_a_closed_umask(
    installed: Installed, host: Site
) -> None:
    closed = host.on(f"find {READERS} -maxdepth 0 ! -perm -0055 -printf 'closed: %p'")
    assert "closed: " not in closed
    assert "iris-api" in host.on("su - alice -c 'env -u DOCKER_HOST ml list'")


@pytest.mark.long
def test_site_without_the_survey_changes_nothing(installed: Installed) -> None:
    output = installed.play("slipway.host.site", "-e", "slipway_survey=false")
    assert "slipway.host.ml_services : " in output
    assert changes(output) == 0


@pytest.mark.long
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


def test_images_are_built_on_the_engine_of_the_host(installed: Installed, host: Site) -> None:
    host.on(OTHER_ENGINE)
    try:
        host.on("docker --host unix:///run/docker.sock image rm --force slipway/iris-api:cpu")
        installed.play("slipway.host.site")
        images = "image ls --format 'image {{.Repository}}'"
        local = host.on(f"docker --host unix:///run/docker.sock {images}")
        assert "image slipway/iris-api" in local
        other = "docker --host unix:///run/other/docker.sock"
        assert "image " not in host.on(f"{other} {images}")
        assert installed.plan() == set()
    finally:
        host.on(AWAY)
