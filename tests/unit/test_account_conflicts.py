# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users and groups that root must not create or change. Needs root."""

from __future__ import annotations

import grp
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.modules import account_conflicts, group_members

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


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """NSS knows one account and one group that are not in /etc/passwd and /etc/group."""
    anna = pwd.struct_passwd(("anna@corp", "x", 90001, 90001, "Anna", "/home/anna", "/bin/bash"))
    users = {"anna@corp": anna, "CORP\\anna": anna}
    groups = {"domain users": grp.struct_group(("domain users", "x", 90001, []))}
    for module, name, known in ((pwd, "getpwnam", users), (grp, "getgrnam", groups)):
        local = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda key, known=known, local=local: known.get(key) or local(key)
        )


def test_accounts_of_a_directory_service_are_named(run_module: RunModule, directory: None) -> None:
    users = [{"name": "CORP\\anna"}, {"name": "root"}, {"name": "new"}, {"name": "no@corp"}]
    groups = [{"name": "domain users"}, {"name": "no users"}, {"name": "root"}, {"name": "new"}]
    done = run_module(account_conflicts, users=users, groups=groups)
    assert done["existing"] == ["CORP\\anna", "root"]
    assert done["directory"] == ["CORP\\anna"]
    assert (done["users"], done["groups"]) == (["no@corp"], ["no users"])


def test_a_directory_account_gets_into_a_group_by_its_own_name(
    run_module: RunModule, directory: None, program: Callable[[str, str], None], tmp_path: Path
) -> None:
    program("gpasswd", f'printf "%s|" "$@" >>{tmp_path}/told')
    done = run_module(group_members, group="root", users=["CORP\\anna", "nobody-there"])
    assert done["added"] == ["anna@corp"]
    assert (tmp_path / "told").read_text() == "--add|anna@corp|root|"


def test_members_of_a_directory_group_are_a_conflict(
    run_module: RunModule, directory: None
) -> None:
    done = run_module(group_members, group="domain users", users=["root"])
    assert done["failed"] and "group domain users is of a directory service" in done["msg"]
    assert not run_module(group_members, group="domain users", users=[])["changed"]
