# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that holds a group's keys and records."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from lab.commands import Commands
from lab.state_folder import PROJECT, HostRecord, StateFolder, group_folder

RECORD = HostRecord("c0ffee", "10.0.0.2", "running")

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "group")
    folder.path.mkdir()
    return folder


@needs_ssh_keygen
def test_key_is_created_once_and_is_private(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir(mode=0o755)
    folder = StateFolder(tmp_path / "group")
    folder.create(Commands(), "comment")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.private_key.stat().st_mode) == 0o600
    first = folder.public_key.read_text()
    assert first.startswith("ssh-ed25519 ")
    assert first.endswith(" comment\n")
    folder.create(Commands(), "comment")
    assert folder.public_key.read_text() == first


@needs_ssh_keygen
@pytest.mark.parametrize("lost", ["id_ed25519", "id_ed25519.pub"])
def test_incomplete_key_is_recreated(tmp_path: Path, lost: str) -> None:
    folder = StateFolder(tmp_path / "group")
    folder.create(Commands(), "comment")
    first = folder.public_key.read_text()
    (folder.path / lost).unlink()
    folder.create(Commands(), "comment")
    assert folder.private_key.exists()
    assert folder.public_key.read_text() != first


def test_record_is_read_back(folder: StateFolder) -> None:
    folder.write_record("a", RECORD)
    assert folder.record("a") == RECORD
    assert folder.record("b") == HostRecord()
    assert folder.has_record("a")
    assert folder.has_record(None)
    assert not folder.has_record("b")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}'])
def test_damaged_record_reads_as_empty(folder: StateFolder, text: str) -> None:
    (folder.path / "a.json").write_text(text)
    assert folder.record("a") == HostRecord()


def test_removing_a_host_keeps_the_others(folder: StateFolder) -> None:
    for name, address in (("a", "10.0.0.2"), ("b", "10.0.0.3")):
        folder.write_record(name, HostRecord("id", address, "running"))
        folder.write_host_keys(name, address, [f"ssh-ed25519 {name.upper()} comment"])
    assert folder.remove_host("a")
    assert not folder.remove_host("a")
    assert folder.known_hosts.read_text() == "b,10.0.0.3 ssh-ed25519 B\n"
    assert folder.has_record("b")


def test_removal_keeps_foreign_files(folder: StateFolder) -> None:
    folder.write_record("a", RECORD)
    folder.write_host_keys("a", "10.0.0.2", ["ssh-ed25519 A"])
    (folder.path / "known_hosts.partial").write_text("left by an interruption")
    notes = folder.path / "notes.txt"
    notes.write_text("the user's own")
    assert folder.remove()
    assert list(folder.path.iterdir()) == [notes]
    notes.unlink()
    assert not folder.remove()
    assert not folder.path.exists()
    assert not folder.remove()


def test_removal_includes_the_stand_ins(folder: StateFolder) -> None:
    for name in ("a", "b"):
        folder.write_record(name, RECORD)
        (folder.stand_ins(name) / "t4").mkdir(parents=True)
    assert folder.remove_host("a")
    assert [path.name for path in folder.stand_ins("a").parent.iterdir()] == ["b"]
    assert folder.remove()
    assert not folder.path.exists()


def test_default_folder_is_in_the_project() -> None:
    assert group_folder("demo") == PROJECT / ".slipway/hosts/demo"
    assert (PROJECT / "ansible.cfg").is_file()
