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
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    health,
    health_facts,
    nvidia_smi,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.host import host_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import DriverRequest, HostFacts

from lab import gpu_host, nvidia_packages, pci_tree, simulated_faults
from lab.apt_repository import ARCHITECTURE, Package
from lab.nvidia_packages import parts
from tests.unit.gpu_facts import facts

ROOT = Path(__file__).parents[2]
NOBLE = "ubuntu-like-24.04"


@pytest.mark.parametrize(
    "model",
    [
        *("none", "t4", "2xh100", "8xv100", "8xa100", "8xh100", "8xb200"),
        *("rtx-pro-6000", "k80", "gh200", "gb10", "v100-b200"),
    ],
)
@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_packages_of_the_gpu_decision_are_in_the_stand_in_archives(
    model: str, architecture: str
) -> None:
    kernel = gpu_host.kernel_of(model, NOBLE)
    found = host_facts(facts(model))
    host = HostFacts(
        "ubuntu", "24.04", kernel, gpus=found.gpus, nvswitches=found.nvswitches,
        nvlink_bridges=found.nvlink_bridges, architecture=architecture,
    )  # fmt: skip
    archive = {package.name for package in nvidia_packages.ubuntu(kernel=kernel)}
    cuda = {package.name for package in nvidia_packages.cuda_ubuntu()}
    assert set(decide(host, DriverRequest()).packages) <= archive | cuda


def test_a_grace_hopper_runs_the_kernel_with_64_kib_pages() -> None:
    assert gpu_host.kernel_of("gh200", NOBLE) == "6.8.0-149-generic-64k"
    names = {package.name for package in nvidia_packages.ubuntu(kernel="6.8.0-149-generic-64k")}
    assert "linux-modules-nvidia-580-server-open-generic-64k" in names


def test_a_dgx_spark_runs_a_kernel_of_nvidia() -> None:
    kernel = gpu_host.kernel_of("gb10", NOBLE)
    names = {package.name for package in nvidia_packages.ubuntu(kernel=kernel)}
    assert "linux-modules-nvidia-580-server-open-nvidia-hwe-24.04" in names
    kernel = gpu_host.kernel_of("gb10", "debian-13-arm64")
    assert f"linux-headers-{kernel}" in {one.name for one in nvidia_packages.debian("arm64")}


@pytest.mark.parametrize(
    ("base", "architecture"), [("ubuntu-like-24.04-arm64", "arm64"), (NOBLE, ARCHITECTURE)]
)
def test_archives_have_the_architecture_of_the_base(
    tmp_path: Path, base: str, architecture: str
) -> None:
    host = gpu_host.describe(tmp_path, base)
    for repository in (host.archive, host.cuda, host.toolkit):
        assert repository.architecture == architecture
    host.toolkit.publish([Package("tool", "1")])
    assert f"Architecture: {architecture}\n" in (host.toolkit.folder / "Packages").read_text()
    (file,) = (host.toolkit.folder / "pool").iterdir()
    assert file.name == f"tool_1_{architecture}.deb"


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
    assert "unknown GPU model 'h1000'; expected one of none, t4, 2xh100, 8xv100" in done.stdout
    folder = ROOT / ".slipway/hosts/demo/stand-ins/demo-1/h1000-ubuntu-like-24.04"
    assert not folder.exists()


class SimulatedSmi:
    """The programs of a simulated host with eight GPUs, below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = pci_tree.build(folder / "sys", pci_tree.MODELS["8xh100"], flat=True)
        (folder / "sys/module/nvidia").mkdir(parents=True)
        (folder / "sys/module/nvidia/version").touch()
        (folder / "dev").mkdir()
        (folder / "dev/kmsg").touch()

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        sample = parts.SAMPLES / "580-h100.xml"
        for name in ("/sys/bus", "/sys/module", "/dev/kmsg", "/dev/nvidia", "/run/", "/srv/"):
            script = script.replace(name, f"{self.folder}{name}")
        script = script.replace("/usr/share/nvidia-stand-in/nvidia-smi.xml", str(sample))
        program = self.folder / "program"
        program.write_text(script)
        command = ["sh", str(program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def findings(self) -> list[health.Finding]:
        done = self.run(simulated_faults.SMI, "-q", "-x")
        assert done.stderr == ""
        answer = {"status": 0, "gpus": health_facts.read_fields(done.stdout)}
        log, _complete = health_facts.read_log(str(self.folder / "dev/kmsg"))
        return health.judge_smi(answer, []) + health.judge_kernel_log(log)


@pytest.fixture
def smi(tmp_path: Path) -> SimulatedSmi:
    return SimulatedSmi(tmp_path)


def test_the_stand_in_nvidia_smi_lists_each_gpu_of_the_host(smi: SimulatedSmi) -> None:
    done = smi.run(simulated_faults.SMI, "-q", "-x")
    assert done.stderr == ""
    report = nvidia_smi.parse(done.stdout)
    gpus = [
        path.name
        for path in smi.tree.iterdir()
        if (path / "class").read_text().startswith("0x0302")
    ]
    assert sorted(gpu.address for gpu in report.gpus) == sorted(gpus)
    assert len({gpu.uuid for gpu in report.gpus}) == len(gpus) == 8
    assert smi.findings() == []


@pytest.mark.parametrize("fault", simulated_faults.FIELDS)
def test_an_injected_fault_changes_fields_of_a_recording_and_one_gpu(
    smi: SimulatedSmi, fault: str
) -> None:
    """The recording of an H200 has each field; the fault is found on the GPU that got it."""
    recorded = health_facts.read_fields((parts.SAMPLES / "580-h200.xml").read_text())
    (fields,) = recorded.values()
    names = {path.rpartition("/")[2] for path in fields}
    assert names >= set(simulated_faults.FIELDS[fault])
    done = smi.run(simulated_faults.INJECT, fault, "0000:05:00.0")
    assert (done.returncode, done.stderr) == (0, "")
    (finding,) = smi.findings()
    assert finding.where == "0000:05:00.0"


def test_a_reset_needs_an_idle_gpu_and_ends_what_a_reset_ends(smi: SimulatedSmi) -> None:
    address = "0000:05:00.0"
    for fault in ("row-pending", "row-failure"):
        smi.run(simulated_faults.INJECT, fault, address)
    smi.run(simulated_faults.INJECT, "xid", "48, pid=7, An uncorrectable double bit error", address)
    refused = smi.run(simulated_faults.SMI, "--gpu-reset", "-i", address)
    assert (refused.returncode, len(smi.findings())) == (255, 2)
    assert "In use by another client" in refused.stdout
    for arguments in (("-pm", "0", "-i"), ("--gpu-reset", "-i"), ("-pm", "1", "-i")):
        assert smi.run(simulated_faults.SMI, *arguments, address).returncode == 0
    assert [one.found for one in smi.findings()] == ["replacement of a memory row failed"]
    assert smi.run(simulated_faults.SMI, "--gpu-reset", "-i", "0000:99:00.0").returncode == 6


def test_a_lost_gpu_keeps_the_others_in_place(smi: SimulatedSmi) -> None:
    before = nvidia_smi.parse(smi.run(simulated_faults.SMI, "-q", "-x").stdout).gpus
    smi.run(simulated_faults.INJECT, "lost", before[2].address)
    after = nvidia_smi.parse(smi.run(simulated_faults.SMI, "-q", "-x").stdout).gpus
    assert after == (*before[:2], *before[3:])


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("xid",), ("fabric", "0000:99:00.0")])
def test_a_wrong_injection_says_how(smi: SimulatedSmi, arguments: tuple[str, ...]) -> None:
    done = smi.run(simulated_faults.INJECT, *arguments)
    assert done.returncode == 1
    assert "Usage" in done.stderr or "no PCI device" in done.stderr
    assert smi.findings() == []
