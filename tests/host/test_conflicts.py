# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Conflicts in three roles at once: everything else is done, and the run names each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import KEY, Run, Site
from tests.host.test_users import said

pytestmark = pytest.mark.host

GROUP = "pytest-conflicts"
ROLES = ["user_access", "ml_data", "ml_aliases"]
DECLARED: dict[str, Any] = {
    "ml_images_present": [],
    "ml_aliases_images": [],
    "user_access_groups": [{"name": "lab"}, {"name": "team", "gid": 4300}],
    "user_access_users": [
        {"name": "alice", "groups": ["lab"], "keys": [KEY]},
        {"name": "bob", "groups": ["team"], "keys": [KEY]},
        {"name": "carol", "groups": ["lab"], "keys": [KEY]},
    ],
    "ml_data_archives": [
        {"name": "proj", "path": "/srv/pets.tar", "to": "/home/alice/proj"},
        {"name": "pets", "path": "/srv/pets.tar", "to": "/srv/data/pets"},
    ],
}
# What is in the way in which role, and what a person does about it.
OBSTACLES = {
    "user bob has home /data/bob": (
        "user_access",
        "useradd --home-dir /data/bob --create-home bob",
        "usermod --home /home/bob --move-home bob",
    ),
    "group team: found gid 4300 of group stranger": (
        "user_access",
        "groupadd --gid 4300 stranger",
        "groupdel stranger",
    ),
    "/home/alice/proj: found a directory, owned by alice": (
        "ml_data",
        "useradd --create-home alice; runuser -u alice -- mkdir /home/alice/proj",
        "rmdir /home/alice/proj",
    ),
    "/usr/local/bin/ml: found something that is not a link": (
        "ml_aliases",
        "printf '#!/bin/sh\\n' >/usr/local/bin/ml",
        "rm /usr/local/bin/ml",
    ),
}
IN_CONFLICT = {
    ("user_access", "lines", "/home/bob/.ssh/authorized_keys"),
    ("user_access", "groups", "team"),
    ("ml_data", "datasets", "/home/alice/proj"),
    ("ml_aliases", "links", "/usr/local/bin/ml"),
}


class Host(Site):
    """A host on which three roles are applied."""

    extra = {"slipway_roles": ROLES}

    def play(self, role: str) -> Run:
        """Run a role without site.yml."""
        play = {"hosts": "all", "gather_facts": False, "roles": [role]}
        playbook = self.folder / "play.yml"
        playbook.write_text(yaml.safe_dump([play]))
        return self.run(str(playbook))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    group = Group(GROUP)
    group.remove()
    site = Host(group.ensure(HostSpec("conflicts-1")), tmp_path_factory.mktemp("conflicts"))
    site.on("mkdir -p /data /tmp/pets; echo hello >/tmp/pets/README; tar -C /tmp/pets -cf"
            " /srv/pets.tar README")  # fmt: skip
    site.declare(**DECLARED)
    yield site
    group.remove()


def named(run: Run) -> set[str]:
    """Return which obstacles a run named, whatever a table did to the lines."""
    text = said(run)
    return {words for words in OBSTACLES if words in text}


def test_conflicts_block_their_entries_and_nothing_else(site: Host) -> None:
    site.on("; ".join(script for _role, script, _remedy in OBSTACLES.values()))
    status, drift = site.plan()
    assert status == 3
    assert drift >= IN_CONFLICT
    assert ("user_access", "users", "carol") in drift
    assert ("ml_data", "datasets", "/srv/data/pets") in drift
    checked = site.run("site.yml", "--check")
    assert (checked.status, named(checked)) == ("failed", set(OBSTACLES))
    run = site.run("site.yml")
    assert (run.status, named(run)) == ("failed", set(OBSTACLES))
    # The acceptance checks ran before the run failed.
    ended = [
        (event["event"], event["event_data"]["task"])
        for event in run.events
        if event["event"] in ("runner_on_ok", "runner_on_failed")
    ]
    assert ended[-1] == ("runner_on_failed", "Fail on conflicts")
    assert ("runner_on_ok", "Run acceptance checks") in ended
    # Everything else is there.
    assert site.on("cat /srv/data/pets/README /home/carol/.ssh/authorized_keys") == f"hello\n{KEY}"
    assert "lab" in site.on("id --name --groups carol").split()
    assert site.on("cat /home/alice/.ssh/authorized_keys") == KEY
    assert (
        site.on("/usr/local/lib/slipway/ml --help >/dev/null; cat /usr/local/bin/ml") == "#!/bin/sh"
    )
    assert site.on("ls -A /home/alice/proj; ls /data/bob/.ssh 2>/dev/null || true") == ""


def test_the_next_run_says_the_same_and_changes_nothing(site: Host) -> None:
    assert site.plan() == (3, IN_CONFLICT)
    run = site.run("site.yml")
    assert (run.status, named(run), run.changed()) == ("failed", set(OBSTACLES), set())
    unsurveyed = site.run("site.yml", slipway_survey=False)
    assert (named(unsurveyed), unsurveyed.changed()) == (set(OBSTACLES), set())
    verified = site.run("playbooks/verify.yml")
    assert (verified.status, named(verified)) == ("failed", set(OBSTACLES))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_alone_fails_at_its_end(site: Host, role: str) -> None:
    run = site.play(role)
    expected = {words for words, obstacle in OBSTACLES.items() if obstacle[0] == role}
    assert (run.status, named(run), run.changed()) == ("failed", expected, set())
    failed = [event for event in run.events if event["event"] == "runner_on_failed"]
    assert [event["event_data"]["task"] for event in failed] == ["Fail on conflicts"]


def test_without_the_obstacles_a_run_finishes_the_rest(site: Host) -> None:
    site.on("; ".join(remedy for _role, _script, remedy in OBSTACLES.values()))
    site.converge()
    assert site.on("cat /home/alice/proj/README /home/bob/.ssh/authorized_keys") == f"hello\n{KEY}"
    assert site.on("getent group team") == "team:x:4300:bob"
    assert site.on("readlink /usr/local/bin/ml") == "/usr/local/lib/slipway/ml"
    assert site.plan() == (0, set())


def test_a_full_disk_is_told_before_the_first_change(site: Host) -> None:
    site.on("groupdel team; mount -t tmpfs -o size=1m tmpfs /tmp")
    run = site.run("site.yml")
    words = "no space left in /tmp: found 1 MiB free; expected at least 16 MiB"
    assert run.status == "failed"
    assert words in said(run)
    assert "Nothing was changed." in said(run)
    site.on("! getent group team; umount /tmp")
    made = {"user_access: Create groups", "user_access: Set group members"}
    assert site.converge().changed() == made
