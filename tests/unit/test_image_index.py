# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache of the declared images of a host."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.module_utils.images import catalogue, index
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import (
    DeclarationError,
)

from tests.contract.tree import ROOT

Plan = Callable[[], list[index.Planned]]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a catalogue of one image, with a separate cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    ours = ("*.json", "bases.yml", "Dockerfile.j2", "_shared", "iris-api")
    for pattern in ours:
        for source in (ROOT / "images").glob(pattern):
            target = folder / source.name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                folder.mkdir(exist_ok=True)
                shutil.copy(source, target)
    return folder


@pytest.fixture
def plan(images: Path) -> Plan:
    """Return a function that plans as in a new process."""

    def ask() -> list[index.Planned]:
        index.fingerprint.cache_clear()
        return index.planned(str(images), ["iris-api"], "cpu", "debian-13", {})

    return ask


def entries(images: Path) -> list[Path]:
    return sorted((images.parent / "cache/slipway/catalogue").glob("*.json"))


def test_a_cached_result_equals_the_computed_result(
    images: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (build,) = catalogue.load_catalogue(images).builds(["iris-api"], "cpu", "debian-13")
    first = plan()
    assert (first[0].reference, first[0].digest) == (build.reference, build.digest)
    assert len(entries(images)) == 1
    # With a cache entry, the catalogue is not read.
    monkeypatch.delattr(catalogue, "load_catalogue")
    assert plan() == first


def test_a_warning_is_displayed_in_each_run(
    images: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = images / "iris-api" / "image.yml"
    text = declaration.read_text(encoding="utf-8")
    service = "services:\n  api:\n"
    assert service in text
    secret = "    secrets:\n      token: { variable: TOKEN_FILE }\n"
    declaration.write_text(text.replace(service, service + secret), encoding="utf-8")
    displayed: list[str] = []
    monkeypatch.setattr(Display, "warning", lambda _self, text: displayed.append(text))
    plan()
    plan()
    assert len(displayed) == 2 and displayed[0] == displayed[1]
    assert "services.api.secrets.token.variable is now named path_variable." in displayed[0]


def test_parallel_requests_compute_the_result_once(
    images: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = images.parent / "made"
    load = catalogue.load_catalogue

    def load_and_note(folder: Path) -> catalogue.Catalogue:
        with made.open("a") as notes:
            notes.write("once\n")
        return load(folder)

    monkeypatch.setattr(catalogue, "load_catalogue", load_and_note)
    workers = [multiprocessing.get_context("fork").Process(target=plan) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert made.read_text() == "once\n"


def test_a_changed_file_changes_the_cache_key(images: Path, plan: Plan) -> None:
    before = plan()[0].digest
    smoke = images / "iris-api/smoke.py"
    smoke.write_text(smoke.read_text() + "\n# changed\n")
    assert plan()[0].digest != before
    assert len(entries(images)) == 2


def test_an_executable_bit_changes_the_cache_key(images: Path, plan: Plan) -> None:
    plan()
    (images / "iris-api/smoke.py").chmod(0o755)
    plan()
    assert len(entries(images)) == 2


def test_a_broken_entry_is_computed_again(images: Path, plan: Plan) -> None:
    first = plan()
    for broken in ("", "{", "[]]", '[{"name": "x"}]'):
        entries(images)[0].write_text(broken)
        assert plan() == first


def test_a_cache_that_cannot_be_written_is_ignored(
    images: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.parent / "file"))
    assert plan()[0].reference == "slipway/iris-api:cpu"


def test_old_entries_are_removed(images: Path, plan: Plan) -> None:
    plan()
    (old,) = entries(images)
    os.utime(old, (0, time.time() - index.KEEP_SECONDS - 60))
    (images / "iris-api/smoke.py").chmod(0o755)
    plan()
    assert old not in entries(images)


def test_errors_of_the_catalogue_are_not_cached(images: Path) -> None:
    with pytest.raises(DeclarationError, match="unknown image 'irisapi'"):
        index.planned(str(images), ["irisapi"], "cpu", "debian-13", {})
    assert entries(images) == []
