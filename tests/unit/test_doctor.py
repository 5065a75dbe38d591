# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ml doctor` names the first reason why a container does not see the GPUs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    doctor,
    doctor_compute,
    images,
    settings,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.engine import Docker
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.images import Image
from ansible_collections.slipway.host.plugins.module_utils.ml.settings import Cuda
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_aliases

from lab import stand_in_cuda

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
GPU = "sys/bus/pci/devices/0000:01:00.0"
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


CHECKED_IN_ORDER = [
    "GPUs",
    "driver",
    "driver library",
    "device files",
    "CDI specification",
    "Docker group",
    "engine",
    "image",
    "CUDA release",
    "computation on the host",
    "computation in a container",
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the stand-in driver library."""
    if not stand_in_cuda.has_compiler():
        pytest.skip("needs gcc to compile the stand-in for libcuda.so.1")
    return stand_in_cuda.build(tmp_path_factory.mktemp("cuda")).parent


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the CUDA check as the role ml_aliases installs it."""
    folder = tmp_path_factory.mktemp("installed")
    target = folder / doctor_compute.FOLDER
    target.mkdir(parents=True)
    for name, content in ml_aliases.cuda_check_sources():
        (target / name).write_text(content)
    return folder


# A docker command that runs the arguments after the image on this machine.
DOCKER = """#!/bin/sh
echo "$*" >> {log}
[ -z "$DOCKER_FAILS" ] || {{ echo "$DOCKER_FAILS" >&2; exit 127; }}
while [ "$1" != x:1 ]; do shift; done
shift
SLIPWAY_STAND_IN_FAULTS=$CONTAINER_FAULTS exec {python} "$@"
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a driver with one GPU, an engine's socket, and the docker command."""
    folder = tmp_path / "programs"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(DOCKER.format(python=sys.executable, log=folder / "log"))
    program.chmod(0o755)
    (folder / "docker.sock").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/docker.sock")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("SLIPWAY_STAND_IN_GPUS", "1")
    monkeypatch.setenv("SLIPWAY_STAND_IN_FAULTS", "")


Examine = Callable[..., list[doctor.Step]]


@pytest.fixture
def examine(root: Path, docker: FakeDocker, installed: Path) -> Examine:
    """Return a function that examines the host with an image; by default its gpu variant."""

    def run(
        find_image: Callable[[], Image | None] = lambda: image("gpu"),
        cuda: Cuda | None = RUNS,
    ) -> list[doctor.Step]:
        host = doctor.Host(docker.contact, root, installed)
        return list(doctor.examine(host, docker, find_image, lambda _image: cuda))

    return run


def first_failure(steps: list[doctor.Step]) -> doctor.Step:
    """Return the failed step; check that earlier steps passed and later ones were not done."""
    assert [step.subject for step in steps] == CHECKED_IN_ORDER
    (index,) = (i for i, step in enumerate(steps) if step.passed is False)
    assert all(step.passed for step in steps[:index])
    for step in steps[index + 1 :]:
        assert step == (step.subject, None, f"{steps[index].subject} failed")
    return steps[index]


RUNS = Cuda("13.2", 580)


def image(variant: str) -> Image:
    return Image("x:1", "x", variant, "sha256:1", "", 1, "")


def test_a_healthy_host_passes_every_step(examine: Examine, tmp_path: Path) -> None:
    steps = examine()
    assert [(step.subject, step.passed) for step in steps] == [
        (subject, True) for subject in CHECKED_IN_ORDER
    ], steps
    assert steps[-3].result == f"CUDA 13.2 runs on driver {VERSION}"
    for step in steps[-2:]:
        assert step.result.startswith("1 GPU computed correctly with a stand-in driver")
    (command,) = (tmp_path / "programs/log").read_text().splitlines()
    assert "--device=nvidia.com/gpu=all" in command
    assert {"--rm", "--pull=never", "--network=none", "--container"} <= {*command.split()}


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
    change: Change, subject: str, reason: str, root: Path, examine: Examine
) -> None:
    change(root)
    failed = first_failure(examine())
    assert failed.subject == subject
    assert reason in failed.result


def test_a_virtual_function_is_no_gpu(root: Path, examine: Examine) -> None:
    (root / GPU / "physfn").symlink_to("../0000:00:00.0")
    assert first_failure(examine()).subject == "GPUs"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"Runtimes": {"runc": {}}}, "cannot give GPUs to containers"),
        (MlError("Docker does not answer"), "Docker does not answer"),
    ],
)
def test_an_engine_without_gpus_or_answer_is_the_reason(
    info: Any, reason: str, docker: FakeDocker, examine: Examine
) -> None:
    docker.info = info
    failed = first_failure(examine())
    assert failed.subject == "engine"
    assert reason in failed.result


def close(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make files with these names closed to the caller."""
    access = os.access

    def no_access(path: Any, mode: int) -> bool:
        return Path(path).name not in names and access(path, mode)

    monkeypatch.setattr(os, "access", no_access)


def test_a_user_without_the_right_to_use_docker_is_the_reason(
    docker: FakeDocker, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.info = MlError("permission denied")
    close(monkeypatch, "docker.sock")
    failed = first_failure(examine())
    assert failed.subject == "Docker group"
    assert "may not use Docker on" in failed.result


def test_a_stale_specification_precedes_missing_rights(
    docker: FakeDocker, root: Path, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.info = MlError("permission denied")
    close(monkeypatch, "docker.sock")
    (root / "etc/cdi/nvidia.yaml").unlink()
    assert first_failure(examine()).subject == "CDI specification"


NVIDIA_RUNTIME = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}}


@pytest.mark.parametrize(
    ("configuration", "subject"),
    [
        (json.dumps(NVIDIA_RUNTIME), "engine"),
        (json.dumps({**NVIDIA_RUNTIME, "features": {"cdi": True}}), "CDI specification"),
        ("[]", "CDI specification"),
        ("{", "CDI specification"),
    ],
)
def test_without_an_answer_the_engines_file_shows_whether_it_uses_cdi(
    configuration: str, subject: str, docker: FakeDocker, root: Path, examine: Examine
) -> None:
    docker.info = MlError("Docker does not answer")
    (root / "etc/cdi/nvidia.yaml").unlink()
    (root / "etc/docker").mkdir()
    (root / "etc/docker/daemon.json").write_text(configuration)
    assert first_failure(examine()).subject == subject


def test_an_engine_with_the_nvidia_runtime_needs_no_cdi(
    root: Path, docker: FakeDocker, examine: Examine, tmp_path: Path
) -> None:
    (root / "etc/cdi/nvidia.yaml").unlink()
    docker.info = {"Runtimes": {"nvidia": {}}}
    steps = examine()
    assert ("CDI specification", True, "not used by this engine") in steps
    assert all(step.passed for step in steps)
    assert " --gpus=all " in (tmp_path / "programs/log").read_text()


def test_an_image_without_gpu_libraries_is_the_reason(examine: Examine) -> None:
    failed = first_failure(examine(lambda: image("cpu")))
    assert failed.subject == "image"
    assert "x:1 is the cpu variant" in failed.result


def test_a_missing_image_is_the_reason(examine: Examine) -> None:
    def find() -> Image:
        raise MlError("no image y on this host")

    failed = first_failure(examine(find))
    assert failed == ("image", False, "no image y on this host")


def test_an_image_of_others_has_no_known_variant_or_release(examine: Examine) -> None:
    steps = {step.subject: step for step in examine(lambda: image(""), None)}
    assert steps["image"].result == "x:1, unknown variant"
    assert steps["CUDA release"].passed is None
    assert "not known" in steps["CUDA release"].result
    assert steps["computation in a container"].passed


def test_a_cuda_release_newer_than_the_driver_is_the_reason(examine: Examine) -> None:
    failed = first_failure(examine(cuda=Cuda("13.2", 590)))
    assert failed.subject == "CUDA release"
    assert (
        f"x:1 contains CUDA 13.2, which needs NVIDIA driver 590 or newer; this host runs {VERSION}"
    ) in failed.result


def test_without_an_image_only_the_host_computes(examine: Examine) -> None:
    steps = examine(lambda: None)
    assert [step.passed for step in steps[-4:]] == [None, None, True, None]


COMPUTATIONS = [
    ("init=802", "cuda-init", "802"),
    ("sum=0", "gpu-vector-sum of GPU 0000:01:00.0", "Stop using this GPU"),
    ("missing=1", "cuda-init", "CUDA_ERROR_NO_DEVICE"),
    ("crash=cuInit", "check-process", "signal 11"),
]


@pytest.mark.parametrize(("fault", "check", "reason"), COMPUTATIONS)
@pytest.mark.parametrize(
    ("variable", "subject"),
    [
        ("SLIPWAY_STAND_IN_FAULTS", "computation on the host"),
        ("CONTAINER_FAULTS", "computation in a container"),
    ],
)
def test_a_wrong_computation_is_the_reason(
    variable: str,
    subject: str,
    fault: str,
    check: str,
    reason: str,
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, fault)
    failed = first_failure(examine())
    assert failed.subject == subject
    assert failed.result.startswith(f"{check}: ")
    assert reason in failed.result
    assert failed.result.endswith("Tell the lab's administrator")


def test_a_hanging_driver_is_the_reason(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_compute, "CHECK_SECONDS", 1)
    monkeypatch.setenv("SLIPWAY_STAND_IN_FAULTS", "hang=cuInit")
    failed = first_failure(examine())
    assert failed.subject == "computation on the host"
    assert failed.result.startswith("time-limit: no end during")


def test_a_docker_command_that_hangs_is_stopped_and_its_container_removed(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "programs/log"
    (tmp_path / "programs/docker").write_text(
        f'#!/bin/sh\necho "$*" >> {log}\n[ "$1" = container ] || exec sleep 1000\n'
    )
    monkeypatch.setattr(doctor_compute, "CHECK_SECONDS", 0)
    monkeypatch.setattr(doctor_compute, "MORE_SECONDS", 1)
    with pytest.raises(doctor_compute.ComputeError, match="docker did not end within 1 s"):
        doctor_compute.compute_in_container("x:1", 1, True, installed)
    name = f"slipway-doctor-{os.getuid()}-{os.getpid()}"
    assert log.read_text().splitlines()[1:] == [f"container rm --force {name}"]


def test_an_image_without_python_is_no_fault(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_FAILS", 'exec: "python3": executable file not found in $PATH')
    assert examine()[-1] == ("computation in a container", None, "x:1 has no program python3")


def test_an_error_of_docker_is_the_reason(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_FAILS", "docker: unresolvable CDI devices nvidia.com/gpu=all")
    failed = first_failure(examine())
    assert failed.subject == "computation in a container"
    assert "unresolvable CDI devices" in failed.result


def test_a_missing_check_is_the_reason(root: Path, docker: FakeDocker, tmp_path: Path) -> None:
    host = doctor.Host(docker.contact, root, tmp_path / "empty")
    failed = first_failure(
        list(doctor.examine(host, docker, lambda: image("gpu"), lambda _image: RUNS))
    )
    assert failed.subject == "computation on the host"
    assert "run site.yml with the role ml_aliases" in failed.result


def test_closed_device_files_prevent_only_the_computation_on_the_host(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(monkeypatch, "nvidia0")
    steps = {step.subject: step for step in examine()}
    assert "you cannot open /dev/nvidia0" in steps["device files"].result
    assert steps["computation on the host"].passed is None
    assert steps["computation in a container"].passed


def test_an_engine_on_another_host_runs_no_container(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu02")
    steps = {step.subject: step for step in examine()}
    assert steps["Docker group"].passed is None
    assert steps["computation in a container"].result == "the engine is on another host"


DECLARED = settings.Host("Dana", {}, {"x": "x:1"}, {"x:1": RUNS})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"digest": "1"}, RUNS),
        ({"reference": "me/work:1", "digest": ""}, RUNS),
        ({"reference": "x:old", "digest": "2"}, None),
        ({"digest": "1", "variant": "cpu"}, None),
        ({"reference": "me/other:1", "name": "", "variant": ""}, None),
    ],
)
def test_the_release_is_that_of_the_catalogue_or_of_the_committed_image(
    changes: dict[str, str], expected: Cuda | None
) -> None:
    asked = image("gpu")._replace(**changes)  # type: ignore[arg-type]
    assert images.find_cuda(DECLARED, asked) == expected


def test_an_empty_host_is_no_traceback(tmp_path: Path, docker: FakeDocker) -> None:
    root = tmp_path / "empty"
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    (root / "sys/bus/pci/devices/broken").symlink_to("/does/not/exist")
    steps = list(doctor.examine(doctor.Host("Dana", root), docker, lambda: None, lambda _i: None))
    assert first_failure(steps).subject == "GPUs"
