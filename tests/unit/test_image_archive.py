# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of images are written whole or not at all, and through no link."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.modules import image_archive

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="writes root's files")


@pytest.fixture
def archive(tmp_path: Path, program: Callable[[str, str], None]) -> Path:
    program("docker", 'test "$2" != broken || { echo "no such image" >&2; exit 1; }; echo "$@"')
    return tmp_path / "team" / "images.tar"


def test_an_archive_is_written_for_root_alone(run_module: RunModule, archive: Path) -> None:
    path, tags = str(archive), ["a:cpu", "b:cpu"]
    assert run_module(image_archive, check=True, path=path, references=tags)["changed"]
    assert not archive.parent.exists()
    assert run_module(image_archive, path=path, references=tags)["changed"]
    assert archive.read_text() == "save a:cpu b:cpu\n"
    assert archive.stat().st_mode & 0o7777 == 0o600


def test_a_failure_leaves_the_old_archive(run_module: RunModule, archive: Path) -> None:
    archive.parent.mkdir()
    archive.write_text("old")
    done = run_module(image_archive, path=str(archive), references=["broken"])
    assert done["failed"] and "docker save failed: no such image" in done["msg"]
    assert [path.read_text() for path in archive.parent.iterdir()] == ["old"]


def test_a_link_on_the_way_is_not_followed(run_module: RunModule, archive: Path) -> None:
    other = archive.parent.with_name("other")
    other.mkdir()
    archive.parent.symlink_to(other)
    done = run_module(image_archive, path=str(archive), references=["a:cpu"])
    assert done["failed"] and f"found a symbolic link to {other}, owned by root" in done["msg"]
    assert list(other.iterdir()) == []
