# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users without rights prepare files so that root would act for them.

Each attack is made for real by an ordinary user of a host. What root must not follow is refused
for that user alone: everything else that is declared in the same run is done.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import Run
from tests.host.test_users import People, said

pytestmark = pytest.mark.host

GROUP = "pytest-attacks"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4m1Yh0o2mYxD1vUX0Jq4p2l8mHhQn3eV6w0bq2y7Zk first"
NEW = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGk2Zr3o8b0T7vYhF5sQ1nJxLw9cMdEuPaRtKiOyHbVg new"
RACE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIRACE"
# What each user does in the home folder, as that user or (as a shell of root's) for that user,
# and what the run says.
ATTACKS = {
    "alices-folder": (
        "mv .ssh away; ln -s /home/alice/.ssh .ssh",
        "/.ssh: found a symbolic link to /home/alice/.ssh, owned by alices-folder",
    ),
    "etc": ("mv .ssh away; ln -s /etc .ssh", "/.ssh: found a symbolic link to /etc, owned by etc"),
    "shadow": (
        "ln -sf /etc/shadow .ssh/authorized_keys",
        "/.ssh/authorized_keys: found a symbolic link to /etc/shadow, owned by shadow",
    ),
    "pipe": (
        "rm .ssh/authorized_keys; mkfifo .ssh/authorized_keys",
        "/.ssh/authorized_keys: found a named pipe, owned by pipe",
    ),
    "endless": (
        "truncate --size=1T .ssh/authorized_keys",
        # The survey and the module name different limits.
        "/.ssh/authorized_keys: found",
    ),
    "hard-link": (
        # As the kernel lets a user do without fs.protected_hardlinks.
        "root: ln -f /etc/shadow .ssh/authorized_keys",
        # Of several names, until dave is added: then root's tools give the name to a new file.
        "/.ssh/authorized_keys: found a file",
    ),
    "device": (
        "root: rm .ssh/authorized_keys; mknod .ssh/authorized_keys c 1 5;"
        " chown device .ssh/authorized_keys",
        "/.ssh/authorized_keys: found a character device, owned by device",
    ),
    "foreign": (
        "root: chown alice .ssh/authorized_keys",
        "/.ssh/authorized_keys: found a file, owned by alice",
    ),
}
SWAP = """
import itertools, os, shutil

os.chdir("/home/racer")
links = {"to-alice": "/home/alice/.ssh", "to-etc": "/etc", "to-shadow": "/etc/shadow"}


def prepare():
    shutil.rmtree("real", ignore_errors=True)
    for name in (".ssh", *links, "keys"):
        if os.path.lexists(name):
            os.rename(name, f"was-{name}-{next(number)}")
    os.mkdir("real", 0o700)
    open("real/authorized_keys", "w").close()
    for name, target in links.items():
        os.symlink(target, name)


def swap(name):
    os.rename(name, ".ssh")
    if name == "real":
        for source, goal in (
            (".ssh/authorized_keys", "keys"),
            ("to-shadow", ".ssh/authorized_keys"),
            (".ssh/authorized_keys", "to-shadow"),
            ("keys", ".ssh/authorized_keys"),
        ):
            os.rename(source, goal)
    os.rename(".ssh", name)


number = itertools.count()
prepare()
open("ready", "w").close()
for name in itertools.cycle(("real", "to-alice", "real", "to-etc")):
    try:
        swap(name)
    except OSError:
        prepare()  # The module made a folder or a file meanwhile.
"""


class Attacked(People):
    """A host with people who attack it; only the role that makes them is run."""

    extra = {"slipway_roles": ["user_access"]}

    def home(self, user: str, script: str) -> str:
        """Run a shell script in a home folder, as its user unless it begins with ``root:``."""
        as_root = script.startswith("root:")
        command = f"cd /home/{user}; {script.removeprefix('root:')}"
        who = "" if as_root else f"runuser -u {user} -- "
        return self.on(f"{who}sh -ec {shlex.quote(command)}")

    def declare_users(self, names: list[str], *keys: str, **changes: Any) -> None:
        """Declare users with keys, and a shared folder."""
        users = [{"name": name, "keys": list(keys), "groups": ["lab"]} for name in names]
        groups, shared = [{"name": "lab"}], [{"group": "lab"}]
        declared = {"user_access_groups": groups, "user_access_shared_folders": shared}
        self.declare(**{**declared, "user_access_users": users, **changes})

    def play(self, *tasks: dict[str, Any], **keywords: Any) -> Run:
        """Run tasks, or the role where there are none."""
        play: dict[str, Any] = {"hosts": "all", "gather_facts": False, **keywords}
        play |= {"tasks": list(tasks)} if tasks else {"roles": ["user_access"]}
        playbook = self.folder / "play.yml"
        playbook.write_text(yaml.safe_dump([play]))
        return self.run(str(playbook))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    group = Group(GROUP)
    group.remove()
    site = Attacked(group.ensure(HostSpec("attacked-1")), tmp_path_factory.mktemp("attacked"))
    site.declare_users(["alice", "racer", *ATTACKS], KEY)
    assert site.play().status == "successful"
    again = site.play()
    assert (again.status, again.changed()) == ("successful", set()), again.output
    yield site
    group.remove()


def guarded(site: Attacked) -> str:
    """Return what no user may change or read."""
    return site.on(
        "stat --format='%n %U %G %a' /etc /etc/shadow /home/alice/.ssh"
        " /home/alice/.ssh/authorized_keys; ls /etc; grep -v '^dave:' /etc/shadow"
    )


def test_an_attack_blocks_only_the_user_who_prepared_it(site: Attacked) -> None:
    before = guarded(site)
    for user, (script, _words) in ATTACKS.items():
        site.home(user, script)
    site.declare_users(["alice", *ATTACKS, "dave"], KEY, NEW)
    status, named = site.plan()
    assert status == 3
    assert {("user_access", "lines", f"/home/{user}/.ssh/authorized_keys") for user in ATTACKS} <= (
        named
    )
    checked = site.play(check_mode=True)
    run = site.run("site.yml")
    for attempt in (checked, run):
        assert attempt.status == "failed"
        for user, (_script, words) in ATTACKS.items():
            # Lines of tables may be broken between words.
            assert words.replace("/.ssh", f"/home/{user}/.ssh", 1) in said(attempt), user
    # The others have what was declared.
    for user in ("alice", "dave"):
        assert NEW in site.on(f"cat /home/{user}/.ssh/authorized_keys")
        assert "lab" in site.on(f"id --name --groups {user}").split()
    assert site.on("stat --format=%G /srv/shared") == "lab"
    assert guarded(site).replace("dave", "") == before.replace("dave", "")
    assert NEW not in site.on("cat /etc/authorized_keys 2>/dev/null || true")
    # Nobody was given a copy.
    assert site.on("find /home -type f -size -1M -exec grep -l '^root:' {} + || true") == ""


def test_modes_of_the_users_own_folder_are_repaired(site: Attacked) -> None:
    site.home("dave", "chmod 777 .ssh; chmod 666 .ssh/authorized_keys")
    site.declare_users(["dave"], KEY, NEW)
    assert ("user_access", "lines", "/home/dave/.ssh/authorized_keys") in site.plan()[1]
    assert site.play().status == "successful"
    assert site.on("cd /home/dave/.ssh; stat --format=%a . authorized_keys") == "700\n644"
    assert site.plan() == (0, set())


def test_keys_are_written_in_homes_with_root_squash(site: Attacked) -> None:
    """As on a network file system with root_squash."""
    wrapper = "/usr/local/bin/squashed-python"
    site.on(
        f"printf '#!/bin/sh\\nexec setpriv --bounding-set=-dac_override,-dac_read_search "
        f'/usr/bin/python3 "$@"\\n\' >{wrapper}; chmod 755 {wrapper}; chmod 700 /home/dave;'
        f"! setpriv --bounding-set=-dac_override,-dac_read_search ls /home/dave 2>/dev/null"
    )
    squashed = {"ansible_python_interpreter": wrapper}
    site.home("dave", "rm -r .ssh")
    keys = [{"user": "dave", "path": "/home/dave/.ssh/authorized_keys", "lines": [KEY]}]
    task = {"slipway.host.authorized_keys": {"keys": keys}, "name": "Add", "vars": squashed}
    assert site.play(task).status == "successful"
    assert site.home("dave", "cat .ssh/authorized_keys") == KEY
    assert site.play(task).changed() == set()
    site.declare_users(["dave"], KEY, **squashed)
    assert site.plan() == (0, set())


def test_a_link_in_the_path_of_a_shared_folder_or_volume_is_an_error(site: Attacked) -> None:
    site.on(
        "groupadd --force lab; install -d -m 2775 -g lab /srv/team; gpasswd --add etc lab;"
        "printf '#!/bin/sh\\n' >/usr/local/bin/docker; chmod 755 /usr/local/bin/docker"
    )
    before = guarded(site)
    site.home("etc", "ln -s /etc /srv/team/inner")
    site.declare_users(
        ["dave"], KEY, user_access_shared_folders=[{"group": "lab", "path": "/srv/team/inner/new"}]
    )
    words = "/srv/team/inner: found a symbolic link to /etc, owned by etc; expected a folder"
    run = site.play()
    assert run.status == "failed" and words in said(run)
    names = ("lab", "sound")
    projects = [
        {
            **{key: [] for key in ("ports", "volumes", "folders", "secrets")},
            "name": name,
            "files": [{"path": f"/etc/slipway/services/{name}/compose.yaml", "content": "{}\n"}],
            "mounts": [{"path": path, "owner": "1234", "group": "1234", "read_only": False}],
            "projects": [{"name": name, "services": [{"name": name, "config": "c"}]}],
        }
        for name, path in zip(names, ("/srv/team/inner/data", "/srv/sound"), strict=True)
    ]
    arguments = {"folder": "/etc/slipway/services", "projects": projects}
    run = site.play({"name": "Run", "slipway.host.services": arguments})
    assert run.status == "failed" and words in said(run)
    assert site.on("stat --format=%u /srv/sound; ls /etc/slipway/services") == "1234\nsound"
    site.on("rm -r /etc/slipway /usr/local/bin/docker")
    assert guarded(site) == before


def test_a_declared_home_in_a_folder_of_others_is_an_error(site: Attacked) -> None:
    site.home("etc", "ln -s /etc /srv/team/frank")
    site.declare_users([], user_access_users=[
        {"name": "frank", "home": "/srv/team/frank", "keys": [KEY]},
        {"name": "grace", "home": "/srv/homes/grace", "keys": [KEY]},
    ])  # fmt: skip
    run = site.play()
    assert run.status == "failed"
    assert "home folder of frank: /srv/team/frank: found a parent folder that others" in said(run)
    assert site.on("getent passwd frank || echo nobody") == "nobody"
    assert site.on("cat /srv/homes/grace/.ssh/authorized_keys") == KEY
    site.on("userdel -r grace 2>/dev/null")


def test_links_in_the_docker_folder_change_no_owner(site: Attacked) -> None:
    site.on("mkdir -p /root/.docker/deep; touch /root/.docker/deep/secret")
    site.home("etc", "mkdir .docker; ln -s /root/.docker/deep .docker/contexts")
    site.home("shadow", "ln -s /root/.docker .docker")
    site.home("dave", "root: mkdir -p .docker/contexts; touch .docker/contexts/left")
    site.declare_users(["dave", "etc", "shadow"])
    assert site.play().status == "successful"
    assert site.on("find /root ! -user root") == ""
    assert site.home("dave", "stat --format=%U .docker .docker/contexts/left") == "dave\ndave"


def test_swapping_folder_and_link_gains_nothing(site: Attacked) -> None:
    before = guarded(site)
    site.on(f"cat >/tmp/swap.py <<'END'\n{SWAP}\nEND")
    site.on("systemd-run --quiet --unit=swap --uid=racer python3 /tmp/swap.py")
    site.on("for try in $(seq 50); do test -e /home/racer/ready && break; sleep 0.1; done")
    keys = [
        {
            "user": "racer",
            "path": "/home/racer/.ssh/authorized_keys",
            "lines": [f"{RACE}{{{{item}}}}"],
        }
    ]
    task = {
        "name": "Add",
        "slipway.host.authorized_keys": {"keys": keys},
        "loop": list(range(30)),
        "failed_when": False,
    }
    run = site.play(task)
    assert run.status == "successful", run.output
    assert site.on("systemctl is-active swap; systemctl stop swap") == "active"
    assert guarded(site) == before
    assert "AAAAIRACE" not in site.on("cat /home/alice/.ssh/*; ls /etc/authorized_keys || true")
    assert site.on("find /etc /home/alice -user racer") == ""
