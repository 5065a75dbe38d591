# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owner, mode and type of paths and their parent folders on a file system: seen, then repaired."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.services import mount_folders
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    attributes,
    folder,
    parents,
    paths,
    reading,
)
from ansible_collections.slipway.host.plugins.module_utils.state import files as state_files
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError
from ansible_collections.slipway.host.plugins.modules import (
    apt_keyring,
    authorized_keys,
    daemon_json,
    files,
    links,
)

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")
NOBODY = 54321


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for /etc: everything in it must be root's."""
    system = tmp_path / "etc"
    system.mkdir()
    below = f"{tmp_path}/"
    monkeypatch.setattr(parents, "SYSTEM_TREES", (f"{system}/",))

    def within(guarded: Iterable[str]) -> list[str]:
        return [path for path in original(guarded) if path.startswith(below)]

    original = parents.parents_of
    monkeypatch.setattr(parents, "parents_of", within)
    return system


def status(path: Path) -> tuple[int, str]:
    info = path.lstat()
    return info.st_uid, f"{info.st_mode & 0o7777:04o}"


@pytest.mark.parametrize(
    ("mode", "owner", "repaired"),
    [(0o777, 0, "0755"), (0o755, NOBODY, "0755"), (0o2775, NOBODY, "2755"), (0o1777, 0, "1755")],
)
def test_parent_folders_are_given_to_root(
    system: Path, mode: int, owner: int, repaired: str
) -> None:
    folder = system / "a" / "b"
    folder.mkdir(parents=True)
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    file = str(folder / "file")
    assert apply_files.secure_parents(file, check=True) == [str(folder)]
    assert status(folder) == (owner, f"{mode:04o}")
    assert apply_files.secure_parents(file) == [str(folder)]
    assert status(folder) == (0, repaired)
    assert apply_files.secure_parents(file) == []
    assert apply_files.secure_parents(str(system / "missing" / "file")) == []


EXPECTED_PARENT = "expected a folder, or a link to a folder that only root can replace"


@pytest.fixture
def moved(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on another disk, to which a link of root in the system leads."""
    # Folders for everybody, such as /tmp, are on the way to the folders of the test.
    monkeypatch.setattr(
        paths, "is_trusted", lambda info: not info.st_mode & 0o022 or bool(info.st_mode & 0o1000)
    )
    folder = tmp_path / "disk" / "a"
    folder.mkdir(parents=True)
    (system / "a").symlink_to("../disk/a")
    reading.reset()
    return folder


@pytest.mark.usefixtures("moved")
def test_a_link_of_root_in_the_place_of_a_parent_is_followed(system: Path) -> None:
    """An administrator moved a folder, such as /var/lib, to another disk."""
    assert apply_files.secure_parents(str(system / "a" / "file")) == []
    state = state_files.ask_parent(str(system / "a"))
    assert state is not None and state[:3] == ["directory", "0755", "root"]
    assert not reading.UNSAFE
    apply_files.settle({"path": str(system / "a" / "file"), "content": "text"})
    assert (system.parent / "disk" / "a" / "file").read_text() == "text"


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: folder.chmod(0o777),
        lambda folder: folder.parent.chmod(0o777),
        lambda folder: folder.rmdir(),
    ],
    ids=["target", "on the way", "missing"],
)
def test_a_link_that_others_can_redirect_is_a_conflict(
    system: Path, moved: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(moved)
    found = r"/etc/a: found a symbolic link to \.\./disk/a, owned by root; "
    with pytest.raises(UnsafePathError, match=found + EXPECTED_PARENT):
        apply_files.secure_parents(str(system / "a" / "file"))
    reading.reset()
    assert state_files.ask_parent(str(system / "a")) is None
    where, what, expected = reading.UNSAFE[str(system / "a")]
    assert f"{where}: found {what}; expected {expected}".endswith(EXPECTED_PARENT)


def chmod(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def give(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY)


def link(path: Path) -> None:
    path.rename(path.with_name(f"old-{path.name}"))
    path.symlink_to(f"old-{path.name}")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILE_TAMPERS = {
    "mode": chmod(0o666),
    "owner": give,
    "type": folder_instead,
    "parent mode": lambda path: path.parent.chmod(0o777),
    "parent owner": lambda path: give(path.parent),
}


@pytest.mark.usefixtures("only_root_writes")
@pytest.mark.parametrize("tamper", FILE_TAMPERS.values(), ids=FILE_TAMPERS.keys())
@pytest.mark.parametrize("content", ["text", None])
def test_files_are_repaired(
    run_module: RunModule, system: Path, content: str | None, tamper: Callable[[Path], None]
) -> None:
    path = system / "folder" / "file"
    entries: list[dict[str, Any]] = [{"path": str(path), "content": content}]
    run_module(files, files=entries)
    tamper(path)
    assert run_module(files, check=True, files=entries)["changed"]
    assert run_module(files, files=entries)["changed"]
    assert (status(path), status(path.parent)) == ((0, "0644"), (0, "0755"))
    assert not run_module(files, files=entries)["changed"]


def test_a_link_in_a_folder_that_was_open_is_replaced(run_module: RunModule, system: Path) -> None:
    path = system / "folder" / "file"
    entries = [{"path": str(path), "content": "text"}]
    run_module(files, files=entries)
    path.unlink()
    path.symlink_to("/etc/shadow")
    path.parent.chmod(0o777)
    # Without root's trust in the parents of tmp_path the link stays refused, the folder is closed.
    result = run_module(files, files=entries)
    assert "found a symbolic link to /etc/shadow" in result["msg"]
    assert status(path.parent) == (0, "0755")


def test_undeclared_names_in_a_folder_are_removed(run_module: RunModule, system: Path) -> None:
    folder = system / "library"
    entries = [{"path": str(folder), "entries": ["a"]}]
    assert not run_module(files, files=[], folders=entries)["changed"]
    (folder / "other" / "deep").mkdir(parents=True)
    (folder / "link").symlink_to("/etc")
    (folder / "a").touch()
    assert run_module(files, check=True, files=[], folders=entries)["changed"]
    assert len(list(folder.iterdir())) == 3
    done = run_module(files, files=[], folders=entries)
    assert (done["paths"], [path.name for path in folder.iterdir()]) == ([str(folder)], ["a"])
    assert not run_module(files, files=[], folders=entries)["changed"]


KEY, SECOND = b"\x98\x01\x04", b"\x98\x02\x04\x00"
FINGERPRINT = hashlib.sha1(b"\x99\x00\x01\x04").hexdigest().upper()
ARMOURED = openpgp.to_text(KEY)


def put(content: bytes) -> Callable[[Path], None]:
    def tamper(path: Path) -> None:
        path.write_bytes(content)

    return tamper


KEYRING_TAMPERS = {
    **{name: tamper for name, tamper in FILE_TAMPERS.items() if name != "type"},
    "link": link,
    "second key": put(openpgp.to_text(KEY + SECOND).encode()),
    "second block": put(f"{openpgp.to_text(SECOND)}{ARMOURED}".encode()),
    "key of version 6": put(openpgp.to_text(KEY + b"\x98\x01\x06").encode()),
    "binary": put(KEY),
}


@pytest.mark.usefixtures("only_root_writes")
@pytest.mark.parametrize("tamper", KEYRING_TAMPERS.values(), ids=KEYRING_TAMPERS.keys())
def test_keyrings_are_repaired_without_a_download(
    run_module: RunModule, system: Path, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    path, source = system / "keyrings" / "x.asc", tmp_path / "key"
    source.write_text(ARMOURED)
    asked: dict[str, Any] = {"path": str(path), "url": source.as_uri(), "fingerprint": FINGERPRINT}
    run_module(apt_keyring, **asked)
    written = path.read_bytes()
    source.unlink()
    tamper(path)
    assert run_module(apt_keyring, check=True, **asked)["changed"]
    assert run_module(apt_keyring, **asked).get("changed")
    assert not path.is_symlink()
    assert (path.read_bytes(), status(path), status(path.parent)) == (
        written,
        (0, "0644"),
        (0, "0755"),
    )
    assert not run_module(apt_keyring, **asked)["changed"]


@pytest.mark.usefixtures("only_root_writes")
def test_a_lost_key_is_fetched_and_other_keys_of_the_server_are_left_out(
    run_module: RunModule, system: Path, tmp_path: Path
) -> None:
    path, source = system / "x.gpg", tmp_path / "key"
    source.write_bytes(SECOND + KEY + SECOND)
    path.write_bytes(SECOND)
    run_module(apt_keyring, path=str(path), url=source.as_uri(), fingerprint=FINGERPRINT)
    assert path.read_bytes() == KEY


JSON_TAMPERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "mode": (chmod(0o777), "0644"),
    "closed mode stays": (chmod(0o600), "0600"),
    "owner": (give, "0644"),
    "parent mode": (FILE_TAMPERS["parent mode"], "0644"),
    "parent owner": (FILE_TAMPERS["parent owner"], "0644"),
}


@pytest.mark.parametrize(("tamper", "mode"), JSON_TAMPERS.values(), ids=JSON_TAMPERS.keys())
def test_daemon_json_is_repaired(
    run_module: RunModule, system: Path, tamper: Callable[[Path], None], mode: str
) -> None:
    path, record = system / "docker" / "daemon.json", system / "slipway" / "record.json"
    asked: dict[str, Any] = {
        "path": str(path),
        "record": str(record),
        "unit": "",
        "validate": "",
        "settings": {"debug": True},
    }
    run_module(daemon_json, **asked)
    tamper(path)
    is_tampered = mode == "0644"
    assert run_module(daemon_json, check=True, **asked)["changed"] == is_tampered
    assert run_module(daemon_json, **asked)["changed"] == is_tampered
    assert (status(path), status(path.parent)) == ((0, mode), (0, "0755"))
    record.parent.chmod(0o777)
    record.chmod(0o644)
    assert run_module(daemon_json, **asked)["changed"]
    assert (status(record), status(record.parent)) == ((0, "0600"), (0, "0755"))
    assert not run_module(daemon_json, **asked)["changed"]


def test_the_target_of_a_link_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "is_trusted_folder", lambda folder: folder != str(tmp_path / "b"))
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "file").touch(0o640)
    name = tmp_path / "link"
    name.symlink_to("a/file")
    state = state_files.ask_target(str(name))
    assert state and list(attributes.compare(state, attributes.Attributes(most=0o640))) == []
    name.unlink()
    name.symlink_to("b/file")
    assert state_files.ask_target(str(name)) is None
    assert (
        reading.UNSAFE.pop(str(name))[1] == f"a link to {tmp_path}/b/file, which others can replace"
    )
    assert state_files.ask_target(str(tmp_path / "missing")) is None


def test_a_folder_of_links_is_repaired(run_module: RunModule, system: Path) -> None:
    folder = system / "bin"
    asked: dict[str, Any] = {
        "links": [{"folder": str(folder), "target": "/usr/bin/true", "names": ["yes"]}]
    }
    run_module(links, **asked)
    folder.chmod(0o777)
    assert run_module(links, check=True, **asked)["changed"]
    assert run_module(links, **asked)["changed"]
    assert status(folder) == (0, "0755")
    assert not run_module(links, **asked)["changed"]


@pytest.mark.usefixtures("only_root_writes")
@pytest.mark.parametrize(
    ("target", "is_made"),
    [("/etc", True), ("/usr/share", True), ("/nowhere/at/all", True), ("disk", False)],
)
def test_a_volume_folder_that_leads_into_the_system_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, is_made: bool
) -> None:
    monkeypatch.setattr(reading, "is_trusted_folder", lambda _folder: True)
    (tmp_path / "disk").mkdir()
    volume = tmp_path / "volume"
    volume.symlink_to(target)
    mount = {"path": str(volume), "owner": str(NOBODY), "group": str(NOBODY)}
    assert mount_folders.create_mount(mount, check=True) == is_made
    assert volume.is_symlink()
    if is_made:
        with pytest.raises(UnsafePathError, match=f"found a symbolic link to {target}"):
            mount_folders.create_mount({**mount, "read_only": True})
    assert mount_folders.create_mount(mount) == is_made
    assert volume.is_symlink() != is_made
    assert not is_made or status(volume) == (NOBODY, "0750")
    assert not mount_folders.create_mount(mount)


def test_a_home_that_others_can_write_is_closed(
    run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folder, paths):
        monkeypatch.setattr(module, "is_trusted", lambda _info: True)
    home = tmp_path / "root"
    home.mkdir()
    entry = {"user": "root", "path": f"{home}/.ssh/authorized_keys", "lines": ["ssh-ed25519 AAAA"]}
    run_module(authorized_keys, keys=[entry])
    home.chmod(0o777)
    assert run_module(authorized_keys, check=True, keys=[entry])["changed"]
    assert run_module(authorized_keys, keys=[entry])["changed"]
    assert status(home) == (0, "0775")
    assert not run_module(authorized_keys, keys=[entry])["changed"]


def test_a_key_can_be_taken_out_of_a_keyring() -> None:
    keyring = base64.b64decode(base64.b64encode(SECOND + KEY + b"\xb4\x01a" + b"\xac\x00" + SECOND))
    assert openpgp.extract(keyring, FINGERPRINT) == KEY + b"\xb4\x01a"
    assert openpgp.extract(keyring, "0" * 40) == b""
