# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets that are folders of files, such as a model on a hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.data import (
    disk,
    download,
    file_set,
    record,
)
from ansible_collections.slipway.host.plugins.module_utils.roles.ml_data import DataError

from tests.fixtures.data_sets import sha256, tar
from tests.unit.test_data_worker import Host, host

__all__ = ["host"]

MODEL = {
    "config.json": b"{}",
    "part 1.safetensors": os.urandom(100_000),
    "tokenizer/vocab.json": b"[]",
}

FILES = ".slipway-unfinished/pets/downloaded-files"


def declare(host: Host, content: Mapping[str, bytes], **more: Any) -> dict[str, Any]:
    """Return the declaration of files that the server gives, with spaces as %20."""
    for name, data in content.items():
        host.server.files[f"/hub/{name.replace(' ', '%20')}"] = data
    files = {name: sha256(data) for name, data in content.items()}
    return {"name": "pets", "url": host.server.url("/hub"), "files": files, **more}


def requested(host: Host) -> list[str]:
    """Return the paths that were requested since the last call."""
    found = [request.path for request in host.server.requests]
    host.server.requests.clear()
    return found


def test_files_become_a_folder_once(host: Host) -> None:
    declared = declare(host, MODEL, headers={"Authorization": "Bearer x"})
    assert host.settle(declared) == {}
    assert host.holds() == MODEL
    assert sorted(host.data.iterdir()) == [host.tree], "nothing unfinished is left"
    assert {one.headers["Authorization"] for one in host.server.requests} == {"Bearer x"}
    assert oct((host.tree / "tokenizer/vocab.json").stat().st_mode)[-3:] == "644"
    requested(host)
    assert host.settle(declared) == {}
    assert requested(host) == []


def test_an_interrupted_download_continues_within_its_file(host: Host) -> None:
    declared = declare(host, MODEL, size="1M")
    # The first file, half of the second, and no more.
    host.server.cut_after, host.server.left = 50_000, 2
    assert "part 1.safetensors was interrupted after 50.0 kB" in host.settle(declared)["pets"]
    assert not host.tree.exists()
    host.server.cut_after = host.server.left = None
    requested(host)
    assert host.settle(declared) == {}
    assert host.holds() == MODEL
    requests = [(one.path, one.headers["Range"]) for one in host.server.requests]
    assert requests == [
        ("/hub/part%201.safetensors", "bytes=50000-"),
        ("/hub/tokenizer/vocab.json", None),
    ]


def test_an_interrupted_file_comes_first_whatever_is_added(host: Host) -> None:
    declared = declare(host, {"model": bytes(100_000)}, size="1M")
    host.server.cut_after, host.server.left = 50_000, 1
    assert "model was interrupted after 50.0 kB" in host.settle(declared)["pets"]
    host.server.cut_after = host.server.left = None
    requested(host)
    assert host.settle(declare(host, {"a": b"new", "model": bytes(100_000)}, size="1M")) == {}
    assert [(one.path, one.headers["Range"]) for one in host.server.requests] == [
        ("/hub/model", "bytes=50000-"),
        ("/hub/a", None),
    ]


def test_a_file_with_another_checksum_is_refused_and_the_others_stay(host: Host) -> None:
    declared = declare(host, MODEL, size="1M")
    host.server.files["/hub/tokenizer/vocab.json"] = b"forged"
    why = host.settle(declared)["pets"]
    assert f"checksum of {host.server.url('/hub/tokenizer/vocab.json')}: found sha256:" in why
    assert "The file was not used." in why
    assert not host.tree.exists()
    host.server.files["/hub/tokenizer/vocab.json"] = b"[]"
    requested(host)
    assert host.settle(declared) == {}
    assert requested(host) == ["/hub/tokenizer/vocab.json"]


def test_a_stored_file_that_was_damaged_is_downloaded_again(host: Host) -> None:
    declared = declare(host, MODEL, size="1M")
    del host.server.files["/hub/tokenizer/vocab.json"]
    assert "answered 404" in host.settle(declared)["pets"]
    for name in ("config.json", "part 1.safetensors"):
        (host.data / FILES / name).write_bytes(b"damaged")
    assert host.settle(declare(host, MODEL, size="1M")) == {}
    assert host.holds() == MODEL


@pytest.mark.parametrize(
    ("module", "name", "before"),
    [
        (file_set, "set_attributes", True),
        (file_set, "set_attributes", False),
        (record, "write", True),
        (record, "write", False),
        (os, "sync", True),
        (os, "sync", False),
    ],
)
def test_an_interruption_of_the_last_step_keeps_the_download(
    host: Host, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, before: bool
) -> None:
    real = getattr(module, name)

    def interrupt(*args: Any, **more: Any) -> None:
        if not before:
            real(*args, **more)
        raise RuntimeError("killed")

    declared = declare(host, MODEL, size="1M")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupt)
        assert "killed" in host.settle(declared)["pets"]
    assert not host.tree.exists()
    requested(host)
    assert host.settle(declared) == {}
    assert (host.holds(), requested(host)) == (MODEL, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_files_that_have_their_owner_already_are_continued(host: Host) -> None:
    declared = declare(host, MODEL, size="1M")
    del host.server.files["/hub/tokenizer/vocab.json"]
    assert "answered 404" in host.settle(declared)["pets"]
    stored = host.data / FILES
    for path in (stored, stored / "config.json"):
        os.chown(path, 65534, 65534)
        path.chmod(0o770)
    requested(host)
    assert host.settle(declare(host, MODEL, size="1M")) == {}
    assert requested(host) == ["/hub/tokenizer/vocab.json"]
    modes = {path.stat().st_mode & 0o7777 for path in host.tree.rglob("*[n|s]")}
    assert ({path.stat().st_uid for path in host.tree.rglob("*")}, modes) == ({0}, {0o644})


def test_files_of_an_older_declaration_are_deleted_first(host: Host) -> None:
    older = {"tokenizer": b"a file", "config.json/x": b"in a folder", "old/one": b"x"}
    declared = declare(host, {**older, "z": b""}, size="1M")
    del host.server.files["/hub/z"]
    assert "answered 404" in host.settle(declared)["pets"]
    assert (host.data / FILES / "old/one").exists()
    assert host.settle(declare(host, MODEL, size="1M")) == {}
    assert host.holds() == MODEL
    assert not (host.tree / "old").exists()


def test_files_of_an_older_declaration_make_room_for_an_archive(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = declare(host, {**MODEL, "z": b""}, size="1M")
    del host.server.files["/hub/z"]
    assert "answered 404" in host.settle(declared)["pets"]
    left: list[bool] = []
    fetch = download.fetch

    def look_and_fetch(*words: Any) -> None:
        left.append((host.data / FILES).exists())
        fetch(*words)

    monkeypatch.setattr(download, "fetch", look_and_fetch)
    assert host.settle(host.pets(tar({"pets/new": b""}))) == {}
    assert left == [False]


def test_an_old_file_makes_room_for_the_new_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"model": os.urandom(100_000), "z": b""}
    declared = declare(host, content)
    del host.server.files["/hub/z"]
    assert "answered 404" in host.settle({**declared, "size": "1M"})["pets"]
    newer = declare(host, {**content, "model": os.urandom(100_001)})

    def free(_folder: int | str) -> int:
        used = sum(path.stat().st_size for path in host.data.rglob("*") if path.is_file())
        return 150_000 - used

    monkeypatch.setattr(disk, "free_bytes", free)
    assert host.settle(newer) == {}


@pytest.mark.parametrize("owner", [0, 65534])
@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_a_folder_of_the_host_is_copied_once_and_nothing_is_kept_of_the_url(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    declared = declare(host, {"model": bytes(100_000)}, size="1M")
    host.server.cut_after, host.server.left = 90_000, 1
    assert "model was interrupted after 90.0 kB" in host.settle(declared)["pets"]
    folder = tmp_path / "usb"
    folder.mkdir()
    (folder / "model").write_bytes(bytes(100_000))
    os.chown(folder / "model", owner, owner)
    most: list[int] = []
    write = record.write

    def free(_folder: int | str) -> int:
        used = sum(path.stat().st_size for path in host.data.rglob("*") if path.is_file())
        most.append(used)
        return 150_000 - used

    monkeypatch.setattr(disk, "free_bytes", free)
    monkeypatch.setattr(record, "write", lambda *args: (free(""), write(*args)))
    assert host.settle({**declared, "url": "", "path": str(folder), "size": ""}) == {}
    assert host.holds() == {"model": bytes(100_000)}
    assert max(most) == 100_000


def test_a_server_that_sends_more_than_the_declared_size_is_stopped(host: Host) -> None:
    declared = declare(host, {"model": bytes(70_000_000)}, size="1M")
    assert "its declared size is 1.0 MB" in host.settle(declared)["pets"]


def test_only_a_missing_file_is_restored(host: Host) -> None:
    declared = declare(host, MODEL)
    assert host.settle(declared) == {}
    (host.tree / "config.json").unlink()
    (host.tree / "notes").write_text("mine")
    requested(host)
    assert host.settle(declared) == {}
    assert requested(host) == ["/hub/config.json"]
    assert host.holds() == {**MODEL, "notes": b"mine"}


def test_another_version_replaces_the_folder_but_nothing_of_people(host: Host) -> None:
    assert host.settle(declare(host, MODEL)) == {}
    newer = {"config.json": b"{1}", "other": b"x"}
    (host.tree / "notes").write_text("mine")
    assert "(notes)" in host.settle(declare(host, newer))["pets"]
    (host.tree / "notes").unlink()
    assert host.settle(declare(host, newer)) == {}
    assert host.holds() == newer
    assert host.settle({**declare(host, newer), "state": "absent"}) == {}
    assert not host.tree.exists()


def test_files_of_a_folder_of_the_host_are_copied(host: Host, tmp_path: Path) -> None:
    folder = tmp_path / "usb"
    for name, data in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "not wanted").touch()
    declared = {**declare(host, MODEL), "url": "", "path": str(folder)}
    assert host.settle(declared) == {}
    assert (host.holds(), requested(host)) == (MODEL, [])
    assert (folder / "config.json").read_bytes() == b"{}"
    (folder / "config.json").unlink()
    (host.tree / "config.json").unlink()
    assert f"cannot read {folder}/config.json" in host.settle(declared)["pets"]


def test_a_disk_without_space_is_refused_before_the_download(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 100_000)
    assert "expected 100.0 kB" in host.settle(declare(host, MODEL))["pets"]


SUM = sha256(b"")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"files": {"a": ""}}, "a has no checksum; expected one, such as sha256:DIGITS"),
        ({"files": {}}, "files is {}; expected at least one file"),
        ({"files": {"x/" + "ä" * 128: SUM}}, "invalid name 'x/ä"),
        ({"files": {"abc/" * 256 + "d": SUM}}, "invalid name 'abc/"),
        ({"files": {"a": "sha256:12"}}, "a: checksum is 'sha256:12'"),
        ({"files": {"/a": SUM}}, "invalid name '/a'"),
        ({"files": {"../a": SUM}}, "invalid name '../a'"),
        ({"files": {"a/../b": SUM}}, "invalid name 'a/../b'"),
        ({"files": {"a/": SUM}}, "invalid name 'a/'"),
        ({"files": {".": SUM}}, "invalid name '.'"),
        ({"files": {".slipway/record.json": SUM}}, "invalid name '.slipway/record.json'"),
        ({"files": {"a\n": SUM}}, "invalid name"),
        ({"files": {"a": SUM, "a/b": SUM}}, "invalid name 'a/b'"),
        ({"checksum": SUM}, "files is set together with checksum"),
        ({"strip": 1}, "files is set together with checksum, strip or unpack"),
        ({"unpack": False}, "files is set together with checksum"),
        ({"files": ["a"]}, "files is \\['a'\\]; expected at least one file"),
        ({"files": {"\ud800": SUM}}, "invalid name"),
        ({"url": "https://hub.example.org/x?a=b"}, "contains \\? or #"),
    ],
)
def test_declarations_that_cannot_be_applied(host: Host, changes: dict[str, Any], why: str) -> None:
    declared = {"name": "pets", "url": "https://hub.example.org/x", "files": {"a": SUM}, **changes}
    with pytest.raises(DataError, match=why):
        host.plan(declared)


def test_the_offer_of_an_optional_model_is_its_first_file(host: Host) -> None:
    planned = host.plan(declare(host, {"a b": b"", "c": b""}, optional=True))
    assert planned["owned"]["datasets"][0]["offer"][1] == host.server.url("/hub/a%20b")
