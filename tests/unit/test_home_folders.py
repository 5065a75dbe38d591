# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Home folders that useradd and usermod must not be sent to. Needs root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.modules import home_folders

from tests.unit.conftest import RunModule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs folders that root trusts")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/lib") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_homes_below_roots_folders_are_accepted(run_module: RunModule, base: Path) -> None:
    (base / "there").mkdir()
    (base / "disk").symlink_to(base)
    homes = {"a": f"{base}/there", "b": f"{base}/new", "c": f"{base}/x/y/z", "d": f"{base}/disk/d"}
    done = run_module(home_folders, homes=homes)
    assert (done["changed"], done["users"], done["conflicts"]) == (False, [], [])


@pytest.mark.parametrize("name", ["team/a", "team/new/a", "link"])
def test_links_and_folders_of_others_are_refused(
    run_module: RunModule, base: Path, name: str
) -> None:
    (base / "team").mkdir()
    (base / "team").chmod(0o2775)
    (base / "link").symlink_to("/etc")
    done = run_module(home_folders, homes={"a": f"{base}/{name}", "b": f"{base}/b"})
    assert (done["users"], len(done["conflicts"])) == (["a"], 1)
    words = "a symbolic link to /etc" if name == "link" else "a parent folder that others can write"
    assert f"found {words}" in done["conflicts"][0]["reason"]
