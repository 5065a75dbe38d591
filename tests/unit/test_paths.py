# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that other users can change: links, hard links, pipes and races. Needs root."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import (
    files,
    paths,
    reading,
    user_rights,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to other users")

NOBODY = 65534
BOB = 12345


@pytest.fixture
def base() -> Iterator[Path]:
    """Make a folder that root trusts; /tmp itself belongs to everybody."""
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def home(base: Path) -> Path:
    home = base / "bob"
    home.mkdir()
    os.chown(home, BOB, BOB)
    return home


def test_roots_own_links_are_followed(base: Path) -> None:
    (base / "disk" / "inner").mkdir(parents=True)
    (base / "homes").symlink_to("disk/../disk")
    with paths.opened_folder(f"{base}/./homes/inner") as folder:
        assert folder.trusted
        assert folder.path == f"{base}/disk/inner"
        assert folder.info().st_ino == (base / "disk" / "inner").stat().st_ino


def test_a_circle_of_links_ends(base: Path) -> None:
    (base / "a").symlink_to("b")
    (base / "b").symlink_to("a")
    with pytest.raises(paths.UnsafePathError, match="at most 40"), paths.opened_folder(f"{base}/a"):
        pass


@pytest.mark.parametrize(("links", "opens"), [(40, True), (41, False)])
def test_as_many_links_as_linux_follows_are_followed(base: Path, links: int, opens: bool) -> None:
    (base / "link0").mkdir()
    for number in range(1, links + 1):
        (base / f"link{number}").symlink_to(f"link{number - 1}")
    try:
        with paths.opened_folder(f"{base}/link{links}") as folder:
            assert folder.path == f"{base}/link0"
    except paths.UnsafePathError:
        assert not opens
    else:
        assert opens


@pytest.mark.parametrize("middle", [False, True])
def test_a_link_behind_a_users_folder_is_refused(home: Path, middle: bool) -> None:
    (home / ".ssh").symlink_to("/etc")
    path = f"{home}/.ssh/ssh" if middle else f"{home}/.ssh"
    with pytest.raises(paths.UnsafePathError) as error, paths.opened_folder(path):
        pass
    assert str(error.value) == (
        f"{home}/.ssh: found a symbolic link to /etc, owned by root; expected a folder. "
        "Move it out of the way, then run again."
    )


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777, 0o2775])
def test_a_folder_of_roots_that_others_write_is_not_trusted(base: Path, mode: int) -> None:
    shared = base / "shared"
    shared.mkdir()
    shared.chmod(mode)
    (shared / "link").symlink_to("/etc")
    with pytest.raises(paths.UnsafePathError), paths.opened_folder(f"{shared}/link"):
        pass


def test_a_folder_of_somebody_else_is_refused_where_owners_are_named(home: Path) -> None:
    alices = home / ".ssh"
    alices.mkdir()
    os.chown(alices, NOBODY, NOBODY)
    with paths.opened_folder(str(alices)):
        pass
    with (
        pytest.raises(paths.UnsafePathError, match="expected a folder owned by root or 12345"),
        paths.opened_folder(str(alices), owners=(0, BOB)),
    ):
        pass


def test_parent_parts_are_refused(home: Path) -> None:
    with (
        pytest.raises(paths.UnsafePathError, match=r"'\.\.'"),
        paths.opened_folder(f"{home}/../x"),
    ):
        pass


def test_new_folders_belong_to_whose_folder_they_are_in(base: Path, home: Path) -> None:
    with paths.opened_parent(f"{home}/a/b/file", make=True) as (folder, name):
        folder.replace(name, b"x", 0o640, BOB, BOB)
    with paths.opened_folder(f"{base}/root/own", make=True):
        pass
    owners = [(home / part).stat().st_uid for part in ("a", "a/b", "a/b/file")]
    assert owners == [BOB, BOB, BOB]
    assert (base / "root" / "own").stat().st_uid == 0
    assert stat.S_IMODE((home / "a/b/file").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("link", "found a symbolic link to /.*/shadow, owned by root; expected a file"),
        ("hard link", r"found a file with 2 names .*; expected a file with one name"),
        ("pipe", "found a named pipe, owned by root; expected a file"),
        ("device", "found a character device, owned by root; expected a file"),
        ("block device", "found a block device, owned by root; expected a file"),
        ("folder", "found a folder, owned by root; expected a file"),
    ],
)
def test_only_a_file_with_one_name_is_read(home: Path, kind: str, words: str) -> None:
    secret = home.parent / "shadow"
    secret.write_text("secret")
    place = home / "file"
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "hard link":
        os.link(secret, place)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    elif kind == "block device":
        os.mknod(place, 0o600 | stat.S_IFBLK, os.makedev(7, 200))
    else:
        place.mkdir()
    with paths.opened_folder(str(home)) as folder, pytest.raises(ValueError, match=words):
        folder.read("file")


def test_replacing_a_link_or_hard_link_leaves_the_other_file(home: Path) -> None:
    secret = home.parent / "shadow"
    secret.write_text("secret")
    (home / "link").symlink_to(secret)
    os.link(secret, home / "twin")
    with paths.opened_folder(str(home)) as folder:
        for name in ("link", "twin"):
            folder.replace(name, b"new", 0o600, BOB, BOB)
    assert secret.read_text() == "secret"
    assert secret.stat().st_uid == 0
    assert sorted(os.listdir(home)) == ["link", "twin"]


def test_a_failed_replacement_leaves_nothing(home: Path) -> None:
    (home / "file").mkdir()
    with paths.opened_folder(str(home)) as folder, pytest.raises(paths.UnsafePathError):
        folder.replace("file", b"new", 0o600, BOB, BOB)
    assert os.listdir(home) == ["file"]


def test_a_new_file_is_closed_to_others_and_gone_if_the_work_fails(home: Path) -> None:
    def write() -> None:
        with folder.replacing("file", 0o644, BOB, BOB) as descriptor:
            assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o600
            assert not os.get_inheritable(descriptor)
            raise KeyError

    with paths.opened_folder(str(home)) as folder:
        with pytest.raises(KeyError):
            write()
        assert folder.names() == []


def test_no_descriptor_stays_open(home: Path) -> None:
    (home / "file").touch()
    (home / "folder").mkdir()
    before = os.listdir("/proc/self/fd")
    with paths.opened_folder(str(home)) as folder:
        folder.read("file")
        folder.replace("file", b"x", 0o600, BOB, BOB)
        folder.set_file("file", 0o640, BOB, BOB)
        with folder.entered("folder") as inner:
            assert not os.get_inheritable(inner.descriptor)
        for name in ("file", "none"):
            with pytest.raises((paths.UnsafePathError, FileNotFoundError)), folder.entered(name):
                pass
    assert os.listdir("/proc/self/fd") == before


def test_a_file_as_declared_keeps_its_times(home: Path) -> None:
    (home / "file").touch(0o640)
    os.chown(home / "file", BOB, BOB)
    before = (home / "file").stat().st_ctime_ns
    with paths.opened_folder(str(home)) as folder:
        folder.set_file("file", 0o640, BOB, BOB)
        assert (home / "file").stat().st_ctime_ns == before
        folder.set_file("file", 0o600, BOB, BOB)
    assert stat.S_IMODE((home / "file").stat().st_mode) == 0o600


def test_a_folder_of_root_in_the_folder_of_a_user_is_not_trusted(base: Path, home: Path) -> None:
    (home / "roots").mkdir()
    (base / "roots").mkdir()
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    for path, trusted in ((home, False), (base, True)):
        with paths.opened_folder(str(path)) as folder, folder.entered("roots") as inner:
            assert inner.trusted == trusted
            assert inner.path == f"{path}/roots"
    with paths.opened_folder(str(base)) as folder, folder.entered("open") as inner:
        assert not inner.trusted


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_only_a_name_within_the_folder_is_entered(home: Path, name: str) -> None:
    (home / "a/b").mkdir(parents=True)
    with (
        paths.opened_folder(str(home)) as folder,
        pytest.raises(ValueError, match="not a name within a folder"),
        folder.entered(name),
    ):
        pass


def test_removal_does_not_follow_links(home: Path) -> None:
    kept = home.parent / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (home / "tree" / "deep").mkdir(parents=True)
    (home / "tree" / "deep" / "link").symlink_to(kept)
    (home / "link").symlink_to(kept)
    with paths.opened_folder(str(home)) as folder:
        for name in ("tree", "link", "absent"):
            folder.remove(name)
    assert os.listdir(home) == []
    assert (kept / "file").exists()


def test_the_opened_folder_stays_the_same_when_its_name_moves(home: Path) -> None:
    (home / "a").mkdir()
    with paths.opened_folder(f"{home}/a") as folder:
        (home / "a").rename(home / "b")
        (home / "a").symlink_to("/etc")
        folder.replace("file", b"x", 0o600, BOB, BOB)
    assert (home / "b" / "file").exists()
    assert not Path("/etc/file").exists()


def test_a_user_that_swaps_folder_and_link_wins_nothing(home: Path) -> None:
    """Swap for as long as the writer writes; whatever it hits, the target stays as it is."""
    target = home.parent / "etc"
    target.mkdir()
    real, link = home / "real", home / "link"
    real.mkdir()
    link.symlink_to(target)
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for source, goal in ((link, home / "x"), (home / "x", link), (real, home / "x")):
                os.rename(source, goal)
            os.rename(home / "x", real)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes: set[str] = set()
    try:
        # The scheduler decides when the threads alternate: on a busy machine, try longer.
        for number in range(50_000):
            if number >= 300 and len(outcomes) > 1:
                break
            try:
                with paths.opened_parent(f"{home}/x/file{number % 300}") as (folder, name):
                    folder.replace(name, b"x", 0o600, BOB, BOB)
                outcomes.add("written")
            except (paths.UnsafePathError, FileNotFoundError) as error:
                outcomes.add(type(error).__name__)
    finally:
        done.set()
        thread.join()
    assert os.listdir(target) == []
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert len(outcomes) > 1


def test_acting_as_a_user_has_no_more_rights_than_he(base: Path, home: Path) -> None:
    closed = base / "closed"
    closed.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    before = os.getegid(), os.getgroups()
    gid = pwd.getpwnam("nobody").pw_gid
    # A group of root alone, which must be given up with the others.
    os.setgroups([4321])
    try:
        with user_rights.acting_as("nobody"):
            assert (os.getegid(), os.getgroups()) == (gid, os.getgrouplist("nobody", gid))
        assert (os.getegid(), os.getgroups()) == (before[0], [4321])
    finally:
        os.setgroups(before[1])
    with user_rights.acting_as("root"):
        assert os.geteuid() == 0
    with user_rights.acting_as("nobody"):
        assert os.geteuid() == NOBODY
        with pytest.raises(PermissionError), paths.opened_folder(str(closed)):
            pass
        with paths.opened_parent(f"{home}/.ssh/file", make=True) as (folder, name):
            folder.replace(name, b"x", 0o600, NOBODY, os.getegid())
            assert folder.read(name) == b"x"
    assert os.geteuid() == 0
    assert os.getuid() == 0
    assert (home / ".ssh" / "file").stat().st_uid == NOBODY


def test_work_as_a_user_returns_its_result_and_ends_in_time(home: Path) -> None:
    assert user_rights.as_user("nobody", os.geteuid) == NOBODY
    assert os.geteuid() == 0
    with pytest.raises(OSError, match="rights of nobody failed"):
        user_rights.as_user("nobody", lambda: os.listdir("/root"))
    os.mkfifo(home / "pipe")
    (home / "pipe").chmod(0o666)
    with pytest.raises(TimeoutError, match="no answer within 0 seconds"):
        user_rights.as_user("nobody", lambda: (home / "pipe").read_text(), 0.2)  # noqa: PLW0108


def test_a_file_that_may_belong_to_somebody_else_keeps_its_owner(home: Path) -> None:
    """A user can move files of others to a declared name where he can write."""
    (home / "folder").mkdir()
    (home / "full").mkdir()
    (home / "full" / "inner").touch()
    (home / "file").touch()
    for name in ("folder", "file"):
        os.chown(home / name, NOBODY, NOBODY)
    with paths.opened_folder(str(home)) as opened:
        expected = {"folder": "a folder owned by 12345", "full": "an empty folder, or one of its"}
        for name, words in expected.items():
            with pytest.raises(paths.UnsafePathError, match=f"expected {words}"):
                opened.make_folder(name, 0o777, BOB, BOB)
        with pytest.raises(paths.UnsafePathError, match="a file, owned by nobody"):
            opened.set_file("file", 0o777, BOB, BOB)
    assert {path.lstat().st_uid for path in home.iterdir()} == {0, NOBODY}


def test_files_are_read_through_roots_links_alone(base: Path, home: Path) -> None:
    (base / "secret").write_text("secret")
    (base / "own").symlink_to("bob/../secret")
    (base / "deep").symlink_to("own")
    (home / "link").symlink_to(base / "secret")
    (base / "trap").symlink_to("bob/link")
    (base / "circle").symlink_to("circle")
    assert paths.read_file(f"{base}/deep", 3) == b"sec"
    for name, words in {"trap": "link to", "bob/link": "link to", "circle": "a circle of"}.items():
        with pytest.raises(paths.UnsafePathError, match=words):
            paths.read_file(f"{base}/{name}")


@pytest.mark.parametrize("target", ["/a\x1b[2Jb", "/a\nb", b"/a\xff", "/\u202eb"])
def test_words_of_users_are_escaped_in_refusals(home: Path, target: str | bytes) -> None:
    """A link may lead to any bytes: a terminal only shows them, and JSON can hold them."""
    (home / "link").symlink_to(os.fsdecode(target))
    with pytest.raises(paths.UnsafePathError) as caught, paths.opened_folder(f"{home}/link"):
        pass
    assert str(caught.value).isprintable() and caught.value.found.isprintable()
    str(caught.value).encode("ascii")


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:41 / {home}/cloud\\040disk rw,nosuid - fuse.sshfs x:/ rw,user_id=1001,allow_other
31 22 0:42 / {home}/shared rw - fuse.glusterfs g:/v rw,user_id=0,group_id=0,allow_other
32 22 0:43 / /dev/mqueue rw - mqueue mqueue rw
"""


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("cloud disk", True),
        ("cloud disk/.ssh/authorized_keys", True),
        ("cloud", False),
        ("shared/keys", False),
        ("", False),
    ],
)
def test_a_file_system_of_a_user_is_not_entered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, refused: bool
) -> None:
    """Its program may never answer, and root would wait for it."""
    (home / "cloud disk/.ssh").mkdir(parents=True)
    (home / "shared").mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(home=home))
    monkeypatch.setattr(reading, "MOUNTS", str(mounts))
    monkeypatch.setitem(reading.USER_MOUNTS, "found", None)
    found = reading.user_mount_above(f"{home}/{path}".rstrip("/"))
    assert found == (
        (f"{home}/cloud disk", "a file system (fuse.sshfs) of 1001") if refused else None
    )
    if not refused:
        return
    with (
        pytest.raises(paths.UnsafePathError, match=r"found a file system \(fuse.sshfs\) of 1001"),
        paths.opened_folder(f"{home}/{path}"),
    ):
        pass
    # Also behind a link of root's.
    (home.parent / "link").symlink_to(home)
    with (
        pytest.raises(paths.UnsafePathError, match=r"bob/cloud disk: found a file system"),
        paths.opened_folder(f"{home.parent}/link/{path}"),
    ):
        pass
    reading.reset()
    assert files.ask_state(f"{home}/{path}") is None
    assert reading.UNSAFE[f"{home}/{path}"][0] == f"{home}/cloud disk"


def test_the_survey_sends_no_endless_text_of_a_user(home: Path) -> None:
    (home / "keys").write_bytes(b"x" * (reading.MAX_TEXT + 1))
    reading.reset()
    assert files.ask_text(f"{home}/keys") is None
    assert reading.UNSAFE[f"{home}/keys"][1] == f"more than {reading.MAX_TEXT} bytes"
