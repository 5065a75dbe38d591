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
from ansible_collections.slipway.host.plugins.module_utils.images.architectures import ARCHITECTURES
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.module_utils.images.template_variables import (
    release,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import VARIANTS, lock_file

from tests.contract.tree import ROOT
from tools import lock_images

IMAGES = ROOT / "images"
CATALOGUE = load_catalogue(IMAGES)
# The C library of the base with this Python: Debian 12, Ubuntu 24.04, Debian 13. The last one has
# 2.41; uv knows none newer than 2.40.
PLATFORMS = {"3.11": "manylinux_2_36", "3.12": "manylinux_2_39", "3.13": "manylinux_2_40"}
PYTHONS = sorted({base.python.version for base in CATALOGUE.bases.values() if base.python})


def cases() -> Iterator[tuple[Path, str, str]]:
    """Yield each lock with the architectures and the releases of Python that it is for."""
    oldest = dict.fromkeys((IMAGES / "_shared").glob("*.lock"), lock_images.OLDEST_PYTHON)
    machines = {file: set(ARCHITECTURES) for file in oldest}
    for image in CATALOGUE.images.values():
        for variant in set(VARIANTS) & set(image.settings["variants"]):
            build = CATALOGUE.builds([image.name], variant)[-1]
            for name in (image.requirements_file(variant), image.build_requirements_file):
                if name:
                    file = image.folder / lock_file(name)
                    oldest[file] = image.settings["oldest_python"]
                    built_for = set(ARCHITECTURES) - set(build.unavailable)
                    machines.setdefault(file, set()).update(built_for)
    for file, python in product(sorted(oldest), PYTHONS):
        if release(python) >= release(oldest[file]):
            yield from ((file, machine, python) for machine in sorted(machines[file]))


CASES = [
    pytest.param(*case, id="-".join([str(case[0].relative_to(IMAGES)), *case[1:]]))
    for case in cases()
]


@pytest.mark.parametrize(("file", "machine", "python"), CASES)
def test_a_lock_has_a_wheel_of_each_package(
    file: Path, machine: str, python: str, tmp_path: Path
) -> None:
    completed = subprocess.run(
        [
            *("uv", "pip", "install", "--dry-run", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", python, "--target", str(tmp_path)),
            *("--python-platform", f"{machine}-{PLATFORMS[python]}", "--requirements", str(file)),
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
