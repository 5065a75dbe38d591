# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images of throwaway hosts as files: saved, in a bundle, and loaded for a demo."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lab.bases import base_named, image_tag
from lab.engine import Engine
from lab.errors import LabError
from lab.hosts import Group
from lab.saved_bases import load_base, save_bases
from tests.unit.fake_docker import Container, FakeDocker
from tools import bundle, bundle_contents, with_bundle

TAGS = [image_tag(base_named(name)) for name in ("debian-13", "ubuntu-like-24.04")]
NAMES = [tag.partition(":")[2] for tag in TAGS]


@pytest.fixture
def machine() -> FakeDocker:
    return FakeDocker()


@pytest.fixture
def group(machine: FakeDocker, tmp_path: Path) -> Group:
    return Group("demo", tmp_path / "hosts", Engine(machine, tmp_path / "run"))


def add_host(machine: FakeDocker, group: Group, name: str, tag: str, of: str = "demo") -> None:
    labels = {"slipway.group": of, "slipway.state": str(group.state.path)}
    machine.containers[name] = Container(name, tag, labels, "172.17.0.2")


def test_each_base_of_a_group_is_saved_once(
    machine: FakeDocker, group: Group, tmp_path: Path
) -> None:
    for name, tag in (("a", TAGS[0]), ("b", TAGS[0]), ("c", TAGS[1])):
        add_host(machine, group, name, tag)
    add_host(machine, group, "d", "slipway-base:other", of="tests")
    saved = save_bases(group, tmp_path / "bases")
    assert {file.name: file.read_text() for file in saved} == dict(zip(NAMES, TAGS, strict=True))


@pytest.mark.parametrize("answers", [True, False])
def test_a_group_without_hosts_has_no_base(
    machine: FakeDocker, group: Group, tmp_path: Path, answers: bool
) -> None:
    machine.answers = answers
    with pytest.raises(LabError, match="no host; expected at least one"):
        save_bases(group, tmp_path / "bases")


def test_a_base_is_loaded_once(machine: FakeDocker, group: Group) -> None:
    def write(path: Path) -> None:
        path.write_text(TAGS[0])

    for _time in range(2):
        load_base(group.engine, NAMES[0], write)
    assert machine.how_often("docker", "image", "load") == 1
    with pytest.raises(LabError, match=f"has another image; expected {TAGS[1]}"):
        load_base(group.engine, NAMES[1], write)


def test_a_demo_loads_the_bases_of_its_bundle(
    machine: FakeDocker,
    group: Group,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(bundle_contents, "download_wheels", lambda *_: [])
    monkeypatch.setattr(bundle_contents, "download_collections", lambda _: Path(__file__))
    monkeypatch.setattr(bundle, "Group", lambda _: group)
    made = tmp_path / "demo.tar"
    assert bundle.main([str(made), "--demo"]) == 1
    assert re.search(r"bundle: .*no host; expected", capsys.readouterr().err)
    add_host(machine, group, "a", TAGS[0])
    assert bundle.main([str(made), "--demo"]) == 0
    second = tmp_path / "second.tar"
    assert bundle.main([str(second), "--demo", "--since", str(made)]) == 0

    other, started = FakeDocker(), []
    monkeypatch.setattr(with_bundle, "Engine", lambda: Engine(other, tmp_path / "run"))
    monkeypatch.setattr(os, "execv", lambda _name, words: started.append(words[1:-2]))
    for words in (["--check"], ["--destroy"]):
        with_bundle.main(["demo", "--bundle", str(second), *words])
    with_bundle.main(["site", "--bundle", str(second)])
    assert other.ran == []
    with_bundle.main(["demo", "--bundle", str(second), "--hosts", "2"])
    assert [*other.images] == TAGS[:1] and started[-1] == ["demo", "--hosts", "2"]
    other.images, other.failing = {}, {"image load": "no space left on device"}
    with pytest.raises(SystemExit, match=r"(?s)demo: .*image load.*no space left"):
        with_bundle.main(["demo", "--bundle", str(made)])
