# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets and repositories on a host: whole or not at all, and nothing of anybody's lost."""

from __future__ import annotations

import grp
import io
import json
import os
import pwd
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.action import datasets
from ansible_collections.slipway.host.plugins.module_utils.data import (
    archive,
    checkout,
    disk,
    download,
    folders,
    ownership,
    progress,
    staging,
    unpack,
    worker,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_data
from ansible_collections.slipway.host.plugins.module_utils.state import model as state_model
from ansible_collections.slipway.host.plugins.module_utils.state import trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError

from tests.fixtures.data_server import DataServer, serving
from tests.fixtures.data_sets import sha256, tar
from tests.unit import survey
from tests.unit.role_options import options

ME = pwd.getpwuid(os.geteuid()).pw_name
MINE = grp.getgrgid(os.getegid()).gr_name
CONTENT = {
    "pets/README": b"hello\n",
    "pets/train/cat.png": b"cat" * 100,
    "pets/train/dog.png": b"d",
}


class Host:
    """A host's disks in a folder, and the role on it."""

    def __init__(self, folder: Path, server: DataServer) -> None:
        self.data, self.code = folder / "srv/data", folder / "srv/code"
        self.disk = folder / "mnt/disk/data"
        self.disk.mkdir(parents=True)
        self.data.parent.mkdir(parents=True)
        self.server = server
        self.disks: list[str] = []
        self.environment: dict[str, str] = {}
        self.said = ""

    def plan(self, *items: Mapping[str, Any], code: bool = False) -> dict[str, Any]:
        mine = [{"owner": ME, "group": MINE, **item} for item in items]
        archives, repositories = ([], mine) if code else (mine, [])
        asked = options(
            "ml_data",
            archives=archives,
            repositories=repositories,
            folder=str(self.data),
            code_folder=str(self.code),
            environment=self.environment,
        )
        found: dict[str, Any] = ml_data.plan({}, {**asked, "ml_data_disks": self.disks})
        return found

    def differences(self, planned: Mapping[str, Any]) -> list[str]:
        owned = {key: planned["owned"][key] for key in ("folders", "datasets", "checkouts")}
        answer = survey.answer(survey.question([owned]))
        return [
            f"{one.found}, should be {one.expected}" for one in survey.differences(owned, answer)
        ]

    def settle(self, *items: Mapping[str, Any], code: bool = False) -> dict[str, str]:
        """Run the worker; return what failed. Afterwards nothing differs, where nothing failed."""
        planned = self.plan(*items, code=code)
        said = io.StringIO()
        job = {"trees": planned["trees"], "secrets": planned["secrets"]}
        job["stages"] = planned["owned"]["folders"]
        failed: dict[str, str] = worker.apply_job(job, Progress(said))["failed"]
        self.said = said.getvalue()
        if not failed:
            assert self.differences(planned) == []
        return failed

    def pets(self, content: bytes, **more: Any) -> dict[str, Any]:
        """Return the declaration of an archive that the server gives."""
        self.server.files["/pets"] = content
        found = {"name": "pets", "url": self.server.url("/pets"), "checksum": sha256(content)}
        return {**found, "strip": 1, **more}

    @property
    def tree(self) -> Path:
        return self.data / "pets"

    def holds(self) -> dict[str, bytes]:
        """Return the files that people see."""
        files = (file for file in self.tree.rglob("*") if file.is_file())
        found = {str(file.relative_to(self.tree)): file.read_bytes() for file in files}
        return {name: content for name, content in found.items() if not name.startswith(".slipway")}


EXPECTED = {name.removeprefix("pets/"): content for name, content in CONTENT.items()}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setattr(checkout, "HANDOVER", str(tmp_path))
    with serving() as server:
        yield Host(tmp_path, server)


def test_an_archive_becomes_a_folder_once(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    assert host.differences(host.plan(declared)) == ["missing, should be unpacked"]
    assert host.settle(declared) == {}
    assert host.holds() == EXPECTED
    assert (host.tree / "README").stat().st_mtime == 1_500_000_000
    assert sorted(host.data.iterdir()) == [host.tree], "nothing unfinished is left"
    before, sent = host.tree.stat(), host.server.sent()
    assert host.settle(declared) == {}
    assert (host.tree.stat(), host.server.sent()) == (before, sent)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return stream.getvalue()


def zstd() -> bytes:
    command = ["zstd", "-qc"]
    return subprocess.run(command, input=tar(CONTENT, "w"), capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["w", "w:gz", "w:bz2", "w:xz", "zip", "zstd"])
def test_an_archive_is_known_by_its_content(host: Host, form: str) -> None:
    if form == "zstd" and not any(
        os.access(f"{folder}/zstd", os.X_OK) for folder in os.environ["PATH"].split(":")
    ):
        pytest.skip("there is no zstd here")
    made = {"zip": zipped, "zstd": zstd}.get(form, lambda: tar(CONTENT, form))()
    assert host.settle(host.pets(made)) == {}
    assert host.holds() == EXPECTED


def test_a_file_of_the_host_is_unpacked_and_stays(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "pets.tar.gz"
    file.write_bytes(tar(CONTENT))
    declared = {"name": "pets", "path": str(file), "strip": 1, "checksum": sha256(tar(CONTENT))}
    file.write_bytes(b"other")
    assert "expected sha256" in host.settle(declared)["pets"]
    assert file.exists() and not host.tree.exists()
    content = tar(CONTENT)
    file.write_bytes(content)
    assert host.settle({**declared, "checksum": sha256(content)}) == {}
    assert (host.holds(), file.read_bytes()) == (EXPECTED, content)


def test_a_file_that_is_not_an_archive_is_copied(host: Host) -> None:
    declared = host.pets(b"weights", unpack=False, strip=0)
    assert "cannot read the archive as tar" in host.settle({**declared, "unpack": True})["pets"]
    assert not host.tree.exists()
    assert host.settle(declared) == {}
    assert host.holds() == {"pets": b"weights"}


def test_without_a_checksum_the_first_one_is_taken_and_told(host: Host) -> None:
    declared = {**host.pets(tar(CONTENT)), "checksum": ""}
    assert host.settle(declared) == {}
    assert (
        f"no checksum declared; the archive has {sha256(host.server.files['/pets'])}" in host.said
    )
    host.server.files["/pets"] = tar({"pets/other": b""})
    assert host.settle(declared) == {}
    assert host.holds() == EXPECTED


# The way here.

LARGE = {"pets/large": os.urandom(200_000), **CONTENT}


def test_an_interrupted_download_is_resumed(host: Host) -> None:
    content = tar(LARGE, "w")
    half = len(content) // 2
    declared = host.pets(content)
    # It answers for the size, gives one half, and is gone.
    host.server.cut_after, host.server.left = half, 2
    why = host.settle(declared)["pets"]
    assert "was interrupted after 102.4 kB" in why and "Run again to continue" in why
    assert not host.tree.exists()
    host.server.cut_after = host.server.left = None
    host.server.requests.clear()
    assert host.settle(declared) == {}
    assert host.holds() == {"large": LARGE["pets/large"], **EXPECTED}
    assert host.server.ranges() == [f"bytes={half}-"]
    assert host.server.requests[-1].sent == len(content) - half
    assert "continuing at" in host.said


def test_a_download_survives_many_interruptions(host: Host) -> None:
    content = tar(LARGE, "w")
    host.server.cut_after = 60_000
    assert host.settle(host.pets(content)) == {}
    assert len(host.server.ranges()) == len(content) // 60_000


def unfinished(host: Host) -> Path:
    return host.data / trees.STAGES / "pets" / download.PART


def leave_half(host: Host, declared: Mapping[str, Any], content: bytes) -> None:
    """Leave what a run leaves that was killed halfway through the download of CONTENT."""
    stage = staging.Stage(str(host.tree))
    with stage.entered():
        source = download.Source(declared["url"], {}, "")
        Path(download.PART).write_bytes(content[: len(content) // 2])
        with source.open() as answer:
            download._write_record(source, answer, len(content))


def test_parts_of_two_versions_are_never_combined(host: Host) -> None:
    old, new = tar(LARGE, "w"), tar({**LARGE, "pets/more": b"more"}, "w")
    leave_half(host, host.pets(old), old)
    assert host.settle(host.pets(new)) == {}
    assert host.holds()["more"] == b"more"
    assert host.server.requests[-1].sent == len(new)


def test_a_download_without_a_version_starts_again(host: Host) -> None:
    content = tar(LARGE, "w")
    host.server.known = False
    declared = host.pets(content)
    leave_half(host, declared, content)
    assert host.settle(declared) == {}
    assert host.server.ranges() == []


def test_a_complete_download_is_not_repeated(host: Host) -> None:
    content = tar(LARGE, "w")
    declared = host.pets(content)
    leave_half(host, declared, content)
    unfinished(host).write_bytes(content)
    asked = len(host.server.requests)
    assert host.settle(declared) == {}
    # For its size alone.
    assert len(host.server.requests) == asked + 1


def test_another_checksum_is_an_error_and_the_file_is_removed(host: Host) -> None:
    declared = host.pets(tar(CONTENT), checksum=f"sha256:{'0' * 64}")
    why = host.settle(declared)["pets"]
    assert f"found {sha256(tar(CONTENT))[:10]}" in why
    assert f"expected sha256:{'0' * 64}. The archive was not unpacked" in why
    assert not host.tree.exists() and not unfinished(host).exists()


@pytest.mark.parametrize(
    ("status", "words"), [(404, "answered 404"), (401, "answered 401"), (503, "Try later")]
)
def test_a_refusal_is_told(host: Host, status: int, words: str) -> None:
    host.server.status = status
    assert words in host.settle(host.pets(tar(CONTENT)))["pets"]


def test_an_unreachable_address_is_named_without_its_key(host: Host) -> None:
    declared = {**host.pets(b""), "url": "http://127.0.0.1:9/pets?key=abc"}
    why = host.settle(declared)["pets"]
    assert "cannot reach http://127.0.0.1:9/pets?...: " in why and "abc" not in why


def test_secrets_are_sent_only_to_their_host(host: Host) -> None:
    content = tar(CONTENT)
    declared = host.pets(content, headers={"X-Token": "abc"})
    declared["url"] = declared["url"].replace("//", "//user:pass@")
    with serving("127.0.0.2") as other:
        other.files["/elsewhere"] = content
        host.server.redirects["/pets"] = other.url("/elsewhere")
        assert host.settle(declared) == {}
        assert {request.headers["Authorization"] for request in host.server.requests} == {
            "Basic dXNlcjpwYXNz"
        }
        assert host.server.requests[0].headers["X-Token"] == "abc"
        assert not any(
            request.headers["Authorization"] or request.headers["X-Token"]
            for request in other.requests
        )
    planned = host.plan(declared)
    shown = json.dumps([planned["trees"], planned["owned"], host.said])
    assert "pass" not in shown.replace("passw", "") and "abc" not in shown


# Archives that are not what they seem.


def special(**settings: Any) -> bytes:
    """Return an archive with one member of a kind."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in CONTENT.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(settings.pop("name", "pets/odd"))
        for key, value in settings.items():
            setattr(member, key, value)
        archive.addfile(member)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (special(name="../odd"), "would be written outside"),
        (special(name="pets/../../odd"), "would be written outside"),
        (special(name="/pets/odd"), "would be written outside"),
        (special(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link to /etc/passwd, outside"),
        (
            special(type=tarfile.SYMTYPE, linkname="../odd"),
            "a link to ../odd, outside of the archive",
        ),
        (special(type=tarfile.LNKTYPE, linkname="../odd"), "would be written outside"),
        (special(type=tarfile.LNKTYPE, linkname="pets/none"), "as a link to none"),
        (special(type=tarfile.CHRTYPE), "a device or a pipe"),
        (special(type=tarfile.FIFOTYPE), "a device or a pipe"),
        (special(name="odd"), "'strip: 1' removes the complete name"),
        (special(name="pets/.slipway/record.json"), "found .slipway in the archive"),
        (tar(LARGE)[:100_000], "cannot read the archive as tar"),
        (zipped()[:-40], "cannot read the archive as"),
    ],
)
def test_a_damaged_archive_is_an_error(host: Host, archive: bytes, words: str) -> None:
    assert words in host.settle(host.pets(archive))["pets"]
    assert not host.tree.exists()
    assert not (host.data.parent / "odd").exists() and not (host.data / "odd").exists()


def test_nothing_is_written_through_a_link(host: Host) -> None:
    """The link comes first in the archive, what would go through it later."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("pets/out")
        link.type, link.linkname = tarfile.SYMTYPE, "../../.."
        archive.addfile(link)
        file = tarfile.TarInfo("pets/out/odd")
        archive.addfile(file)
    assert (
        "cannot create out of the archive as a link"
        in host.settle(host.pets(stream.getvalue()))["pets"]
    )
    assert not host.tree.exists()


def test_links_inside_and_programs_stay_what_they_are(host: Host) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, kind, target, mode in (
            ("pets/run", tarfile.REGTYPE, "", 0o4777),
            ("pets/sub", tarfile.DIRTYPE, "", 0o700),
            ("pets/sub/link", tarfile.SYMTYPE, "../run", 0o777),
            ("pets/twin", tarfile.LNKTYPE, "pets/run", 0o777),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, mode
            archive.addfile(member)
    assert host.settle(host.pets(stream.getvalue())) == {}
    assert str((host.tree / "sub/link").readlink()) == "../run"
    assert (host.tree / "twin").samefile(host.tree / "run")
    assert stat.S_IMODE((host.tree / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE((host.tree / "sub").stat().st_mode) == 0o755


# Room.


def test_the_first_disk_with_space_is_used_and_linked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {str(host.tree): 100, str(host.disk / "pets"): 10**9}
    monkeypatch.setattr(disk, "available_bytes", lambda path: free.get(path, 10**9))
    declared = host.pets(tar(CONTENT, "w"))
    why = host.settle(declared)["pets"]
    assert "found 100 B in" in why and "expected 20.5 kB" in why and "ml_data_disks" in why
    assert not host.data.exists(), "nothing was begun"
    # A disk that is not mounted is passed over.
    host.disks = [f"{host.disk}-none", str(host.disk)]
    assert host.settle(declared) == {}
    assert str(host.tree.readlink()) == str(host.disk / "pets")
    assert host.holds() == EXPECTED


def test_a_link_that_is_gone_is_made_again_and_nothing_fetched(host: Host) -> None:
    test = host.pets(tar(CONTENT, "w"))
    host.disks = [str(host.disk)]
    stage = staging.Stage(str(host.disk / "pets"))
    with stage.entered():
        job = host.plan(test)
        (tree,) = job["trees"]
        source = archive.Archive(tree, job["secrets"]["pets"], Progress(io.StringIO()))
        source.create_tree(ownership.declared_attributes(tree))
        stage.move_to_path(staging.TREE)
    sent = len(host.server.requests)
    assert host.settle(test) == {}
    assert str(host.tree.readlink()) == str(host.disk / "pets")
    assert len(host.server.requests) == sent


def test_a_disk_that_is_not_mounted_is_told_and_nothing_fetched(host: Host) -> None:
    host.data.mkdir()
    host.tree.symlink_to(host.disk / "gone/pets")
    host.disks = [str(host.disk / "gone")]
    assert "Mount its disk" in host.settle(host.pets(tar(CONTENT)))["pets"]
    assert host.server.requests == []


@pytest.mark.parametrize("when", ["download", "unpack"])
def test_a_full_disk_leaves_no_incomplete_tree(
    host: Host, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    declared = host.pets(tar(LARGE, "w"))
    full = OSError(28, "No space left on device")

    def fail(*_: Any) -> None:
        Path("half" if when == "unpack" else download.PART).touch()
        raise full

    with monkeypatch.context() as patched:
        if when == "download":
            patched.setattr(download, "_continue", fail)
        else:
            patched.setattr(unpack, "unpack", fail)
        assert "became full while" in host.settle(declared)["pets"]
    assert not host.tree.exists()
    # An archive that is complete and right is worth keeping; half of one fills the disk.
    assert unfinished(host).exists() == (when == "unpack")
    left = {path.name for path in unfinished(host).parent.iterdir()}
    assert left <= {download.PART, f"{download.PART}.json"}
    assert host.settle(declared) == {}


def test_files_of_an_interrupted_run_are_removed(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    stage = unfinished(host).parent
    (stage / staging.TREE / "half").mkdir(parents=True)
    stage.parent.chmod(0o700)
    old = stage.parent / "dropped"
    old.mkdir()
    assert host.differences(host.plan(declared)) == [
        "dropped is there, should be removed",
        "missing, should be unpacked",
    ]
    assert host.settle(declared) == {}
    assert sorted(host.data.iterdir()) == [host.tree]
    # Between the rename and the end.
    stage.mkdir(parents=True)
    assert host.differences(host.plan(declared)) == [
        "what an interrupted run left is beside it, should be removed"
    ]
    assert host.settle(declared) == {}


# Another version, repair, removal.


def test_another_version_replaces_the_first(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    newer = host.pets(tar({"pets/new": b"new"}))
    assert host.settle(newer) == {}
    assert host.holds() == {"new": b"new"}
    assert sorted(host.data.iterdir()) == [host.tree]


@pytest.mark.parametrize("act", ["added", "changed", "moved in"])
def test_changes_of_users_are_kept(host: Host, act: str) -> None:
    host.settle(host.pets(tar(CONTENT)))
    file = host.tree / ("README" if act == "changed" else "train/models.bin")
    if act == "moved in":
        model = host.data / "model"
        model.write_text("mine")
        os.utime(model, (1, 1))
        model.rename(file)
    else:
        file.write_text("mine")
    why = host.settle(host.pets(tar({"pets/new": b"new"})))["pets"]
    assert f"added or changed by others ({file.relative_to(host.tree)})" in why
    assert file.read_text() == "mine"


def test_a_missing_name_at_the_top_is_restored_and_other_files_stay(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    host.settle(declared)
    (host.tree / "README").unlink()
    (host.tree / "train/mine").write_text("mine")
    assert host.differences(host.plan(declared)) == ["README missing, should be there"]
    assert host.settle(declared) == {}
    assert host.holds() == {**EXPECTED, "train/mine": b"mine"}


def test_modes_follow_the_declared_one(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    host.settle(declared)
    mine = host.tree / "mine"
    mine.write_text("")
    mine.chmod(0o600)
    narrower = {**declared, "mode": "2750"}
    assert host.differences(host.plan(narrower)) == ["mode 0755, should be 2750"]
    assert host.settle(narrower) == {}
    modes = {
        name: stat.S_IMODE((host.tree / name).stat().st_mode)
        for name in ("train", "README", "mine")
    }
    assert modes == {"train": 0o2750, "README": 0o640, "mine": 0o600}
    host.tree.chmod(0o700)
    assert host.settle(narrower) == {}
    assert stat.S_IMODE((host.tree / "train").stat().st_mode) == 0o2750


def test_removal_removes_files_of_the_role(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    host.disks = [str(host.disk)]
    host.settle(declared)
    gone = {"name": "pets", "state": "absent"}
    assert host.differences(host.plan(gone)) == ["present, should be absent"]
    assert host.settle(gone) == {}
    assert not host.tree.exists()
    assert host.settle(gone) == {}


def test_an_interrupted_removal_is_finished(host: Host) -> None:
    """The tree is out of sight at once, and drift until it is off the disk."""
    host.settle(host.pets(tar(CONTENT)))
    gone = {"name": "pets", "state": "absent"}
    stage = unfinished(host).parent
    stage.mkdir(parents=True)
    host.tree.rename(stage / staging.TREE)
    assert host.differences(host.plan(gone)) == ["pets is there, should be removed"]
    assert host.settle(gone) == {}
    assert list(host.data.iterdir()) == []


def test_removal_keeps_files_of_users(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    (host.tree / "train/model").write_text("mine")
    (host.tree / "README").write_text("edited")
    assert host.settle({"name": "pets", "state": "absent"}) == {}
    assert host.holds() == {"train/model": b"mine", "README": b"edited"}
    assert "2 files" in host.said


def test_foreign_trees_are_never_changed(host: Host) -> None:
    host.tree.mkdir(parents=True)
    (host.tree / "mine").write_text("mine")
    assert host.differences(host.plan({"name": "pets", "state": "absent"})) == []
    with pytest.raises(state_model.ConflictError, match="was not made from this declaration"):
        host.differences(host.plan(host.pets(tar(CONTENT))))
    host.tree.rename(host.data / "other")
    host.tree.symlink_to(host.data / "other")
    with pytest.raises(state_model.ConflictError, match="is in no folder of ml_data_disks"):
        host.differences(host.plan(host.pets(tar(CONTENT))))


def test_a_change_of_the_place_keeps_one_tree(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version has room on another disk alone; a link takes the folder's place."""
    host.settle(host.pets(tar(CONTENT)))
    host.disks = [str(host.disk)]
    free = {str(host.tree): 0}
    with monkeypatch.context() as patched:
        patched.setattr(disk, "available_bytes", lambda path: free.get(path, 10**9))
        assert host.settle(host.pets(tar({"pets/new": b"new"}))) == {}
    assert str(host.tree.readlink()) == str(host.disk / "pets")
    free = {str(host.disk / "pets"): 0}
    with monkeypatch.context() as patched:
        patched.setattr(disk, "available_bytes", lambda path: free.get(path, 10**9))
        assert host.settle(host.pets(tar(CONTENT))) == {}
    assert not host.tree.is_symlink()
    assert host.holds() == EXPECTED
    assert list(host.disk.iterdir()) == []


def test_an_unknown_owner_is_told_before_anything_is_fetched(host: Host) -> None:
    why = host.settle(host.pets(tar(CONTENT), owner="nobody-has-this-name"))["pets"]
    assert "nobody-has-this-name" in why and "user_access_users" in why
    assert host.server.requests == []


def test_an_optional_one_is_left_out_where_its_address_does_not_give_it(host: Host) -> None:
    declared = host.pets(tar(CONTENT), optional=True)
    host.server.status = 503
    planned = host.plan(declared)
    assert host.differences(planned) == []
    answer = survey.answer(survey.question([planned["owned"]]))
    (sentence,) = trees.skipped_trees(answer)
    assert sentence.startswith(f"Skipped optional {host.tree}") and "503" in sentence
    host.server.status = 0
    assert host.differences(planned) == ["missing, should be unpacked"]
    assert host.settle(declared) == {}
    asked = len(host.server.requests)
    assert host.differences(planned) == []
    assert len(host.server.requests) == asked, "nobody is asked for what is there"


def test_a_proxy_is_used_by_the_survey_and_by_the_download(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that what the probe sets in this process goes again.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    url, content = "http://behind.example.org/pets", tar(CONTENT)
    host.server.files[url] = content
    declared = {**host.pets(content), "url": url, "optional": True}
    assert host.differences(host.plan(declared)) == []
    host.environment = {"http_proxy": host.server.address}
    assert host.differences(host.plan(declared)) == ["missing, should be unpacked"]
    assert host.settle(declared) == {}


def test_a_failed_tree_does_not_stop_the_others(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = host.pets(tar(CONTENT)), {"name": "bad", "url": host.server.url("/none")}
    assert list(host.settle(bad, good)) == ["bad"]
    assert host.holds() == EXPECTED

    def unforeseen(*_: Any) -> None:
        raise LookupError("odd")

    monkeypatch.setattr(unpack, "unpack", unforeseen)
    assert host.settle({**good, "name": "other"}) == {"other": "LookupError: odd"}


def test_long_work_reports_progress(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0)
    assert host.settle(host.pets(tar(LARGE, "w"))) == {}
    for words in ("downloaded: 2", "checked: 2", "unpacked: 2"):
        assert f"pets: {words}" in host.said
    assert "min left" in host.said


@pytest.mark.parametrize(
    ("environment", "no_proxy"),
    [
        ({}, "127.0.0.1"),
        ({"https_proxy": "p", "no_proxy": "a.example"}, "a.example,127.0.0.1"),
        ({"NO_PROXY": "b.example"}, "b.example,127.0.0.1"),
    ],
)
def test_archives_of_a_bundle_have_other_addresses(
    environment: dict[str, str], no_proxy: str
) -> None:
    secret = {"url": "https://a.example/?key=1", "headers": {"Authorization": "x"}}
    arguments = {"secrets": {"a": secret, "b": secret}, "environment": environment, "trees": []}
    assert datasets.use_bundle(arguments, {}) == arguments
    assert datasets.use_bundle(arguments, {"a": "http://127.0.0.1:20001/data/5"}) == {
        "trees": [],
        "secrets": {"a": {"url": "http://127.0.0.1:20001/data/5", "headers": {}}, "b": secret},
        "environment": {**environment, "no_proxy": no_proxy},
    }


def test_the_worker_needs_only_the_files_of_the_job(tmp_path: Path, host: Host) -> None:
    """An import that did not come along would show on a host only."""
    planned = host.plan(host.pets(tar(CONTENT)))
    arguments = {"secrets": planned["secrets"], "environment": {}}
    packed = datasets.pack_job(planned["trees"], planned["owned"]["folders"], arguments)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path / "job", filter="data")
    run = "from pathlib import Path; import {0} as w; w.LOCK = Path('lock'); w.main(Path())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", run.format(worker.__name__)],
        cwd=tmp_path / "job",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert json.loads((tmp_path / "job/result.json").read_text()) == {
        "done": ["pets"],
        "failed": {},
    }
    assert host.holds() == EXPECTED
    assert not (tmp_path / "job/job.json").exists(), "it held secrets"


# People who have a tree may put anything into it.


def test_a_forged_note_moves_nothing_elsewhere(host: Host) -> None:
    declared = host.pets(tar(CONTENT))
    host.settle(declared)
    note = host.tree / ".slipway/record.json"
    forged = {**json.loads(note.read_text()), "names": ["../odd", "README"]}
    note.write_text(json.dumps(forged))
    found = trees.ask_tree(str(host.tree))
    assert found and found["missing"] == []
    (host.tree / "README").unlink()
    assert host.settle(declared) == {}
    assert list(host.data.iterdir()) == [host.tree]


@pytest.mark.parametrize("what", ["nothing", "words", "list", "pipe", "link"])
def test_a_note_that_is_none_makes_the_tree_somebodys_own(host: Host, what: str) -> None:
    declared = host.pets(tar(CONTENT))
    host.settle(declared)
    note = host.tree / ".slipway/record.json"
    note.unlink()
    if what == "pipe":
        os.mkfifo(note)
    elif what == "link":
        note.symlink_to("/dev/zero")
    elif what != "nothing":
        note.write_text({"words": "{", "list": "[]"}[what])
    with pytest.raises(state_model.ConflictError, match="was not made from this declaration"):
        host.differences(host.plan(declared))


def test_without_its_list_of_files_all_in_a_tree_counts_as_peoples(host: Host) -> None:
    host.settle(host.pets(tar(CONTENT)))
    (host.tree / ".slipway/files.gz").write_bytes(b"broken")
    assert "added or changed by others" in host.settle(host.pets(tar({"pets/new": b""})))["pets"]
    assert host.settle({"name": "pets", "state": "absent"}) == {}
    assert host.holds() == EXPECTED


def test_a_link_in_a_trees_place_is_not_followed(host: Host, tmp_path: Path) -> None:
    """Somebody may put it there between two steps."""
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(UnsafePathError, match="a symbolic link"), folders.opened_tree(str(link)):
        pass
    assert stat.S_IMODE(other.stat().st_mode) == 0o700


def test_a_stage_that_is_not_roots_is_refused(host: Host) -> None:
    host.data.mkdir()
    (host.data / trees.STAGES).symlink_to("/tmp")
    why = host.settle(host.pets(tar(CONTENT)))["pets"]
    assert why.endswith(
        "found a symbolic link to /tmp, owned by root; expected a folder. Move it out of the way, "
        "then run again."
    )
    assert not host.tree.exists()
