# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SSH keys of users: what is added and kept, and what users prepare in vain. Needs root."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.modules import authorized_keys

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to other users")

UIDS = {"root": 0, "alice": 54321, "bob": 54322}
FIRST, SECOND = "ssh-ed25519 AAAA first", "ssh-ed25519 BBBB second"


@pytest.fixture
def homes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make homes below a folder that only root can write."""
    real = pwd.getpwuid
    with tempfile.TemporaryDirectory(dir="/var/lib") as name:
        folder = Path(name)
        folder.chmod(0o755)
        entries = {}
        for user, uid in UIDS.items():
            (folder / user).mkdir(mode=0o700)
            os.chown(folder / user, uid, uid)
            home = str(folder / user)
            entries[user] = SimpleNamespace(pw_name=user, pw_uid=uid, pw_gid=uid, pw_dir=home)
        by_uid = {entry.pw_uid: entry for entry in entries.values()}
        monkeypatch.setattr(pwd, "getpwnam", entries.__getitem__)
        monkeypatch.setattr(pwd, "getpwuid", lambda uid: by_uid.get(uid) or real(uid))
        monkeypatch.setattr(os, "getgrouplist", lambda _name, gid: [gid])
        yield folder


def keys(homes: Path, *users: str, lines: tuple[str, ...] = (FIRST,)) -> list[dict[str, Any]]:
    return [
        {"user": user, "path": f"{homes}/{user}/.ssh/authorized_keys", "lines": list(lines)}
        for user in users
    ]


def status(path: Path) -> tuple[int, int, str]:
    info = path.lstat()
    return info.st_uid, info.st_gid, f"{stat.S_IMODE(info.st_mode):04o}"


def write(homes: Path, user: str, content: str, mode: int = 0o600) -> Path:
    folder = homes / user / ".ssh"
    folder.mkdir(mode=0o700)
    file = folder / "authorized_keys"
    file.write_text(content)
    file.chmod(mode)
    for path in (folder, file):
        os.chown(path, UIDS[user], UIDS[user])
    return file


def test_missing_folders_and_files_are_created_once(run_module: RunModule, homes: Path) -> None:
    wanted = keys(homes, "root", "alice", "bob")
    checked = run_module(authorized_keys, check=True, keys=wanted)
    assert checked["users"] == ["root", "alice", "bob"]
    assert not (homes / "alice/.ssh").exists()
    done = run_module(authorized_keys, keys=wanted)
    assert (done["changed"], done["conflicts"], done["diff"]) == (True, [], checked["diff"])
    for user, uid in UIDS.items():
        assert status(homes / user / ".ssh") == (uid, uid, "0700")
        assert status(homes / user / ".ssh/authorized_keys") == (uid, uid, "0600")
    assert not run_module(authorized_keys, keys=wanted)["changed"]
    assert os.geteuid() == 0


def test_other_lines_and_the_mode_are_kept(run_module: RunModule, homes: Path) -> None:
    file = write(homes, "bob", f"# mine\n{SECOND}", mode=0o640)
    done = run_module(authorized_keys, keys=keys(homes, "bob", lines=(FIRST, SECOND, FIRST)))
    assert file.read_text() == f"# mine\n{SECOND}\n{FIRST}\n"
    assert status(file) == (UIDS["bob"], UIDS["bob"], "0640")
    (diff,) = done["diff"]
    assert (diff["before"], diff["after"]) == (f"# mine\n{SECOND}", file.read_text())
    assert [path.name for path in file.parent.iterdir()] == ["authorized_keys"]


def test_bytes_that_are_not_text_are_kept(run_module: RunModule, homes: Path) -> None:
    file = write(homes, "bob", "")
    file.write_bytes(b"# J\xf6rg\n")
    assert run_module(authorized_keys, keys=keys(homes, "bob"))["changed"]
    assert file.read_bytes() == b"# J\xf6rg\n" + f"{FIRST}\n".encode()
    assert not run_module(authorized_keys, keys=keys(homes, "bob"))["changed"]


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o777, 0o666), (0o500, 0o400)])
def test_modes_of_the_users_own_folder_are_repaired(
    run_module: RunModule, homes: Path, folder_mode: int, file_mode: int
) -> None:
    file = write(homes, "bob", f"{SECOND}\n", mode=file_mode)
    file.parent.chmod(folder_mode)
    assert run_module(authorized_keys, check=True, keys=keys(homes, "bob"))["changed"]
    assert run_module(authorized_keys, keys=keys(homes, "bob"))["conflicts"] == []
    assert status(file.parent)[2] == "0700"
    assert int(status(file)[2], 8) & 0o622 == 0o600
    assert file.read_text() == f"{SECOND}\n{FIRST}\n"
    assert not run_module(authorized_keys, keys=keys(homes, "bob"))["changed"]


def test_a_read_only_file_of_a_user_stays_read_only(run_module: RunModule, homes: Path) -> None:
    file = write(homes, "bob", f"{FIRST}\n", mode=0o400)
    assert not run_module(authorized_keys, keys=keys(homes, "bob"))["changed"]
    assert status(file)[2] == "0400"


def link_folder(homes: Path) -> None:
    (homes / "bob/.ssh").symlink_to(homes / "alice/.ssh")


def link_file(homes: Path) -> None:
    write(homes, "bob", "").unlink()
    (homes / "bob/.ssh/authorized_keys").symlink_to(homes / "alice/.ssh/authorized_keys")


def hard_link(homes: Path) -> None:
    write(homes, "bob", "").unlink()
    os.link(homes / "alice/.ssh/authorized_keys", homes / "bob/.ssh/authorized_keys")


def pipe(homes: Path) -> None:
    write(homes, "bob", "").unlink()
    os.mkfifo(homes / "bob/.ssh/authorized_keys")


def device(homes: Path) -> None:
    write(homes, "bob", "").unlink()
    os.mknod(homes / "bob/.ssh/authorized_keys", 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def foreign_file(homes: Path) -> None:
    os.chown(write(homes, "bob", ""), UIDS["alice"], UIDS["alice"])


def foreign_folder(homes: Path) -> None:
    os.chown(write(homes, "bob", "").parent, UIDS["alice"], UIDS["alice"])


def file_of_root(homes: Path) -> None:
    os.chown(write(homes, "bob", ""), 0, 0)


def endless(homes: Path) -> None:
    os.truncate(write(homes, "bob", ""), 1 << 40)


def no_folder(homes: Path) -> None:
    (homes / "bob/.ssh").write_text("")


def foreign_home(homes: Path) -> None:
    os.chown(homes / "bob", UIDS["alice"], UIDS["alice"])


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (link_folder, "/bob/.ssh: found a symbolic link to {homes}/alice/.ssh, owned by root"),
        (link_file, "found a symbolic link to {homes}/alice/.ssh/authorized_keys, owned by root"),
        (hard_link, "found a file with 2 names (hard links)"),
        (pipe, "found a named pipe, owned by root"),
        (device, "found a character device, owned by root"),
        (foreign_file, "found a file, owned by alice; expected a file that bob owns"),
        (foreign_folder, "found a folder, owned by alice; expected a folder owned by root or bob"),
        (file_of_root, "found a file, owned by root; expected a file that bob owns"),
        (endless, "found a file of 1099511627776 bytes, owned by bob"),
        (no_folder, "/bob/.ssh: found a file, owned by root; expected a folder"),
        (foreign_home, "found a folder, owned by alice"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_an_obstacle_is_an_error_of_one_user_only(
    run_module: RunModule, homes: Path, attack: Any, words: str, check: bool
) -> None:
    hers = write(homes, "alice", f"{SECOND}\n")
    attack(homes)
    before = status(hers), status(hers.parent)
    done = run_module(authorized_keys, check=check, keys=keys(homes, "bob", "root"))
    assert done["failed"] and done["users"] == ["root"]
    assert [one["reason"] for one in done["conflicts"]] == [done["msg"]]
    assert done["msg"].startswith("keys of bob: ")
    assert words.format(homes=homes) in done["msg"]
    assert (homes / "root/.ssh/authorized_keys").exists() is not check
    assert (status(hers), status(hers.parent)) == before
    assert hers.read_text() == f"{SECOND}\n"


def test_the_folder_in_a_home_of_root_belongs_to_root(run_module: RunModule, homes: Path) -> None:
    os.chown(homes / "bob", 0, 0)
    (homes / "bob").chmod(0o755)
    assert run_module(authorized_keys, keys=keys(homes, "bob"))["conflicts"] == []
    assert status(homes / "bob/.ssh") == (UIDS["bob"], UIDS["bob"], "0700")


def test_users_and_homes_that_do_not_exist_yet(run_module: RunModule, homes: Path) -> None:
    (homes / "bob").rmdir()
    wanted = keys(homes, "bob", "carol")
    checked = run_module(authorized_keys, check=True, keys=wanted)
    assert checked["users"] == ["bob", "carol"]
    done = run_module(authorized_keys, keys=wanted)
    assert done["failed"]
    assert "found no home folder" in done["conflicts"][0]["reason"]
    assert "found no user carol" in done["conflicts"][1]["reason"]
