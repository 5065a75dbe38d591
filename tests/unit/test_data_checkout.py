# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repositories on a host: at their revision, and nobody's work lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.data import checkout
from ansible_collections.slipway.host.plugins.module_utils.state import model, trees

from tests.fixtures.data_sets import ENVIRONMENT, Course, commit, git, publish
from tests.unit.test_data_worker import Host, host

__all__ = ["host"]

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="there is no git here")


@pytest.fixture
def course(tmp_path: Path) -> Course:
    return Course(tmp_path / "course")


def tree(host: Host) -> Path:
    return host.code / "course"


@pytest.mark.parametrize("revision", ["first", "v1", "other", "main"])
def test_a_repository_is_checked_out_once(host: Host, course: Course, revision: str) -> None:
    wanted = course.first if revision == "first" else revision
    declared = course.at(wanted)
    planned = host.plan(declared, code=True)
    assert host.differences(planned) == [f"missing, should be at {wanted}"]
    assert host.settle(declared, code=True) == {}
    assert git(tree(host), "rev-parse", "HEAD") == git(course.path, "rev-parse", f"{wanted}^{{}}")
    assert git(tree(host), "status", "--porcelain") == ""
    branch = wanted if revision in ("other", "main") else ""
    assert git(tree(host), "branch", "--show-current") == branch
    assert list(host.code.iterdir()) == [tree(host)]
    before = (tree(host) / ".git/HEAD").stat()
    assert host.settle(declared, code=True) == {}
    assert (tree(host) / ".git/HEAD").stat() == before


def test_a_mode_is_repaired_beside_work_in_progress(host: Host, course: Course) -> None:
    host.settle(course.at("v1"), code=True)
    (tree(host) / "lesson").write_text("mine")
    tree(host).chmod(0o777)
    assert host.differences(host.plan(course.at("v1"), code=True)) == ["mode 0777, should be 0755"]
    assert host.settle(course.at("v1"), code=True) == {}
    assert (tree(host) / "lesson").read_text() == "mine"


def test_an_unknown_revision_leaves_nothing(host: Host, course: Course) -> None:
    why = host.settle(course.at("v9"), code=True)["course"]
    assert "has no commit, tag or branch v9" in why
    assert not tree(host).exists()


def test_another_revision_is_checked_out(host: Host, course: Course) -> None:
    host.settle(course.at("v1"), code=True)
    third = commit(course.path, "three")
    declared = course.at(third)
    (difference,) = host.differences(host.plan(declared, code=True))
    assert difference == f"at {course.first[:12]} of {course.path}, should be at {third}"
    assert host.settle(declared, code=True) == {}
    assert (tree(host) / "lesson").read_text() == "three"
    assert not list(Path(checkout.HANDOVER).glob("slipway-clone-*"))


def test_a_changed_revision_is_restored(host: Host, course: Course) -> None:
    host.settle(course.at("v1"), code=True)
    git(tree(host), "checkout", "-q", course.second)
    declared = course.at("v1")
    assert host.differences(host.plan(declared, code=True)) == [
        f"at {course.second[:12]}, should be at v1"
    ]
    shutil.rmtree(course.path)
    assert host.settle(declared, code=True) == {}, "what is there needs no server"
    assert git(tree(host), "rev-parse", "HEAD") == course.first


def test_a_branch_is_changed_by_its_users_only(host: Host, course: Course) -> None:
    host.settle(course.at("main"), code=True)
    mine = commit(tree(host), "mine")
    declared = course.at("main")
    assert host.differences(host.plan(declared, code=True)) == []
    git(tree(host), "checkout", "-q", "-b", "elsewhere")
    assert host.differences(host.plan(declared, code=True)) == ["at elsewhere, should be at main"]
    assert host.settle(declared, code=True) == {}
    assert git(tree(host), "rev-parse", "main") == mine


def test_a_reference_is_found_packed_too(host: Host, course: Course) -> None:
    host.settle(course.at("main"), code=True)
    git(tree(host), "pack-refs", "--all")
    found = trees.ask_tree(str(tree(host)))
    assert found and found["git"] == {
        "head": course.second,
        "branch": "main",
        "url": str(course.path),
    }
    other = trees.ask_tree(str(host.code))
    assert other and other["git"] is None


WORK = {
    "not committed": ("echo mine > lesson", "not committed (lesson)"),
    "staged": ("echo mine > lesson; git add lesson", "not committed (lesson)"),
    "on no branch": (
        "echo mine > lesson; git commit -qam mine",
        "commits that are on no branch",
    ),
}


@pytest.mark.parametrize(("script", "words"), WORK.values(), ids=WORK.keys())
def test_a_checkout_never_loses_work(host: Host, course: Course, script: str, words: str) -> None:
    host.settle(course.at("v1"), code=True)
    subprocess.run(script, shell=True, cwd=tree(host), env=ENVIRONMENT, check=True)
    before = git(tree(host), "rev-parse", "HEAD")
    why = host.settle(course.at("main"), code=True)["course"]
    assert words in why and "run again" in why
    assert (tree(host) / "lesson").read_text() == "mine\n"
    assert git(tree(host), "rev-parse", "HEAD") == before


PRECIOUS = {
    "untracked": ("echo mine > mine", "not in its repository (mine)"),
    "ignored": ("echo mine > .git/info/exclude; echo mine > mine", "not in its repository (mine)"),
    "stashed": ("echo mine > lesson; git stash -q", "stashed"),
    "unpushed": ("echo mine > lesson; git commit -qam mine", "never pushed"),
}


@pytest.mark.parametrize(("script", "words"), PRECIOUS.values(), ids=PRECIOUS.keys())
def test_a_removal_never_loses_work(host: Host, course: Course, script: str, words: str) -> None:
    host.settle(course.at("main"), code=True)
    subprocess.run(script, shell=True, cwd=tree(host), env=ENVIRONMENT, check=True)
    gone = {"name": "course", "state": "absent"}
    assert words in host.settle(gone, code=True)["course"]
    assert (tree(host) / "lesson").exists()


def test_a_tree_without_work_is_removed(host: Host, course: Course) -> None:
    host.settle(course.at("main"), code=True)
    assert host.settle({"name": "course", "state": "absent"}, code=True) == {}
    assert not list(host.code.iterdir())


def test_an_existing_clone_is_adopted_and_kept(host: Host, course: Course) -> None:
    host.code.mkdir()
    git(host.code, "clone", "-q", str(course.path), "course")
    (tree(host) / "mine").write_text("mine")
    assert host.differences(host.plan({"name": "course", "state": "absent"}, code=True)) == []
    assert host.settle(course.at("v1"), code=True) == {}
    assert (tree(host) / "mine").read_text() == "mine"
    assert git(tree(host), "rev-parse", "HEAD") == course.first


def test_a_clone_of_another_repository_is_an_error(host: Host, course: Course) -> None:
    host.code.mkdir()
    git(host.code, "init", "-q", "course")
    with pytest.raises(model.ConflictError, match="was not made from this declaration"):
        host.differences(host.plan(course.at("v1"), code=True))


def test_another_origin_is_repaired(host: Host, course: Course) -> None:
    host.settle(course.at("v1"), code=True)
    git(tree(host), "remote", "set-url", "origin", "/elsewhere")
    declared = course.at("v1")
    assert host.differences(host.plan(declared, code=True)) == [
        f"origin is /elsewhere, should be {course.path}"
    ]
    assert host.settle(declared, code=True) == {}


@pytest.fixture
def open_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Return a host whose folders everybody can enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(checkout, "HANDOVER", folder)
        yield Host(Path(folder), host.server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights that others could gain")
def test_a_repositorys_own_settings_run_nothing_as_root(open_host: Host, course: Course) -> None:
    declared = course.at("v1", owner="nobody", group="nogroup")
    assert open_host.settle(declared, code=True) == {}
    found = tree(open_host)
    ran = found.parent.parent / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    trusting = ("-c", f"safe.directory={found}")
    git(found, *trusting, "checkout", "-q", course.second)
    git(found, *trusting, "config", "core.fsmonitor", f"id -u >{ran}/monitor;")
    git(found, *trusting, "config", "filter.spy.clean", f"id -u >{ran}/by; cat")
    git(found, *trusting, "config", "filter.spy.smudge", f"id -u >{ran}/by; cat")
    (found / ".git/info").mkdir(exist_ok=True)
    (found / ".git/info/attributes").write_text("lesson filter=spy\n")
    subprocess.run(["chown", "-R", "nobody:nogroup", str(found)], check=True)
    assert open_host.settle(declared, code=True) == {}
    assert [file.name for file in ran.iterdir()] == ["by"]
    assert (ran / "by").read_text() == f"{found.stat().st_uid}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands anything over")
def test_new_commits_are_handed_to_who_has_the_tree(open_host: Host, course: Course) -> None:
    declared = course.at("v1", owner="nobody", group="nogroup")
    assert open_host.settle(declared, code=True) == {}
    third = commit(course.path, "three")
    assert open_host.settle({**declared, "revision": third}, code=True) == {}
    found = tree(open_host)
    assert (found / "lesson").read_text() == "three"
    owners = {path.stat().st_uid for path in (found, found / "lesson", found / ".git/HEAD")}
    assert owners == {found.stat().st_uid} != {0}


def test_a_token_is_sent_and_kept_nowhere(host: Host, course: Course) -> None:
    url = publish(host.server, course).replace("//", "//user:secret@")
    declared = {**course.at("v1"), "url": url, "headers": {"X-Token": "abc"}}
    assert host.settle(declared, code=True) == {}
    for request in host.server.requests:
        assert request.headers["Authorization"] == "Basic dXNlcjpzZWNyZXQ="
        assert request.headers["X-Token"] == "abc"
    config = (tree(host) / ".git/config").read_text()
    assert "secret" not in config and "abc" not in config and "Basic" not in config
    assert "secret" not in str(host.plan(declared, code=True)["trees"])


def test_an_unavailable_optional_repository_is_skipped(host: Host, course: Course) -> None:
    declared = {**course.at("v1"), "url": publish(host.server, course), "optional": True}
    planned = host.plan(declared, code=True)
    host.server.status = 503
    assert host.differences(planned) == []
    host.server.status = 0
    assert host.differences(planned) == ["missing, should be at v1"]
