# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that list Python packages: what a lock can contain, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images.requirements import (
    required_packages,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import CatalogueError


def test_packages_are_listed_with_those_of_included_files(tmp_path: Path) -> None:
    (tmp_path / "common.in").write_text("numpy\n", encoding="utf-8")
    file = tmp_path / "python.in"
    file.write_text(
        "-r common.in\n# why\n\nScikit_Learn>=1  # comment\ntensorflow[and-cuda]\n"
        "xgboost ; python_version < '3.12'\nsetuptools <82, !=80 ; x\na (>=1)\nruamel.yaml\n",
        encoding="utf-8",
    )
    assert list(required_packages(file)) == [
        *("numpy", "scikit-learn", "tensorflow", "xgboost", "setuptools", "a", "ruamel-yaml"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("-e .", "--editable .", ".", "./package", "/srv/package", "../x", "package/", "a/b"),
        *("x.whl", "x-1.0-py3-none-any.whl", "x-1.0.tar.gz", "https://x.test/x.whl"),
        *("git+https://x.test/x.git", "x @ https://x.test/x.whl", "x@file:///srv/x", "x[a] @ /x"),
        *("--index-url https://x.test/", "-i https://x.test/", "-f /srv", "--hash=sha256:00"),
        *("-c constraints.txt", "-r missing.in", "-r python.in", "-r other.in", "x y", "x \\"),
        *("$HOME/x", "~/x", "{{ x }}", "\\\\server\\x"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "python.in"
    (tmp_path / "other.in").write_text("-r python.in\n", encoding="utf-8")
    file.write_text(f"numpy\n{line}\n", encoding="utf-8")
    with pytest.raises(CatalogueError) as caught:
        list(required_packages(file))
    name = "other.in:1" if line == "-r other.in" else "python.in:2"
    assert str(caught.value).startswith(f"{tmp_path}/{name}: ")
    assert "; expected " in str(caught.value) or ": expected " in str(caught.value)


def test_a_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "python.in").write_bytes(b"numpy  # f\xfcr\n")
    with pytest.raises(CatalogueError, match=r"python\.in: cannot read the file"):
        list(required_packages(tmp_path / "python.in"))
