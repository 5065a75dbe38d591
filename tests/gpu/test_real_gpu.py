# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slipway on a machine with a real NVIDIA GPU: computation, survey, gpu_info, plan.

Nothing is installed and nothing outside temporary folders is written. With
SLIPWAY_STAND_IN_GPUS=N and the stand-in libcuda in LD_LIBRARY_PATH the tests try themselves.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_bundle,
    cuda_check,
    cuda_judge,
    health,
    nvidia_smi,
    proof,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers as state_containers,
)
from ansible_collections.slipway.host.plugins.modules import gpu_info

from tests.conftest import STAND_IN_GPUS
from tests.gpu import containers
from tests.gpu.conftest import Record
from tests.unit import survey
from tests.unit.conftest import RunModule, on_a_host, run_module  # noqa: F401

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 400
MEMORY_MIB = "1024"
VERSION = Path("/proc/driver/nvidia/version")

Report = dict[str, Any]


@pytest.fixture(scope="session")
def expected() -> list[str]:
    """The PCI addresses of the machine's GPUs, from the bus or the driver's own list."""
    if STAND_IN_GPUS in os.environ:
        return [f"0000:{n + 1:02x}:00.0" for n in range(int(os.environ[STAND_IN_GPUS]))]
    listed = Path("/proc/driver/nvidia/gpus")
    driver = sorted(path.name.lower() for path in listed.iterdir()) if listed.is_dir() else []
    found = cuda_check.bus_addresses() or driver
    assert found, "neither sysfs nor /proc/driver/nvidia/gpus lists a GPU"
    return found


def run_check(folder: Path, *options: str) -> Report:
    """Run the packed CUDA check on this machine."""
    program = folder / "cuda_check.pyz"
    program.write_bytes(cuda_bundle.bundle())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), *options],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stdout, done.stderr
    report: Report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory, expected: list[str]) -> Report:
    """The report of the machine itself, for all pairs of GPUs."""
    folder = tmp_path_factory.mktemp("check")
    options = ("--expect", ",".join(expected), "--memory-mib", MEMORY_MIB, "--all-pairs")
    return run_check(folder, *options)


def failed(report: Report) -> list[str]:
    return [check["id"] for check in report["checks"] if not check["ok"]]


# The computation.


def test_the_machine_computes(computed: Report, expected: list[str], record: Record) -> None:
    record("CUDA check of the machine", computed)
    record("card", ", ".join(gpu["name"] for gpu in computed["gpus"]))
    record("driver library", computed["driver"].get("library"))
    record("CUDA version of the driver", computed["driver"].get("cuda_version"))
    record("stand-in driver", computed["driver"].get("stand_in"))
    for copy in computed["copies"]:
        speed = f"{copy['gigabytes_per_second']} GB/s"
        record(f"copy from {copy['from']} to {copy['to']}", speed)
    record("seconds of the CUDA check", computed["seconds"])
    assert cuda_judge.failures(computed) == []
    assert computed["not_run"] == []
    assert [gpu["address"] for gpu in computed["gpus"]] == expected
    assert computed["driver"]["stand_in"] == (STAND_IN_GPUS in os.environ)


def test_a_missing_gpu_fails_the_count_alone(tmp_path: Path, expected: list[str]) -> None:
    absent = "00ff:00:00.0"
    report = run_check(tmp_path, "--expect", ",".join([*expected, absent]), "--memory-mib", "64")
    assert failed(report) == [cuda_judge.COUNT]
    (sentence,) = cuda_judge.failures(report)
    assert f"missing: {absent}" in sentence


def test_the_proof_of_host_verify_computes(expected: list[str], record: Record) -> None:
    assert proof.check_host(len(expected), required=True) == (
        f"nvidia-smi lists {len(expected)} of {len(expected)}"
    )
    result = proof.compute_on_host(expected)
    record("proof of host_verify", result)
    assert f"{len(expected)} computed correctly with" in result


# The computation in a container.

Engine = Callable[[Path, str, Sequence[str], bool], str]
ENGINES: dict[str, Engine] = {
    "crun": containers.run_by_crun,
    "unshare": containers.run_by_unshare,
}


def need_engine(name: str) -> None:
    if os.geteuid() != 0:
        pytest.skip(f"{name} needs root here")
    if not (shutil.which(name) or (name == "crun" and os.environ.get(containers.CRUN))):
        pytest.skip(f"{name} is not installed, and {containers.CRUN} names no crun")


@pytest.mark.parametrize("name", ENGINES)
def test_a_container_computes(
    tmp_path: Path, computed: Report, expected: list[str], record: Record, name: str
) -> None:
    need_engine(name)
    options = ("--expect", str(len(expected)), "--memory-mib", "256")
    output = ENGINES[name](tmp_path, computed["driver"]["library"], options, True)
    report: Report = json.loads(output)
    record(f"CUDA check in a container of {name}", report)
    assert cuda_judge.failures(report) == []
    assert report["driver"]["library"].startswith(containers.DRIVER)
    for found, on_host in zip(report["gpus"], computed["gpus"], strict=True):
        assert found == on_host


@pytest.mark.parametrize("name", ENGINES)
def test_a_container_without_device_files_fails_with_its_remedy(
    tmp_path: Path, computed: Report, expected: list[str], record: Record, name: str
) -> None:
    need_engine(name)
    if STAND_IN_GPUS in os.environ:
        pytest.skip("the stand-in driver needs no device files")
    options = ("--expect", str(len(expected)), "--memory-mib", "64")
    output = ENGINES[name](tmp_path, computed["driver"]["library"], options, False)
    report: Report = json.loads(output)
    record(f"without device files in a container of {name}", cuda_judge.failures(report)[0])
    assert failed(report) == [cuda_judge.INIT]
    assert report["checks"][-1]["remedy"]


def test_a_container_of_docker_computes(expected: list[str], record: Record) -> None:
    if not shutil.which("docker"):
        pytest.skip("Docker is not installed")
    if not shutil.which(proof.TOOLKIT):
        pytest.skip("NVIDIA's container toolkit is not installed")
    try:
        state_containers.ask_engine("/version")
    except (OSError, ValueError) as error:
        pytest.skip(f"the Docker Engine does not answer: {error}")
    result = proof.check_container(len(expected), reload=False, required=True)
    record("proof of host_verify in a container", result)
    assert "computed correctly" in result


# The survey, gpu_info and nvidia-smi.


def need_real_driver() -> None:
    if not VERSION.exists():
        pytest.skip(f"{VERSION} does not exist: the stand-in driver has no kernel module")


def driver_version() -> str:
    """Return the version of the loaded kernel module, from its own file."""
    (version,) = re.findall(r"\s(\d{3}\.\d+(?:\.\d+)?)\s", VERSION.read_text().split("\n")[0])
    return str(version)


def test_the_survey_finds_the_gpus(expected: list[str], record: Record) -> None:
    need_real_driver()
    facts = survey.answer({})["facts"]
    gpu = facts["gpu"]
    record("GPU facts of the survey", gpu)
    record("distribution", f"{facts['distribution']} {facts['distribution_version']}")
    if not cuda_check.bus_addresses():
        pytest.skip("this machine shows no PCI bus in sysfs, from which the survey reads")
    assert driver_version() in gpu["banner"]
    assert gpu["loaded"] in ("", driver_version())
    assert set(expected) <= {device[0] for device in gpu["devices"]}
    assert health.own_gpus(facts) == expected


def test_the_survey_finds_no_fault_of_the_gpus(record: Record) -> None:
    need_real_driver()
    facts = survey.answer({})["facts"]
    answer = survey.answer(health.question(facts))
    record("answer about health", answer)
    findings = [one.found for one in health.judge(facts, answer) if not one.warning]
    record("faults of the GPUs", findings)
    assert findings == []


def test_gpu_info_describes_the_gpus(
    expected: list[str],
    record: Record,
    run_module: RunModule,  # noqa: F811
) -> None:
    need_real_driver()
    result = run_module(gpu_info)
    record("gpu_info", result)
    record("driver that gpu_info chooses", result["driver"]["reason"])
    if not cuda_check.bus_addresses():
        pytest.skip("this machine shows no PCI bus in sysfs, from which gpu_info reads")
    assert not result["changed"]
    assert [gpu["address"] for gpu in result["gpus"]] == expected
    assert result["present"]["loaded"]["version"] == driver_version()
    assert result["present"]["misfit"] is None
    assert result["smi"]["error"] is None
    assert all(gpu["smi"]["memory_mib"] > 0 for gpu in result["gpus"])


def test_the_parser_reads_the_live_xml(
    computed: Report, expected: list[str], record: Record
) -> None:
    done = subprocess.run(
        ["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    report = nvidia_smi.parse(done.stdout)
    record("driver", report.driver_version)
    if STAND_IN_GPUS in os.environ:
        pytest.skip("the stand-in nvidia-smi answers with a recording")
    assert report.driver_version == driver_version()
    assert report.cuda_version == computed["driver"]["cuda_version"]
    assert sorted(gpu.address for gpu in report.gpus) == expected
    assert {gpu.name for gpu in report.gpus} == {gpu["name"] for gpu in computed["gpus"]}
    assert all(gpu.uuid and gpu.memory_mib for gpu in report.gpus)


# The plan.

WATCHED = ("/etc", "/usr/bin", "/usr/lib/modules", "/var/lib/dpkg", "/var/lib/slipway", "/boot")


def fingerprint() -> dict[str, tuple[int, int]]:
    """Return size and time of change of the files that roles may write."""
    found = {}
    for folder in WATCHED:
        for path in Path(folder).rglob("*"):
            state = path.lstat()
            # A lock file is opened by every look at dpkg.
            if not path.is_dir() and not path.name.startswith("lock"):
                found[str(path)] = (state.st_size, state.st_mtime_ns)
    return found


REFUSED = "Nothing was changed."


@pytest.mark.parametrize(
    ("role", "settings"),
    [
        ("nvidia_driver", {}),
        # A driver of no package, such as that of a container's host, stays as it is.
        ("nvidia_driver", {"nvidia_driver_source": "keep"}),
        ("nvidia_container_toolkit", {}),
    ],
)
def test_plan_reads_this_machine_and_changes_nothing(
    tmp_path: Path, record: Record, role: str, settings: dict[str, str]
) -> None:
    system = Path("/usr/bin/python3")
    python = system if system.exists() else Path(sys.executable)
    host = {"ansible_connection": "local", "ansible_python_interpreter": str(python)}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": {"this-machine": host}}}))
    before = fingerprint()
    done = subprocess.run(
        [
            *(sys.executable, "tools/plan.py", "--json", "-i", str(inventory)),
            *("-e", json.dumps({"slipway_roles": [role], **settings})),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CACHE_PLUGIN": "memory",
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_REMOTE_TMP": str(tmp_path / "ansible/tmp"),
        },
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    after = fingerprint()
    assert {path for path in before if before[path] != after.get(path)} == set()
    assert after.keys() - before.keys() == set()
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    name = " ".join(["plan of", role, *settings.values()])
    record(name, report)
    assert list(report) == ["this-machine"], done.stderr
    words = report["this-machine"].get("error") or report["this-machine"]["status"]
    record(f"result of the {name}", f"exit status {done.returncode}: {words}")
    # Without settings, a driver that the role did not install is refused, with a reason.
    refused = not settings and REFUSED in words
    assert done.returncode in (0, 2) or refused, json.dumps(report)
