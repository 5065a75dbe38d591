# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ml doctor` names the first reason why a container does not see the GPUs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import doctor
from ansible_collections.slipway.host.plugins.module_utils.ml.engine import Docker
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.images import Image

VERSION = "580.95.05"
BANNER = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build"
SPECIFICATION = f"""
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  mounts:
  - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}
"""
GPU = "sys/bus/pci/devices/0000:3b:00.0"
LIBRARY = "usr/lib/x86_64-linux-gnu"


class FakeDocker(Docker):
    """An engine that answers with INFO."""

    def __init__(self) -> None:
        super().__init__("the lab's administrator")
        self.info: dict[str, Any] | MlError = {"CDISpecDirs": ["/etc/cdi"], "ServerVersion": "29"}

    def get(self, parse: Callable[[Any], Any], *paths: str) -> list[Any]:
        assert paths == ("/info",)
        if isinstance(self.info, MlError):
            raise self.info
        return [parse(self.info)]


@pytest.fixture
def docker() -> FakeDocker:
    return FakeDocker()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root folder of a healthy host with one GPU."""
    files = {
        f"{GPU}/vendor": "0x10de\n",
        f"{GPU}/class": "0x030200\n",
        "proc/driver/nvidia/version": BANNER,
        "sys/module/nvidia/version": f"{VERSION}\n",
        "dev/nvidia0": "",
        "dev/nvidiactl": "",
        "dev/nvidia-uvm": "",
        f"{LIBRARY}/libcuda.so.{VERSION}": "",
        f"{LIBRARY}/libcuda.so.1": "",
        "etc/cdi/nvidia.yaml": SPECIFICATION,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def examine(
    root: Path, docker: Docker, find_image: Callable[[], Image] | None = None
) -> list[doctor.Step]:
    return list(doctor.examine(doctor.Host(docker.contact, root), docker, find_image))


def image(variant: str) -> Image:
    return Image("x:1", "x", variant, "sha256:1", "", 1, "")


def test_a_healthy_host_passes_every_step(root: Path, docker: FakeDocker) -> None:
    steps = examine(root, docker, lambda: image("gpu"))
    assert [(step.subject, step.passed) for step in steps] == [
        ("GPUs", True),
        ("driver", True),
        ("device files", True),
        ("driver library", True),
        ("engine", True),
        ("CDI specification", True),
        ("image", True),
    ]


Change = Callable[[Path], None]


def write(name: str, text: str) -> Change:
    def change(root: Path) -> None:
        (root / name).write_text(text)

    return change


def remove(*names: str) -> Change:
    def change(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return change


def upgrade_library(root: Path) -> None:
    library = root / LIBRARY / f"libcuda.so.{VERSION}"
    library.rename(library.with_name("libcuda.so.595.58.03"))


def give_to_virtual_machine(root: Path) -> None:
    (root / GPU / "driver").symlink_to("/sys/bus/pci/drivers/vfio-pci")


FAULTS: list[tuple[Change, str, str]] = [
    (write(f"{GPU}/vendor", "0x8086"), "GPUs", "no NVIDIA GPU"),
    (write(f"{GPU}/class", "0x040300"), "GPUs", "no NVIDIA GPU"),
    (give_to_virtual_machine, "GPUs", "virtual machines"),
    (
        remove("proc/driver/nvidia/version", "sys/module/nvidia/version"),
        "driver",
        "no NVIDIA driver is loaded. Tell the lab's administrator",
    ),
    (remove("dev/nvidia0"), "device files", "/dev/nvidia0"),
    (remove("dev/nvidia-uvm"), "device files", "/dev/nvidia-uvm are missing"),
    (
        remove(f"{LIBRARY}/libcuda.so.{VERSION}", f"{LIBRARY}/libcuda.so.1"),
        "driver library",
        "libcuda.so.1 is missing",
    ),
    (
        upgrade_library,
        "driver library",
        f"has version 595.58.03, the loaded driver {VERSION}",
    ),
    (remove("etc/cdi/nvidia.yaml"), "CDI specification", "no CDI specification of the GPUs"),
    (write("etc/cdi/nvidia.yaml", ""), "CDI specification", "no CDI specification of the GPUs"),
    (
        write("etc/cdi/nvidia.yaml", SPECIFICATION.replace(VERSION, "570.1.2")),
        "CDI specification",
        f"is of driver 570.1.2, loaded is {VERSION}",
    ),
    (
        write("etc/cdi/nvidia.yaml", SPECIFICATION.replace("/dev/nvidia0", "/dev/nvidia7")),
        "CDI specification",
        "names /dev/nvidia7, which this host does not have",
    ),
]


@pytest.mark.parametrize(("change", "subject", "reason"), FAULTS)
def test_the_first_failed_step_is_explained(
    change: Change, subject: str, reason: str, root: Path, docker: FakeDocker
) -> None:
    change(root)
    *passed, last = examine(root, docker, lambda: image("gpu"))
    assert all(step.passed for step in passed)
    assert (last.subject, last.passed) == (subject, False)
    assert reason in last.result


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"Runtimes": {"runc": {}}}, "cannot give GPUs to containers"),
        (MlError("you are not in the group docker"), "you are not in the group docker"),
    ],
)
def test_an_engine_without_gpus_or_access_is_the_reason(
    info: Any, reason: str, root: Path, docker: FakeDocker
) -> None:
    docker.info = info
    last = examine(root, docker)[-1]
    assert (last.subject, last.passed) == ("engine", False)
    assert reason in last.result


def test_an_engine_with_the_nvidia_runtime_needs_no_cdi(root: Path, docker: FakeDocker) -> None:
    (root / "etc/cdi/nvidia.yaml").unlink()
    docker.info = {"Runtimes": {"nvidia": {}}}
    last = examine(root, docker)[-1]
    assert last == ("CDI specification", True, "not used by this engine")


def test_an_image_without_gpu_libraries_is_the_reason(root: Path, docker: FakeDocker) -> None:
    last = examine(root, docker, lambda: image("cpu"))[-1]
    assert (last.subject, last.passed) == ("image", False)
    assert "x:1 is the cpu variant" in last.result


def test_a_missing_image_is_the_reason(root: Path, docker: FakeDocker) -> None:
    def find() -> Image:
        raise MlError("no image y on this host")

    last = examine(root, docker, find)[-1]
    assert last == ("image", False, "no image y on this host")


def test_an_image_of_others_has_no_known_variant(root: Path, docker: FakeDocker) -> None:
    assert examine(root, docker, lambda: image(""))[-1].result == "x:1, unknown variant"


def test_an_empty_host_and_closed_files_are_no_traceback(
    tmp_path: Path, docker: FakeDocker
) -> None:
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/broken").symlink_to("/does/not/exist")
    (step,) = examine(tmp_path, docker)
    assert not step.passed
