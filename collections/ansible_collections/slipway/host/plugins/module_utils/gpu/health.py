# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge the health of GPUs: what is wrong with hardware or driver although nothing drifted.

Pure functions: they judge what :mod:`gpu.health_facts` read from nvidia-smi and the kernel log. A
field that the driver does not report is never a fault. Sources of the rules: NVIDIA's manuals of
nvidia-smi, its Xid catalog, its GPU debug guidelines, and the manual of the fabric manager, read
2026-11.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    driver_packages,
    health_facts,
    nvidia_smi,
    xids,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import skip_reason
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

FABRIC_MANAGER = (
    "Check the fabric manager: systemctl status nvidia-fabricmanager; its version must be the "
    "driver's. Then reboot the host"
)
FABRIC_MANAGER_PACKAGE = "nvidia-fabricmanager"
VERSIONS = "Run site.yml, which installs the fabric manager of the driver's version"
UNANSWERED = "Read the kernel log: journalctl -k --grep 'NVRM|Xid'. Then reboot the host"
COOLING = "Check fans, air flow and power supply of the host"
SLOT = "Power the host off, then check seating, riser and PCIe slot of the GPU"
# How findings of the kernel log begin.
LOG = "kernel log: "
PENDING_LOG = f"{LOG}Xid {xids.PENDING}: "


@dataclass(frozen=True)
class Finding:
    """One fault: the PCI address of the GPU (or empty), what was found and expected, the remedy.

    A ``warning`` may be intended: some cloud hosts give a card half of its PCIe lanes. ``gpu`` is
    the UUID of the GPU, empty if the driver does not report it. ``accepted`` says why the owner of
    the host accepts the fault, see :mod:`gpu.accepted_faults`.
    """

    where: str
    found: str
    expected: str
    remedy: str
    warning: bool = False
    gpu: str = ""
    accepted: str = ""

    def __str__(self) -> str:
        """Return the finding as a sentence for a person."""
        return sentences([self.as_data()])[0][1]

    def as_data(self) -> dict[str, Any]:
        """Return the finding as a mapping that is safe for a terminal."""
        return {
            name: escape_control(value) if isinstance(value, str) else value
            for name, value in vars(self).items()
        }


FAULT, WARNING, ACCEPTED = "fault", "warning", "accepted"
# The fields of one GPU, see health_facts.FIELDS.
Fields: TypeAlias = "Mapping[str, str]"
# A finding as data: the keys are the fields of Finding.
Data: TypeAlias = "Mapping[str, Any]"
Value = TypeVar("Value")
Judge: TypeAlias = "Callable[[Fields], tuple[str, str, str] | None]"


def sentences(findings: Iterable[Data]) -> list[tuple[str, str]]:
    """Return for each different finding FAULT, WARNING or ACCEPTED, and a sentence with its GPUs.

    The sentence ends with what to do, or with why the fault is accepted.
    """
    where: dict[tuple[str, str], list[str]] = {}
    for one in findings:
        kind = ACCEPTED if one["accepted"] else WARNING if one["warning"] else FAULT
        end = one["accepted"] or one["remedy"]
        text = f"{one['found']}; expected {one['expected']}. {end}."
        if one["where"]:
            text = text.replace(one["where"], "ADDRESS")
        where.setdefault((kind, text), []).append(one["where"])
    return [(kind, _with_gpus(text, gpus)) for (kind, text), gpus in where.items()]


def _with_gpus(text: str, addresses: Sequence[str]) -> str:
    if not any(addresses):
        return text
    if len(addresses) == 1:
        text = text.replace("ADDRESS", addresses[0])
    return f"GPU {', '.join(addresses)}: {text}"


def own_gpus(facts: Mapping[str, Any]) -> list[str]:
    """Return the PCI addresses of the GPUs that the host itself uses, from its FACTS."""
    gpus = gpu_host.host_facts(facts).gpus
    return [gpu.address for gpu in gpus if skip_reason(gpu) is None]


def question(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what the survey asks a host for, nothing if the host never had a GPU.

    Before the first driver is loaded there is nothing to judge; nvidia-smi would even load it.
    """
    if not gpu_host.has_gpu(facts) or gpu_host.loaded(facts) is None:
        return {}
    return {"health": ["cdi", "containers", "log", "smi"]}


def judge(facts: Mapping[str, Any], answer: Mapping[str, Any]) -> list[Finding]:
    """Return the faults of a host, from its FACTS and its answer to :func:`question`."""
    addresses = own_gpus(facts)
    findings = judge_missing(gpu_host.recorded(facts), len(addresses))
    health = answer.get("health") or {}
    if addresses and "smi" in health and not is_removed(facts, health["smi"]):
        findings += judge_smi(health["smi"], addresses)
    findings += judge_fabric_manager(facts)
    findings += [_judge_container(*one) for one in health.get("containers", ())]
    findings += [_judge_cdi(*one) for one in health.get("cdi", ())]
    nodes = by_address(health.get("smi", {}).get("gpus", {}))
    for finding in judge_kernel_log(health.get("log", ())):
        fields = nodes.get(finding.where, {})
        if not (finding.found.startswith(PENDING_LOG) and _is_replaced(fields)):
            findings.append(replace(finding, gpu=fields.get("uuid", "")))
    return findings


def by_address(gpus: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is known of GPUs by bus ID of nvidia-smi, by their PCI address in sysfs."""
    return {nvidia_smi.sysfs_address(bus): known for bus, known in gpus.items()}


def _is_replaced(fields: Fields) -> bool:
    """Return whether the driver says that no memory row or page waits any more for a reset."""
    states = {(fields.get(path) or "").lower() for path in (ROW_PENDING, *PAGE_PENDING)}
    return "no" in states and "yes" not in states


def is_removed(facts: Mapping[str, Any], smi: Mapping[str, Any]) -> bool:
    """Return whether the driver was removed; the kernel keeps it until the next boot."""
    has_program = smi.get("status") != health_facts.NO_PROGRAM
    return not has_program and not driver_packages.installed_driver_packages(facts)


def _judge_container(name: str, version: str) -> Finding:
    return Finding(
        "",
        f"container {name} uses the libraries of driver {version}",
        "those of the loaded driver",
        f"Restart the container: docker restart {name}",
        # The host itself is well, and an upgrade must not fail for it.
        True,
    )


def _judge_cdi(path: str, *gone: str) -> Finding:
    found = f"the CDI specification {path} names missing device files: {', '.join(gone)}"
    return Finding(
        "", found, "files of /dev", "Regenerate it: systemctl restart nvidia-cdi-refresh"
    )


def judge_smi(smi: Mapping[str, Any], addresses: Sequence[str]) -> list[Finding]:
    """Return the faults in the answer of nvidia-smi, see ``health_facts.ask_smi``.

    ADDRESSES are the PCI addresses of the GPUs that the host uses.
    """
    if "gpus" not in smi:
        return [_judge_failure(smi)]
    nodes = by_address(smi["gpus"])
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
    for address, fields in nodes.items():
        known = {path: text for path, text in fields.items() if nvidia_smi.is_value(text)}
        findings += [
            Finding(
                *(address, found, expected, remedy.format(gpu=address), judge in _WARNINGS),
                gpu=known.get("uuid", ""),
            )
            for judge in (*_JUDGES, *_WARNINGS)
            if (fault := judge(known))
            for found, expected, remedy in [fault]
        ]
    return findings


def _judge_failure(smi: Mapping[str, Any]) -> Finding:
    """Return the fault of an nvidia-smi that did not list the GPUs."""
    if smi["status"] == health_facts.NO_PROGRAM:
        # Drift where the driver is declared; the acceptance checks fail without it.
        remedy = "Run site.yml to install it"
        return Finding("", "nvidia-smi is missing", "it beside a loaded driver", remedy, True)
    found = smi["output"]
    if smi["status"]:
        found = nvidia_smi.failure(smi["status"], found)
    # After an upgrade the old driver stays loaded while it is in use: drift that may wait.
    is_old = smi["status"] == nvidia_smi.OTHER_VERSION
    return Finding("", found, "a list of the GPUs", UNANSWERED, is_old)


def judge_fabric_manager(facts: Mapping[str, Any]) -> list[Finding]:
    """Return a fault if the fabric manager has another version than the rest of the driver.

    After an upgrade, all of them may wait for the load of the new driver.
    """
    versions = {
        name: driver_packages.driver_version(version)
        for name, version in driver_packages.installed_driver_packages(facts).items()
        if driver_packages.has_driver_version(name)
    }
    managers = [name for name in versions if name.startswith(FABRIC_MANAGER_PACKAGE)]
    others = sorted({version for name, version in versions.items() if name not in managers})
    return [
        Finding("", f"{name} has version {versions[name]}", " or ".join(others), VERSIONS)
        for name in sorted(managers)
        if others and versions[name] not in others
    ]


def judge_kernel_log(lines: Iterable[str]) -> list[Finding]:
    """Return the faults in the lines of the kernel log since the boot."""
    return [
        Finding(fault.where, f"{LOG}{fault.found}", "no such line since the boot", fault.remedy)
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


def _fabric(fields: Fields) -> tuple[str, str, str] | None:
    state, status = fields.get("fabric/state"), fields.get("fabric/status")
    if state is None:
        return None
    if state != "Completed":
        return f"NVSwitch fabric: state '{state}'", "'Completed'", FABRIC_MANAGER
    if status not in (None, "Success"):
        return f"NVSwitch fabric: status '{status}'", "'Success'", FABRIC_MANAGER
    return None


def _fabric_health(fields: Fields) -> tuple[str, str, str] | None:
    summary = fields.get("fabric/health/summary")
    if summary in (None, "Healthy"):
        return None
    path = "fabric/health/"
    parts = [
        f"{name.removeprefix(path)} {value}"
        for name, value in fields.items()
        if name.startswith(path) and name != f"{path}summary" and value not in ("False", "No")
    ]
    details = f" ({', '.join(parts)})" if parts else ""
    return f"NVLink fabric: health '{summary}'{details}", "'Healthy'", xids.LINKS


def _recovery(fields: Fields) -> tuple[str, str, str] | None:
    action = fields.get("gpu_recovery_action")
    if action is None:
        return None
    remedy = xids.REBOOT if "reboot" in action.lower() else xids.RESET
    return f"the driver asks for recovery action '{action}'", "none", remedy


# Drivers before 510 count by double bits, and have further counters below.
_UNCORRECTABLE = re.compile(r"ecc_errors/volatile/(double_bit/total|[^/]*uncorrect[^/]*)")


def _uncorrectable(fields: Fields) -> tuple[str, str, str] | None:
    total = sum(
        int(value)
        for name, value in fields.items()
        if _UNCORRECTABLE.fullmatch(name) and value.isdigit()
    )
    if total == 0:
        return None
    return f"{total} uncorrectable memory errors since the last reset", "0", xids.RESET


ROW_PENDING = "remapped_rows/remapped_row_pending"
PAGE_PENDING = ("retired_pages/pending_retirement", "retired_pages/pending_blacklist")


def _remapped(fields: Fields) -> tuple[str, str, str] | None:
    if _is_yes(fields, "remapped_rows/remapped_row_failure"):
        return "replacement of a memory row failed", "no failure", xids.REPLACE
    if _is_yes(fields, ROW_PENDING):
        return "a memory row waits for its replacement", "none pending", xids.RESET
    return None


def _retired(fields: Fields) -> tuple[str, str, str] | None:
    if any(_is_yes(fields, path) for path in PAGE_PENDING):
        return "a memory page waits for its retirement", "none pending", xids.RESET
    return None


# Fields below ecc_errors of drivers from 570 on.
_REPAIRS = {
    "unrepairable_memory": ("memory that cannot be repaired", "none", xids.REPLACE),
    "aggregate/sram_threshold_exceeded": ("SRAM errors exceed the limit", "fewer", xids.REPLACE),
    "channel_repair_pending": ("a memory channel waits for its repair", "none", xids.RESET),
    "tpc_repair_pending": ("a processor cluster waits for its repair", "none", xids.RESET),
}


def _repair(fields: Fields) -> tuple[str, str, str] | None:
    names = (name for name in _REPAIRS if _is_yes(fields, f"ecc_errors/{name}"))
    return next((_REPAIRS[name] for name in names), None)


def _slowdown(fields: Fields) -> tuple[str, str, str] | None:
    reasons = {
        "hw_thermal_slowdown": "the GPU is too hot",
        "hw_power_brake_slowdown": "the host's power supply limits the GPU",
    }
    for name, meaning in reasons.items():
        for kind in ("event", "throttle"):
            state = fields.get(f"clocks_{kind}_reasons/clocks_{kind}_reason_{name}")
            if state == "Active":
                return f"slowed down by hardware: {meaning}", "full speed", COOLING
    return None


def _link_width(fields: Fields) -> tuple[str, str, str] | None:
    path = "pci/pci_gpu_link_info/link_widths"
    current, widest = (fields.get(f"{path}/{end}_link_width") for end in ("current", "max"))
    if not (current and widest) or not _is_narrower(current, widest):
        return None
    return f"PCIe link is {current} wide", widest, SLOT


def _link_generation(fields: Fields) -> tuple[str, str, str] | None:
    """Judge a busy GPU: an idle one slows its link down to save power."""
    path = "pci/pci_gpu_link_info/pcie_gen"
    current, newest = (fields.get(f"{path}/{end}_link_gen") for end in ("current", "max"))
    idle = {
        fields.get(f"clocks_{kind}_reasons/clocks_{kind}_reason_gpu_idle")
        for kind in ("event", "throttle")
    }
    is_busy = fields.get("performance_state") in ("P0", "P1", "P2") and "Not Active" in idle
    if not (current and newest) or not is_busy or not _is_narrower(current, newest):
        return None
    return f"PCIe link runs at generation {current}", newest, SLOT


def _is_narrower(current: str, widest: str) -> bool:
    numbers = [text.rstrip("x") for text in (current, widest)]
    return all(text.isdigit() for text in numbers) and int(numbers[0]) < int(numbers[1])


def _mig_pending(fields: Fields) -> tuple[str, str, str] | None:
    current, pending = (fields.get(f"mig_mode/{end}_mig") for end in ("current", "pending"))
    if current == pending or None in (current, pending):
        return None
    return f"MIG mode is {current}, after the next reset {pending}", "one mode", xids.RESET


def _is_yes(fields: Fields, path: str) -> bool:
    return (fields.get(path) or "").lower() == "yes"


_JUDGES: tuple[Judge, ...] = (
    *(_fabric, _fabric_health, _recovery, _uncorrectable, _remapped, _retired),
    *(_repair, _slowdown, _mig_pending),
)
_WARNINGS: tuple[Judge, ...] = (_link_width, _link_generation)
