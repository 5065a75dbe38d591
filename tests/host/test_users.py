# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users on a real host: access to Docker, files of teams, rootless engines.

The host is a container. It differs from a server in two things: the tests create the device for the
network of rootless engines, and containers of these engines run without their own cgroups.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import Run, Site, Tamper

pytestmark = pytest.mark.host

GROUP = "pytest-users"
CONTACT = "Dana (dana@lab.example)"
LIMITS = "/etc/security/limits.d/slipway.conf"
CAROLS = "/etc/slipway/rootless/carol.json"
UNIT = "/etc/systemd/user/docker.service"
# What the host of a GPU has in /etc/cdi or /var/run/cdi, with a variable in place of a device.
CDI = {
    "cdiVersion": "0.6.0",
    "kind": "nvidia.com/gpu",
    "devices": [{"name": "all", "containerEdits": {"env": ["STAND_IN_GPU=all"]}}],
}


class People(Site):
    """A host with alice, who may use Docker, bob, who may not, and carol with her own engine."""

    def people(self, *others: dict[str, Any], **changes: Any) -> None:
        """Declare them, and what they have."""
        key = self.host.private_key_file.with_suffix(".pub").read_text().strip()
        settings = {"exec-opts": ["native.cgroupdriver=cgroupfs"], "features": {"cdi": True}}
        self.declare(
            **{
                "ml_images_present": [],
                "ml_services_instances": [],
                "ml_aliases_contact": CONTACT,
                "user_access_groups": [{"name": "lab"}],
                "user_access_users": [
                    {"name": "alice", "keys": [key], "groups": ["lab"], "docker": True},
                    {"name": "bob", "keys": [key], "groups": ["lab"]},
                    *(others or [{"name": "carol", "keys": [key], "docker": "rootless"}]),
                ],
                "user_access_shared_folders": [{"group": "lab"}],
                "user_access_limits": [{"applies_to": "@lab", "memlock": 4096, "nofile": 4096}],
                "user_access_rootless_settings": settings,
                **changes,
            }
        )

    def acts(self) -> set[str]:
        """Run site.yml and return the roles that changed something."""
        return {task.partition(":")[0] for task in self.converge().changed()}


def said(run: Run) -> str:
    """Return what a run printed, without colours and on one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.output).split())


@pytest.fixture(scope="module")
def hosts() -> Iterator[Group]:
    group = Group(GROUP)
    group.remove()
    yield group
    group.remove()


@pytest.fixture(scope="module")
def site(hosts: Group, tmp_path_factory: pytest.TempPathFactory) -> People:
    site = People(
        hosts.ensure(HostSpec("people-1", base=ENGINE_BASE)), tmp_path_factory.mktemp("people")
    )
    site.on("mkdir --parents /dev/net; mknod --mode=0666 /dev/net/tun c 10 200")
    site.people()
    checked = site.run("site.yml", "--check", "--diff")
    assert checked.status == "successful", checked.output
    assert site.on("getent passwd carol || echo nobody") == "nobody"
    run = site.converge()
    assert "New members of the docker group on people-1: alice" in said(run)
    assert "access equivalent to root" in said(run)
    return site


def test_a_second_run_changes_nothing_with_and_without_survey(site: People) -> None:
    began = site.on("stat --format=%Y /run/user/$(id -u carol)/docker.sock")
    assert site.plan() == (0, set())
    assert site.converge(slipway_survey=False).changed() == set()
    assert site.on("stat --format=%Y /run/user/$(id -u carol)/docker.sock") == began


# Who reaches Docker.


def test_a_listed_user_may_use_docker_after_the_next_login(site: People) -> None:
    assert "docker" in site.as_user("alice", "id --name --groups").split()
    assert site.as_user("alice", "docker info --format '{{.OSType}}'") == "linux"


def test_an_unlisted_user_may_not_use_docker_and_learns_the_contact(site: People) -> None:
    refused = site.try_as("bob", "docker ps")
    assert refused.returncode != 0 and "permission denied" in refused.stderr
    told = site.try_as("bob", "ml list")
    assert told.returncode != 0
    assert f"bob may not use Docker on people-1. Ask {CONTACT}" in told.stderr


def test_users_with_programs_in_old_groups_are_named(site: People) -> None:
    site.on("gpasswd --delete alice docker; gpasswd --add bob docker")
    older = [
        subprocess.Popen([*site.ssh(name), "echo here; exec sleep 120"], stdout=subprocess.PIPE)
        for name in ("alice", "bob")
    ]
    try:
        for session in older:
            assert session.stdout and session.stdout.readline() == b"here\n"
        run = site.converge()
    finally:
        for session in older:
            session.terminate()
    assert "alice was added to docker. Running programs of alice keep their old groups" in said(run)
    assert "bob was removed from docker. Running programs of bob keep the group" in said(run)
    assert "loginctl terminate-user bob" in said(run)
    site.on("pkill -u alice sleep; pkill -u bob sleep")


def test_the_user_of_ansible_is_in_the_group_for_the_tasks_that_follow(
    site: People, tmp_path: Path
) -> None:
    site.people({"name": site.host.user, "docker": True}, {"name": "carol", "docker": "rootless"})
    playbook = tmp_path / "play.yml"
    # The inventory's word for it wins over the keyword.
    as_itself = {"ansible_become": False}
    ask = {"name": "Use it", "ansible.builtin.command": "docker ps", "vars": as_itself}
    play = {"hosts": "all", "gather_facts": False, "roles": ["user_access"], "tasks": [ask]}
    playbook.write_text(yaml.safe_dump([play]))
    run = site.run(str(playbook))
    assert run.status == "successful", run.output
    site.people()
    site.converge()


# Folders of a team.


def test_new_files_in_the_shared_folder_are_writable_for_the_team(site: People) -> None:
    site.as_user("bob", "umask 077; mkdir /srv/shared/run; echo one >/srv/shared/run/log")
    site.as_user("alice", "echo two >>/srv/shared/run/log; touch /srv/shared/run/more")
    assert site.as_user("bob", "cat /srv/shared/run/log") == "one\ntwo"
    found = site.on("stat --format='%U:%G %a' /srv/shared/run /srv/shared/run/log")
    assert found.split("\n") == ["bob:lab 2770", "bob:lab 660"]
    assert site.try_as("carol", "ls /srv/shared").returncode != 0


def test_foreign_entries_of_an_acl_are_kept(site: People) -> None:
    site.on("apt-get -qq install -y acl >/dev/null 2>&1; setfacl -d -m u:carol:rX /srv/shared")
    assert site.plan() == (0, set())
    site.on("setfacl -d -m g::r /srv/shared")
    assert site.acts() == {"user_access"}
    acl = site.on("getfacl --omit-header --default /srv/shared").split()
    assert {"user:carol:r-x", "group::rwx", "mask::rwx"} <= set(acl)
    site.on("setfacl -d -x u:carol /srv/shared")


def test_an_undeclared_shared_folder_keeps_its_files(site: People) -> None:
    site.people(user_access_shared_folders=[])
    assert site.plan() == (0, set())
    site.on("test -d /srv/shared")
    site.people()


def test_a_shared_folder_that_is_a_link_is_an_error_and_kept(site: People) -> None:
    site.on("ln -s /srv /mnt/elsewhere")
    site.people(user_access_shared_folders=[{"group": "lab", "path": "/mnt/elsewhere"}])
    run = site.run()
    assert run.status == "failed"
    assert "/mnt/elsewhere: found a link; expected a folder" in said(run)
    assert run.changed() == set()
    site.on("rm /mnt/elsewhere")
    site.people()


# Limits.


def test_limits_apply_to_sessions_of_their_users(site: People) -> None:
    assert site.as_user("bob", "ulimit -Hn; ulimit -Sn; ulimit -Hl") == "4096\n4096\n4096"
    assert site.as_user("carol", "ulimit -Hn") != "4096"


def test_a_limit_that_prevents_logins_is_an_error(site: People) -> None:
    effective = site.on("grep CapEff /proc/self/status").split()[1]
    if int(effective, 16) >> 24 & 1:
        pytest.skip("this machine may raise any limit (it has CAP_SYS_RESOURCE)")
    before = site.on(f"cat {LIMITS}")
    site.people(user_access_limits=[{"applies_to": "*", "memlock": "unlimited"}])
    run = site.run()
    assert run.status == "failed"
    assert f"{LIMITS}: '" in said(run) and "expected success. The file was not written" in said(run)
    assert site.on(f"cat {LIMITS}") == before
    site.as_user("bob", "true")
    site.people()


def test_no_limits_leave_no_file(site: People) -> None:
    site.people(user_access_limits=[])
    assert site.plan() == (2, {("user_access", "files", LIMITS)})
    site.converge()
    site.on(f"test ! -e {LIMITS}")
    assert site.as_user("bob", "ulimit -Hn") != "4096"
    site.people()
    site.converge()


# What sudo docker login leaves.


def test_files_of_root_in_the_docker_folder_get_their_owner_back(site: People) -> None:
    site.on(
        "cd /home/alice; install --directory --mode=0700 .docker .docker/buildx/activity;"
        "echo '{}' >.docker/config.json; touch .docker/buildx/activity/default"
    )
    assert "permission denied" in site.try_as("alice", "docker context ls").stderr
    assert site.plan() == (2, {("user_access", "left_by_root", "alice")})
    assert site.acts() == {"user_access"}
    assert site.on("find /home/alice/.docker -user root") == ""
    site.as_user("alice", "docker context ls")


def test_no_file_outside_the_docker_folder_changes_its_owner(site: People) -> None:
    site.on("mkdir --parents /root/.docker /root/deep; touch /root/.docker/secret /root/deep/er")
    # A folder that leads elsewhere, and one with links and a further name in it.
    site.as_user("bob", "ln -s /root/.docker ~/.docker")
    site.on(
        "cd /home/alice/.docker; touch left two; ln two /root/deep/two;"
        "ln -s /root/deep there; ln -s /root/deep/er file; mkfifo pipe"
    )
    assert site.plan() == (2, {("user_access", "left_by_root", "alice")})
    site.converge()
    assert site.on("find /root /root/deep/two -user alice -o -user bob") == ""
    assert site.on("stat --format=%U /home/alice/.docker/left") == "alice"
    assert site.plan() == (0, set())
    site.on("rm --recursive /home/alice/.docker /home/bob/.docker /root/.docker /root/deep")


def test_a_pipe_in_place_of_a_file_does_not_block_the_survey(site: People) -> None:
    keys = "/home/bob/.ssh/authorized_keys"
    site.on(f"mv {keys} {keys}.kept; mkfifo {keys}")
    assert site.plan() == (3, {("user_access", "lines", keys)})
    site.on(f"mv {keys}.kept {keys}")


# Engines without root.


def test_a_rootless_engine_runs_beside_the_engine_of_root(site: People) -> None:
    options = site.as_user("carol", "docker info --format '{{json .SecurityOptions}}'")
    assert "name=rootless" in json.loads(options)
    assert "docker" not in site.as_user("carol", "id --name --groups").split()
    assert site.try_as("carol", "docker --host unix:///run/docker.sock ps").returncode != 0
    site.on("apt-get -qq install -y busybox-static >/dev/null 2>&1")
    site.as_user("carol", "cd / && tar --create bin/busybox usr/bin/busybox | docker import - box")
    ran = "docker run --rm --volume ~:/home box /usr/bin/busybox"
    site.as_user("carol", f"{ran} touch /home/made")
    assert site.on("stat --format=%U /home/carol/made") == "carol"
    assert site.as_user("alice", "docker images --quiet box") == ""
    assert site.as_user("alice", "docker ps --quiet") == ""


def test_containers_of_a_rootless_engine_get_gpus_by_cdi(site: People) -> None:
    site.on(f"cat >/etc/cdi/stand-in.json <<'END'\n{json.dumps(CDI)}\nEND")
    run = "docker run --rm --device nvidia.com/gpu=all box /usr/bin/busybox env"
    assert "STAND_IN_GPU=all" in site.as_user("carol", run)
    site.on("rm /etc/cdi/stand-in.json")


def test_settings_of_the_user_override_those_of_the_host(site: People) -> None:
    own = '{"exec-opts": ["native.cgroupdriver=cgroupfs"], "labels": ["desk=7"]}'
    site.as_user("carol", f"mkdir -p ~/.config/docker; echo '{own}' >~/.config/docker/daemon.json")
    site.as_user("carol", "systemctl --user restart docker")
    assert "desk=7" in site.as_user("carol", "docker info --format '{{.Labels}}'")
    assert site.plan() == (0, set())
    site.as_user("carol", "rm ~/.config/docker/daemon.json; systemctl --user restart docker")


# The tampers of a group are applied together, because a survey and a run take time. No two of them
# have a name in common, so plan shows each of them.
TAMPERED: dict[str, dict[str, Tamper]] = {
    "a stopped engine": {
        "a shared folder closed to its group": (
            "chmod 0700 /srv/shared",
            {("user_access", "files", "/srv/shared")},
        ),
        "limits edited": (
            f"echo '* - nofile 2048' >>{LIMITS}",
            {("user_access", "files", LIMITS)},
        ),
        "an engine stopped": (
            "runuser -u carol -- env XDG_RUNTIME_DIR=/run/user/$(id -u carol)"
            " systemctl --user stop docker",
            {("user_access", "rootless", "carol")},
        ),
    },
    "a removed unit": {
        "the unit removed": (
            f"rm {UNIT}",
            {("user_access", "files", UNIT), ("user_access", "rootless", "carol")},
        ),
    },
    "edited settings": {
        "a default ACL removed": (
            'python3 -c \'import os; os.removexattr("/srv/shared", "system.posix_acl_default")\'',
            {("user_access", "files", "/srv/shared")},
        ),
        "an engine's settings edited": (
            f"echo '{{}}' >{CAROLS}",
            {("user_access", "files", CAROLS), ("user_access", "rootless", "carol")},
        ),
        "an engine of somebody whom nobody lists": (
            "echo '{}' >/etc/slipway/rootless/bob.json",
            {("user_access", "folders", "/etc/slipway/rootless")},
        ),
    },
    "an engine with other settings": {
        "a shared folder given away": (
            "chgrp users /srv/shared",
            {("user_access", "files", "/srv/shared")},
        ),
        "an engine that runs with other settings than the file's": (
            f"cp {CAROLS} /root/declared; echo '{{}}' >{CAROLS};"
            "runuser -u carol -- env XDG_RUNTIME_DIR=/run/user/$(id -u carol)"
            f" systemctl --user restart docker; sleep 1; cat /root/declared >{CAROLS}",
            {("user_access", "rootless", "carol")},
        ),
    },
    "lingering": {
        "lingering switched off": (
            "loginctl disable-linger carol",
            {("user_access", "rootless", "carol")},
        ),
    },
    "subordinate ids": {
        "subordinate ids removed": (
            "sed -i /^carol:/d /etc/subuid",
            {("user_access", "rootless", "carol")},
        ),
    },
    "a docker context": {
        "a docker context removed": (
            "runuser -u carol -- env HOME=/home/carol docker context rm --force rootless"
            " >/dev/null",
            {("user_access", "rootless", "carol")},
        ),
    },
}

# Further ways to disturb the engine that other groups disturb, a group each.
LONG = ("lingering", "subordinate ids", "a docker context")


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(rows, id=name, marks=pytest.mark.long if name in LONG else ())
        for name, rows in TAMPERED.items()
    ],
)
def test_plan_names_and_site_repairs_the_tampered_things(
    site: People, rows: dict[str, Tamper]
) -> None:
    site.repair(rows)
    assert site.as_user("carol", "docker info --format '{{.OSType}}'") == "linux"


def test_nothing_differs_after_the_repairs(site: People) -> None:
    assert site.plan() == (0, set())


def test_disabled_user_namespaces_fail_with_an_explanation(site: People) -> None:
    setting = "/proc/sys/user/max_user_namespaces"
    site.on(f"echo 0 >/root/none; mount --bind /root/none {setting}")
    try:
        run = site.run()
    finally:
        site.on(f"umount {setting}")
    assert run.status == "failed"
    assert "'docker: rootless' needs user namespaces" in said(run)
    assert run.changed() == set()


def test_a_removed_engine_keeps_its_data(site: People) -> None:
    site.people({"name": "carol"})
    assert ("user_access", "folders", "/etc/slipway/rootless") in site.plan()[1]
    site.converge()
    assert site.plan() == (0, set())
    site.on(f"test ! -e {UNIT} && test ! -e {CAROLS} && test ! -e /var/lib/systemd/linger/carol")
    site.on("test -d /home/carol/.local/share/docker && grep --quiet ^carol: /etc/subuid")
    assert site.on("pgrep -u carol dockerd || echo none") == "none"
    assert "permission denied" in site.try_as("carol", "docker ps").stderr


def test_a_removed_account_with_a_running_engine_keeps_its_home(site: People) -> None:
    site.people()
    site.converge()
    assert site.as_user("carol", "docker info --format '{{.OSType}}'") == "linux"
    site.people({"name": "carol", "state": "absent"})
    site.converge()
    assert site.plan() == (0, set())
    assert site.on("getent passwd carol || echo nobody") == "nobody"
    site.on("test -d /home/carol")
