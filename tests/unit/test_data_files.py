# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a data set that somebody changed: named by the acceptance check, and never lost."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.data import download, record
from ansible_collections.slipway.host.plugins.module_utils.host import data_sets
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError

from tests.fixtures.data_server import serving
from tests.fixtures.data_sets import tar
from tests.unit.test_data_worker import CONTENT, EXPECTED, Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "PAUSE", 0)
    with serving() as server:
        yield Host(tmp_path, server)


def keep_time(file: Path, content: bytes) -> None:
    """Change a file as somebody does who hides it: size and time of modification stay."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def check(host: Host, by_digest: bool = False, **changed: Any) -> str:
    entry = {"path": str(host.tree), "places": [], "owner": "root", "mode": "0755", **changed}
    return data_sets.check(entry, by_digest)


def test_a_changed_file_with_its_old_size_and_time_is_kept(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    keep_time(host.tree / "README", b"HELLO\n")
    why = host.settle(host.pets(tar({"pets/new": b"new"})))["pets"]
    assert "added or changed by others (README)" in why
    assert host.settle({"name": "pets", "state": "absent"}) == {}
    assert host.holds() == {"README": b"HELLO\n"}


def test_a_file_that_was_only_touched_is_unchanged(host: Host) -> None:
    """A backup that was restored, another owner or a rename change inode, times or ctime."""
    host.settle(host.pets(tar(CONTENT)))
    copy = host.tree / "copy"
    copy.write_bytes(CONTENT["pets/README"])
    copy.replace(host.tree / "README")
    (host.tree / "train").chmod(0o700)
    os.utime(host.tree / "train/dog.png", (1, 1))
    assert check(host) == "3 files compared by size, inode and ctime"
    assert host.settle(host.pets(tar({"pets/new": b"new"}))) == {}


@pytest.mark.parametrize("declared", [{}, {"strip": 0}, {"unpack": False, "strip": 0}])
def test_the_files_of_a_data_set_are_as_unpacked(host: Host, declared: dict[str, Any]) -> None:
    host.settle(host.pets(tar(CONTENT), **declared))
    count = 3 if declared.get("unpack", True) else 1
    assert check(host) == f"{count} files compared by size, inode and ctime"
    assert check(host, by_digest=True) == f"{count} files compared by digest"
    (host.tree / "added").touch()
    assert check(host)


def test_a_data_set_without_files_is_as_unpacked(host: Host) -> None:
    host.settle(host.pets(tar({})))
    assert check(host).startswith("0 files compared by ")


def test_changed_and_missing_files_are_named(host: Host) -> None:
    host.settle(host.pets(tar({**CONTENT, **{f"pets/{n}": b"x" for n in range(5)}})))
    keep_time(host.tree / "train/cat.png", b"dog" * 100)
    (host.tree / "train/dog.png").unlink()
    for by_digest in (False, True):
        with pytest.raises(
            ValueError, match=r"^changed: train/cat\.png; missing: train/dog\.png; "
        ):
            check(host, by_digest)
    for writable in ({"owner": "ada"}, {"mode": "2775"}):
        assert check(host, False, **writable).endswith("dog.png. Users may write this data set")
    for number in range(5):
        (host.tree / str(number)).write_bytes(b"y")
    with pytest.raises(ValueError, match=r"^changed: ([^,]+, ){2}[^,]+ and more; expected"):
        check(host)


def test_only_digests_show_what_changed_below_the_file_system(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.settle(host.pets(tar(CONTENT)))
    monkeypatch.setattr(record, "_read_digest", lambda *_arguments: "other")
    assert check(host)
    with pytest.raises(ValueError, match="changed: "):
        check(host, by_digest=True)


@pytest.mark.parametrize("what", ["link", "pipe", "device", "hard link", "growing"])
def test_a_file_that_somebody_replaced_is_changed_and_never_waited_for(
    host: Host, what: str, tmp_path: Path
) -> None:
    host.settle(host.pets(tar(CONTENT)))
    file = host.tree / "README"
    file.unlink()
    if what == "link":
        file.symlink_to("/etc/shadow")
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "device":
        os.mknod(file, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    elif what == "growing":
        file.write_bytes(b"hello\nmore")
    else:
        (tmp_path / "secret").write_bytes(b"hellO\n")
        file.hardlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"^changed: README; "):
        check(host, by_digest=True)


def test_a_list_of_an_old_version_is_compared_by_size_and_time(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    lines = [f"{len(text)} 1500000000 f {name}\0" for name, text in EXPECTED.items()]
    (host.tree / ".slipway/files.gz").write_bytes(gzip.compress("".join(lines).encode()))
    assert check(host, by_digest=True) == "3 files compared by size and time"
    (host.tree / "README").write_bytes(b"hello!\n")
    with pytest.raises(ValueError, match=r"^changed: README; "):
        check(host)
    (host.tree / ".slipway/files.gz").write_bytes(b"broken")
    with pytest.raises(ValueError, match="the list of its files is missing or broken"):
        check(host)


def test_a_data_set_that_is_gone_or_not_roots_fails(host: Host) -> None:
    with pytest.raises(ValueError, match="found nothing; expected a data set"):
        check(host)
    host.settle(host.pets(tar(CONTENT)))
    (host.tree / ".slipway/record.json").unlink()
    with pytest.raises(ValueError, match="found no record of root"):
        check(host)


def test_a_data_set_behind_its_link_is_checked(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    place = str(host.disk / "pets")
    host.tree.rename(place)
    host.tree.symlink_to(place)
    assert check(host, places=[place]) == "3 files compared by size, inode and ctime"
    with pytest.raises(UnsafePathError, match="found a symbolic link"):
        check(host)


def test_folders_that_somebody_added_are_not_entered(host: Host) -> None:
    """A user can nest more folders than a process can open."""
    host.settle(host.pets(tar(CONTENT)))
    here = os.open(host.tree / "train", os.O_RDONLY)
    for _level in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert check(host, by_digest=True) == "3 files compared by digest"
    finally:
        subprocess.run(["rm", "-rf", host.tree / "train"], check=True)
