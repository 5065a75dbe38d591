# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a proof that containers get the GPUs and keep them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_judge,
    health,
    health_check,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import proof as gpu_proof
from ansible_collections.slipway.host.plugins.module_utils.host import verify as host_verify
from ansible_collections.slipway.host.plugins.module_utils.state import containers, packages
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.modules import verify

from lab import pci_tree, stand_in_cuda
from tests.unit.conftest import RunModule

CDI = {"ServerVersion": "28.5.2", "CgroupDriver": "systemd", "CDISpecDirs": ["/etc/cdi"]}
HOOK = {"ServerVersion": "24.0.7", "CgroupDriver": "cgroupfs", "CDISpecDirs": None}
OFF = {"ServerVersion": "26.1.5", "CgroupDriver": "systemd", "CDISpecDirs": []}
PYTHON = str(Path(sys.executable).resolve())
PASSED = cuda_judge.Check("cuda-init", True, "cuInit returns 0", "CUDA 13.0")
FAILED = cuda_judge.Check("gpu-vector-sum", False, "1", "2", "Replace the GPU.", gpu="0000:01:00.0")
SUMMARY = "2 computed correctly with a stand-in driver, CUDA 13.0, 1 checks in 1.0 s"
LOST = "Failed to initialize NVML: Unknown Error"

# Each program writes down how it was called. The container's GPUs are a file, which the daemon
# reload may take; nvidia-smi in the container is `docker exec`.
DOCKER = """
echo "docker $*" >>"$LOG"
case $1 in
import) cat >"$FOLDER/root.tar"; echo sha256:image ;;
run) [ ! -e "$FOLDER/refusal" ] || { cat "$FOLDER/refusal" >&2; exit 125; }; echo c1 ;;
exec)
    case "$*" in
    *cuda_check*) cat "$FOLDER/computed" ;;
    *) cat "$FOLDER/inside"; ! grep -q Failed "$FOLDER/inside" ;;
    esac
    ;;
esac
"""
SYSTEMCTL = """
echo "systemctl $*" >>"$LOG"
[ ! -e "$FOLDER/after" ] || mv "$FOLDER/after" "$FOLDER/inside"
"""


def listing(count: int) -> str:
    return "".join(f"GPU {number}: NVIDIA T4 (UUID: GPU-{number})\n" for number in range(count))


@dataclass
class GpuHost:
    """A host whose programs are stand-ins, and what the engine's socket answers."""

    folder: Path
    answers: dict[str, Any] = field(default_factory=dict)

    def sees(self, inside: str, after: str | None = None) -> None:
        (self.folder / "inside").write_text(inside)
        if after is not None:
            (self.folder / "after").write_text(after)

    def computes(self, check: cuda_judge.Check, in_container: bool) -> None:
        """Set the only check in the CUDA check's report, of the container or of the host."""
        driver = {"cuda_version": "13.0", "stand_in": True}
        gpus = [cuda_judge.Gpu(i, "stand-in", f"0000:0{i}:00.0", 1, "9.0", False) for i in (1, 2)]
        report = cuda_judge.report(driver, gpus, [check], [], 1.0)
        name = "computed" if in_container else "computed-on-host"
        (self.folder / name).write_text(json.dumps(report))

    def called(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def gpu_host(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: Callable[[str, str], None],
    installed_engine: None,
) -> GpuHost:
    """A host with two GPUs, an engine with CDI, and everything in order."""
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    program("docker", DOCKER)
    program("systemctl", SYSTEMCTL)
    program("nvidia-smi", f"printf '{listing(2)}'")
    program("nvidia-ctk", "exit 0")
    tree = pci_tree.build(tmp_path / "sys", pci_tree.MODELS["k80"])
    read = gpu_facts.ask_gpus
    monkeypatch.setattr(gpu_facts, "ask_gpus", lambda: read(str(tree)))
    installed = ["install", "installed", "28.5.2"]
    monkeypatch.setattr(
        packages, "ask_packages", lambda names: {**dict.fromkeys(names), "docker.io": installed}
    )
    found = GpuHost(
        tmp_path,
        {
            "/info": CDI,
            "/version": {"Version": "28.5.2", "ApiVersion": "1.51"},
            "/containers/json": [],
            "/containers/json?all=1": [],
            "/images/json": [],
        },
    )
    monkeypatch.setattr(containers, "ask_engine", lambda path: answer(found, path))
    # Health has tests of its own; this machine's kernel log is not that of the host.
    monkeypatch.setattr(health_check, "check", lambda *_: "No fault found. GPUs: 2.")
    found.sees(listing(2))
    for in_container in (False, True):
        found.computes(PASSED, in_container)
    # In the place of this process's Python, which would ask a real driver.
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "python $*" >>"$LOG"\ncat {tmp_path}/computed-on-host\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(gpu_proof, "container_python", lambda: PYTHON)
    return found


def answer(host: GpuHost, path: str) -> Any:
    """Answer as the engine does, by a 404 for what it does not know."""
    if path not in host.answers:
        raise ValueError("Docker answered 404")
    return host.answers[path]


@pytest.fixture(autouse=True)
def other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out checks of the engine that test_verify_host tests."""
    monkeypatch.setattr(host_verify, "_check_running_engine", lambda _declared: [])


def prove(host: GpuHost, reload: bool = True) -> Mapping[str, Mapping[str, Any]]:
    checks = host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=reload))
    return {check["what"]: check for check in checks}


def test_the_same_container_is_checked_before_and_after_the_reload(gpu_host: GpuHost) -> None:
    check = prove(gpu_host)["GPUs in containers"]
    assert check["ok"], check["seen"]
    assert check["seen"] == (
        f"a container lists 2 of 2 by CDI on engine 28.5.2, cgroup driver systemd: {SUMMARY}, "
        "also after systemctl daemon-reload"
    )
    run = f"docker run --rm --detach --network none --label {gpu_proof.LABEL}"
    limits = "--memory-mib 64 --timeout 308"
    on_host, *called = gpu_host.called()
    assert re.fullmatch(
        rf"python -I -S /\S+\.pyz --expect 0000:03:00.0,0000:04:00.0 {limits}", on_host
    )
    assert called == [
        f"docker import --change LABEL {gpu_proof.LABEL} -",
        f"{run} --device nvidia.com/gpu=all sha256:image sleep 600",
        "docker exec c1 nvidia-smi -L",
        f"docker exec c1 {PYTHON} -I -S {gpu_proof.CHECK} --expect 2 {limits} --container",
        "systemctl daemon-reload",
        "docker exec c1 nvidia-smi -L",
        "docker rm --force c1",
        "docker image rm sha256:image",
    ]


@pytest.mark.parametrize(
    ("after", "seen"), [(f"{LOST}\n", f"lists 0 of 2 GPUs ({LOST})"), (listing(1), "lists 1 of 2")]
)
def test_gpus_lost_by_the_reload_are_reported_with_a_remedy(
    gpu_host: GpuHost, after: str, seen: str
) -> None:
    gpu_host.answers["/info"] = OFF
    gpu_host.sees(listing(2), after)
    check = prove(gpu_host)["GPUs in containers"]
    assert not check["ok"]
    assert f"after systemctl daemon-reload the same container {seen}" in check["seen"]
    assert "expected all of them" in check["seen"]
    assert "by --gpus on engine 26.1.5, cgroup driver systemd" in check["seen"]
    assert "set features.cdi to true in /etc/docker/daemon.json" in check["seen"]
    assert gpu_host.called()[-2:] == ["docker rm --force c1", "docker image rm sha256:image"]


def test_an_engine_without_cdi_uses_the_hook(gpu_host: GpuHost) -> None:
    gpu_host.answers["/info"] = HOOK
    assert prove(gpu_host)["GPUs in containers"]["ok"]
    assert any('--gpus all,"capabilities=compute,utility"' in line for line in gpu_host.called())


def test_without_the_reload_the_container_is_checked_once(gpu_host: GpuHost) -> None:
    check = prove(gpu_host, reload=False)["GPUs in containers"]
    assert check["ok"]
    assert "skipped systemctl daemon-reload" in check["seen"]
    assert "systemctl daemon-reload" not in gpu_host.called()


def test_without_containers_none_is_started(gpu_host: GpuHost) -> None:
    options = host_verify.Options(containers=False)
    check = {one["what"]: one for one in host_verify.run_checks(options)}["GPUs in containers"]
    assert (check["status"], check["seen"]) == ("not_run", host_verify.NO_CONTAINERS)
    assert not [line for line in gpu_host.called() if line.startswith("docker")]


def running(**host_config: Any) -> dict[str, Any]:
    return {
        "/containers/json": [{"Id": "t1", "Names": ["/training"]}],
        "/containers/t1/json": {"HostConfig": host_config},
    }


GPUS = {"Driver": "", "Capabilities": [["gpu"]]}


@pytest.mark.parametrize(
    "host_config", [{"DeviceRequests": [GPUS]}, {"Runtime": "nvidia", "DeviceRequests": None}]
)
def test_the_check_takes_no_gpus_from_other_containers(
    gpu_host: GpuHost, host_config: dict[str, Any]
) -> None:
    gpu_host.answers.update(running(**host_config))
    check = prove(gpu_host)["GPUs in containers"]
    assert check["ok"]
    assert "containers training, started with --gpus, would lose" in check["seen"]
    assert "systemctl daemon-reload" not in gpu_host.called()


def test_a_container_that_ends_meanwhile_is_not_a_failure(gpu_host: GpuHost) -> None:
    gpu_host.answers["/containers/json"] = [{"Id": "c9", "Names": ["/brief"]}]
    assert prove(gpu_host)["GPUs in containers"]["seen"].endswith("systemctl daemon-reload")


@pytest.mark.parametrize(
    ("info", "host_config"),
    [
        (CDI, {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]}),
        (CDI, {"DeviceRequests": None, "Runtime": "runc"}),
        (HOOK, {"DeviceRequests": [GPUS]}),
    ],
    ids=["by CDI", "without GPUs", "not systemd's devices"],
)
def test_containers_that_keep_their_gpus_do_not_prevent_the_reload(
    gpu_host: GpuHost, info: dict[str, Any], host_config: dict[str, Any]
) -> None:
    gpu_host.answers.update({"/info": info, **running(**host_config)})
    assert prove(gpu_host)["GPUs in containers"]["seen"].endswith("systemctl daemon-reload")


def test_a_container_that_does_not_start_is_reported_with_a_remedy(gpu_host: GpuHost) -> None:
    words = "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all"
    (gpu_host.folder / "refusal").write_text(words)
    check = prove(gpu_host)["GPUs in containers"]
    assert not check["ok"]
    assert words in check["seen"]
    assert "systemctl restart nvidia-cdi-refresh" in check["seen"]
    assert gpu_host.called()[-1] == "docker image rm sha256:image"


def test_a_lost_gpu_is_reported_and_no_container_starts(
    gpu_host: GpuHost, program: Callable[[str, str], None]
) -> None:
    program("nvidia-smi", f"printf '{listing(1)}'")
    proof = prove(gpu_host)
    assert proof["GPUs"]["seen"].startswith("nvidia-smi lists 1 of 2 GPUs; expected all")
    assert "GPUs in containers" not in proof
    program("nvidia-smi", "echo 'stand-in: the driver is not loaded' >&2; exit 9")
    assert "(stand-in: the driver is not loaded)" in prove(gpu_host)["GPUs"]["seen"]


def test_a_host_that_computes_wrongly_is_named_and_no_container_runs(gpu_host: GpuHost) -> None:
    gpu_host.computes(FAILED, in_container=False)
    proof = prove(gpu_host)
    assert proof["GPUs"]["ok"]
    assert not proof["GPU computation"]["ok"]
    assert proof["GPU computation"]["seen"] == (
        "gpu-vector-sum of GPU 0000:01:00.0: 2; expected 1. Replace the GPU."
    )
    assert "GPUs in containers" not in proof


def test_a_container_that_computes_wrongly_is_told_apart_from_the_host(gpu_host: GpuHost) -> None:
    gpu_host.computes(FAILED, in_container=True)
    proof = prove(gpu_host)
    assert proof["GPU computation"]["seen"] == SUMMARY
    assert not proof["GPUs in containers"]["ok"]
    assert "a new container cannot compute: gpu-vector-sum" in proof["GPUs in containers"]["seen"]
    assert gpu_host.called()[-2:] == ["docker rm --force c1", "docker image rm sha256:image"]


def test_a_check_without_a_report_is_a_failure_with_its_words(gpu_host: GpuHost) -> None:
    (gpu_host.folder / "computed").write_text("no such file: python3")
    seen = prove(gpu_host)["GPUs in containers"]["seen"]
    assert "The CUDA check wrote no report: no such file: python3" in seen


def test_slices_of_a_gpu_are_not_counted(
    gpu_host: GpuHost, program: Callable[[str, str], None]
) -> None:
    sliced = listing(2) + "  MIG 1g.10gb     Device  0: (UUID: MIG-0)\n"
    program("nvidia-smi", f"printf '{sliced}'")
    assert prove(gpu_host)["GPUs"]["seen"] == "nvidia-smi lists 2 of 2"


@pytest.mark.parametrize(
    ("missing", "what", "seen"),
    [
        ("nvidia-ctk", "GPUs in containers", "not applicable: driver and container toolkit"),
        ("nvidia-smi", "GPUs", "not applicable: no driver is declared or installed"),
    ],
)
def test_missing_optional_parts_are_not_errors(
    gpu_host: GpuHost, missing: str, what: str, seen: str
) -> None:
    (gpu_host.folder / "programs" / missing).unlink()
    check = prove(gpu_host)[what]
    assert check["ok"]
    assert seen in check["seen"]


DRIVER_PACKAGES = {"nvidia-utils-580-server": "580.95.05-0ubuntu1"}
TOOLKIT_PACKAGES = ["install", "installed", "1.20.1-1"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("missing", "what", "key"),
    [
        ("nvidia-smi", "GPUs", "driver"),
        ("nvidia-ctk", "GPUs in containers", "toolkit"),
    ],
)
def test_a_program_of_something_declared_or_installed_is_missed(
    gpu_host: GpuHost,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    what: str,
    key: str,
    declared: bool,
) -> None:
    if not declared:
        facts = gpu_facts.ask_gpus()
        monkeypatch.setattr(gpu_facts, "ask_gpus", lambda: {**facts, "packages": DRIVER_PACKAGES})
        monkeypatch.setattr(
            packages, "ask_packages", lambda names: dict.fromkeys(names, TOOLKIT_PACKAGES)
        )
    expected = {key: True} if declared else {}
    assert host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=False), expected)[
        0
    ]["ok"]
    (gpu_host.folder / "programs" / missing).unlink()
    results = host_verify.run_checks(
        host_verify.Options(smoke=False, daemon_reload=False), expected
    )
    (check,) = [check for check in results if not check["ok"]]
    assert check["what"] == what
    assert check["seen"].startswith(f"{missing} not found in ")
    assert "apt-get install --reinstall" in check["seen"]


def test_gpus_are_not_tried_while_the_load_of_the_driver_waits(gpu_host: GpuHost) -> None:
    (gpu_host.folder / "programs/nvidia-smi").unlink()
    expected = {"driver": True, "waiting": ["nvidia_driver"]}
    results = host_verify.run_checks(
        host_verify.Options(smoke=False, daemon_reload=False), expected
    )
    assert [check["what"] for check in results] == ["GPUs", "engine", host_verify.NETWORK]
    assert results[0]["seen"] == "not tried: the load of the installed driver waits"
    assert all(check["ok"] for check in results)


def test_a_host_without_gpus_has_no_check(
    gpu_host: GpuHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_facts, "ask_gpus", lambda: {"devices": []})
    assert list(prove(gpu_host)) == ["engine", host_verify.NETWORK]


def test_gpus_of_virtual_machines_are_not_counted(tmp_path: Path) -> None:
    tree = pci_tree.build(tmp_path / "vfio", pci_tree.MODELS["vfio-part"])
    facts = {**state_facts.ask_host(), "gpu": gpu_facts.ask_gpus(str(tree))}
    assert len(health.own_gpus(facts)) == 1


def test_the_container_has_what_its_programs_need(gpu_host: GpuHost, tmp_path: Path) -> None:
    prove(gpu_host)
    root = tmp_path / "root"
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "root.tar").read_bytes())) as tar:
        tar.extractall(root, filter="tar")
    # nvidia-smi is a script here, so its shell is there; itself it comes with the GPUs.
    assert not list(root.rglob("nvidia-smi"))
    if os.geteuid() == 0:
        ran = subprocess.run(["chroot", root, "sh", "-c", "sleep 0 && echo ran"], stdout=-1)
        assert ran.stdout == b"ran\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change the root folder")
@pytest.mark.skipif(not stand_in_cuda.has_compiler(), reason="needs gcc for the stand-in")
def test_the_container_computes_with_its_own_python(gpu_host: GpuHost, tmp_path: Path) -> None:
    prove(gpu_host)
    root = tmp_path / "root"
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "root.tar").read_bytes())) as tar:
        tar.extractall(root, filter="tar")
    (root / "driver").mkdir()
    stand_in_cuda.build(root / "driver")
    driver = {"LD_LIBRARY_PATH": "/driver", "SLIPWAY_STAND_IN_GPUS": "1"}
    environment = {"PATH": os.environ["PATH"], **driver}
    command = ["chroot", str(root), PYTHON, "-I", "-S", gpu_proof.CHECK, "--expect", "1"]
    ran = subprocess.run(
        [*command, "--memory-mib", "8"], env=environment, capture_output=True, check=False
    )
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    assert json.loads(ran.stdout)["driver"]["stand_in"]


def test_the_module_tells_the_table_and_spares_the_reload_in_check_mode(
    gpu_host: GpuHost, run_module: RunModule
) -> None:
    result = run_module(verify, smoke=False)
    assert not result["changed"]
    assert result["slipway_note"].endswith("also after systemctl daemon-reload")
    assert any(line.startswith("ok  GPUs in containers: ") for line in result["report"])
    checked = run_module(verify, check=True, smoke=False)
    assert checked["slipway_note"].endswith("skipped systemctl daemon-reload")
