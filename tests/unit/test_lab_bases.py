# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images of throwaway hosts: keys, builds and removals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lab import base_images, bases
from lab.base_images import ensure_base, purge_bases
from lab.bases import BASES, Base, base_named, content_key, image_tag
from lab.commands import Completed
from lab.engine import Engine
from lab.errors import BaseUnavailableError, LabError
from tests.unit.fake_docker import FakeDocker

DEBIAN, UBUNTU, LIKE = (
    base_named(name) for name in ("debian-13", "ubuntu-24.04", "ubuntu-like-24.04")
)


@pytest.fixture
def machine() -> FakeDocker:
    return FakeDocker()


@pytest.fixture
def engine(machine: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(base_images, "DEBIAN_KEYRING", Path("/"))
    return Engine(machine, tmp_path)


def test_every_base_has_exactly_one_source() -> None:
    for base in BASES.values():
        assert [bool(base.suite), bool(base.image), bool(base.parent)].count(True) == 1, base.name


def test_unknown_base_is_an_error_that_lists_the_bases() -> None:
    with pytest.raises(LabError, match=r"unknown base 'debian-99'; expected one of debian-13, "):
        base_named("debian-99")


def test_different_recipes_have_different_keys() -> None:
    keys = {content_key(base) for base in BASES.values()}
    assert len(keys) == len(BASES)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(dataclasses.replace(DEBIAN, suite="forky"), id="suite"),
        pytest.param(dataclasses.replace(DEBIAN, script=f"{DEBIAN.script}true\n"), id="script"),
        pytest.param(dataclasses.replace(DEBIAN, apt_options=("A::B 0;",)), id="apt-options"),
    ],
)
def test_key_changes_with_the_recipe(other: Base) -> None:
    assert content_key(other) != content_key(DEBIAN)


def test_key_changes_with_the_packages_and_with_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = content_key(DEBIAN), content_key(LIKE)
    changed = dataclasses.replace(DEBIAN, script="true")
    with monkeypatch.context() as patch:
        patch.setattr(bases, "BASES", {**BASES, "debian-13": changed})
        assert content_key(LIKE) != before[1]
    monkeypatch.setattr(bases, "PACKAGES", (*bases.PACKAGES, "vim"))
    assert content_key(DEBIAN) != before[0]


def test_base_is_built_once(engine: Engine, machine: FakeDocker) -> None:
    assert ensure_base(engine, DEBIAN) == image_tag(DEBIAN)
    assert ensure_base(engine, DEBIAN) == image_tag(DEBIAN)
    assert machine.how_often("mmdebstrap") == 1
    assert machine.images == {image_tag(DEBIAN): {"slipway.base": "debian-13"}}
    assert machine.containers == {}


def test_parent_of_a_base_is_built(engine: Engine, machine: FakeDocker) -> None:
    ensure_base(engine, LIKE)
    ensure_base(engine, base_named("ubuntu-like-26.04"))
    assert machine.how_often("mmdebstrap") == 1
    assert image_tag(DEBIAN) in machine.images


def test_pulled_image_is_removed_after_the_build(engine: Engine, machine: FakeDocker) -> None:
    ensure_base(engine, UBUNTU)
    assert list(machine.images) == [image_tag(UBUNTU)]


def test_existing_image_is_kept(engine: Engine, machine: FakeDocker) -> None:
    machine.images[UBUNTU.image] = {}
    ensure_base(engine, UBUNTU)
    assert machine.how_often("docker", "pull") == 0
    assert UBUNTU.image in machine.images


def test_older_recipe_of_the_same_base_is_removed_when_unused(
    engine: Engine, machine: FakeDocker
) -> None:
    old = Base("debian-13", "an older script", suite="trixie")
    other = base_named("debian-12")
    for base in (old, other, DEBIAN):
        ensure_base(engine, base)
    assert set(machine.images) == {image_tag(other), image_tag(DEBIAN)}


def test_older_recipe_in_use_is_kept(engine: Engine, machine: FakeDocker) -> None:
    old = Base("debian-13", "an older script", suite="trixie")
    machine.run("docker", "run", "--name=host", ensure_base(engine, old))
    ensure_base(engine, DEBIAN)
    assert set(machine.images) == {image_tag(old), image_tag(DEBIAN)}


@pytest.mark.parametrize(
    ("base", "failing", "reason"),
    [
        pytest.param(
            DEBIAN,
            {"mmdebstrap": "E: Release file expired"},
            "cannot bootstrap the base debian-13 from Debian's packages: E: Release file expired",
            id="bootstrap",
        ),
        pytest.param(
            LIKE,
            {"mmdebstrap": "E: no network"},
            "cannot bootstrap the base debian-13",
            id="parent",
        ),
        pytest.param(
            UBUNTU,
            {"run sh": "E: 404"},
            "cannot set up the base ubuntu-24.04: .* E: 404",
            id="set-up",
        ),
    ],
)
def test_base_that_cannot_be_built_has_a_reason(
    engine: Engine, machine: FakeDocker, base: Base, failing: dict[str, str], reason: str
) -> None:
    machine.failing = failing
    with pytest.raises(BaseUnavailableError, match=reason):
        ensure_base(engine, base)
    assert image_tag(base) not in machine.images
    assert machine.containers == {}


@pytest.mark.parametrize(
    ("pull", "reason"),
    [
        (Completed(124, "", "no output after 10 s"), "no output after 10 s"),
        (Completed(1, "", "trying\nmanifest unknown\n"), "manifest unknown"),
        (Completed(1, "", ""), "no output"),
    ],
)
def test_image_that_cannot_be_pulled_has_a_reason(
    engine: Engine, machine: FakeDocker, pull: Completed, reason: str
) -> None:
    machine.pull = pull
    with pytest.raises(
        BaseUnavailableError,
        match=f"pull the image ubuntu:24.04 of the base ubuntu-24.04: {reason}",
    ):
        ensure_base(engine, UBUNTU)


def test_unstable_is_allowed_an_old_release_file(engine: Engine, machine: FakeDocker) -> None:
    ensure_base(engine, base_named("debian-sid"))
    (bootstrap,) = (argv for argv in machine.ran if argv[0] == "mmdebstrap")
    assert '--aptopt=Acquire::Check-Valid-Until "false";' in bootstrap


def test_purge_keeps_images_in_use(engine: Engine, machine: FakeDocker) -> None:
    machine.images["somebody-elses:1"] = {}
    machine.run("docker", "run", "--name=host", ensure_base(engine, DEBIAN))
    ensure_base(engine, LIKE)
    assert purge_bases(engine, dry_run=True)
    assert purge_bases(engine)
    assert set(machine.images) == {"somebody-elses:1", image_tag(DEBIAN)}
    assert not purge_bases(engine)


def test_purge_without_an_engine_starts_none(engine: Engine, machine: FakeDocker) -> None:
    machine.answers = False
    assert not purge_bases(engine)
