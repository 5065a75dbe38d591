# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Smoke tests that passed are recorded with their system, and site does not repeat them."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import verify
from ansible_collections.slipway.host.plugins.module_utils.images import record, tested_system
from ansible_collections.slipway.host.plugins.module_utils.state import containers

IMAGE, IDENTITY = "slipway/a:cpu", "sha256:a"
NAMES = ("daemon.json", "program", "none")
CONTENT = record.Content(IDENTITY, {}, None)


class System:
    """A host's files, its engine's version, and the log of its smoke tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version: Any = {"Version": "28.1", "KernelVersion": "6.1"}
        (folder / "cdi").mkdir()
        (folder / "gpus").mkdir()
        (folder / "cdi" / "nvidia.yaml").write_text("one")
        (folder / "daemon.json").write_text("{}")
        (folder / "program").write_text("1")

    def ask_engine(self, path: str) -> Any:
        assert path == "/version"
        if isinstance(self.version, Exception):
            raise self.version
        return self.version

    def tests(self) -> int:
        log = self.folder / "log"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Callable[[str, str], None]
) -> System:
    made = System(tmp_path)
    program(
        "docker", f"echo $* >>{tmp_path}/log; exit $(cat {tmp_path}/status 2>/dev/null || echo 0)"
    )
    monkeypatch.setattr(tested_system, "FILES", tuple(str(tmp_path / name) for name in NAMES))
    monkeypatch.setattr(tested_system, "FOLDERS", (str(tmp_path / "cdi"), str(tmp_path / "none")))
    monkeypatch.setattr(tested_system, "GPUS", str(tmp_path / "gpus"))
    monkeypatch.setattr(containers, "ask_engine", made.ask_engine)
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(labels, "BUILD_LOCK", str(tmp_path / "build.lock"))
    return made


def check(**options: Any) -> str:
    """Return the result of the check of the image at the end of a run."""
    return verify._check_image(IMAGE, IDENTITY, ["true"], verify.Options(**options))


def written() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(containers.image_record_path(IMAGE)).read_text())
    return content


CHANGES: dict[str, Callable[[System], Any]] = {
    "another engine": lambda system: system.version.update(Version="29.0"),
    "another kernel": lambda system: system.version.update(KernelVersion="6.2"),
    "settings of the engine": lambda system: (system.folder / "daemon.json").write_text("{} "),
    "no settings": lambda system: (system.folder / "daemon.json").unlink(),
    "another CDI specification": lambda system: (system.folder / "cdi" / "nvidia.yaml").write_text(
        "two"
    ),
    "one more CDI specification": lambda system: (system.folder / "cdi" / "b.yaml").write_text(""),
    "another GPU": lambda system: (system.folder / "gpus" / "0000:01:00.0").mkdir(),
    "another version of a program": lambda system: (system.folder / "program").write_text("2"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_smoke_test_is_repeated_once_on_a_changed_system(
    system: System, change: Callable[[System], Any]
) -> None:
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    assert "passed earlier" in check()
    assert system.tests() == 0
    change(system)
    assert "passed in" in check()
    assert "passed earlier" in check()
    assert system.tests() == 1
    assert written()["origin"] == record.BUILT


def test_verify_repeats_every_smoke_test(system: System) -> None:
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    assert "passed in" in check(repeat_smoke=True)
    assert system.tests() == 1


def test_other_content_is_tested_and_not_noted(system: System) -> None:
    other = record.Content("sha256:b", {}, None)
    record.write_record(IMAGE, other, "digest", record.BUILT)
    before = written()
    assert "passed in" in check()
    assert written() == before


def test_a_failed_smoke_test_is_not_noted(system: System) -> None:
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    system.version["Version"] = "29.0"
    (system.folder / "status").write_text("1")
    for _time in range(2):
        with pytest.raises(ValueError, match="exit status 1"):
            check()


def test_an_engine_that_is_silent_proves_nothing(system: System) -> None:
    system.version = ConnectionRefusedError()
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    assert tested_system.digest() == ""
    assert "passed in" in check()
    assert "passed in" in check()


def test_a_record_of_an_old_version_is_tested_once(system: System) -> None:
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    old = {key: value for key, value in written().items() if key != record.TESTED_WITH}
    Path(containers.image_record_path(IMAGE)).write_text(json.dumps(old))
    assert "passed in" in check()
    assert "passed earlier" in check()


def test_nothing_is_noted_in_check_mode_or_during_a_build(system: System) -> None:
    record.write_record(IMAGE, CONTENT, "digest", record.BUILT)
    system.version["Version"] = "29.0"
    before = written()
    check(note_tests=False)
    with (system.folder / "build.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        check()
    assert written() == before
