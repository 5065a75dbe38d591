# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that holds a group's keys and records."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    Commands,
    ThrowawayError,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_state import (
    Record,
    StateFolder,
    default_state_dir,
)

RECORD = Record("c0ffee", "10.0.0.2", "running")

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "group")
    folder.path.mkdir()
    return folder


@needs_ssh_keygen
def test_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir(mode=0o755)
    folder = StateFolder(tmp_path / "group")
    folder.make(Commands(), "comment")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.private_key.stat().st_mode) == 0o600
    first = folder.public_key.read_text()
    assert first.startswith("ssh-ed25519 ")
    assert first.endswith(" comment\n")
    folder.make(Commands(), "comment")
    assert folder.public_key.read_text() == first


@needs_ssh_keygen
@pytest.mark.parametrize("lost", ["id_ed25519", "id_ed25519.pub"])
def test_half_a_key_is_made_anew(tmp_path: Path, lost: str) -> None:
    folder = StateFolder(tmp_path / "group")
    folder.make(Commands(), "comment")
    first = folder.public_key.read_text()
    (folder.path / lost).unlink()
    folder.make(Commands(), "comment")
    assert folder.private_key.exists()
    assert folder.public_key.read_text() != first


def test_record_is_remembered(folder: StateFolder) -> None:
    folder.write_record("a", RECORD)
    assert folder.record("a") == RECORD
    assert folder.record("b") == Record()
    assert folder.has_record("a")
    assert folder.has_record(None)
    assert not folder.has_record("b")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}'])
def test_damaged_record_reads_as_unfinished(folder: StateFolder, text: str) -> None:
    (folder.path / "a.json").write_text(text)
    assert folder.record("a") == Record()


def test_forgetting_a_host_leaves_the_others(folder: StateFolder) -> None:
    for name, address in (("a", "10.0.0.2"), ("b", "10.0.0.3")):
        folder.write_record(name, Record("id", address, "running"))
        folder.learn_keys(name, address, [f"ssh-ed25519 {name.upper()} comment"])
    assert folder.forget("a")
    assert not folder.forget("a")
    assert folder.known_hosts.read_text() == "b,10.0.0.3 ssh-ed25519 B\n"
    assert folder.has_record("b")


def test_removal_takes_only_what_was_made(folder: StateFolder) -> None:
    folder.write_record("a", RECORD)
    folder.learn_keys("a", "10.0.0.2", ["ssh-ed25519 A"])
    (folder.path / "known_hosts.partial").write_text("left by an interruption")
    notes = folder.path / "notes.txt"
    notes.write_text("the user's own")
    assert folder.remove()
    assert list(folder.path.iterdir()) == [notes]
    notes.unlink()
    assert not folder.remove()
    assert not folder.path.exists()
    assert not folder.remove()


def test_default_folder_is_in_the_project(tmp_path: Path) -> None:
    (tmp_path / "ansible.cfg").touch()
    playbooks = tmp_path / "molecule" / "site"
    assert default_state_dir("demo", playbooks) == tmp_path / ".slipway/hosts/demo"


def test_outside_of_a_project_the_folder_has_to_be_named() -> None:
    with pytest.raises(ThrowawayError, match="name a state_dir"):
        default_state_dir("demo", Path("/proc"))
