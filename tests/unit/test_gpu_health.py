# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sick GPU is never called well: each fault is found by exactly its own check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    health,
    health_check,
    health_facts,
    xids,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit,
    nvidia_driver,
)

from tests.contract.tree import ROOT, text
from tests.unit.gpu_facts import facts
from tests.unit.gpu_faults import (
    FAULTS,
    FIRST,
    GPU,
    LOG,
    PAGE,
    SECOND,
    document,
    gpu,
    judge,
    page,
)
from tests.unit.role_options import options

RECORDINGS = ROOT / "lab/nvidia_packages/nvidia-smi"
(T4,) = health.own_gpus(facts("t4"))


def test_a_healthy_host_has_no_finding() -> None:
    text = document(gpu(), gpu("00000000:86:00.0"))
    assert judge(text, [FIRST, SECOND]) == []


@pytest.mark.parametrize("file", sorted(RECORDINGS.glob("*.xml")), ids=lambda file: file.stem)
def test_recordings_of_healthy_gpus_have_no_fault(file: Path) -> None:
    """The recorded T4 has half of its PCIe lanes: its cloud gives it no more.

    Somebody switched MIG on for the recorded A100 and had not reset it yet.
    """
    findings = judge(file.read_text(encoding="utf-8"), [])
    faults = [one.found for one in findings if not one.warning]
    mig = ["MIG mode is Disabled, after the next reset Enabled"]
    assert faults == (mig if file.stem == "535-a100-mig" else [])


@pytest.mark.parametrize(("old", "new", "found", "remedy"), FAULTS)
def test_each_fault_is_one_finding_of_its_gpu(old: str, new: str, found: str, remedy: str) -> None:
    text = document(gpu(old=old, new=new), gpu("00000000:86:00.0"))
    (finding,) = judge(text, [FIRST, SECOND])
    assert finding.where == FIRST
    assert found in finding.found
    assert finding.warning == ("PCIe link" in found)
    assert remedy in finding.remedy
    ((kind, text),) = health.sentences([finding.as_data()])
    assert kind == (health.WARNING if finding.warning else health.FAULT)
    assert text.startswith(f"GPU {FIRST}: {finding.found}; expected ")


def test_the_page_of_faults_is_what_the_tests_inject() -> None:
    """Run ``PYTHONPATH=collections ./slipway run python -m tests.unit.gpu_faults`` to write it."""
    assert text(PAGE) == page()


def test_older_drivers_name_fields_otherwise() -> None:
    counts = "<volatile><double_bit><total>4</total></double_bit><dram_x>1</dram_x></volatile>"
    start = GPU.index("<ecc_errors>")
    end = GPU.index("</ecc_errors>")
    node = GPU[:start] + f"<ecc_errors>{counts}" + GPU[end:]
    node = node.replace("clocks_event_reason", "clocks_throttle_reason")
    node = node.replace("thermal_slowdown>Not Active", "thermal_slowdown>Active")
    found = [one.found for one in judge(document(node.replace("{bus}", "0:3B:00.0")), [])]
    assert len(found) == 2
    assert "4 uncorrectable memory errors" in found[0]
    assert "too hot" in found[1]


def test_fields_that_a_gpu_does_not_report_are_no_fault() -> None:
    bare = '<gpu id="00000000:3B:00.0"><fabric><state>N/A</state></fabric></gpu>'
    assert judge(document(bare), [FIRST]) == []


def test_a_gpu_that_the_driver_lacks_is_named() -> None:
    (finding,) = judge(document(gpu()), [FIRST, SECOND])
    assert finding.where == SECOND
    assert "the driver does not list it" in finding.found


def test_other_output_is_an_error() -> None:
    with pytest.raises(ValueError, match="No devices were found"):
        health_facts.read_fields("No devices were found")
    with pytest.raises(ValueError, match="found <html>"):
        health_facts.read_fields("<html/>")


@pytest.mark.parametrize(
    ("expected", "present", "count"), [(0, 0, 0), (8, 8, 0), (1, 2, 0), (8, 7, 1), (1, 0, 1)]
)
def test_missing_gpus_are_a_fault(expected: int, present: int, count: int) -> None:
    findings = health.judge_missing(expected, present)
    assert len(findings) == count
    assert all(f"{present} GPUs are on the PCI bus" in one.found for one in findings)


@pytest.mark.parametrize(("line", "where", "found"), LOG)
def test_faults_in_the_kernel_log_are_named(line: str, where: str, found: str) -> None:
    (finding,) = health.judge_kernel_log([f"[  12.345678] {line}", f"6,99,1,-;{line}"])
    assert finding.where == where
    assert found in finding.found
    assert finding.remedy and "{" not in finding.remedy


@pytest.mark.parametrize(
    "line",
    [
        "NVRM: Xid (PCI:0000:3b:00): 13, pid=5, name=python, Graphics Exception: ESR 0x50",
        "NVRM: Xid (PCI:0000:3b:00): 31, pid=5, name=python, Ch 00000008, MMU Fault: ENGINE",
        "NVRM: Xid (PCI:0000:3b:00): 43, pid=5, name=python, Ch 00000008",
        "NVRM: Xid (PCI:0000:3b:00): 45, pid=5, name=python, Ch 00000008",
        "NVRM: Xid (PCI:0000:3b:00): 94, pid=5, name=python, Contained ECC error",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
        "nvidia-nvswitch3: SXid (PCI:0000:c4:00.0): 22013, Non-fatal, Link 30",
        "a program wrote: Xid (PCI:0000:3b:00): 79",
    ],
)
def test_faults_of_programs_are_no_faults_of_the_host(line: str) -> None:
    assert health.judge_kernel_log([line]) == []


def test_a_reset_ends_the_faults_of_its_gpu() -> None:
    lines = [
        "NVRM: Xid (PCI:0000:3b:00): 95, pid=7, Uncontained ECC error",
        "NVRM: Xid (PCI:0000:86:00): 95, pid=7, Uncontained ECC error",
        "NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x1 (GPU Reset "
        "Required) to 0x0 (None)",
    ]
    assert [one.where for one in health.judge_kernel_log(lines)] == [SECOND]


def test_every_xid_has_a_meaning_and_a_remedy() -> None:
    for number, (meaning, remedy) in xids.FAULTS.items():
        assert meaning and remedy.format(gpu="x"), number
    assert not {13, 31, 43, 45, 94, 154} & set(xids.FAULTS)


def test_loading_the_driver_ends_its_earlier_messages() -> None:
    lines = [
        "NVRM: API mismatch: the client has the version 580.95.05, but",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=7, GPU has fallen off the bus.",
        "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
    ]
    assert [one.where for one in health.judge_kernel_log(lines)] == [FIRST]


def test_a_fabric_manager_of_another_version_is_a_fault() -> None:
    host = facts("8xh100", recorded=8) | {}
    host["gpu"] = {
        **host["gpu"],
        "loaded": "580.95.05",
        "packages": {
            "nvidia-fabricmanager-580": "580.95.05-1",
            "libnvidia-compute-580": "580.95.05-1",
        },
    }
    assert health.judge(host, {}) == []
    host["gpu"]["packages"]["nvidia-fabricmanager-580"] = "580.82.07-1"
    (finding,) = health.judge(host, {})
    assert "nvidia-fabricmanager-580 has version 580.82.07" in finding.found
    host["gpu"]["packages"]["libnvidia-compute-580"] = "580.82.07-1"
    assert health.judge(host, {}) == []


@pytest.mark.parametrize(
    ("status", "found"),
    [(18, "differ in version (version mismatch)"), (127, "nvidia-smi is missing")],
)
def test_faults_of_an_installation_are_warnings(status: int, found: str) -> None:
    (finding,) = health.judge_smi({"status": status, "output": "version mismatch"}, [FIRST])
    assert finding.warning
    assert found in finding.found


# --- reading, on the host -----------------------------------------------------------------------


def test_the_drivers_records_of_the_kernel_log_are_read(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("6,0,1,-;Linux version 6.8\n SUBSYSTEM=pci\n4,1,2,c;NVRM: Xid; more\n")
    assert health_facts.read_log(str(log)) == (["NVRM: Xid; more"], True)


def test_of_equal_faults_the_newest_is_kept() -> None:
    old, new = (f"NVRM: Xid (PCI:0000:3b:00): 79, pid={pid}, off the bus" for pid in (1, 2))
    other = "NVRM: Xid (PCI:0000:86:00): 79, pid=1, off the bus"
    assert health_facts.newest([old, other, new]) == [other, new]
    many = [f"NVRM: {number}" for number in range(2 * health_facts.MAX_LINES)]
    assert health_facts.newest(many) == many[health_facts.MAX_LINES :]


def test_the_journal_has_the_lines_that_the_kernel_dropped(
    tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    program("journalctl", "echo 'NVRM: old'; echo other")
    log = tmp_path / "kmsg"
    log.write_text("6,900,1,-;NVRM: new\n")
    assert health_check.read_log(str(log)) == ["NVRM: old", "NVRM: new"]
    assert health_check.read_log(str(tmp_path / "none")) == ["NVRM: old"]


MOUNT = "36 35 98:0 /usr/lib/libcuda.so.{0} /usr/lib/x86_64-linux-gnu/libcuda.so.{0} rw - ext4 x rw"
COMPAT = "36 35 0:1 /usr/local/cuda/compat/libcuda.so.600.1 /usr/lib/libcuda.so.600.1 rw - x x rw"


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([MOUNT.format("580.95.05")], []),
        ([MOUNT.format("570.86.15//deleted")], ["570.86.15"]),
        ([MOUNT.format("1")], []),
        ([COMPAT], []),
        ([COMPAT, MOUNT.format("570.86.15")], ["570.86.15"]),
        ([], []),
    ],
)
def test_containers_with_older_libraries_are_found(
    mounts: list[str], found: list[str], tmp_path: Path
) -> None:
    identifier = "f" * 64
    task = tmp_path / "run/containerd/io.containerd.runtime.v2.task/moby" / identifier
    for path, content in {
        tmp_path / "sys/module/nvidia/version": "580.95.05\n",
        task / "init.pid": "7",
        tmp_path / "proc/7/mountinfo": "\n".join(["1 2 0:3 / / rw - x x rw", *mounts]),
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(content)
    named = [[identifier[:12], version] for version in found]
    assert health_facts.ask_outdated(f"{tmp_path}/") == named


SPECIFICATION = """
kind: nvidia.com/gpu
containerEdits: {deviceNodes: [{path: /dev/nvidiactl}]}
devices:
- name: "0"
  containerEdits: {deviceNodes: [{path: /dev/nvidia0}, {path: /dev/dri/card1}]}
"""


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (SPECIFICATION, []),
        (SPECIFICATION.replace("nvidia0", "nvidia7"), ["/dev/nvidia7"]),
        (SPECIFICATION.replace("nvidiactl", "nvidia-caps/nvidia-cap2"),
         ["/dev/nvidia-caps/nvidia-cap2"]),
        (SPECIFICATION.replace("nvidia0", "nvidia7").replace("nvidia.com", "other.com"), []),
        ("\udcff", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", health_facts.CDI_FOLDERS)
def test_a_specification_of_missing_device_files_is_a_fault(
    text: str, gone: list[str], folder: str, tmp_path: Path
) -> None:
    for path in (tmp_path / "dev/nvidia0", tmp_path / "dev/nvidiactl", tmp_path / folder / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / folder / "x").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = health_facts.ask_gone_devices(f"{tmp_path}/")
    assert found == ([[f"/{folder}/x", *gone]] if gone else [])
    findings = health.judge(facts("t4"), {"health": {"cdi": found}})
    assert [one.found for one in findings] == [
        f"the CDI specification /{folder}/x names missing device files: {file}" for file in gone
    ]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the facts of a host with one GPU, two recorded, and a loaded driver."""
    monkeypatch.setattr(health_check, "read_log", list)
    given = facts("t4", recorded=2)
    given["gpu"]["loaded"] = "580.95.05"
    return given


def smi(program: Callable[[str, str], None], folder: Path, old: str, new: str) -> None:
    (folder / "sample.xml").write_text(document(gpu(f"0000{T4}", old, new)))
    program("nvidia-smi", f"cat {folder / 'sample.xml'}")


def test_all_faults_of_a_host_are_named_at_once(
    program: Callable[[str, str], None], tmp_path: Path, host: dict[str, Any]
) -> None:
    smi(program, tmp_path, "action>None", "action>Node Reboot")
    with pytest.raises(ValueError, match=f"1 GPUs are on the PCI bus.*GPU {T4}.*Reboot"):
        health_check.check(host)


def test_a_healthy_host_passes_and_shows_warnings(
    program: Callable[[str, str], None], tmp_path: Path, host: dict[str, Any]
) -> None:
    host["gpu"]["recorded"] = 1
    smi(program, tmp_path, "<current_link_width>16x", "<current_link_width>8x")
    assert health_check.check(host).startswith(f"No fault found. GPUs: 1. GPU {T4}")


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'Unable to determine the device handle'; exit 15", "fallen off the bus"),
        ("echo 'Failed to initialize NVML'", "cannot parse nvidia-smi -q -x"),
    ],
)
def test_a_driver_that_does_not_answer_is_a_fault(
    script: str, found: str, program: Callable[[str, str], None], host: dict[str, Any]
) -> None:
    host["gpu"]["recorded"] = 1
    program("nvidia-smi", script)
    with pytest.raises(ValueError, match=found):
        health_check.check(host)


def test_a_driver_that_was_removed_is_not_judged(
    program: Callable[[str, str], None], host: dict[str, Any]
) -> None:
    program("nvidia-smi", "exit 127")
    host["gpu"] |= {"recorded": 0, "packages": {"libnvidia-compute-580": "580.95.05-1"}}
    assert "nvidia-smi is missing" in health_check.check(host)
    host["gpu"]["packages"] = {}
    assert health_check.check(host) == "not run: no driver is installed"
    assert health.judge(host, {"health": {"smi": {"status": 127, "output": ""}}}) == []


def test_a_driver_that_is_not_loaded_is_a_fault_only_where_the_role_recorded_gpus() -> None:
    given = facts("t4", recorded=0)
    assert health_check.check(given) == "not run: no driver is loaded"
    given["gpu"]["recorded"] = 1
    with pytest.raises(ValueError, match="no NVIDIA driver is loaded"):
        health_check.check(given)


# --- what the host had --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recorded", "declared", "expected"),
    [(0, "auto", 8), (8, "auto", 8), (10, "auto", 10), (10, 8, 8), (0, "10", 10)],
)
def test_the_record_keeps_the_largest_number_or_the_declared_one(
    recorded: int, declared: str | int, expected: int
) -> None:
    given = facts("8xa100", recorded=recorded)
    found = nvidia_driver.plan(given, options("nvidia_driver", gpus=declared))
    files = {entry["path"]: entry.get("content") for entry in found["owned"]["files"]}
    assert json.loads(files[gpu_facts.RECORD] or "") == {"gpus": expected}


def test_a_host_that_lost_its_gpus_stays_a_gpu_host() -> None:
    given = facts("none")
    given["gpu"] |= {"recorded": 8, "packages": {}, "loaded": "", "banner": ""}
    assert gpu_host.has_gpu(given)
    assert nvidia_container_toolkit.plan(given, options("nvidia_container_toolkit"))["needed"]
    found = nvidia_driver.plan(given, options("nvidia_driver"))
    assert found["owned"] == {"refused": []}
    assert "0 GPUs are on the PCI bus; expected 8" in found["notes"][-1]


@pytest.mark.parametrize(
    ("declared", "files"),
    [
        (0, [{"path": gpu_facts.RECORD, "state": "absent"}]),
        ("2", [{"path": gpu_facts.RECORD, "content": '{"gpus": 2}\n'}]),
    ],
)
def test_the_record_of_a_host_without_any_gpu_follows_the_declaration(
    declared: Any, files: list[dict[str, Any]]
) -> None:
    given = facts("none")
    given["gpu"] |= {"recorded": 8, "packages": {}, "loaded": "", "banner": ""}
    found = nvidia_driver.plan(given, options("nvidia_driver", gpus=declared))
    assert found["owned"] == {"refused": [], "files": files}
    lost = [note for note in found["notes"] if "on the PCI bus" in note]
    assert bool(lost) is (declared != 0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"gpus": "x"}', "\udcff"])
def test_a_broken_record_counts_as_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "gpus.json"
    record.write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(gpu_facts, "RECORD", str(record))
    assert gpu_facts.read_recorded_gpus() == 0
    record.write_text('{"gpus": 4}')
    assert gpu_facts.read_recorded_gpus() == 4


@pytest.mark.parametrize(
    ("row", "pages", "count"),
    [("Yes", "N/A", 2), ("No", "N/A", 0), ("N/A", "No", 0), ("N/A", "N/A", 1)],
)
def test_a_row_that_was_replaced_ends_its_line_in_the_kernel_log(
    row: str, pages: str, count: int
) -> None:
    """A reset replaces the row; the kernel keeps the line."""
    given = facts("t4", recorded=1)
    given["gpu"]["loaded"] = "580.95.05"
    text = gpu(f"0000{T4}", "row_pending>No", f"row_pending>{row}")
    for name in ("pending_blacklist", "pending_retirement"):
        text = text.replace(f"<{name}>No", f"<{name}>{pages}")
    smi = {"status": 0, "gpus": health_facts.read_fields(document(text))}
    log = [f"NVRM: Xid (PCI:{T4[:-2]}): 63, pid=7, Row Remapper: New row marked for remapping"]
    found = health.judge(given, {"health": {"smi": smi, "log": log}})
    assert len(found) == count
    assert {one.gpu for one in found} <= {f"GPU-0000{T4}"}


def test_a_reset_is_described_so_that_it_works_in_persistence_mode() -> None:
    (fault,) = health.judge_kernel_log(["NVRM: Xid (PCI:0000:3b:00): 48, pid=7, double bit"])
    first, second, third = fault.remedy.partition(": ")[2].partition(". ")[0].split("; ")
    assert first == f"nvidia-smi -pm 0 -i {FIRST}"
    assert second == f"nvidia-smi --gpu-reset -i {FIRST}"
    assert third == f"nvidia-smi -pm 1 -i {FIRST}"
    assert fault.remedy.endswith("reboot the host")
