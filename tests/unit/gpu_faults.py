# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of GPUs that the tests inject, and the table of docs/gpu-faults.md.

``PYTHONPATH=collections ./slipway run python -m tests.unit.gpu_faults`` writes that page.
"""

from __future__ import annotations

from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_errors,
    health,
    health_facts,
)

PAGE = Path(__file__).resolve().parents[2] / "docs/gpu-faults.md"
FIRST, SECOND = "0000:3b:00.0", "0000:86:00.0"
# A healthy GPU in the form of driver 580, with the fields that are judged.
BRAKE = "clocks_event_reason_hw_power_brake_slowdown"
GPU = """
<gpu id="{bus}">
  <product_name>NVIDIA H100 80GB HBM3</product_name>
  <uuid>GPU-{bus}</uuid>
  <performance_state>P0</performance_state>
  <mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
  <gpu_recovery_action>None</gpu_recovery_action>
  <pci><pci_gpu_link_info>
    <pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>5</current_link_gen></pcie_gen>
    <link_widths><max_link_width>16x</max_link_width>
    <current_link_width>16x</current_link_width>
  </link_widths></pci_gpu_link_info></pci>
  <clocks_event_reasons>
    <clocks_event_reason_gpu_idle>Not Active</clocks_event_reason_gpu_idle>
    <clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
    <clocks_event_reason_hw_slowdown>Not Active</clocks_event_reason_hw_slowdown>
    <clocks_event_reason_hw_thermal_slowdown>Not Active</clocks_event_reason_hw_thermal_slowdown>
    <BRAKE>Not Active</BRAKE>
  </clocks_event_reasons>
  <ecc_errors><volatile>
    <sram_correctable>7</sram_correctable>
    <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
    <dram_uncorrectable>0</dram_uncorrectable>
  </volatile><aggregate><dram_uncorrectable>3</dram_uncorrectable>
    <sram_threshold_exceeded>No</sram_threshold_exceeded></aggregate>
    <channel_repair_pending>No</channel_repair_pending>
    <tpc_repair_pending>No</tpc_repair_pending><unrepairable_memory>No</unrepairable_memory>
  </ecc_errors>
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


# What is replaced in the answer of nvidia-smi, with what, what is found, a word of the remedy.
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
    ("channel_repair_pending>No", "channel_repair_pending>Yes", "memory channel", "--gpu-reset"),
    ("tpc_repair_pending>No", "tpc_repair_pending>Yes", "a processor cluster", "--gpu-reset"),
    ("unrepairable_memory>No", "unrepairable_memory>Yes", "cannot be repaired", "replaced"),
    ("exceeded>No", "exceeded>Yes", "SRAM errors exceed the limit", "replaced"),
    ("retirement>No", "retirement>Yes", "page waits for its retirement", "--gpu-reset"),
    ("blacklist>No", "blacklist>Yes", "page waits for its retirement", "--gpu-reset"),
    ("thermal_slowdown>Not Active", "thermal_slowdown>Active", "too hot", "fans"),
    ("brake_slowdown>Not Active", "brake_slowdown>Active", "power supply limits", "power supply"),
    ("<current_link_width>16x", "<current_link_width>4x", "PCIe link is 4x wide", "seating"),
    ("<current_link_gen>5", "<current_link_gen>1", "PCIe link runs at generation 1", "seating"),
    ("<pending_mig>Disabled", "<pending_mig>Enabled", "MIG mode is Disabled, after", "gpu-reset"),
]


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


# Codes of cuInit, see tests/unit/test_cuda_check.py.
CUDA = (3, 34, 100, 101, 802, 803, 804, 999)
INTRODUCTION = """\
# Faults of GPUs that the tests inject

Each of these faults is found by exactly its own check, on a host that is healthy otherwise.
Addresses stand for a GPU. [GPU health](gpu-hosts.md#gpu-health) and [Acceptance](acceptance.md) say
which command shows them. Lines of the kernel log are from public reports, with other numbers and
names.

| injected | found | what to do |
|---|---|---|
"""


def judge(text: str, addresses: list[str]) -> list[health.Finding]:
    """Return the findings in the output of nvidia-smi."""
    fields = {"status": 0, "gpus": health_facts.read_fields(text)}
    return health.judge_smi(fields, addresses)


def page() -> str:
    """Return the page with the table of faults."""
    rows = []
    for old, new, _found, _remedy in FAULTS:
        (finding,) = judge(document(gpu(old=old, new=new)), [FIRST])
        rows.append(
            (f"nvidia-smi: `{new.partition('<')[2] or new}`", finding.found, finding.remedy)
        )
    for line, _where, _found in LOG:
        (finding,) = health.judge_kernel_log([line])
        rows.append((f"kernel log: `{line}`", finding.found, finding.remedy))
    for code in CUDA:
        found = f"cuInit: {cuda_errors.describe(code, None)}"
        rows.append(
            (f"CUDA driver: `cuInit` returns {code}", found, cuda_errors.remedy(code, False))
        )
    return INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
