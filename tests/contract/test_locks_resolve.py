# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every lock can be installed on each architecture with each Python of the bases.

Asks the package index; nothing is downloaded or installed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images import template_variables
from ansible_collections.slipway.host.plugins.module_utils.images.architectures import ARCHITECTURES
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.module_utils.images.types import VARIANTS, lock_file

from tests.contract.tree import ROOT
from tools import lock_images

IMAGES = ROOT / "images"
CATALOGUE = load_catalogue(IMAGES)
# The C library of Debian 11 and of newer bases.
PLATFORM = "manylinux_2_28"
PYTHONS = sorted(
    {
        base.python.version
        for base in CATALOGUE.bases.values()
        if base.python
        and tuple(map(int, base.python.version.split("."))) >= template_variables.OLDEST_PYTHON
    }
)


def locks() -> Iterator[tuple[Path, str]]:
    """Yield each lock with the architectures it is for."""
    found: dict[Path, set[str]] = {}
    for image in CATALOGUE.images.values():
        for variant in set(VARIANTS) & set(image.settings["variants"]):
            build = CATALOGUE.builds([image.name], variant)[-1]
            built_for = set(ARCHITECTURES) - set(build.unavailable)
            for name in (image.requirements_file(variant), image.build_requirements_file):
                if name:
                    found.setdefault(image.folder / lock_file(name), set()).update(built_for)
    for file in sorted((IMAGES / "_shared").glob("*.lock")):
        found[file] = set(ARCHITECTURES)
    yield from ((file, machine) for file, built_for in found.items() for machine in built_for)


CASES = [
    pytest.param(file, machine, python, id=f"{file.relative_to(IMAGES)}-{machine}-{python}")
    for (file, machine), python in product(sorted(locks()), PYTHONS)
]


@pytest.mark.parametrize(("file", "machine", "python"), CASES)
def test_a_lock_has_a_wheel_of_each_package(
    file: Path, machine: str, python: str, tmp_path: Path
) -> None:
    completed = subprocess.run(
        [
            *("uv", "pip", "install", "--dry-run", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", python, "--target", str(tmp_path)),
            *("--python-platform", f"{machine}-{PLATFORM}", "--requirements", str(file)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            "UV_NO_CONFIG": "1",
            "UV_SYSTEM_CERTS": "1",
            **lock_images.index_variables(),
            **os.environ,
        },
    )
    assert completed.returncode == 0, completed.stderr


def test_locks_are_checked_for_each_architecture() -> None:
    checked = {case.values[1] for case in CASES}
    assert checked == set(ARCHITECTURES)
    assert len(CASES) > 60
