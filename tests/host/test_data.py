# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets and repositories on a real host: failures, tampering, removal.

They come from a web server of this machine, which the host reaches without a proxy.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.action import datasets

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.fixtures.data_server import DataServer, serving
from tests.fixtures.data_sets import Course, publish, sha256, tar
from tests.host.conftest import ROOT, Run, Site

pytestmark = [
    pytest.mark.host,
    # The server's threads are none that a forked Ansible would wait for.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*forkpty:DeprecationWarning"),
]

GROUP = "pytest-data"
ROLES = ["user_access", "ml_data"]
DATA, CODE, DISK = "/srv/shared/data", "/srv/shared/code", "/mnt/disk/data"
STAGES = ".slipway-unfinished"
TOKEN = "Bearer 7c1f-token-of-nobody"
# site.yml without its proof, for which there is no engine here.
PLAYBOOK = """\
- import_playbook: {root}/playbooks/look.yml
- hosts: slipway_drift
  gather_facts: false
  tasks:
    - include_role:
        name: "{{{{ role }}}}"
      loop: "{{{{ __slipway_survey.drift }}}}"
      loop_control: {{loop_var: role}}
    - slipway.host.survey:
        roles: "{{{{ slipway_roles }}}}"
        expect_no_drift: "{{{{ not ansible_check_mode }}}}"
      register: __slipway_survey
- hosts: slipway_conflict
  gather_facts: false
  tasks:
    - ansible.builtin.fail:
        msg: "{{{{ __slipway_survey.conflicts.values() | flatten | join(' ') }}}}"
"""
PETS = tar({"pets/README": b"hello\n", "pets/train/cat.png": b"cat", "pets/train/dog.png": b"dog"})
# Does not compress, and has no room in the small disk.
LARGE = tar({"large/noise": os.urandom(24_000_000)}, "w")


MODEL = {"config.json": b"{}", "tokenizer/vocab.json": b"[]"}
TREES_TASK = "ml_data: Install, update and remove data sets and repositories"


class DataSite(Site):
    """A host that only its people and its data are looked after of."""

    extra = {"slipway_roles": ROLES}

    def __init__(self, site: Site, server: DataServer, course: Course) -> None:
        super().__init__(site.host, site.folder)
        self.server = server
        self.playbook = self.folder / "data.yml"
        self.playbook.write_text(PLAYBOOK.format(root=ROOT))
        self.course = {"name": "course", "url": publish(server, course), "revision": course.first}
        self.second = course.second

    def archive(self, name: str, content: bytes, **more: Any) -> dict[str, Any]:
        """Have the server give an archive; return its declaration."""
        self.server.files[f"/{name}"] = content
        found = {"name": name, "url": self.server.url(f"/{name}"), "checksum": sha256(content)}
        return {**found, "strip": 1, **more}

    def files(self, name: str, content: dict[str, bytes]) -> dict[str, Any]:
        """Have the server give a folder of files; return its declaration."""
        self.server.files.update({f"/{name}/{file}": data for file, data in content.items()})
        checksums = {file: sha256(data) for file, data in content.items()}
        folder = {"name": name, "url": self.server.url(f"/{name}"), "to": f"/srv/{name}"}
        return {**folder, "files": checksums}

    def wanted(self, *more: dict[str, Any]) -> None:
        """Declare the data of the host, and MORE archives."""
        self.declare(
            user_access_groups=[{"name": "research"}],
            user_access_users=[{"name": "alice", "groups": ["research"]}],
            ml_data_archives=[
                self.archive("pets", PETS, owner="alice", group="research", mode="2750"),
                self.archive("large", LARGE, to="/mnt/small/large", headers={"X-Key": TOKEN}),
                self.files("model", MODEL),
                *more,
            ],
            ml_data_repositories=[{**self.course, "owner": "alice"}],
            ml_data_disks=["/mnt/none/data", DISK],
        )

    def settle(self, *arguments: str, **extra: Any) -> Run:
        return self.run(str(self.playbook), *arguments, **extra)

    def must(self, *arguments: str, **extra: Any) -> Run:
        run = self.settle(*arguments, **extra)
        assert run.status == "successful", run.output
        return run

    def fails(self) -> str:
        """Run it, which must fail; return what it said, on one line."""
        run = self.settle()
        assert run.status == "failed", run.output
        return " ".join(run.output.split())


@pytest.fixture(scope="module")
def data_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSite]:
    group = Group(GROUP)
    group.remove()
    folder = tmp_path_factory.mktemp("data")
    site = Site(group.ensure(HostSpec("data-1")), folder)
    with socket.create_connection((site.host.address, 22)) as connection:
        mine = connection.getsockname()[0]
    with serving(mine) as server:
        yield DataSite(site, server, Course(folder / "course"))
    group.remove()


@pytest.fixture(scope="module")
def site(data_site: DataSite) -> DataSite:
    """The host after its first run; a test that changes it brings it back."""
    site = data_site
    site.on(f"mkdir -p /mnt/small {DISK}; mount -t tmpfs -o size=8m none /mnt/small")
    site.wanted()
    before = site.on("find /srv /mnt /home; ls /var/lib")
    checked = site.must("--check", "--diff")
    assert TREES_TASK in checked.changed()
    assert site.on("find /srv /mnt /home; ls /var/lib") == before
    first = site.must("-vvv")
    assert TOKEN not in first.output and "7c1f" not in checked.output
    return site


@pytest.fixture(autouse=True)
def well_served(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the server behave again after each test."""
    yield
    server: DataServer = request.getfixturevalue("data_site").server
    server.cut_after, server.left, server.status, server.pause = None, None, 0, 0.0
    server.tell_length = True


def test_all_trees_are_complete(site: DataSite) -> None:
    assert site.on(f"stat -c '%A %U %G' {DATA}/pets {DATA}/pets/train {DATA}/pets/README") == (
        "drwxr-s--- alice research\ndrwxr-s--- alice research\n-rw-r----- alice research"
    )
    assert site.on(f"readlink /mnt/small/large; stat -c %s {DISK}/large/noise") == (
        f"{DISK}/large\n24000000"
    )
    assert site.on(f"su alice -c 'git -C {CODE}/course log --format=%s'") == "one"
    assert site.on("cd /srv/model; cat config.json tokenizer/vocab.json") == "{}[]"
    assert site.on(f"ls -A {DATA} {CODE} {DISK} /mnt/small | grep {STAGES} || true") == ""


def test_second_run_changes_nothing_and_downloads_nothing(site: DataSite) -> None:
    asked = len(site.server.requests)
    assert site.plan() == (0, set())
    assert site.must().changed() == set()
    alone = site.must(slipway_survey=False)
    assert alone.changed() == set() and "ml_data" in alone.output
    assert site.must("--check", slipway_survey=False).changed() == set()
    assert len(site.server.requests) == asked
    assert site.on("ls /var/lib/slipway/data") == "", "no job is left"


def test_no_secret_stays_on_the_host(site: DataSite) -> None:
    assert any(request.headers["X-Key"] == TOKEN for request in site.server.requests)
    # Not spelled as it is: the journal keeps this command, too.
    assert site.on("grep -rl '7c1f[-]token' /var/lib/slipway /srv /mnt /var/log || true") == ""


PETS_TREE, LARGE_LINK = ("datasets", f"{DATA}/pets"), ("datasets", "/mnt/small/large")
COURSE = ("checkouts", f"{CODE}/course")
# Several changes at once, because a survey and a run take time.
TAMPERED: dict[str, dict[str, tuple[str, str]]] = {
    "what is gone": {
        f"rm -r {DATA}/pets": PETS_TREE,
        "rm /mnt/small/large": LARGE_LINK,
        f"rm -r {CODE}/course": COURSE,
        f"mkdir -p {DATA}/{STAGES}/gone/tree": ("folders", f"{DATA}/{STAGES}"),
    },
    "what is changed": {
        f"rm {DATA}/pets/README": PETS_TREE,
        f"rm -r {DISK}/large": LARGE_LINK,
        f"su alice -c 'git -C {CODE}/course checkout -q SECOND'": COURSE,
    },
    "a mode and an owner": {
        f"chmod 0777 {DATA}/pets": PETS_TREE,
        f"chown nobody:nogroup {CODE}/course": COURSE,
    },
    "an owner and a group": {
        f"chown root:root {DATA}/pets": PETS_TREE,
        f"chmod 0700 {DISK}/large": LARGE_LINK,
    },
}


@pytest.mark.parametrize("tampered", TAMPERED.values(), ids=TAMPERED.keys())
def test_plan_names_and_the_run_repairs_exactly_the_tampered_things(
    site: DataSite, tampered: dict[str, tuple[str, str]]
) -> None:
    site.on("\n".join(tampered).replace("SECOND", site.second))
    assert site.plan() == (2, {("ml_data", *named) for named in tampered.values()})
    assert site.must().changed() == {TREES_TASK}
    assert site.plan() == (0, set())
    test_all_trees_are_complete(site)


def test_an_interrupted_download_is_resumed_by_the_next_run(site: DataSite) -> None:
    content = tar({"noise/noise": os.urandom(6_000_000)}, "w")
    half = len(content) // 2
    site.wanted(site.archive("noise", content))
    site.server.requests.clear()
    # It answers for the size, gives one half, and is gone.
    site.server.cut_after, site.server.left = half, 2
    assert "continue the download" in site.fails() or "503" in site.fails()
    assert site.on(f"ls {DATA}") == "pets"
    assert site.plan() == (2, {("ml_data", "datasets", f"{DATA}/noise")})
    site.server.cut_after = site.server.left = None
    site.server.requests.clear()
    run = site.must()
    assert "noise: continuing at" in run.output
    assert site.server.ranges() == [f"bytes={half}-"]
    assert site.server.requests[-1].sent == len(content) - half
    assert site.on(f"stat -c %s {DATA}/noise/noise") == "6000000"
    assert site.on(f"ls -A {DATA}") == "noise\npets"


def test_an_undeclared_tree_stays_until_it_is_declared_absent(site: DataSite) -> None:
    site.wanted()
    assert site.plan() == (0, set())
    site.on(f"echo mine > {DATA}/noise/mine")
    site.wanted({"name": "noise", "state": "absent"})
    assert site.plan() == (2, {("ml_data", "datasets", f"{DATA}/noise")})
    assert "1 files" in site.must().output
    assert site.on(f"find {DATA}/noise -type f") == f"{DATA}/noise/mine"
    assert site.plan() == (0, set())
    site.on(f"rm -r {DATA}/noise")


def test_a_wrong_checksum_is_an_error(site: DataSite) -> None:
    wrong = f"sha256:{'0' * 64}"
    site.wanted(site.archive("wrong", PETS, checksum=wrong))
    said = site.fails()
    assert f"found {sha256(PETS)}; expected {wrong}. The archive was not unpacked" in said
    assert site.on(f"ls {DATA}; find {DATA}/{STAGES} -type f") == "pets"
    site.wanted()
    site.must()


def test_a_small_disk_is_reported_before_the_download(site: DataSite) -> None:
    content = os.urandom(9_000_000)
    # Nobody has that much, so the other disk is passed over too.
    site.wanted(site.archive("huge", content, to="/mnt/small/huge", size="900T"))
    said = site.fails()
    assert "huge: not enough disk space: found 8.0 MB in /mnt/small/huge" in said
    assert f"in {DISK}/huge" in said
    assert site.on("ls -A /mnt/small") == "large"
    site.wanted()
    site.must()


@pytest.mark.parametrize("when", ["downloading", "unpacking"])
def test_a_full_disk_leaves_no_incomplete_tree(site: DataSite, when: str) -> None:
    """Nobody knew how much it is: the server tells no length, or it compresses well."""
    content = {
        "downloading": tar({"full/noise": os.urandom(12_000_000)}, "w"),
        "unpacking": tar({"full/first": b"1", "full/zeros": bytes(30_000_000)}),
    }[when]
    site.server.tell_length = when == "unpacking"
    site.wanted(site.archive("full", content, to="/mnt/small/full"))
    said = site.fails()
    # A little stays free, also while it is written.
    ended = {"downloading": "the disk has", "unpacking": "became full while unpacking"}
    deleted = {"downloading": "The download was deleted", "unpacking": "files were deleted"}
    assert ended[when] in said and deleted[when] in said
    assert site.on("ls /mnt/small") == "large"
    assert int(site.on("df --output=avail -B1 /mnt/small | tail -1")) > 8_000_000
    assert site.plan() == (2, {("ml_data", "datasets", "/mnt/small/full")})
    # With the number that the message asks for it goes where there is room.
    site.wanted(site.archive("full", content, to="/mnt/small/full", size="40M"))
    site.server.tell_length = True
    site.must()
    assert site.on("readlink /mnt/small/full") == f"{DISK}/full"
    site.wanted({"name": "full", "to": "/mnt/small/full", "state": "absent"})
    site.must()
    assert site.on(f"ls -A /mnt/small {DISK}") == f"{DISK}:\nlarge\n\n/mnt/small:\nlarge"


def many(count: int) -> bytes:
    return tar({f"many/{number}": b"x" * 100 for number in range(count)})


def watch(site: DataSite, script: str) -> set[str]:
    """Return all names that a loop sees a hundred times a second while site.yml runs."""
    site.on("rm -f /tmp/stop /tmp/seen")
    site.on(
        f"(while [ ! -e /tmp/stop ]; do {script} >>/tmp/seen 2>/dev/null || echo none >>/tmp/seen;"
        " sleep 0.01; done) >/dev/null 2>&1 &"
    )
    site.must()
    site.on("touch /tmp/stop")
    return set(site.on("sort -u /tmp/seen").split())


def test_a_tree_appears_only_when_it_is_complete(site: DataSite) -> None:
    """One is unpacked, then replaced by another; who looks meanwhile never sees a part."""
    count = f"ls {DATA}/many | wc -l"
    look = f"[ -d {DATA}/many ] && {count}"
    site.wanted(site.archive("many", many(3000)))
    assert watch(site, look) <= {"none", "3000"}
    assert site.on(count) == "3000"
    site.wanted(site.archive("many", many(2000)))
    assert watch(site, look) <= {"3000", "2000"}
    assert site.on(count) == "2000"
    site.wanted({"name": "many", "state": "absent"})
    site.must()


def test_a_killed_run_is_finished_by_the_next(site: DataSite) -> None:
    site.wanted(site.archive("many", many(60_000)))
    runs: list[Run] = []
    running = threading.Thread(target=lambda: runs.append(site.settle()))
    running.start()
    half = f"{DATA}/{STAGES}/many/tree"
    # Its working folder tells that it unpacks.
    site.on(
        f"for try in $(seq 9000); do [ ! -e {half}/100 ] || break; sleep 0.02; done;"
        "kill -9 $(cat /var/lib/slipway/data/*/pid)"
    )
    running.join()
    said = " ".join(runs[0].output.split())
    assert runs[0].status == "failed" and "was killed; run again" in said
    assert site.on(f"ls {DATA}; ls {half} | wc -l").startswith("pets\n")
    site.server.requests.clear()
    site.must()
    assert site.on(f"ls {DATA}/many | wc -l; ls -A {DATA}") == "60000\nmany\npets"
    # The archive was there already.
    assert not site.server.ranges() and len(site.server.requests) == 1
    site.wanted({"name": "many", "state": "absent"})
    site.must()


def test_a_lost_connection_does_not_stop_the_work(site: DataSite) -> None:
    """What the first run began goes on to its end."""
    content = tar({"slow/noise": os.urandom(2_000_000)}, "w")
    site.wanted(site.archive("slow", content))
    site.server.pause = 0.1
    with subprocess.Popen(
        [
            *(str(ROOT / "slipway"), "run", "ansible-playbook", "-i", str(site.inventory)),
            *(str(site.playbook), "-e", json.dumps(site.extra)),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        pid = site.on(
            f"for try in $(seq 900); do pid=$(cat {datasets.WORK}/*/pid 2>/dev/null) &&"
            " kill -0 $pid && echo $pid && exit 0; sleep 0.2; done; exit 1"
        )
        os.killpg(running.pid, signal.SIGKILL)
    while site.on(f"kill -0 {pid} 2>/dev/null || echo ended") != "ended":
        time.sleep(0.5)
    assert site.on(f"ls {DATA}") == "pets\nslow"
    assert site.plan() == (0, set())
    site.wanted({"name": "slow", "state": "absent"})
    site.must()


def test_an_optional_tree_is_skipped_until_its_address_answers(site: DataSite) -> None:
    site.wanted(site.archive("late", PETS, optional=True))
    site.server.status = 503
    run = site.must()
    assert run.changed() == set()
    assert f"Skipped optional {DATA}/late:" in " ".join(run.output.split())
    assert site.plan() == (0, set())
    site.server.status = 0
    assert site.plan() == (2, {("ml_data", "datasets", f"{DATA}/late")})
    site.must()
    assert site.on(f"ls {DATA}/late") == "README\ntrain"
    site.wanted({"name": "late", "state": "absent"})
    site.must()


def test_work_in_a_repository_is_never_lost(site: DataSite) -> None:
    file = f"{CODE}/course/lesson"
    site.on(f"echo mine > {file}")
    assert site.plan() == (0, set()), "users own the files in a tree"
    before, site.course["revision"] = site.course["revision"], site.second
    site.wanted()
    assert site.plan() == (2, {("ml_data", "checkouts", f"{CODE}/course")})
    assert "has changes that are not committed (lesson)" in site.fails()
    assert site.on(f"cat {file}") == "mine"
    site.on(f"su alice -c 'git -C {CODE}/course checkout -q lesson'")
    site.must()
    assert site.on(f"cat {file}; echo; stat -c %U {CODE}/course/.git/HEAD") == "two\nalice"
    site.course["revision"] = before
    site.wanted()
    site.must()


def attacked(site: DataSite, *more: dict[str, Any], **course: Any) -> None:
    """Declare trees in the home of bob, who attacks, and MORE."""
    site.declare(
        user_access_users=[{"name": "alice"}, {"name": "bob"}],
        user_access_groups=[{"name": "research"}],
        ml_data_archives=[site.archive("mine", PETS, to="/home/bob/code/pets", owner="bob"), *more],
        ml_data_repositories=[
            {**site.course, "name": "proj", "to": "/home/bob/code/proj", "owner": "bob", **course}
        ],
    )


def state_of(site: DataSite, folder: str) -> str:
    """Return all that a folder of root's is and holds."""
    return site.on(
        f"find {folder} -printf '%p %M %u %g %l\\n' | sort; cat {folder}/*.py | sha256sum"
    )


def test_root_does_not_follow_a_link_of_a_user(site: DataSite) -> None:
    """He wants his repository among the modules that root imports."""
    site.on(
        "getent passwd bob >/dev/null || useradd -m -s /bin/bash bob;"
        "mkdir -p /usr/local/lib/roots; echo 'x = 1' > /usr/local/lib/roots/module.py"
    )
    before = state_of(site, "/usr/local/lib/roots")
    attacked(site, site.archive("fine", PETS))
    for link in ("/home/bob/code", "/home/bob/code/proj"):
        site.on("rm -rf /home/bob/code; su bob -c 'mkdir /home/bob/code'")
        if link == "/home/bob/code":
            site.on("su bob -c 'rmdir ~/code; ln -s /usr/local/lib/roots ~/code'")
        else:
            site.on("su bob -c 'ln -s /usr/local/lib/roots ~/code/proj'")
        found = f"{link}: found a symbolic link to /usr/local/lib/roots, owned by bob"
        # In the survey, and in the role without it.
        assert found in site.fails()
        run = site.settle(slipway_survey=False)
        said = " ".join(run.output.split())
        if link == "/home/bob/code":
            assert run.status == "failed" and found in said
        assert state_of(site, "/usr/local/lib/roots") == before
    site.on("rm -rf /home/bob/code")


def test_an_error_of_one_tree_does_not_stop_the_others(site: DataSite) -> None:
    site.on(f"su bob -c 'ln -s /usr/local/lib/roots ~/code'; rm -rf {DATA}/fine")
    attacked(site, site.archive("fine", PETS))
    playbook = site.folder / "alone.yml"
    playbook.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks: [{include_role: {name: ml_data}}]\n"
    )
    run = site.run(str(playbook))
    assert run.status == "failed"
    assert "found a symbolic link to /usr/local/lib/roots, owned by bob" in " ".join(
        run.output.split()
    )
    assert site.on(f"ls {DATA}/fine") == "README\ntrain"
    site.on(f"rm /home/bob/code; rm -rf {DATA}/fine")


def test_swapping_names_gains_nothing(site: DataSite) -> None:
    """Folder, link and stage; he hopes for one moment between a check and a use."""
    before = state_of(site, "/usr/local/lib/roots")
    site.on(
        "su bob -c 'mkdir -p ~/code; ln -sfn /usr/local/lib/roots ~/link';"
        "cat >/tmp/swap.py <<'END'\n"
        "import os, time\n"
        "os.chdir('/home/bob')\n"
        "until = time.time() + 600\n"
        "def swap(real, link):\n"
        "    for one, two in ((real, 'a'), (link, real), (real, link), ('a', real)):\n"
        "        try: os.rename(one, two)\n"
        "        except OSError: pass\n"
        "while time.time() < until and not os.path.exists('/tmp/stop'):\n"
        "    swap('code', 'link'); swap('code/.slipway-unfinished', 'link')\n"
        "END\n"
        "rm -f /tmp/stop; su bob -c 'setsid python3 /tmp/swap.py >/dev/null 2>&1 &'"
    )
    try:
        for revision, survey in (
            (site.course["revision"], True),
            (site.second, False),
            ("main", True),
        ):
            attacked(site, revision=revision)
            site.settle(slipway_survey=survey)
            assert state_of(site, "/usr/local/lib/roots") == before
    finally:
        site.on("touch /tmp/stop; sleep 0.5; rm -rf /home/bob/code /home/bob/link /home/bob/a")
    attacked(site)
    site.must()
    assert site.on("stat -c %U /home/bob/code/proj/lesson /home/bob/code/pets/README") == "bob\nbob"


def test_nothing_of_bobs_repository_runs_as_root(site: DataSite) -> None:
    site.on(
        "su bob -c 'cd ~/code/proj; mkdir -p .git/hooks .git/info;"
        'printf "#!/bin/sh\\nid -u >>/tmp/ran\\n" >.git/hooks/post-checkout;'
        'chmod +x .git/hooks/post-checkout; git config core.fsmonitor "id -u >>/tmp/ran;";'
        'git config filter.x.smudge "id -u >>/tmp/ran; cat";'
        'echo "* filter=x" >.git/info/attributes'
        "'; rm -f /tmp/ran"
    )
    attacked(site, revision=site.second)
    site.must()
    assert site.on("sort -u /tmp/ran") == site.on("id -u bob")
    site.on("rm -rf /home/bob/code /usr/local/lib/roots /tmp/ran")
    site.wanted()
    site.must()


def test_an_archive_that_grows_a_thousandfold_is_stopped(site: DataSite) -> None:
    bomb = tar({"bomb/zeros": bytes(100_000_000)})
    site.wanted(site.archive("bomb", bomb))
    said = site.fails()
    assert "cannot unpack bomb: found more than 33.6 MB" in said and "size: 30G" in said
    assert site.on(f"ls {DATA}; find {DATA}/{STAGES} -size +1M") == "pets"
    site.wanted()
    site.must()


def test_a_foreign_tree_is_not_changed(site: DataSite) -> None:
    site.on(f"mkdir {DATA}/taken")
    site.wanted(site.archive("taken", PETS))
    assert f"{DATA}/taken: found a directory, owned by root, that was not made" in site.fails()
    assert site.on(f"ls -A {DATA}/taken") == ""
    site.on(f"rmdir {DATA}/taken")


def test_removal_removes_all_files_of_the_role(site: DataSite) -> None:
    gone = [("pets", None), ("large", "/mnt/small/large"), ("model", "/srv/model")]
    site.declare(
        ml_data_archives=[
            {"name": name, "state": "absent", **({"to": to} if to else {})} for name, to in gone
        ],
        ml_data_repositories=[{"name": "course", "state": "absent"}],
        ml_data_disks=[DISK],
    )
    named = {("ml_data", "datasets", to or f"{DATA}/{name}") for name, to in gone}
    assert site.plan() == (2, named | {("ml_data", "checkouts", f"{CODE}/course")})
    site.must()
    assert site.plan() == (0, set())
    assert site.on(f"find {DATA} {CODE} {DISK} /mnt/small -mindepth 1; ls -d /srv/m* || true") == ""
