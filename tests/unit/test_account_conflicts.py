# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and groups that root must not create or change. Needs root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.modules import account_conflicts

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs folders that root trusts")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_homes_below_roots_folders_are_accepted(run_module: RunModule, base: Path) -> None:
    (base / "there").mkdir()
    (base / "disk").symlink_to(base)
    homes = [f"{base}/there", f"{base}/new", f"{base}/x/y/z", f"{base}/disk/d"]
    users = [{"name": f"user{number}", "home": home} for number, home in enumerate(homes)]
    done = run_module(account_conflicts, users=users)
    assert (done["changed"], done["users"], done["conflicts"]) == (False, [], [])


@pytest.mark.parametrize("name", ["team/a", "team/new/a", "link"])
def test_links_and_folders_of_others_are_errors(
    run_module: RunModule, base: Path, name: str
) -> None:
    (base / "team").mkdir()
    (base / "team").chmod(0o2775)
    (base / "link").symlink_to("/etc")
    users = [{"name": "a", "home": f"{base}/{name}"}, {"name": "b", "home": f"{base}/b"}]
    gone = {"name": "c", "home": f"{base}/{name}", "state": "absent"}
    done = run_module(account_conflicts, users=[*users, gone])
    assert (done["users"], len(done["conflicts"])) == (["a"], 1)
    words = "a symbolic link to /etc" if name == "link" else "a parent folder that others can write"
    assert f"found {words}" in done["conflicts"][0]["reason"]


@pytest.mark.parametrize(
    ("name", "uid", "reason"),
    [
        ("other", 0, "user other: found uid 0 of user root; expected a uid that nobody has."),
        ("root", 0, ""),
        ("root", 4242424, ""),
    ],
)
def test_a_number_of_another_user_is_a_conflict(
    run_module: RunModule, name: str, uid: int, reason: str
) -> None:
    done = run_module(account_conflicts, users=[{"name": name, "uid": uid}])
    reasons = [conflict["reason"] for conflict in done["conflicts"]]
    assert done["users"] == ([name] if reason else [])
    assert [text[: len(reason)] for text in reasons] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("name", "gid", "reason"),
    [
        ("other", 0, "group other: found gid 0 of group root; expected a gid that no group has."),
        ("daemon", 0, "group daemon: found gid 0 of group root"),
        ("root", 0, ""),
        ("root", 4242424, ""),
    ],
)
def test_a_number_of_another_group_is_a_conflict(
    run_module: RunModule, name: str, gid: int, reason: str
) -> None:
    done = run_module(account_conflicts, groups=[{"name": name, "gid": gid}])
    reasons = [conflict["reason"] for conflict in done["conflicts"]]
    assert (done["users"], done["groups"]) == ([], [name] if reason else [])
    assert [text[: len(reason)] for text in reasons] == ([reason] if reason else [])
