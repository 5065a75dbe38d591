# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``nvidia-smi -q -x`` says, of drivers 470 to 620.

The human table is never parsed: its words change. The XML keeps its shape, with fields added and,
in 615, ``driver_version`` and ``cuda_version`` renamed to ``kmd_version`` and
``cuda_umd_version``. A field that is missing, empty or not applicable is None.

Private to the collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

# Words that stand for "nothing to report", in lower case.
_NOTHING = frozenset(
    {"", "n/a", "none", "not found", "requested functionality has been deprecated"}
)
# Exit codes of nvidia-smi that name a cause (its manual; 18 is NVML's own code for a mismatch).
_CAUSES = {
    6: "a query found no device",
    8: "a GPU has its external power cables not attached",
    9: "the NVIDIA driver is not loaded",
    10: "the kernel detected an interrupt problem with a GPU",
    12: "the NVML library could not be found or loaded",
    13: "the driver does not know this query",
    14: "the information store of a GPU is corrupted",
    15: "a GPU has fallen off the bus or is otherwise unreachable",
    18: "the loaded kernel module and the installed libraries differ in version",
    124: "it did not answer in time",
    137: "it did not answer in time and had to be killed",
}


class SmiError(ValueError):
    """The output is not what ``nvidia-smi -q -x`` writes."""


@dataclass(frozen=True)
class SmiProcess:
    """A process on a GPU; ``kind`` is C for compute, G for graphics."""

    pid: int
    name: str | None
    kind: str | None


@dataclass(frozen=True)
class SmiGpu:
    """One GPU as the driver sees it; ``address`` is spelt as sysfs does, memory is in MiB."""

    address: str
    name: str | None = None
    uuid: str | None = None
    memory_mib: int | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    mig_devices: int = 0
    virtualization: str | None = None
    fabric_state: str | None = None
    fabric_status: str | None = None
    recovery_action: str | None = None
    gsp_firmware: str | None = None
    processes: tuple[SmiProcess, ...] = ()


@dataclass(frozen=True)
class SmiReport:
    """The driver's version, the newest CUDA version it serves, and its GPUs."""

    driver_version: str | None
    cuda_version: str | None
    gpus: tuple[SmiGpu, ...]


def parse(text: str) -> SmiReport:
    """Parse the output of ``nvidia-smi -q -x``. Raises SmiError if it is something else."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        beginning = " ".join(text.split())[:120] or "nothing"
        raise SmiError(f"nvidia-smi -q -x wrote no XML ({error}) but: {beginning}") from error
    if root.tag != "nvidia_smi_log":
        raise SmiError(f"nvidia-smi -q -x wrote <{root.tag}>, expected <nvidia_smi_log>")
    return SmiReport(
        _value(root, "kmd_version", "driver_version"),
        _value(root, "cuda_umd_version", "cuda_version"),
        tuple(_gpu(node) for node in root.iter("gpu") if node.get("id")),
    )


def failure(code: int, output: str) -> str:
    """Put an exit code of nvidia-smi, with what it wrote, into a sentence."""
    said = " ".join(output.split())
    cause = _CAUSES.get(code, "it failed")
    return f"nvidia-smi exited with {code}: {cause}{f' ({said})' if said else ''}"


def sysfs_address(bus_id: str) -> str:
    """Turn ``00000000:0C:00.0`` into ``0000:0c:00.0``, the name sysfs uses."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}"
    except ValueError:
        return bus_id


def _gpu(node: ElementTree.Element) -> SmiGpu:
    return SmiGpu(
        address=sysfs_address(node.get("id", "")),
        name=_value(node, "product_name"),
        uuid=_value(node, "uuid"),
        memory_mib=_mebibytes(_value(node, "fb_memory_usage/total")),
        persistence=_switch(_value(node, "persistence_mode")),
        ecc=_switch(_value(node, "ecc_mode/current_ecc")),
        mig=_switch(_value(node, "mig_mode/current_mig")),
        mig_pending=_switch(_value(node, "mig_mode/pending_mig")),
        mig_devices=len(node.findall("mig_devices/mig_device")),
        virtualization=_value(node, "gpu_virtualization_mode/virtualization_mode"),
        fabric_state=_value(node, "fabric/state"),
        fabric_status=_value(node, "fabric/status"),
        recovery_action=_value(node, "gpu_recovery_action"),
        gsp_firmware=_value(node, "gsp_firmware_version"),
        processes=tuple(_processes(node)),
    )


def _processes(node: ElementTree.Element) -> list[SmiProcess]:
    found = []
    for entry in node.findall("processes/process_info"):
        pid = _value(entry, "pid")
        if pid and pid.isdigit():
            found.append(SmiProcess(int(pid), _value(entry, "process_name"), _value(entry, "type")))
    return found


def _value(node: ElementTree.Element, *paths: str) -> str | None:
    """Return the first of several fields that says something."""
    for path in paths:
        text = (node.findtext(path) or "").strip()
        if text.lower() not in _NOTHING:
            return text
    return None


def _switch(text: str | None) -> bool | None:
    return {"enabled": True, "disabled": False}.get((text or "").lower())


def _mebibytes(text: str | None) -> int | None:
    number, _, unit = (text or "").partition(" ")
    return int(number) if number.isdigit() and unit == "MiB" else None
