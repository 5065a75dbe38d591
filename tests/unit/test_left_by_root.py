# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What root left in ~/.docker is given back, and nothing else, whatever the user prepares there."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import docker_folder
from ansible_collections.slipway.host.plugins.modules import left_by_root

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")

ADA, EVE = 54321, 54322


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home of a user, with a .docker folder that root has written into."""
    folder = tmp_path / "home" / "ada"
    (folder / ".docker/buildx/activity").mkdir(parents=True)
    (folder / ".docker/config.json").write_text("{}")
    (folder / ".docker/buildx/activity/default").touch()
    os.chown(folder, ADA, ADA)
    entry = SimpleNamespace(pw_name="ada", pw_uid=ADA, pw_gid=ADA, pw_dir=str(folder))
    known = {"ada": entry}
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    return folder


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_all_files_get_their_owner_back_once(run_module: RunModule, home: Path) -> None:
    assert docker_folder.ask_left_by_root("ada") == [".", "buildx", "config.json"]
    would = run_module(left_by_root, check=True, users=["ada"])
    assert would["users"] == ["ada"] and owners(home / ".docker") == {0}
    done = run_module(left_by_root, users=["ada"])
    assert done["diff"]["prepared"].count("should be ada's") == 1
    assert owners(home / ".docker") == {ADA}
    assert (home / ".docker/config.json").stat().st_gid == ADA
    assert not run_module(left_by_root, users=["ada"])["changed"]


def test_a_missing_user_or_folder_is_no_difference(run_module: RunModule, home: Path) -> None:
    assert docker_folder.ask_left_by_root("nobody-of-this-name") is None
    (home / ".docker").rename(home / "away")
    assert docker_folder.ask_left_by_root("ada") == []
    assert not run_module(left_by_root, users=["ada", "nobody-of-this-name"])["changed"]


def test_links_are_not_followed(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    (home / ".docker/there").symlink_to(secret)
    docker_folder.give_back(str(home), ADA, ADA)
    assert owners(secret) == {0}
    (home / ".docker").rename(home / "away")
    (home / ".docker").symlink_to(secret)
    assert docker_folder.ask_left_by_root("ada") == []
    docker_folder.give_back(str(home), ADA, ADA)
    assert owners(secret) == {0}


def test_hard_links_and_files_of_other_users_are_not_changed(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "shadow"
    other.touch()
    (home / ".docker/shadow").hardlink_to(other)
    (home / ".docker/eves").touch()
    os.chown(home / ".docker/eves", EVE, EVE)
    os.mkfifo(home / ".docker/pipe")
    found = docker_folder.ask_left_by_root("ada")
    assert found == [".", "buildx", "config.json"]
    docker_folder.give_back(str(home), ADA, ADA)
    assert other.stat().st_uid == 0
    assert (home / ".docker/eves").stat().st_uid == EVE
    assert docker_folder.ask_left_by_root("ada") == []


def test_a_home_of_another_user_is_not_read(home: Path) -> None:
    os.chown(home, 0, 0)
    assert docker_folder.ask_left_by_root("ada") == []
    docker_folder.give_back(str(home), ADA, ADA)
    assert owners(home / ".docker") == {0}
