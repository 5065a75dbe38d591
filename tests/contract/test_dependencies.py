# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned collections and Python packages are what the environment holds."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tomllib  # type: ignore[import-not-found] # mypy looks with the oldest host's eyes
from packaging.requirements import Requirement
from packaging.version import Version

from tests.contract.tree import ROOT, load, text
from tools import install_collections

COLLECTIONS = load(ROOT / "requirements.yml")["collections"]
PROJECT: dict[str, Any] = tomllib.loads(text(ROOT / "pyproject.toml"))
DECLARED = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]


def locked() -> dict[str, list[str]]:
    """Return package to the versions that requirements.lock holds, for this and other Pythons."""
    found: dict[str, list[str]] = {}
    for package, version in re.findall(
        r"^([\w.-]+)==([^\s;]+)", text(ROOT / "requirements.lock"), flags=re.M
    ):
        found.setdefault(package, []).append(version)
    return found


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda entry: entry["name"])
def test_the_installed_collections_are_the_pinned_ones(collection: dict[str, str]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", collection["version"]), "an exact version"
    installed = install_collections.installed_version(
        ROOT / ".slipway/collections", collection["name"]
    )
    assert installed == collection["version"]


def test_a_collection_of_another_version_is_noticed(tmp_path: Path) -> None:
    assert install_collections.installed_version(tmp_path, "community.docker") is None
    manifest = tmp_path / "ansible_collections/community/docker/MANIFEST.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"collection_info": {"version": "0.0.1"}}')
    assert install_collections.installed_version(tmp_path, "community.docker") == "0.0.1"
    manifest.write_text("{")
    assert install_collections.installed_version(tmp_path, "community.docker") is None


@pytest.mark.parametrize("declared", DECLARED)
def test_every_declared_package_is_locked_in_a_version_that_serves(declared: str) -> None:
    requirement = Requirement(declared)
    versions = locked().get(requirement.name, [])
    assert versions, "not locked: ./slipway run tools/lock.sh"
    assert all(Version(version) in requirement.specifier for version in versions)


@pytest.mark.parametrize("declared", DECLARED)
def test_the_environment_holds_a_locked_version(declared: str) -> None:
    requirement = Requirement(declared)
    assert metadata.version(requirement.name) in locked()[requirement.name]
