# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``nvidia-smi -q -x`` says, of drivers 470 to 620.

Only the XML is parsed: the text table changes between versions. Versions of the XML differ in added
fields; 615 renamed ``driver_version`` and ``cuda_version`` to ``kmd_version`` and
``cuda_umd_version``. A field that is missing, empty or not applicable is None.

Private to the collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

# Values that mean "nothing to report", in lower case.
_NOTHING = frozenset(
    {"", "n/a", "none", "not found", "requested functionality has been deprecated"}
)
# Exit code if the loaded kernel module and the installed libraries differ in version.
OTHER_VERSION = 18
# Exit codes of nvidia-smi with a known cause (its manual; 18 is NVML's code for a mismatch).
_CAUSES = {
    6: "a query found no device",
    8: "the external power cables of a GPU are not attached",
    9: "the NVIDIA driver is not loaded",
    10: "the kernel detected an interrupt problem with a GPU",
    12: "the NVML library could not be found or loaded",
    13: "the driver does not support this query",
    14: "the information store of a GPU is corrupted",
    15: "a GPU has fallen off the bus or is otherwise unreachable",
    OTHER_VERSION: "the loaded kernel module and the installed libraries differ in version",
    124: "time limit reached",
    137: "time limit reached; the process was killed",
}


class SmiError(ValueError):
    """The text is not output of ``nvidia-smi -q -x``."""


@dataclass(frozen=True)
class SmiProcess:
    """A process on a GPU; ``kind`` is C for compute, G for graphics."""

    pid: int
    name: str | None
    kind: str | None


@dataclass(frozen=True)
class SmiGpu:
    """One GPU as the driver reports it; ``address`` has the form of sysfs, memory is in MiB."""

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
    """The driver's version, the newest CUDA version it supports, and its GPUs."""

    driver_version: str | None
    cuda_version: str | None
    gpus: tuple[SmiGpu, ...]


def read_document(text: str) -> ElementTree.Element:
    """Return the root of the output of ``nvidia-smi -q -x``; raise SmiError for another text."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        beginning = " ".join(text.split())[:120] or "nothing"
        raise SmiError(
            f"cannot parse nvidia-smi -q -x ({error}): found {beginning}; expected XML"
        ) from error
    if root.tag != "nvidia_smi_log":
        raise SmiError(
            f"cannot parse nvidia-smi -q -x: found <{root.tag}>; expected <nvidia_smi_log>"
        )
    return root


def parse(text: str) -> SmiReport:
    """Parse the output of ``nvidia-smi -q -x``; raise SmiError if the text has another form."""
    root = read_document(text)
    return SmiReport(
        read_value(root, "kmd_version", "driver_version"),
        read_value(root, "cuda_umd_version", "cuda_version"),
        tuple(_gpu(node) for node in root.iter("gpu") if node.get("id")),
    )


def failure(code: int, output: str) -> str:
    """Return a sentence with an exit code of nvidia-smi, its cause and its output."""
    details = " ".join(output.split())
    cause = _CAUSES.get(code, "unknown cause")
    return f"nvidia-smi exited with {code}: {cause}{f' ({details})' if details else ''}"


def sysfs_address(bus_id: str) -> str:
    """Convert ``00000000:0C:00.0`` to the form of sysfs, ``0000:0c:00.0``."""
    domain, _separator, rest = bus_id.lower().partition(":")
    try:
        return f"{int(domain, 16):04x}:{rest}"
    except ValueError:
        return bus_id


def _gpu(node: ElementTree.Element) -> SmiGpu:
    return SmiGpu(
        address=sysfs_address(node.get("id", "")),
        name=read_value(node, "product_name"),
        uuid=read_value(node, "uuid"),
        memory_mib=_mebibytes(read_value(node, "fb_memory_usage/total")),
        persistence=_switch(read_value(node, "persistence_mode")),
        ecc=_switch(read_value(node, "ecc_mode/current_ecc")),
        mig=_switch(read_value(node, "mig_mode/current_mig")),
        mig_pending=_switch(read_value(node, "mig_mode/pending_mig")),
        mig_devices=len(node.findall("mig_devices/mig_device")),
        virtualization=read_value(node, "gpu_virtualization_mode/virtualization_mode"),
        fabric_state=read_value(node, "fabric/state"),
        fabric_status=read_value(node, "fabric/status"),
        recovery_action=read_value(node, "gpu_recovery_action"),
        gsp_firmware=read_value(node, "gsp_firmware_version"),
        processes=tuple(_processes(node)),
    )


def _processes(node: ElementTree.Element) -> list[SmiProcess]:
    processes = []
    for entry in node.findall("processes/process_info"):
        pid = read_value(entry, "pid")
        if pid and pid.isdigit():
            name, kind = read_value(entry, "process_name"), read_value(entry, "type")
            processes.append(SmiProcess(int(pid), name, kind))
    return processes


def read_value(node: ElementTree.Element, *paths: str) -> str | None:
    """Return the first of several fields that has a value."""
    for path in paths:
        text = (node.findtext(path) or "").strip()
        if is_value(text):
            return text
    return None


def is_value(text: str) -> bool:
    """Return whether the text of a field says something."""
    return text.lower() not in _NOTHING


def _switch(text: str | None) -> bool | None:
    return {"enabled": True, "disabled": False}.get((text or "").lower())


def _mebibytes(text: str | None) -> int | None:
    number, _separator, unit = (text or "").partition(" ")
    return int(number) if number.isdigit() and unit == "MiB" else None
