# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the health of GPUs: what is wrong with hardware or driver although nothing drifted.

Pure functions: they judge what ``nvidia-smi -q -x`` and the kernel log say. A field that the driver
does not report is never a fault. Sources of the rules: NVIDIA's manuals of nvidia-smi, its Xid
catalog, its GPU debug guidelines, and the manual of the fabric manager, read 2026-11.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ansible_collections.slipway.host.plugins.module_utils.gpu import xids
from ansible_collections.slipway.host.plugins.module_utils.gpu.nvidia_smi import (
    read_document,
    read_value,
    sysfs_address,
)

FABRIC_MANAGER = (
    "Check the fabric manager: systemctl status nvidia-fabricmanager; its version must be the "
    "driver's. Then reboot the host"
)
COOLING = "Check fans, air flow and power supply of the host"


@dataclass(frozen=True)
class Finding:
    """One fault: the PCI address of the GPU (or empty), what was found and expected, the remedy.

    A ``warning`` may be intended: some cloud hosts give a card half of its PCIe lanes.
    """

    where: str
    found: str
    expected: str
    remedy: str
    warning: bool = False

    def __str__(self) -> str:
        """Return the finding as sentences for a person."""
        prefix = f"GPU {self.where}: " if self.where else ""
        return f"{prefix}{self.found}; expected {self.expected}. {self.remedy}."


Judge = Callable[[ElementTree.Element], "tuple[str, str, str] | None"]


def judge_smi(text: str, addresses: Sequence[str]) -> list[Finding]:
    """Return the faults in the output of ``nvidia-smi -q -x``.

    ADDRESSES are the PCI addresses of the GPUs that the host uses. Raise SmiError if the text has
    another form.
    """
    root = read_document(text)
    nodes = {sysfs_address(node.get("id", "")): node for node in root.iter("gpu") if node.get("id")}
    findings = [
        Finding(
            address,
            "the GPU is on the PCI bus, but the driver does not list it",
            "all GPUs in nvidia-smi",
            "See the kernel log: journalctl -k --grep 'NVRM|Xid'. Then reboot the host",
        )
        for address in addresses
        if address not in nodes
    ]
    for address, node in nodes.items():
        findings += [
            Finding(address, found, expected, remedy.format(gpu=address), judge in _WARNINGS)
            for judge in (*_JUDGES, *_WARNINGS)
            if (fault := judge(node))
            for found, expected, remedy in [fault]
        ]
    return findings


def judge_kernel_log(lines: Iterable[str]) -> list[Finding]:
    """Return the faults in the lines of the kernel log since the boot."""
    return [
        Finding(
            fault.where, f"kernel log: {fault.found}", "no such line since the boot", fault.remedy
        )
        for fault in xids.read_faults(lines)
    ]


def judge_missing(expected: int, present: int) -> list[Finding]:
    """Return a fault if fewer GPUs are on the PCI bus than expected."""
    if present >= expected:
        return []
    return [
        Finding(
            "",
            f"{present} GPUs are on the PCI bus",
            f"{expected}, as recorded or declared",
            f"{xids.RECONNECT}. If the GPUs were removed on purpose, set nvidia_driver_gpus to the "
            "new number",
        )
    ]


def _fabric(node: ElementTree.Element) -> tuple[str, str, str] | None:
    state, status = read_value(node, "fabric/state"), read_value(node, "fabric/status")
    if state is None:
        return None
    if state != "Completed":
        return f"NVSwitch fabric: state '{state}'", "'Completed'", FABRIC_MANAGER
    if status not in (None, "Success"):
        return f"NVSwitch fabric: status '{status}'", "'Success'", FABRIC_MANAGER
    return None


def _fabric_health(node: ElementTree.Element) -> tuple[str, str, str] | None:
    summary = read_value(node, "fabric/health/summary")
    if summary in (None, "Healthy"):
        return None
    parts = [
        f"{child.tag} {child.text.strip()}"
        for child in node.iterfind("fabric/health/*")
        if child.tag != "summary"
        and child.text
        and child.text.strip() not in ("N/A", "False", "No")
    ]
    details = f" ({', '.join(parts)})" if parts else ""
    return f"NVLink fabric: health '{summary}'{details}", "'Healthy'", xids.LINKS


def _recovery(node: ElementTree.Element) -> tuple[str, str, str] | None:
    action = read_value(node, "gpu_recovery_action")
    if action is None:
        return None
    remedy = xids.REBOOT if "reboot" in action.lower() else xids.RESET
    return f"the driver asks for recovery action '{action}'", "none", remedy


def _uncorrectable(node: ElementTree.Element) -> tuple[str, str, str] | None:
    counts = [read_value(node, "ecc_errors/volatile/double_bit/total")]
    counts += [
        child.text for child in node.iterfind("ecc_errors/volatile/*") if "uncorrect" in child.tag
    ]
    total = sum(int(count) for count in counts if count and count.strip().isdigit())
    if total == 0:
        return None
    return f"{total} uncorrectable memory errors since the last reset", "0", xids.RESET


def _remapped(node: ElementTree.Element) -> tuple[str, str, str] | None:
    if _is_yes(node, "remapped_rows/remapped_row_failure"):
        return "replacement of a memory row failed", "no failure", xids.REPLACE
    if _is_yes(node, "remapped_rows/remapped_row_pending"):
        return "a memory row waits for its replacement", "none pending", xids.RESET
    return None


def _retired(node: ElementTree.Element) -> tuple[str, str, str] | None:
    pending = ("retired_pages/pending_retirement", "retired_pages/pending_blacklist")
    if any(_is_yes(node, path) for path in pending):
        return "a memory page waits for its retirement", "none pending", xids.RESET
    return None


def _slowdown(node: ElementTree.Element) -> tuple[str, str, str] | None:
    reasons = {
        "hw_thermal_slowdown": "the GPU is too hot",
        "hw_power_brake_slowdown": "the host's power supply limits the GPU",
    }
    for name, meaning in reasons.items():
        for kind in ("event", "throttle"):
            state = read_value(node, f"clocks_{kind}_reasons/clocks_{kind}_reason_{name}")
            if state == "Active":
                return f"slowed down by hardware: {meaning}", "full speed", COOLING
    return None


def _link_width(node: ElementTree.Element) -> tuple[str, str, str] | None:
    path = "pci/pci_gpu_link_info/link_widths"
    current, widest = (read_value(node, f"{path}/{end}_link_width") for end in ("current", "max"))
    if not (current and widest) or not _is_narrower(current, widest):
        return None
    remedy = "Power the host off, then check seating, riser and PCIe slot of the GPU"
    return f"PCIe link is {current} wide", widest, remedy


def _is_narrower(current: str, widest: str) -> bool:
    numbers = [text.rstrip("x") for text in (current, widest)]
    return all(text.isdigit() for text in numbers) and int(numbers[0]) < int(numbers[1])


def _mig_pending(node: ElementTree.Element) -> tuple[str, str, str] | None:
    current, pending = (read_value(node, f"mig_mode/{end}_mig") for end in ("current", "pending"))
    if current == pending or None in (current, pending):
        return None
    return f"MIG mode is {current}, after the next reset {pending}", "one mode", xids.RESET


def _is_yes(node: ElementTree.Element, path: str) -> bool:
    return (read_value(node, path) or "").lower() == "yes"


_JUDGES: tuple[Judge, ...] = (
    *(_fabric, _fabric_health, _recovery, _uncorrectable, _remapped, _retired),
    *(_slowdown, _mig_pending),
)
_WARNINGS: tuple[Judge, ...] = (_link_width,)
