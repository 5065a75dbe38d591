# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module on simulated hosts: what it returns, what it runs, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import DriverRequest
from ansible_collections.slipway.host.plugins.module_utils.gpu.report import (
    HostPaths,
    Run,
    report,
)
from ansible_collections.slipway.host.plugins.modules import gpu_info

from lab import pci_tree
from lab.host_files import write_host_files
from lab.nvidia_packages.parts import SAMPLES

OPEN_580 = "NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build  (root)"
PROPRIETARY_595 = "NVIDIA UNIX x86_64 Kernel Module  595.71.05  Thu May  2 14:37:44 UTC 2026"
HEADLESS = {"nvidia-headless-no-dkms-580-server-open": "580.178.04-0ubuntu0.24.04.1"}


def places(options: dict[str, str]) -> HostPaths:
    return HostPaths(
        pci=Path(options["pci_root"]),
        proc=Path(options["proc_root"]),
        sys=Path(options["sys_root"]),
        modules=Path(options["modules_root"]),
        run=Path(options["run_root"]),
        os_release=Path(options["os_release"]),
        dpkg_status=Path(options["dpkg_status"]),
    )


def answering(**answers: tuple[int, str, str]) -> Run:
    """Stand in for the host's commands: the answer of each by a word in its arguments."""

    def run(command: list[str]) -> tuple[int, str, str]:
        for word, answer in answers.items():
            if any(word in argument for argument in command):
                return answer
        raise AssertionError(f"nobody should have run {command}")

    return run


NOTHING_RUNS = answering()


@pytest.mark.parametrize(
    ("model", "supported", "needed", "source", "branch", "modules", "fabric"),
    [
        ("none", True, False, None, None, None, "none"),
        ("t4", True, True, "ubuntu", 580, "open", "none"),
        ("2xh100", True, True, "ubuntu", 580, "open", "none"),
        ("8xv100", True, True, "ubuntu", 580, "proprietary", "none"),
        ("8xa100", True, True, "ubuntu", 580, "open", "nvswitch"),
        ("8xh100", True, True, "ubuntu", 580, "open", "nvswitch"),
        ("8xb200", True, True, "cuda", 580, "open", "nvlink5"),
        ("rtx-pro-6000", True, True, "ubuntu", 580, "open", "none"),
        ("k80", True, True, "ubuntu", 470, "proprietary", "none"),
        ("gh200", True, True, "ubuntu", 580, "open", "none"),
        ("gb10", True, True, "ubuntu", 580, "open", "none"),
        ("v100-b200", False, True, None, None, None, "none"),
        ("workstation", True, True, "ubuntu", 580, "open", "none"),
        ("nouveau", True, True, "ubuntu", 580, "open", "none"),
        ("vfio", True, False, None, None, None, "none"),
        ("vfio-part", True, True, "ubuntu", 580, "open", "none"),
        ("sr-iov", True, True, "ubuntu", 580, "open", "none"),
        ("vgpu", False, True, None, None, None, "none"),
        ("unprivileged", True, True, "ubuntu", 580, "open", "none"),
        ("future", True, True, "ubuntu", 595, "open", "none"),
        ("fermi", False, True, None, None, None, "none"),
    ],
)
def test_each_simulated_host_gets_its_driver(
    tmp_path: Path,
    model: str,
    supported: bool,
    needed: bool,
    source: str | None,
    branch: int | None,
    modules: str | None,
    fabric: str,
) -> None:
    answer = report(places(write_host_files(tmp_path, model)), DriverRequest(), None, NOTHING_RUNS)
    driver = answer["driver"]
    assert (driver["supported"], driver["needed"]) == (supported, needed), driver["reason"]
    assert (driver["source"], driver["branch"], driver["modules"]) == (source, branch, modules)
    assert driver["fabric"] == fabric
    assert bool(driver["packages"]) == (supported and needed)


def test_every_model_is_tested_above() -> None:
    marks = test_each_simulated_host_gets_its_driver.pytestmark  # type: ignore[attr-defined]
    (mark,) = [mark for mark in marks if "supported" in mark.args[0]]
    assert {case[0] for case in mark.args[1]} == set(pci_tree.MODELS)


def test_a_gpu_is_reported_with_its_companions(tmp_path: Path) -> None:
    answer = report(
        places(write_host_files(tmp_path, "workstation")), DriverRequest(), None, NOTHING_RUNS
    )
    assert answer["gpus"] == [
        {
            "address": "0000:01:00.0",
            "id": "10de:2b85",
            "subsystem": "10de:0001",
            "class": "0300",
            "driver": "nvidia",
            "name": "NVIDIA GeForce RTX 5090",
            "architecture": "Blackwell",
            "skipped": None,
            "vgpu": False,
            "smi": None,
        }
    ]
    assert [device["address"] for device in answer["audio"]] == ["0000:01:00.1"]
    assert [device["id"] for device in answer["nics"]] == ["15b3:101d"]


@pytest.mark.parametrize(
    ("model", "audio", "nics"),
    [
        ("none", 0, 0),
        ("t4", 0, 0),
        ("8xv100", 0, 4),
        ("8xa100", 0, 8),
        ("8xb200", 0, 10),
        ("rtx-pro-6000", 1, 0),
        ("gh200", 0, 1),
        ("workstation", 1, 1),
    ],
)
def test_companions_of_gpus_are_counted_by_class(
    tmp_path: Path, model: str, audio: int, nics: int
) -> None:
    answer = report(places(write_host_files(tmp_path, model)), DriverRequest(), None, NOTHING_RUNS)
    assert (len(answer["audio"]), len(answer["nics"])) == (audio, nics)


def test_the_host_is_reported(tmp_path: Path) -> None:
    options = write_host_files(
        tmp_path,
        "gh200",
        kernel="6.8.0-1021-nvidia-64k",
        architecture="arm64",
        packages={"linux-image-nvidia-64k": "6.8.0-1021.21"},
        secure_boot=True,
    )
    (Path(options["run_root"]) / "reboot-required").touch()
    answer = report(places(options), DriverRequest(), None, NOTHING_RUNS)
    assert answer["host"] == {
        "distribution": "ubuntu",
        "release": "24.04",
        "architecture": "arm64",
        "kernel": "6.8.0-1021-nvidia-64k",
        "kernel_metas": ("nvidia-64k",),
        "headers": False,
        "secure_boot": True,
    }
    assert answer["reboot_required"]
    assert answer["driver"]["build"] == "prebuilt"


# --- the driver that is there ------------------------------------------------------------------


def with_module(options: dict[str, str]) -> None:
    folder = Path(options["modules_root"]) / "6.8.0-149-generic"
    folder.mkdir()
    (folder / "modules.dep").write_text("kernel/nvidia-580srv-open/nvidia.ko:\n")


def test_a_host_without_driver_is_reported(tmp_path: Path) -> None:
    answer = report(
        places(write_host_files(tmp_path, "t4")), DriverRequest(), "nvidia-smi", NOTHING_RUNS
    )
    assert answer["present"] == {
        "branch": None,
        "loaded": None,
        "installed": None,
        "stale": False,
        "misfit": None,
        "nouveau": False,
        "packages": {},
    }
    assert answer["smi"] == {"driver_version": None, "cuda_version": None, "error": None}


def test_an_upgraded_driver_that_still_runs_its_old_module(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "t4", loaded=OPEN_580, packages=HEADLESS)
    with_module(options)
    run = answering(version=(0, "580.178.04\n", ""), license=(0, "Dual MIT/GPL\n", ""))
    present = report(places(options), DriverRequest(), None, run)["present"]
    path = str(
        Path(options["modules_root"], "6.8.0-149-generic/kernel/nvidia-580srv-open/nvidia.ko")
    )
    assert present["loaded"] == {"version": "580.105.08", "modules": "open", "path": None}
    assert present["installed"] == {"version": "580.178.04", "modules": "open", "path": path}
    assert present["stale"]
    assert present["branch"] == 580
    assert present["misfit"] is None
    assert present["packages"] == HEADLESS


def test_an_installed_driver_of_the_wrong_flavour(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "rtx-pro-6000")
    with_module(options)
    run = answering(version=(0, "580.178.04\n", ""), license=(0, "NVIDIA\n", ""))
    present = report(places(options), DriverRequest(), None, run)["present"]
    assert "Proprietary kernel modules cannot drive NVIDIA RTX PRO 6000" in present["misfit"]
    assert not present["stale"]


def test_a_loaded_driver_that_no_longer_drives_the_gpu(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "8xv100", loaded=PROPRIETARY_595)
    present = report(places(options), DriverRequest(), None, NOTHING_RUNS)["present"]
    assert "Branch 595 does not support NVIDIA Tesla V100" in present["misfit"]


def test_a_module_that_modinfo_cannot_read_is_not_installed(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "t4")
    with_module(options)
    run = answering(modinfo=(127, "", "No such file or directory"))
    assert report(places(options), DriverRequest(), None, run)["present"]["installed"] is None


def test_a_loaded_nouveau_is_reported(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "nouveau")
    (Path(options["sys_root"]) / "module/nouveau").mkdir(parents=True)
    assert report(places(options), DriverRequest(), None, NOTHING_RUNS)["present"]["nouveau"]


# --- nvidia-smi --------------------------------------------------------------------------------


def test_nvidia_smi_is_matched_to_gpus_by_address(tmp_path: Path) -> None:
    options = write_host_files(tmp_path, "8xa100", loaded=OPEN_580)
    sample = (SAMPLES / "535-a100-mig.xml").read_text().replace(":01:00.0", ":03:00.0")
    answer = report(
        places(options), DriverRequest(), "/usr/bin/nvidia-smi", answering(smi=(0, sample, ""))
    )
    assert answer["mig"]
    assert answer["smi"] == {"driver_version": "535.54.03", "cuda_version": "12.2", "error": None}
    first, second = answer["gpus"][0], answer["gpus"][1]
    assert first["address"] == "0000:03:00.0"
    assert (first["smi"]["mig"], first["smi"]["mig_devices"]) == (True, 2)
    assert second["smi"] is None


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            (9, "", "couldn't communicate with the NVIDIA driver"),
            "exited with 9: the NVIDIA driver",
        ),
        ((124, "", ""), "time limit reached"),
        ((0, "No devices were found", ""), "expected XML"),
    ],
)
def test_nvidia_smi_that_fails_is_reported_not_raised(
    tmp_path: Path, result: tuple[int, str, str], words: str
) -> None:
    options = write_host_files(tmp_path, "t4", loaded=OPEN_580)
    answer = report(places(options), DriverRequest(), "/usr/bin/nvidia-smi", answering(smi=result))
    assert words in answer["smi"]["error"]
    assert answer["driver"]["supported"]


def test_nvidia_smi_has_a_time_limit(tmp_path: Path) -> None:
    asked = []

    def run(command: list[str]) -> tuple[int, str, str]:
        asked.append(command)
        return 124, "", ""

    report(
        places(write_host_files(tmp_path, "t4", loaded=OPEN_580)),
        DriverRequest(),
        "/opt/nvidia-smi",
        run,
    )
    assert asked == [["timeout", "--kill-after=5", "60", "/opt/nvidia-smi", "-q", "-x"]]


# --- the module --------------------------------------------------------------------------------

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the module in this process and return its answer."""

    def run(**params: Any) -> dict[str, Any]:
        with patch_module_args(params), pytest.raises(SystemExit):
            gpu_info.main()
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def test_the_module_reports_driver_and_switches(tmp_path: Path, call: Call) -> None:
    answer = call(
        **write_host_files(tmp_path, "8xh100"), branch=595, video=True, _ansible_check_mode=True
    )
    assert answer["changed"] is False
    assert answer["driver"]["branch"] == 595
    assert "libnvidia-decode-595-server" in answer["driver"]["packages"]
    assert len(answer["nvswitches"]) == 4


def test_the_module_runs_a_stand_in_nvidia_smi(tmp_path: Path, call: Call) -> None:
    options = write_host_files(tmp_path, "t4", loaded=OPEN_580)
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text(f"#!/bin/sh\ncat {SAMPLES / '615-l4.xml'}\n")
    stand_in.chmod(0o755)
    assert call(**options, nvidia_smi=str(stand_in))["smi"]["driver_version"] == "615.71.09"
    assert call(**options, nvidia_smi=str(stand_in), query=False)["smi"]["driver_version"] is None


def test_a_missing_nvidia_smi_is_reported(tmp_path: Path, call: Call) -> None:
    options = write_host_files(tmp_path, "t4", loaded=OPEN_580)
    answer = call(**options, nvidia_smi=str(tmp_path / "absent"))
    assert "nvidia-smi exited with 127" in answer["smi"]["error"]


def test_a_misspelt_pci_root_fails(tmp_path: Path, call: Call) -> None:
    answer = call(pci_root=str(tmp_path / "absent"))
    assert answer["failed"]
    assert "is not a folder" in answer["msg"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"modules": "nouveau"}, "value of modules must be one of: open, proprietary"),
        ({"branch": "newest"}, "branch"),
        ({"source": "ppa"}, "value of source must be one of"),
    ],
)
def test_bad_options_are_named(call: Call, params: dict[str, str], words: str) -> None:
    answer = call(**params)
    assert answer["failed"]
    assert words in answer["msg"]


def test_the_documentation_states_the_options_and_the_answer(tmp_path: Path) -> None:
    options = yaml.safe_load(gpu_info.DOCUMENTATION)["options"]
    documented = {
        name: {key: row[key] for key in ("type", "choices", "default") if key in row}
        for name, row in options.items()
    }
    assert documented == gpu_info.ARGUMENT_SPEC
    answer = report(places(write_host_files(tmp_path, "t4")), DriverRequest(), None, NOTHING_RUNS)
    returned = yaml.safe_load(gpu_info.RETURN)
    assert set(returned) == set(answer)
    for key in ("driver", "present"):
        assert set(returned[key]["contains"]) == set(answer[key]), key
    assert set(returned["gpus"]["contains"]) == set(answer["gpus"][0])
    for task in yaml.safe_load(gpu_info.EXAMPLES):
        assert set(task.get("slipway.host.gpu_info") or {}) <= set(options)


# --- a real card -------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_real_gpu(call: Call) -> None:
    answer = call()
    assert answer["gpus"]
    assert answer["present"]["misfit"] is None
    assert answer["smi"]["error"] is None
    assert answer["smi"]["driver_version"] == answer["present"]["loaded"]["version"]
    for gpu in answer["gpus"]:
        if gpu["driver"] == "nvidia" and gpu["smi"]:
            assert gpu["smi"]["uuid"].startswith("GPU-")
