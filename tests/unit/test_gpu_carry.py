# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine with a GPU and without a network gets, and the report that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu import carried_requirements, containers
from tests.gpu.conftest import summary

LOCK = carried_requirements.LOCK.read_text()


@pytest.mark.parametrize(
    ("version", "core"), [("3.11", "2.19."), ("3.12", "2.21."), ("3.14", "2.")]
)
def test_every_package_is_locked_once_for_each_python(version: str, core: str) -> None:
    lines = list(carried_requirements.lines(LOCK, version))
    assert {line.partition("==")[0] for line in lines} == carried_requirements.PACKAGES
    assert len(lines) == len(carried_requirements.PACKAGES)
    assert all(" --hash=sha256:" in line for line in lines)
    (ansible,) = (line for line in lines if line.startswith("ansible-core=="))
    assert ansible.startswith(f"ansible-core=={core}")


def test_the_summary_has_a_row_for_each_fact_and_test() -> None:
    result = {"outcome": "skipped", "reason": "long words\nno root", "seconds": 1.5}
    text = summary({"card": "H200", "report": {"left": "out"}}, {"test_x": result})
    assert "| card | H200 |" in text
    assert "| test_x | skipped | 1.5 | no root |" in text
    assert "left" not in text


def test_a_container_gets_the_driver_by_bind_mounts(tmp_path: Path) -> None:
    for name in ("libcuda.so.580.1", "libnvidia-ml.so.1", "libother.so.1"):
        (tmp_path / name).touch()
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.580.1")
    files = containers.driver_files(str(tmp_path / "libcuda.so.1"))
    assert files["/opt/driver/libcuda.so.1"] == str(tmp_path / "libcuda.so.580.1")
    assert sorted(files) == [
        "/opt/driver/libcuda.so.1",
        "/opt/driver/libcuda.so.580.1",
        "/opt/driver/libnvidia-ml.so.1",
    ]
    config = containers.oci_config(tmp_path, {**files, "/sys": "/sys"}, ["python3"])
    by_target = {mount["destination"]: mount for mount in config["mounts"]}
    assert by_target["/opt/driver/libcuda.so.1"]["options"] == ["bind"]
    assert by_target["/sys"]["options"] == ["rbind", "ro"]
    assert config["process"]["args"] == ["python3"]
    # Without capabilities the driver cannot create device files that were left out.
    assert "capabilities" not in config["process"]
