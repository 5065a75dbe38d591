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
from ansible_collections.slipway.host.plugins.module_utils.gpu import health, health_check, xids
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.nvidia_smi import SmiError
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit,
    nvidia_driver,
)

from tests.unit.gpu_facts import facts
from tests.unit.role_options import options

RECORDINGS = Path(__file__).resolve().parents[3] / "shared/data/nvidia-smi"
FIRST, SECOND = "0000:3b:00.0", "0000:86:00.0"
# A healthy GPU in the form of driver 580, with the fields that are judged.
BRAKE = "clocks_event_reason_hw_power_brake_slowdown"
GPU = """
<gpu id="{bus}">
  <product_name>NVIDIA H100 80GB HBM3</product_name>
  <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
  <gpu_recovery_action>None</gpu_recovery_action>
  <pci><pci_gpu_link_info><link_widths>
    <max_link_width>16x</max_link_width><current_link_width>16x</current_link_width>
  </link_widths></pci_gpu_link_info></pci>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
    <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
    <BRAKE>Not Active</BRAKE>
  </clocks_event_reasons>
  <ecc_errors><volatile>
    <sram_correctable>7</sram_correctable>
    <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
    <dram_uncorrectable>0</dram_uncorrectable>
  </volatile><aggregate><dram_uncorrectable>3</dram_uncorrectable></aggregate></ecc_errors>
  <retired_pages>
    <pending_blacklist>No</pending_blacklist><pending_retirement>No</pending_retirement>
  </retired_pages>
  <remapped_rows>
    <remapped_row_corr>0</remapped_row_corr><remapped_row_unc>1</remapped_row_unc>
    <remapped_row_pending>No</remapped_row_pending><remapped_row_failure>No</remapped_row_failure>
  </remapped_rows>
  <fabric><state>Completed</state><status>Success</status><health>
    <summary>Healthy</summary><bandwidth>Full</bandwidth><route_unhealthy>False</route_unhealthy>
  </health></fabric>
</gpu>
""".replace("BRAKE", BRAKE)


def document(*gpus: str) -> str:
    return (
        '<?xml version="1.0"?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">'
        f"<nvidia_smi_log><driver_version>580.95.05</driver_version>{''.join(gpus)}"
        "</nvidia_smi_log>"
    )


def gpu(bus: str = "00000000:3B:00.0", old: str = "", new: str = "") -> str:
    assert old in GPU
    return GPU.replace(old, new, 1).replace("{bus}", bus) if old else GPU.replace("{bus}", bus)


def test_a_healthy_host_has_no_finding() -> None:
    text = document(gpu(), gpu("00000000:86:00.0"))
    assert health.judge_smi(text, [FIRST, SECOND]) == []


@pytest.mark.parametrize("file", sorted(RECORDINGS.glob("*.xml")), ids=lambda file: file.stem)
def test_recordings_of_healthy_gpus_have_no_fault(file: Path) -> None:
    """The recorded T4 has half of its PCIe lanes: its cloud gives it no more."""
    findings = health.judge_smi(file.read_text(encoding="utf-8"), [])
    assert [one for one in findings if not one.warning] == []


FAULTS = [
    ("<state>Completed", "<state>In Progress", "fabric: state 'In Progress'", "fabricmanager"),
    ("<state>Completed", "<state>Not Started", "fabric: state 'Not Started'", "fabricmanager"),
    ("<status>Success", "<status>Insufficient Resources", "'Insufficient Resources'", "reboot"),
    ("<summary>Healthy", "<summary>Unhealthy", "health 'Unhealthy' (bandwidth Full)", "NVLink"),
    ("<summary>Healthy", "<summary>Limited Capacity", "'Limited Capacity'", "NVLink"),
    ("action>None", "action>Drain P2P", "recovery action 'Drain P2P'", "--gpu-reset -i 0000:3b"),
    ("action>None", "action>GPU Reset", "recovery action 'GPU Reset'", "--gpu-reset"),
    ("action>None", "action>Node Reboot", "recovery action 'Node Reboot'", "Reboot the host"),
    ("parity>0", "parity>2", "2 uncorrectable memory errors", "--gpu-reset"),
    ("<dram_uncorrectable>0", "<dram_uncorrectable>1", "1 uncorrectable memory", "--gpu-reset"),
    ("failure>No", "failure>Yes", "replacement of a memory row failed", "replaced"),
    ("row_pending>No", "row_pending>Yes", "row waits for its replacement", "--gpu-reset"),
    ("retirement>No", "retirement>Yes", "page waits for its retirement", "--gpu-reset"),
    ("blacklist>No", "blacklist>Yes", "page waits for its retirement", "--gpu-reset"),
    ("thermal_slowdown>Not Active", "thermal_slowdown>Active", "too hot", "fans"),
    ("brake_slowdown>Not Active", "brake_slowdown>Active", "power supply limits", "power supply"),
    ("<current_link_width>16x", "<current_link_width>4x", "PCIe link is 4x wide", "seating"),
    ("<pending_mig>Disabled", "<pending_mig>Enabled", "MIG mode is Disabled, after", "gpu-reset"),
]


@pytest.mark.parametrize(("old", "new", "found", "remedy"), FAULTS)
def test_each_fault_is_one_finding_of_its_gpu(old: str, new: str, found: str, remedy: str) -> None:
    text = document(gpu(old=old, new=new), gpu("00000000:86:00.0"))
    (finding,) = health.judge_smi(text, [FIRST, SECOND])
    assert finding.where == FIRST
    assert found in finding.found
    assert finding.warning == ("PCIe link" in found)
    assert remedy in finding.remedy
    assert str(finding).startswith(f"GPU {FIRST}: ")


def test_older_drivers_name_fields_otherwise() -> None:
    counts = "<volatile><double_bit><total>4</total></double_bit><dram_x>1</dram_x></volatile>"
    start = GPU.index("<ecc_errors>")
    end = GPU.index("</ecc_errors>")
    node = GPU[:start] + f"<ecc_errors>{counts}" + GPU[end:]
    node = node.replace("clocks_event_reason", "clocks_throttle_reason")
    node = node.replace("thermal_slowdown>Not Active", "thermal_slowdown>Active")
    found = [str(one) for one in health.judge_smi(document(node.replace("{bus}", "0:3B:00.0")), [])]
    assert len(found) == 2
    assert "4 uncorrectable memory errors" in found[0]
    assert "too hot" in found[1]


def test_fields_that_a_gpu_does_not_report_are_no_fault() -> None:
    bare = '<gpu id="00000000:3B:00.0"><fabric><state>N/A</state></fabric></gpu>'
    assert health.judge_smi(document(bare), [FIRST]) == []


def test_a_gpu_that_the_driver_lacks_is_named() -> None:
    (finding,) = health.judge_smi(document(gpu()), [FIRST, SECOND])
    assert finding.where == SECOND
    assert "the driver does not list it" in finding.found


def test_other_output_is_an_error() -> None:
    with pytest.raises(SmiError, match="No devices were found"):
        health.judge_smi("No devices were found", [FIRST])


@pytest.mark.parametrize(
    ("expected", "present", "count"), [(0, 0, 0), (8, 8, 0), (1, 2, 0), (8, 7, 1), (1, 0, 1)]
)
def test_missing_gpus_are_a_fault(expected: int, present: int, count: int) -> None:
    findings = health.judge_missing(expected, present)
    assert len(findings) == count
    assert all(f"{present} GPUs are on the PCI bus" in str(one) for one in findings)


# Lines of public reports; addresses, numbers and names were changed.
LOG = [
    ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.",
     FIRST, "Xid 79: GPU has fallen off the bus"),
    ("NVRM: Xid (PCI:0000:3b:00): 48, pid=1896, An uncorrectable double bit error",
     FIRST, "Xid 48"),
    ("NVRM: Xid (PCI:0000:3B:00): 63, pid=1896, Row Remapper: New row marked for remapping",
     FIRST, "Xid 63"),
    ("NVRM: Xid (0000:3b:00): 64, Dynamic Page Retirement: Fatal error, unable to retire page",
     FIRST, "Xid 64"),
    ("NVRM: Xid (PCI:0000:3b:00): 119, pid=77, name=python, Timeout after 6s of waiting for RPC",
     FIRST, "Xid 119"),
    ("NVRM: Xid (PCI:0000:3b:00): 74, pid=7, NVLink: fatal error detected on link 4", FIRST,
     "Xid 74"),
    ("NVRM: Xid (PCI:0000:3b:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 05", FIRST, "Xid 149"),
    ("NVRM: Xid (PCI:0000:3b:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node "
     "Reboot Required)", FIRST, "asks for 'Node Reboot Required'"),
    ("NVRM: API mismatch: the client has the version 580.95.05, but", "", "different versions"),
    ("NVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0xffff:1423)", "", "cannot start a GPU"),
    ("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:", "", "memory region"),
    ("nvidia-nvswitch3: SXid (PCI:0000:3b:00.0): 20034, Fatal, Link 30 LTSSM Fault Up", FIRST,
     "20034 of an NVSwitch"),
]  # fmt: skip


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


# --- reading, on the host -----------------------------------------------------------------------


def test_the_records_of_the_kernel_log_are_read(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text("6,0,1,-;Linux version 6.8\n SUBSYSTEM=pci\n4,1,2,c;NVRM: Xid; more\n")
    assert health_check.read_kernel_log(str(log)) == ["Linux version 6.8", "NVRM: Xid; more"]


def test_the_journal_has_the_lines_that_the_kernel_dropped(
    tmp_path: Path, program: Callable[[str, str], None]
) -> None:
    program("journalctl", "echo 'NVRM: old'")
    log = tmp_path / "kmsg"
    log.write_text("6,900,1,-;NVRM: new\n")
    assert health_check.read_kernel_log(str(log)) == ["NVRM: old", "NVRM: new"]
    assert health_check.read_kernel_log(str(tmp_path / "none")) == ["NVRM: old"]


@pytest.fixture
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_check, "read_kernel_log", list)


@pytest.mark.usefixtures("no_log")
def test_all_faults_of_a_host_are_named_at_once(
    program: Callable[[str, str], None], tmp_path: Path
) -> None:
    sample = tmp_path / "sample.xml"
    sample.write_text(document(gpu(old="action>None", new="action>Node Reboot")))
    program("nvidia-smi", f"cat {sample}")
    with pytest.raises(ValueError, match=r"2 GPUs are on the PCI bus.*GPU 0000:86:00\.0.*Reboot"):
        health_check.check([FIRST, SECOND], 3)


@pytest.mark.usefixtures("no_log")
def test_a_healthy_host_passes_and_shows_warnings(
    program: Callable[[str, str], None], tmp_path: Path
) -> None:
    sample = tmp_path / "sample.xml"
    sample.write_text(document(gpu(old="<current_link_width>16x", new="<current_link_width>8x")))
    program("nvidia-smi", f"cat {sample}")
    assert health_check.check([FIRST], 1).startswith("No fault found. GPUs: 1. GPU 0000:3b")


@pytest.mark.usefixtures("no_log")
def test_a_driver_that_does_not_answer_is_a_fault(program: Callable[[str, str], None]) -> None:
    program("nvidia-smi", "echo 'Unable to determine the device handle'; exit 15")
    with pytest.raises(ValueError, match="fallen off the bus"):
        health_check.check([FIRST], 1)


@pytest.mark.usefixtures("no_log")
def test_a_missing_nvidia_smi_fails_only_where_the_role_installed_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert health_check.check([FIRST], 0) == "not run: no driver is installed"
    with pytest.raises(ValueError, match="nvidia-smi is missing"):
        health_check.check([FIRST], 1)


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
