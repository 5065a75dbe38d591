# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of images: saving, loading, and the tags of loaded images."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import archive as images_archive
from ansible_collections.slipway.host.plugins.module_utils.images import record
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.modules import image_archive

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="writes root's files")

TOOL, OTHER = "slipway/tool:cpu", "slipway/other:cpu"
# $ENGINE/tags.json maps tags to content IDs, $ENGINE/images.json content IDs to labels. An archive
# contains both for its tags. A smoke test fails for the IDs in $ENGINE/broken.
DOCKER = """#!{python} -IS
import json, os, sys
engine = os.environ["ENGINE"]
words = sys.argv[1:]
def read(name):
    return json.load(open(engine + "/" + name))
tags, images = read("tags.json"), read("images.json")
def keep():
    json.dump(tags, open(engine + "/tags.json", "w"))
    json.dump(images, open(engine + "/images.json", "w"))
identity = tags.get(words[-1], words[-1])
if words[:2] == ["image", "inspect"]:
    if identity not in images:
        sys.exit("Error: No such image: " + words[-1])
    content = {{"Id": identity, "Created": "2026-01-01T00:00:00Z"}}
    print(json.dumps([{{**content, "Config": {{"Labels": images[identity]}}}}]))
elif words[0] == "save":
    if os.path.exists(engine + "/full"):
        sys.exit("no space left on device")
    saved = {{tag: tags[tag] for tag in words[1:]}}
    print(json.dumps([saved, {{one: images[one] for one in saved.values()}}]))
elif words[0] == "load":
    loaded = json.load(sys.stdin)
    tags.update(loaded[0])
    images.update(loaded[1])
    keep()
elif words[0] == "tag":
    tags[words[2]] = tags.get(words[1], words[1])
    keep()
elif words[:2] == ["image", "rm"]:
    tags.pop(words[-1], None)
    keep()
elif words[0] == "run":
    with open(engine + "/tested", "a") as log:
        log.write(json.dumps([words[words.index("--entrypoint") + 2], tags]) + "\\n")
    sys.exit(words[words.index("--entrypoint") + 2] in read("broken"))
"""


class Engine:
    """A host with a stand-in engine and records of images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "team" / "images.tar"
        self.break_images()

    def set_image(self, reference: str, identity: str, **image_labels: str) -> None:
        """Set the content of an image of the catalogue."""
        smoke = json.dumps(["/opt/slipway/start", "sh", "/opt/slipway/smoke.sh"])
        known = {labels.DIGEST: "d", labels.SMOKE: smoke, **image_labels}
        self.write("tags", {**self.read("tags"), reference: identity})
        self.write("images", {**self.read("images"), identity: known})

    def record(self, reference: str, identity: str) -> None:
        content = record.Content(identity, {labels.DIGEST: "d"}, None)
        record.write_record(reference, content, "d", record.BUILT)

    def break_images(self, *identities: str) -> None:
        """Make the smoke tests of these images fail."""
        self.write("broken", list(identities))

    def forget(self) -> None:
        """Remove all images and records, as on another host."""
        self.write("tags", {})
        self.write("images", {})
        for file in Path(containers.IMAGE_RECORDS).glob("*"):
            file.unlink()

    def read(self, name: str) -> Any:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def write(self, name: str, content: Any) -> None:
        path = self.folder / (name if name == "broken" else f"{name}.json")
        path.write_text(json.dumps(content))

    def tested(self) -> list[Any]:
        """Return the content ID and the tags at the time of each smoke test."""
        log = self.folder / "tested"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    (tmp_path / "docker").write_text(DOCKER.format(python=sys.executable))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE", str(tmp_path))
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(labels, "BUILD_LOCK", str(tmp_path / "build.lock"))
    engine = Engine(tmp_path)
    for reference, identity in ((TOOL, "sha256:1"), (OTHER, "sha256:2")):
        engine.set_image(reference, identity)
        engine.record(reference, identity)
    return engine


@pytest.fixture
def save(run_module: RunModule, engine: Engine) -> Any:
    def run(*references: str, check: bool = False) -> dict[str, Any]:
        path = str(engine.archive)
        return run_module(image_archive, check=check, path=path, references=list(references))

    return run


@pytest.fixture
def load(run_module: RunModule, engine: Engine) -> Any:
    def run(check: bool = False) -> dict[str, Any]:
        return run_module(image_archive, check=check, path=str(engine.archive), state="loaded")

    return run


def test_an_archive_and_its_record_are_readable_by_root_only(engine: Engine, save: Any) -> None:
    assert save(TOOL, OTHER, check=True)["changed"]
    assert not engine.archive.parent.exists()
    assert save(TOOL, OTHER)["changed"]
    names = ["images.tar", "images.tar.json"]
    assert sorted(file.name for file in engine.archive.parent.iterdir()) == names
    assert {file.stat().st_mode & 0o7777 for file in engine.archive.parent.iterdir()} == {0o600}
    written = images_archive.read_archive_record(str(engine.archive))
    assert written["images"] == {TOOL: "d", OTHER: "d"}


def test_a_failed_save_keeps_the_old_archive(engine: Engine, save: Any) -> None:
    engine.archive.parent.mkdir()
    engine.archive.write_text("old")
    (engine.folder / "full").touch()
    done = save(TOOL)
    assert done["failed"] and "docker save failed: no space left on device" in done["msg"]
    assert [path.read_text() for path in engine.archive.parent.iterdir()] == ["old"]


def test_a_link_in_the_path_is_not_followed(engine: Engine, save: Any) -> None:
    other = engine.folder / "other"
    other.mkdir()
    engine.archive.parent.symlink_to(other)
    done = save(TOOL)
    assert done["failed"] and f"found a symbolic link to {other}, owned by root" in done["msg"]
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(
    ("tag", "words"),
    [(TOOL, "content 3 is not recorded on this host"), ("slipway/x:cpu", "is not on the host")],
)
def test_only_recorded_content_is_saved(engine: Engine, save: Any, tag: str, words: str) -> None:
    engine.set_image(TOOL, "sha256:3")
    done = save(tag)
    assert done["failed"] and words in done["msg"]
    assert not engine.archive.exists()


def test_images_are_loaded_tested_and_recorded_once(engine: Engine, save: Any, load: Any) -> None:
    save(TOOL, OTHER)
    engine.forget()
    assert load(check=True)["loaded"] == [TOOL, OTHER]
    assert engine.read("tags") == {}
    assert load()["loaded"] == [TOOL, OTHER]
    assert engine.read("tags") == {TOOL: "sha256:1", OTHER: "sha256:2"}
    # No tag of a service or user had moved before the test.
    assert all(TOOL not in tags for _identity, tags in engine.tested()[:1])
    assert containers.read_image_record(OTHER)["origin"] == "loaded"
    assert not load()["changed"]
    assert len(engine.tested()) == 2


def test_an_image_that_fails_its_test_does_not_move_the_tag(
    engine: Engine, save: Any, load: Any
) -> None:
    save(TOOL, OTHER)
    engine.forget()
    engine.set_image(TOOL, "sha256:0")
    engine.break_images("sha256:1")
    done = load()
    assert done["failed"] and f"{TOOL}: exit status 1" in done["msg"]
    assert engine.read("tags") == {TOOL: "sha256:0", OTHER: "sha256:2"}
    assert containers.read_image_record(TOOL) == {"time": 0}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda engine: engine.archive.write_text("other"), "SHA-256"),
        (lambda engine: record_of(engine).unlink(), "Copy both files"),
        (lambda engine: record_of(engine).write_text("[]"), "is not the record of an archive"),
        (lambda engine: record_of(engine).write_text("{"), "is not the record of an archive"),
        (
            lambda engine: record_of(engine).write_text('{"archive": "a", "images": []}'),
            "is not the record of an archive",
        ),
        (lambda engine: engine.archive.unlink(), "No such file"),
    ],
    ids=["other content", "no record", "a list", "no JSON", "no images", "no archive"],
)
def test_an_archive_that_differs_from_its_record_is_an_error(
    engine: Engine, save: Any, load: Any, damage: Any, words: str
) -> None:
    save(TOOL)
    engine.forget()
    damage(engine)
    done = load()
    assert done["failed"] and words in done["msg"]
    assert engine.read("tags") == {} and not engine.tested()


def test_an_image_of_another_context_than_in_the_record_is_an_error(
    engine: Engine, save: Any, load: Any
) -> None:
    save(TOOL)
    engine.forget()
    text = record_of(engine).read_text().replace('"d"', '"e"')
    record_of(engine).write_text(text)
    done = load()
    assert done["failed"] and "context digest in the archive: d; expected e" in done["msg"]
    assert engine.read("tags") == {}


def record_of(engine: Engine) -> Path:
    return Path(images_archive.record_path(str(engine.archive)))
