# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated GPU hosts that `./slipway demo --gpu MODEL` creates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import nvidia_smi
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.host import host_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import DriverRequest, HostFacts

from lab import gpu_host, nvidia_packages, pci_tree
from lab.nvidia_packages import parts, programs
from tests.unit.gpu_facts import facts

ROOT = Path(__file__).parents[2]
NOBLE = "ubuntu-like-24.04"


@pytest.mark.parametrize(
    "model",
    [
        *("none", "t4", "8xv100", "8xa100", "8xh100", "8xb200"),
        *("rtx-pro-6000", "k80", "gh200", "v100-b200"),
    ],
)
def test_packages_of_the_gpu_decision_are_in_the_stand_in_archives(model: str) -> None:
    kernel = gpu_host.kernel_of(model, NOBLE)
    found = host_facts(facts(model))
    host = HostFacts(
        "ubuntu", "24.04", kernel, gpus=found.gpus, nvswitches=found.nvswitches,
        nvlink_bridges=found.nvlink_bridges,
    )  # fmt: skip
    archive = {package.name for package in nvidia_packages.ubuntu(kernel=kernel)}
    cuda = {package.name for package in nvidia_packages.cuda_ubuntu()}
    assert set(decide(host, DriverRequest()).packages) <= archive | cuda


def test_a_grace_hopper_runs_the_kernel_with_64_kib_pages() -> None:
    assert gpu_host.kernel_of("gh200", NOBLE) == "6.8.0-149-generic-64k"
    names = {package.name for package in nvidia_packages.ubuntu(kernel="6.8.0-149-generic-64k")}
    assert "linux-modules-nvidia-580-server-open-generic-64k" in names


def variables(base: str) -> dict[str, Any]:
    key = SimpleNamespace(file=Path("key.asc"), fingerprint="A" * 40)
    nothing: Any = None
    made: Any = key
    return gpu_host.GpuHost(Path("/x"), base, made, nothing, nothing, nothing).variables


def test_images_of_an_ubuntu_like_host_are_built_on_debian() -> None:
    assert variables(NOBLE)["ml_catalogue_base"] == "debian-13"
    assert "ml_catalogue_base" not in variables("debian-13")


def test_demo_of_an_unknown_model_fails_with_the_known_models() -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("playbooks/demo.yml", "-e", "demo_gpu=h1000"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown GPU model 'h1000'; expected one of none, t4, 8xv100" in done.stdout
    folder = ROOT / ".slipway/hosts/demo/stand-ins/demo-1/h1000-ubuntu-like-24.04"
    assert not folder.exists()


def test_the_stand_in_nvidia_smi_lists_each_gpu_of_the_host(tmp_path: Path) -> None:
    tree = pci_tree.build(tmp_path / "sys", pci_tree.MODELS["8xh100"])
    sample = parts.SAMPLES / "580-h100.xml"
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").touch()
    script = programs.SMI.replace("/sys/", f"{tmp_path}/sys/")
    script = script.replace("/usr/share/nvidia-stand-in/nvidia-smi.xml", str(sample))
    done = subprocess.run(["sh", "-c", script, "nvidia-smi", "-q", "-x"], capture_output=True)
    assert done.stderr == b"", done.stderr
    report = nvidia_smi.parse(done.stdout.decode())
    gpus = [
        path.name for path in tree.iterdir() if (path / "class").read_text().startswith("0x0302")
    ]
    assert sorted(gpu.address for gpu in report.gpus) == sorted(gpus)
    assert len(gpus) == 8
