# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users who turn the role ml_data against their host: links, swapped names, archives, git.

Needs root. The users are ``nobody``, whose home this is, and ``daemon``, another user.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pwd
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.action import datasets
from ansible_collections.slipway.host.plugins.module_utils.data import (
    checkout,
    disk,
    download,
    folders,
    limit,
    ownership,
    record,
    staging,
    worker,
)
from ansible_collections.slipway.host.plugins.module_utils.data import git as data_git
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_data
from ansible_collections.slipway.host.plugins.module_utils.state import trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError

from tests.fixtures.data_server import DataServer, serving
from tests.fixtures.data_sets import Course, git, sha256, tar
from tests.unit import survey
from tests.unit.role_options import options

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: attacks what root does")

BOB, ALICE = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
GROUP = {"nobody": "nogroup", "daemon": "daemon", "root": "root"}
PETS = tar({"pets/README": b"hello\n", "pets/train/cat": b"cat"})


class Host:
    """A folder of root's with the home of bob, a folder that only root may change, and disks."""

    def __init__(self, base: Path, server: DataServer) -> None:
        self.base, self.server = base, server
        self.home, self.precious = base / "bob", base / "precious"
        self.home.mkdir()
        os.chown(self.home, BOB.pw_uid, BOB.pw_gid)
        self.precious.mkdir()
        (self.precious / "module.py").write_text("root's\n")
        self.disks: list[str] = []
        self.said = ""

    def mine(self, name: str) -> Path:
        """Make a folder of bob's in his home."""
        folder = self.home / name
        folder.mkdir()
        os.chown(folder, BOB.pw_uid, BOB.pw_gid)
        return folder

    def pets(self, content: bytes = PETS, **more: Any) -> dict[str, Any]:
        self.server.files["/pets"] = content
        found = {"name": "pets", "url": self.server.url("/pets"), "checksum": sha256(content)}
        return {**found, "strip": 1, "to": str(self.home / "pets"), "owner": "nobody", **more}

    def planned(self, *items: Mapping[str, Any], code: bool = False) -> dict[str, Any]:
        every = [{**item, "group": GROUP[item.get("owner", "root")]} for item in items]
        archives, repositories = ([], every) if code else (every, [])
        asked = options(
            "ml_data",
            archives=archives,
            repositories=repositories,
            folder=f"{self.base}/data",
            code_folder=f"{self.base}/code",
        )
        found: dict[str, Any] = ml_data.plan({}, {**asked, "ml_data_disks": self.disks})
        return found

    def settle(self, *items: Mapping[str, Any], code: bool = False) -> dict[str, str]:
        """Run the worker without a survey before it; return what failed."""
        planned = self.planned(*items, code=code)
        said = io.StringIO()
        job = {"trees": planned["trees"], "secrets": planned["secrets"]}
        job["stages"] = planned["owned"]["folders"]
        failed: dict[str, str] = worker.apply_job(job, Progress(said))["failed"]
        self.said = said.getvalue()
        return failed

    def conflicts(self, *items: Mapping[str, Any], code: bool = False) -> list[str]:
        """Return what the survey finds in the way."""
        owned = self.planned(*items, code=code)["owned"]
        owned = {kind: owned[kind] for kind in datasets.KINDS}
        answer = json.loads(json.dumps(survey.answer(survey.question([owned]))))
        return [one.reason for one in survey.compare({"": owned}, answer)[""].conflicts]

    def state(self) -> list[tuple[str, int, int, bytes]]:
        """Return all that root keeps for itself."""
        found = []
        for path in sorted([self.precious, *self.precious.rglob("*")]):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found.append((str(path), info.st_mode, info.st_uid, content))
        return found


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "PAUSE", 0)
    # It waits for all that other programs write.
    monkeypatch.setattr(os, "sync", lambda: None)
    # Below a folder that root trusts; /tmp itself belongs to everybody.
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder, serving() as server:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(checkout, "PRIVATE", f"{folder}/private")
        host = Host(Path(folder), server)
        before = host.state()
        yield host
        assert host.state() == before, "root changed what a user led it to"


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(tmp_path / "course")


SWAP = """
import os, sys
os.chdir(sys.argv[1])
real, link = sys.argv[2:]
while True:
    for one, two in ((real, "aside"), (link, real), (real, link), ("aside", real)):
        try:
            os.rename(one, two)
        except OSError:
            pass
"""


@contextmanager
def swapping(folder: Path, real: str, link: str) -> Iterator[None]:
    """Swap two names of a folder all the while."""
    with subprocess.Popen([sys.executable, "-c", SWAP, str(folder), real, link]) as process:
        try:
            yield
        finally:
            process.kill()


# Links.


@pytest.mark.parametrize("to", ["code", "code/pets", "code/deep/pets"])
def test_a_link_of_a_user_is_an_error_and_other_trees_are_created(host: Host, to: str) -> None:
    (host.home / "code").symlink_to(host.precious)
    bad, good = host.pets(to=str(host.home / to)), host.pets(name="good", to=f"{host.base}/good")
    found = f"{host.home}/code: found a symbolic link to {host.precious}, owned by root"
    (conflict,) = host.conflicts(bad, good)
    assert conflict.startswith(found)
    failed = host.settle(bad, good)
    assert failed["pets"].startswith(found)
    assert (host.base / "good/README").read_text() == "hello\n"


def test_a_repository_does_not_follow_a_users_link(host: Host, course: Course) -> None:
    (host.home / "code").symlink_to(host.precious)
    os.chown(host.home / "code", BOB.pw_uid, BOB.pw_gid, follow_symlinks=False)
    declared = course.at("v1", to=f"{host.home}/code/course", owner="nobody")
    (conflict,) = host.conflicts(declared, code=True)
    assert conflict == (
        f"{host.home}/code: found a symbolic link to {host.precious}, owned by nobody; expected a "
        "folder. Move it out of the way, then run again."
    )
    assert host.settle(declared, code=True)["course"] == conflict


def test_a_link_may_lead_only_to_a_declared_folder(host: Host) -> None:
    disk = host.base / "disk"
    disk.mkdir()
    host.disks = [str(disk)]
    link = host.home / "pets"
    link.symlink_to(host.precious)
    (conflict,) = host.conflicts(host.pets())
    assert "which is in no folder of ml_data_disks" in conflict and "owned by root" in conflict
    assert "expected a folder, or a link into one of" in host.settle(host.pets())["pets"]
    gone = {"name": "pets", "to": str(link), "state": "absent"}
    assert "expected a folder, or a link into one of" in host.settle(gone)["pets"]
    link.unlink()
    link.symlink_to(disk / "pets")
    assert host.settle(host.pets()) == {}
    assert (disk / "pets/README").exists() and host.conflicts(host.pets()) == []


def test_a_folder_on_a_disk_must_not_be_a_link(host: Host) -> None:
    disk = host.base / "disk"
    disk.mkdir(mode=0o777)
    disk.chmod(0o777)
    host.disks = [str(disk)]
    (disk / "pets").symlink_to(host.precious)
    (host.home / "pets").symlink_to(disk / "pets")
    (conflict,) = host.conflicts(host.pets())
    assert f"found a symbolic link to {host.precious}" in conflict
    assert f"{disk}/pets: found a symbolic link" in host.settle(host.pets())["pets"]


def test_links_of_root_are_followed(host: Host) -> None:
    (host.base / "large/pets").mkdir(parents=True)
    (host.base / "data").symlink_to("large")
    declared = host.pets(to=f"{host.base}/data/pets/now", owner="root")
    assert host.settle(declared) == {} and host.conflicts(declared) == []
    assert (host.base / "large/pets/now/README").exists()


@pytest.mark.parametrize("what", ["pipe", "file", "device"])
def test_a_file_in_place_of_a_folder_is_an_error(host: Host, what: str) -> None:
    place = host.home / "pets"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "device":
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    else:
        place.write_text("mine")
    assert len(host.conflicts(host.pets())) == 1
    assert "expected a folder" in host.settle(host.pets())["pets"]


# Races.


ROUNDS = 25


def test_swapping_a_folder_with_a_link_gains_nothing(host: Host) -> None:
    code = host.mine("code")
    (host.home / "link").symlink_to(host.precious)
    with swapping(host.home, "code", "link"):
        for number in range(ROUNDS):
            to = f"{code}/pets{number}"
            host.settle(host.pets(name=f"pets{number}", to=to))
            host.settle({"name": f"pets{number}", "to": to, "state": "absent"})


def test_swapping_an_unfinished_tree_gains_nothing(host: Host) -> None:
    code = host.mine("code")
    (code / "link").symlink_to(host.precious)
    with swapping(code, trees.STAGES, "link"):
        for number in range(ROUNDS):
            to = f"{code}/pets{number}"
            host.settle(host.pets(name=f"pets{number}", to=to))
            host.settle({"name": f"pets{number}", "to": to, "state": "absent"})


def test_swapping_folders_of_a_repository_gains_nothing(host: Host, course: Course) -> None:
    code = host.mine("code")
    (host.home / "link").symlink_to(host.precious)
    with swapping(host.home, "code", "link"):
        for number in range(ROUNDS):
            revision = "v1" if number % 2 else "main"
            declared = course.at(revision, to=f"{code}/course", owner="nobody")
            host.settle(declared, code=True)


def swap_when(monkeypatch: pytest.MonkeyPatch, what: Any, name: str, act: Any) -> None:
    """Do something right after a check."""
    real = getattr(what, name)

    def acting(*words: Any, **more: Any) -> Any:
        found = real(*words, **more)
        act()
        return found

    monkeypatch.setattr(what, name, acting)


@pytest.mark.parametrize("then", ["removed", "replaced"])
def test_a_tree_swapped_after_the_check_is_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """In a shared folder bob renames alice's folder to the name that root is about to remove."""
    assert host.settle(host.pets()) == {}
    alices = host.home / "alices"
    alices.mkdir()
    (alices / "thesis").write_text("hers")
    pets = host.home / "pets"

    def swap() -> None:
        if alices.exists():
            pets.rename(host.home / "aside")
            alices.rename(pets)

    swap_when(monkeypatch, record, "find_added_files", swap)
    if then == "removed":
        failed = host.settle({"name": "pets", "to": str(pets), "state": "absent"})
        assert "found another file or folder than a moment before" in failed["pets"]
    else:
        assert "pets" in host.settle(host.pets(tar({"pets/new": b"new"})))
    assert (pets / "thesis").read_text() == "hers"


def test_a_tree_of_another_user_keeps_its_owner(host: Host) -> None:
    """Bob renames alice's tree of the same archive to the name of his."""
    declared = host.pets(owner="daemon", mode="0700")
    assert host.settle(declared) == {}
    failed = host.settle(host.pets())
    assert "owned by daemon, in a folder that others can write; expected" in failed["pets"]
    assert (host.home / "pets").stat().st_uid == ALICE.pw_uid
    # Where nobody else can rename it, the inventory decides.
    closed = f"{host.base}/pets"
    assert host.settle(host.pets(owner="daemon", to=closed)) == {}
    assert host.settle(host.pets(to=closed)) == {}
    assert (host.base / "pets/train").stat().st_uid == BOB.pw_uid


def test_a_hard_link_keeps_its_owner(host: Host) -> None:
    secret = host.base / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    folder = host.mine("tree")
    os.chown(folder, 0, 0)
    folder.chmod(0o777)
    os.link(secret, folder / "mine")
    os.link(secret, folder / "again")
    with folders.opened_tree(str(folder)) as opened:
        assert opened
        attributes = ownership.Attributes(BOB.pw_uid, BOB.pw_gid, 0o755)
        ownership.set_attributes(opened, attributes, created_by_root=True)
    assert folder.stat().st_uid == BOB.pw_uid
    assert (secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == (0, 0o600)


def test_a_folder_of_roots_that_is_renamed_to_be_a_stage_keeps_its_content(host: Host) -> None:
    backup = host.home / "backup"
    (backup / "2026").mkdir(parents=True)
    (backup / "2026/dump").write_text("all")
    backup.rename(host.home / trees.STAGES)
    failed = host.settle(host.pets())
    assert "found dump in it" in next(iter(failed.values()))
    assert (host.home / trees.STAGES / "2026/dump").read_text() == "all"


def test_an_unfinished_tree_of_a_user_is_an_error(host: Host) -> None:
    host.mine(trees.STAGES)
    assert "expected a folder that only root can write" in host.settle(host.pets())["pets"]


# Notes in trees.


def test_a_record_of_a_user_is_ignored(host: Host) -> None:
    pets = host.mine("pets")
    (pets / ".slipway").mkdir()
    note = {"version": sha256(PETS), "names": ["README"], "files": 0}
    (pets / ".slipway/record.json").write_text(json.dumps(note))
    os.chown(pets / ".slipway", BOB.pw_uid, BOB.pw_gid)
    (conflict,) = host.conflicts(host.pets())
    assert "found a record that belongs to nobody; expected root's" in conflict
    assert "not made from this declaration" in host.settle(host.pets())["pets"]
    assert host.settle({"name": "pets", "to": str(pets), "state": "absent"}) == {}
    assert pets.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"version": 3, "names": []}',
        '{"version": "1", "names": 7}',
        '{"version": "1", "names": [], "branch": {}}',
        "{" + '"version": "1", "names": ["' + "x" * (1 << 21) + '"]}',
    ],
)
def test_a_record_with_any_content_is_harmless(host: Host, text: str) -> None:
    assert host.settle(host.pets()) == {}
    (host.home / "pets/.slipway/record.json").write_text(text)
    found = trees.ask_tree(str(host.home / "pets"))
    assert found and found["record"] is None


def test_names_from_a_tree_move_no_cursor(host: Host, course: Course) -> None:
    declared = course.at("main", to=f"{host.home}/course", owner="nobody")
    assert host.settle(declared, code=True) == {}
    head = host.home / "course/.git/HEAD"
    head.write_text("ref: refs/heads/\x1b[2Jx\r\n")
    found = trees.ask_tree(str(host.home / "course"))
    assert found and found["git"]["branch"] == r"\x1b[2Jx"
    head.write_text("ref: refs/heads/../../../../../../etc/shadow\n")
    found = trees.ask_tree(str(host.home / "course"))
    assert found and found["git"]["head"] == ""


# git.


def spy(host: Host) -> Path:
    """Return a folder in which everybody may say that he ran."""
    ran = host.base / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    return ran


def test_no_program_of_a_repository_runs_as_root(host: Host, course: Course) -> None:
    declared = course.at("v1", to=f"{host.home}/course", owner="nobody")
    assert host.settle(declared, code=True) == {}
    tree, ran = host.home / "course", spy(host)
    trusting = ("-c", f"safe.directory={tree}")
    script = f'#!/bin/sh\nid -u >>"{ran}/$(basename "$0")"\n'
    included = tree / ".git/more"
    included.write_text(f'[core]\n\tsshCommand = "id -u >>{ran}/ssh"\n\tpager = "id>{ran}/pager"\n')
    for key, value in {
        "core.fsmonitor": f"id -u >>{ran}/monitor",
        "core.hooksPath": str(tree / ".git/hooks"),
        "filter.spy.clean": f"id -u >>{ran}/filter; cat",
        "filter.spy.smudge": f"id -u >>{ran}/filter; cat",
        "include.path": "more",
        "core.editor": f"id -u >>{ran}/editor",
        "credential.helper": f"!id -u >>{ran}/credential",
        "uploadpack.packObjectsHook": f"id -u >>{ran}/pack; exec",
        "submodule.recurse": "true",
    }.items():
        git(tree, *trusting, "config", key, value)
    (tree / ".git/hooks").mkdir(exist_ok=True)
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"):
        (tree / ".git/hooks" / hook).write_text(script)
        (tree / ".git/hooks" / hook).chmod(0o755)
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/attributes").write_text("* filter=spy\n")
    subprocess.run(["chown", "-R", "nobody:nogroup", str(tree)], check=True)
    assert host.settle(course.at("main", to=str(tree), owner="nobody"), code=True) == {}
    gone = {"name": "course", "to": str(tree), "state": "absent"}
    host.settle(gone, code=True)
    said = {name.name: set(name.read_text().split()) for name in ran.iterdir()}
    assert all(users == {str(BOB.pw_uid)} for users in said.values()), said


@pytest.mark.parametrize("path", ["--upload-pack=x", "file:///etc", "../../precious", "ext::id"])
def test_submodules_are_not_changed(host: Host, course: Course, path: str) -> None:
    """A malicious repository is cloned as root."""
    (course.path / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = sub\n\turl = {path}\n\tupdate = !touch {host.precious}/ran\n'
    )
    git(course.path, "add", ".gitmodules")
    entry = f"160000,{course.first},sub"
    git(course.path, "update-index", "--add", "--cacheinfo", entry)
    git(course.path, "commit", "-qm", "sub")
    for to in (f"{host.base}/closed", f"{host.home}/course"):
        owner = "root" if "closed" in to else "nobody"
        assert host.settle(course.at("main", to=to, owner=owner), code=True) == {}
        assert not any(Path(to, "sub").iterdir())


def test_a_clone_has_no_hooks_and_only_known_protocols(
    host: Host, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates, ran = host.base / "templates", spy(host)
    (templates / "hooks").mkdir(parents=True)
    hook = templates / "hooks/post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {ran}/hook\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(templates))
    assert host.settle(course.at("v1", to=f"{host.base}/course"), code=True) == {}
    assert list(ran.iterdir()) == [] and not (host.base / "course/.git/hooks").exists()
    other = {"name": "other", "revision": "v1", "url": f"ext::sh -c touch% {ran}/ext"}
    assert "other" in host.settle(other, code=True)
    assert list(ran.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_git_folder_outside_the_tree_is_an_error(host: Host, course: Course, what: str) -> None:
    declared = course.at("v1", to=f"{host.home}/course", owner="nobody")
    assert host.settle(declared, code=True) == {}
    tree = host.home / "course"
    git(host.precious, "init", "-q", "other")
    (tree / ".git").rename(host.base / "dotgit")
    elsewhere = host.base / "dotgit"
    if what == "file":
        (tree / ".git").write_text(f"gitdir: {elsewhere}\n")
    else:
        (tree / ".git").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    subprocess.run(["rm", "-r", str(host.precious / "other")], check=True)
    (conflict,) = host.conflicts(declared, code=True)
    assert "that was not made from this declaration" in conflict
    assert "course" in host.settle({**declared, "revision": "main"}, code=True)
    assert sorted(elsewhere.iterdir()) == before


def test_a_record_is_not_written_through_a_link(host: Host, course: Course) -> None:
    declared = course.at("v1", to=f"{host.home}/course", owner="nobody")
    assert host.settle(declared, code=True) == {}
    note = host.home / "course/.git/slipway.json"
    note.unlink()
    note.symlink_to(host.precious / "module.py")
    (note.parent / "slipway.json.new").symlink_to(host.precious / "module.py")
    assert host.settle({**declared, "revision": "main"}, code=True) == {}
    assert json.loads(note.read_text())["branch"] == "main" and not note.is_symlink()


def test_git_does_not_run_as_root_in_folders_of_others(host: Host, course: Course) -> None:
    tree = host.base / "course"
    declared = course.at("v1", to=str(tree))
    assert host.settle(declared, code=True) == {}
    assert host.settle({**declared, "revision": "main"}, code=True) == {}, "root's alone"
    ran = spy(host)
    config = tree / ".git/config"
    config.chmod(0o666)
    config.write_text(config.read_text() + f"[core]\n\tfsmonitor = touch {ran}/x\n")
    why = host.settle(declared, code=True)["course"]
    assert f"{config}: found a file, owned by root, that others can write" in why
    assert "declare 'owner'" in why
    # In bob's home he can rename root's tree.
    declared = course.at("v1", to=f"{host.home}/course")
    assert host.settle(declared, code=True) == {}
    assert "declare 'owner'" in host.settle({**declared, "revision": "main"}, code=True)["course"]
    assert list(ran.iterdir()) == []


def test_a_repository_of_the_host_is_read_as_its_owner(host: Host, course: Course) -> None:
    """Alternates of bob's repository lead to root's objects."""
    private = host.base / "private-repository"
    subprocess.run(["cp", "-r", str(course.path), str(private)], check=True)
    private.chmod(0o700)
    bobs = host.home / "source"
    subprocess.run(["git", "clone", "-q", "--bare", str(private), str(bobs)], check=True)
    subprocess.run(["chown", "-R", "nobody:nogroup", str(bobs)], check=True)
    declared = {"name": "mine", "url": str(bobs), "revision": course.first, "to": f"{host.base}/m"}
    assert host.settle(declared, code=True) == {}
    for objects in (bobs / "objects").iterdir():
        subprocess.run(["rm", "-r", str(objects)], check=True)
    (bobs / "objects/info").mkdir()
    (bobs / "objects/info/alternates").write_text(f"{private}/.git/objects\n")
    subprocess.run(["chown", "-R", "nobody:nogroup", str(bobs)], check=True)
    assert "mine" in host.settle({**declared, "to": f"{host.base}/n"}, code=True)


def test_a_git_without_end_or_with_endless_output_is_stopped(
    host: Host, course: Course, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = course.at("v1", to=f"{host.home}/course", owner="nobody")
    assert host.settle(declared, code=True) == {}
    tree = host.home / "course"
    (tree / ".git/info").mkdir(exist_ok=True)
    (tree / ".git/info/attributes").write_text("* filter=spy\n")
    config = tree / ".git/config"
    calm = config.read_text()
    config.write_text(f'{calm}[filter "spy"]\n\tclean = yes bad >&2\n')
    (tree / "lesson").write_text("new")
    subprocess.run(["chown", "-R", "nobody:nogroup", str(tree)], check=True)
    moved = {**declared, "revision": "main"}
    assert "more than 16.8 MB of messages" in host.settle(moved, code=True)["course"]
    config.write_text(f'{calm}[filter "spy"]\n\tclean = sleep 1000\n')
    monkeypatch.setattr(data_git._read_output, "__defaults__", (1.0,))
    assert "found no end" in host.settle(moved, code=True)["course"]


# Archives.


def archive(*members: tuple[str, Mapping[str, Any], bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as made:  # type: ignore[call-overload]
        for name, settings, content in members:
            member = tarfile.TarInfo(name)
            for key, value in settings.items():
                setattr(member, key, value)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def link(name: str, target: str) -> tuple[str, Mapping[str, Any], bytes]:
    return name, {"type": tarfile.SYMTYPE, "linkname": target}, b""


FILE: Mapping[str, Any] = {}
TWIN = {"type": tarfile.LNKTYPE, "linkname": "pets/out/module.py"}


@pytest.mark.parametrize(
    "members",
    [
        [link("pets/a", "."), link("pets/b", "a/.."), link("pets/c", "b/../..")],
        [link("pets/a", "b/../../precious"), link("pets/b", "sub"), ("pets/sub/x", FILE, b"")],
        [link("pets/out", "../precious"), ("pets/out/module.py", FILE, b"mine")],
        [("pets/out/module.py", FILE, b"mine"), link("pets/out", "../precious")],
        [link("pets/out", "../precious"), ("pets/twin", TWIN, b"")],
        [("pets/block", {"type": tarfile.BLKTYPE, "devmajor": 8}, b"")],
        [link("pets/deep", "/".join(["x", ".."] * 3000))],
    ],
)
@pytest.mark.parametrize("to", ["pets", "bob/pets"])
def test_an_archive_writes_only_into_its_tree(host: Host, members: Any, to: str) -> None:
    failed = host.settle(host.pets(archive(*members), to=str(host.base / to)))
    assert list(failed) == ["pets"]
    assert not (host.base / to).exists()


def test_the_last_entry_of_a_repeated_name_is_used(host: Host) -> None:
    twice = archive(("pets/x", FILE, b"first"), ("pets/x", FILE, b"second"))
    assert host.settle(host.pets(twice)) == {}
    assert (host.home / "pets/x").read_text() == "second"


def test_control_characters_in_names_are_escaped(host: Host) -> None:
    bad = archive(("pets/\x1b[2J\nok: all fine/../../x", FILE, b""))
    why = host.settle(host.pets(bad))["pets"]
    assert "\x1b" not in why + host.said and "\n" not in why
    plain = archive(("pets/a\nb\x1b[1m", FILE, b"x"))
    host.settle(host.pets(plain))
    assert host.settle(host.pets(plain)) == {}, "the bad archive is not tried for ever"
    (host.home / "pets/a\nb\x1b[1m").write_text("changed")
    why = host.settle(host.pets(PETS))["pets"]
    assert r"a\nb\x1b[1m" in why


ZEROS = 64 << 20


def zip_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("pets/zeros", bytes(ZEROS))
    return stream.getvalue()


def zstd_bomb() -> bytes:
    plain = archive(("pets/zeros", FILE, bytes(ZEROS)))
    return subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True).stdout


def sparse_bomb() -> bytes:
    """Return a file with a hole of a gigabyte, as GNU tar writes it."""
    with tempfile.TemporaryDirectory() as folder:
        with Path(folder, "hole").open("wb") as file:
            file.truncate(1 << 30)
        command = ["tar", "-cSf", "-", "-C", folder, "--transform=s,^,pets/,", "hole"]
        return subprocess.run(command, capture_output=True, check=True).stdout


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(archive(("pets/zeros", FILE, bytes(ZEROS)))),
    "xz": lambda: lzma.compress(archive(("pets/zeros", FILE, bytes(ZEROS))), preset=0),
    "zip": zip_bomb,
    "zstd": zstd_bomb,
    "sparse": sparse_bomb,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_archive_that_grows_a_thousandfold_is_stopped(
    host: Host, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(limit, "BYTES_PER_CHECK", 1)
    written: list[int] = []
    swap_when(monkeypatch, limit.Limit, "add", lambda: written.append(1))
    content = BOMBS[kind]()
    why = host.settle(host.pets(content))["pets"]
    assert "cannot unpack pets: found more than 33.6 MB" in why
    assert "no size is declared" in why and "declare its unpacked size" in why
    assert len(written) <= 33, "it was stopped while it was written"
    assert {file.name for file in host.home.iterdir()} <= {trees.STAGES}
    if kind != "sparse":
        # 50 MiB are declared, and there are more.
        assert "its declared size is 52.4 MB" in host.settle(host.pets(content, size="50M"))["pets"]
        assert host.settle(host.pets(content, size="64M")) == {}


def test_headers_and_entries_are_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    many = archive(*((f"pets/{number}", FILE, b"") for number in range(2000)), mode="w:gz")
    monkeypatch.setattr(limit, "ENTRIES", 1000)
    assert "found more than 1000 entries" in host.settle(host.pets(many))["pets"]
    monkeypatch.setattr(limit, "ENTRIES", 10_000)
    monkeypatch.setattr(disk, "free_inodes", lambda _: 0)
    assert "became full while unpacking" in host.settle(host.pets(many))["pets"]
    assert not (host.home / "pets").exists()


def test_a_long_header_is_counted(host: Host) -> None:
    stream = io.BytesIO()
    with gzip.open(stream, "wb", 1) as file:
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(200):
            file.write(bytes(1 << 20))
    assert (
        "cannot unpack pets: found more than" in host.settle(host.pets(stream.getvalue()))["pets"]
    )


@pytest.mark.parametrize("tell", [True, False])
def test_an_endless_download_is_stopped(
    host: Host, monkeypatch: pytest.MonkeyPatch, tell: bool
) -> None:
    host.server.tell_length, host.server.endless = tell, True
    monkeypatch.setattr(disk, "free_bytes", lambda _: 20 << 20)
    failed = host.settle(host.pets())
    if tell:
        assert failed == {}, "it sends more than it said, which nobody reads"
    else:
        assert "cannot download pets: found more than 21.0 MB" in failed["pets"]
        assert "the disk has" in failed["pets"]
        failed = host.settle(host.pets(size="1M"))
        assert "its declared size is 1.0 MB" in failed["pets"]
    assert host.server.requests[-1].sent < 100 << 20


def test_a_disk_is_never_filled(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    info = os.statvfs(host.base)
    assert disk.free_bytes(str(host.base)) < info.f_bavail * info.f_frsize
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    content = archive(("pets/zeros", FILE, bytes(4 << 20)), mode="w:gz")
    monkeypatch.setattr(disk, "available_bytes", lambda _: 1 << 40)
    assert "pets" in host.settle(host.pets(content))
    assert not (host.home / "pets").exists()


# Archives of the host.


def test_a_file_moved_into_a_tree_is_not_read_for_a_user(host: Host) -> None:
    file = host.home / "pets.tar"
    file.write_bytes(PETS)
    file.chmod(0o600)
    declared = {"name": "pets", "path": str(file), "to": f"{host.home}/pets", "owner": "nobody"}
    assert "which others cannot read" in host.settle(declared)["pets"]
    file.unlink()
    file.symlink_to(host.precious / "module.py")
    assert "found a symbolic link" in host.settle(declared)["pets"]
    file.unlink()
    os.link(host.precious / "module.py", file)
    assert "2 names (hard links)" in host.settle(declared)["pets"]
    file.unlink()


def test_an_archive_of_a_user_is_the_one_whose_checksum_was_compare(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = host.home / "pets.tar"
    file.write_bytes(PETS)
    os.chown(file, BOB.pw_uid, BOB.pw_gid)
    declared = {"name": "pets", "path": str(file), "to": f"{host.base}/pets", "strip": 1}
    other = tar({"pets/README": b"other\n"})
    swap_when(monkeypatch, download, "digest", lambda: file.write_bytes(other))
    assert host.settle({**declared, "checksum": sha256(PETS)}) == {}
    assert (host.base / "pets/README").read_text() == "hello\n"
    assert not (host.base / trees.STAGES).exists()


def test_a_tree_that_is_swapped_twice_is_not_lost(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bob renames once more while root puts the wrong folder back."""
    assert host.settle(host.pets()) == {}
    pets = host.home / "pets"
    for name in ("first", "second"):
        (host.home / name).mkdir()
        (host.home / name / "thesis").write_text(name)
    real = staging._exchange
    todo = ["first", "second"]

    def exchange(*words: Any) -> bool:
        if todo:
            pets.rename(host.home / f"aside-{len(todo)}")
            (host.home / todo.pop(0)).rename(pets)
        return real(*words)

    monkeypatch.setattr(staging, "_exchange", exchange)
    assert "another file or folder" in host.settle(host.pets(tar({"pets/new": b"1"})))["pets"]
    found = {file.read_text() for file in host.home.rglob("thesis")}
    assert found == {"first", "second"}


def test_the_surveys_walk_is_that_of_the_worker(host: Host) -> None:
    """The probe holds a copy of what paths.py does; both say the same of each path."""
    (host.home / "link").symlink_to("/etc")
    (host.base / "circle").symlink_to("circle")
    host.mine("folder")
    for path in ("link/x", "folder/x", "../bob/x"):
        full = f"{host.home}/{path}"
        answer = trees.ask_tree(full) or {}
        refusal = ""
        try:
            with folders.opened_tree(full) as folder:
                assert folder is None and answer == {}
        except UnsafePathError as error:
            refusal = str(error)
        assert ".." in path or answer.get("obstacle", "") == refusal
    assert "circle" in (trees.ask_tree(f"{host.base}/circle/x") or {})["obstacle"]
