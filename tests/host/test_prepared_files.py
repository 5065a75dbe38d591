# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user prepares files that programs of root may find: start files, temporary folders, names.

None of these is in the way of anything declared. So the runs succeed, nothing of the user's runs
with the rights of anybody else, and a terminal shows nothing but text.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import ROOT
from tests.host.test_attacks import Attacked

pytestmark = pytest.mark.host

GROUP = "pytest-prepared"
# Notes whose rights it runs with, unless these are the user's own.
EVIL = "#!/bin/sh\\n[ $(id -u) = $(id -u mallory) ] || id >>/tmp/won\\n"
# What the user does in the home folder.
TRICKS = {
    "temporary folders": "for f in /tmp /var/tmp /dev/shm; do for n in slipway ansible .ansible"
    " slipway-archive; do ln -s /etc/shadow $f/$n; done; done",
    "start files of shells": f"for f in .profile .bashrc .bash_login .bash_logout .zshenv; do"
    f" printf '{EVIL}' >$f; done",
    "files of sshd and PAM": f"printf '{EVIL}' >.ssh/rc; chmod +x .ssh/rc;"
    " echo 'PATH DEFAULT=/home/mallory/bin' >.pam_environment;"
    " echo LD_PRELOAD=/home/mallory/x.so >.ssh/environment",
    "programs by the names of root's": f"mkdir bin; for p in docker systemctl python3 git sh id"
    f" getent; do printf '{EVIL}' >bin/$p; chmod +x bin/$p; done",
    "plugins of docker": "mkdir -p .docker/cli-plugins; cp bin/docker .docker/cli-plugins/"
    "docker-compose; cp bin/docker bin/docker-credential-evil;"
    ' echo \'{"credsStore": "evil", "currentContext": "evil"}\' >.docker/config.json',
    "a pipe": "mkfifo .docker/daemon.json .ssh/config",
    "units": "mkdir -p .config/systemd/user/default.target.wants; printf '[Service]\\nExecStart="
    "/home/mallory/bin/docker\\n' >.config/systemd/user/docker.service; ln -s ../docker.service"
    " .config/systemd/user/default.target.wants/",
    "modules of Python": "for d in .local/lib/python3.{9..14}/site-packages; do mkdir -p $d; echo"
    ' \'import os; os.getuid() == 4321 or open("/tmp/won", "w")\' >$d/usercustomize.py; done',
    "hooks of git": f"mkdir -p code/.git/hooks; printf '{EVIL}' >code/.git/hooks/post-checkout;"
    " printf '[core]\\n\\tfsmonitor = /home/mallory/bin/git\\n' | tee .gitconfig >code/.git/config",
    "names with control characters": "touch $'\\e[2J\\e]0;x\\a' $'a\\nb'; mkdir $'.docker/\\e[31m';"
    " mkdir -p $'/srv/shared/\\e[2J\\n'",
    "a process with such a name": "cp /bin/sleep $'s\\e[2J\\n'; nohup ./$'s\\e[2J\\n' 900"
    " >/dev/null 2>&1 &",
    "large files": "truncate -s 1T .docker/large .ssh/large; truncate -s 900K .ssh/id",
    "many and deep folders": "cd /srv/shared; for i in $(seq 300); do mkdir d; cd d; done",
    "a changing folder": "nohup sh -c 'while :; do mkdir -p .docker/v/w; rm -r .docker/v;"
    " touch .ssh/v; rm .ssh/v; done' >/dev/null 2>&1 &",
    "hard links": "ln /srv/shared/own .ssh/own 2>/dev/null || true",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    group = Group(GROUP)
    group.remove()
    site = Attacked(group.ensure(HostSpec("prepared-1")), tmp_path_factory.mktemp("prepared"))
    declare(site)
    site.converge()
    yield site
    group.remove()


def declare(site: Attacked, *more: str) -> None:
    key = site.host.private_key_file.with_suffix(".pub").read_text().strip()
    people: list[dict[str, Any]] = [
        {"name": "mallory", "uid": 4321, "shell": "/bin/bash", "groups": ["lab"], "keys": [key]},
        *({"name": name, "groups": ["lab"], "keys": [key]} for name in ("alice", *more)),
    ]
    site.declare(
        user_access_groups=[{"name": "lab"}],
        user_access_users=people,
        user_access_shared_folders=[{"group": "lab"}],
    )


def shown(site: Attacked, verb: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project, as a person does; what it prints must be text alone."""
    extra = json.dumps(site.extra)
    command = [str(ROOT / "slipway"), verb, "-i", str(site.inventory), "-e", extra]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = (done.stdout + done.stderr).replace("\n", "")
    assert text.isprintable(), [char for char in text if not char.isprintable()]
    return done


def test_prepared_files_of_a_user_change_no_run(site: Attacked) -> None:
    guarded = (
        "stat --format='%n %U %G %a %Z' /etc /etc/shadow /etc/passwd /root /home/alice"
        " /home/alice/.ssh/authorized_keys; find /root -type f ! -path '*/.ansible/*' | sort"
    )
    before = site.on(guarded)
    for trick in TRICKS.values():
        site.as_user("mallory", f"cd; PATH=/usr/bin:/bin; {trick}")
    assert shown(site, "plan").returncode == 0
    # Something to change, so that the role runs.
    declare(site, "dave")
    plan = shown(site, "plan")
    assert plan.returncode == 2 and "mallory" not in plan.stdout, plan.stdout
    done = shown(site, "site")
    assert done.returncode == 0, done.stdout
    assert shown(site, "verify").returncode == 0
    assert site.plan() == (0, set())
    assert site.on("cat /tmp/won 2>/dev/null || true") == ""
    assert site.on("find /home/mallory -user root | head") == ""
    assert site.on("id dave")
    after = site.on(guarded)
    changed = {*after.splitlines()} ^ {*before.splitlines()}
    assert {line.split()[0] for line in changed} <= {"/etc", "/etc/shadow", "/etc/passwd"}, changed
    for line in changed:
        assert line.split()[1:3] in (["root", "root"], ["root", "shadow"]), line
    for command in ("docker ps", "cat /etc/shadow", "sudo -n id"):
        assert site.try_as("mallory", f"PATH=/usr/bin:/bin; {command}").returncode != 0
