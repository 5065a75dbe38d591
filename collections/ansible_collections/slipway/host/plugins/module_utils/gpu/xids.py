# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the driver writes to the kernel log about faults of GPUs, and what to do.

Meanings and actions follow NVIDIA's Xid catalog and its health checks for Xids, read 2026-11. Xids
of programs that misuse a GPU (13, 31, 43, 45 and others) say nothing about the hardware: only the
Xids in ``FAULTS`` are faults of a host.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The driver refuses to reset a GPU in persistence mode, which Slipway enables.
RESET = (
    "End all work on the GPU, then reset it: nvidia-smi -pm 0 -i {gpu}; "
    "nvidia-smi --gpu-reset -i {gpu}; nvidia-smi -pm 1 -i {gpu}"
)
REBOOT = "Reboot the host"
REPLACE = "Reboot the host. If the error returns, have the GPU replaced"
RECONNECT = "Power the host off and on. If the error returns, check seating, power and PCIe slot"
LINKS = (
    "End all work on all GPUs, then reset them: systemctl stop nvidia-persistenced; "
    "nvidia-smi --gpu-reset; systemctl start nvidia-persistenced. If the error returns, have the "
    "NVLink connection checked"
)
# The kernel keeps lines of a fault that ended; drivers before 570 do not log its end.
STAYS = "If the line is still reported then, reboot the host"
# This Xid says what nvidia-smi says too, and better.
PENDING = 63

# Xid to meaning and remedy.
FAULTS: Mapping[int, tuple[str, str]] = {
    46: ("GPU stopped processing", RESET),
    48: ("uncorrectable memory error (double bit)", RESET),
    54: ("auxiliary power is not connected", RECONNECT),
    61: ("internal microcontroller stopped", RESET),
    62: ("internal microcontroller halted", RESET),
    PENDING: ("a memory row or page waits for its replacement by a reset", RESET),
    64: ("replacement of a memory row or page failed", REPLACE),
    68: ("video decoder fault", RESET),
    69: ("graphics engine class error", RESET),
    74: ("NVLink error", LINKS),
    79: ("GPU has fallen off the bus", RECONNECT),
    92: ("high rate of corrected memory errors", REPLACE),
    95: ("uncontained memory error: other programs may have wrong data", RESET),
    109: ("context switch timed out", RESET),
    110: ("security fault", REBOOT),
    119: ("GPU system processor (GSP) does not answer", RESET),
    120: ("GPU system processor (GSP) reported an error", RESET),
    121: ("error on the link between CPU and GPU (C2C)", REBOOT),
    136: ("link training failed", REBOOT),
    140: ("unrecovered memory error", RESET),
    142: ("NVENC3 fault", RESET),
    143: ("GPU failed to initialize", REPLACE),
    144: ("NVLink error (SAW)", LINKS),
    145: ("NVLink error (RLW)", LINKS),
    146: ("NVLink error (TLW)", LINKS),
    147: ("NVLink error (TREX)", LINKS),
    148: ("NVLink error (NVLPW_CTRL)", LINKS),
    149: ("NVLink error (NETIR)", LINKS),
    150: ("NVLink error (MSE)", LINKS),
    151: ("key rotation error", REBOOT),
    155: ("NVLink error (NVLINK_SW_DEFINED)", LINKS),
    156: ("resource retirement", RESET),
    157: ("resource retirement failed", REPLACE),
    158: ("GPU memory fatal error", REPLACE),
}
# Xid 154 names the action itself: from this one on, somebody has to act.
_ACTIONS: Mapping[str, str] = {
    "gpu reset": RESET,
    "node reboot": REBOOT,
    "drain": RESET,
}
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:]+)(?:\.\d)?\): (\d+)(?:, (.*))?")
_ACTION = re.compile(r"recovery action changed from .*\((.*?)\) to .*\((.*?)\)")
# Other lines of the driver: pattern, meaning, remedy.
_LINES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"API mismatch: the client has the version ([\d.]+)"),
        "the loaded kernel module and the libraries have different versions",
        "Run site.yml, or reboot the host, to load the installed driver",
    ),
    (
        re.compile(r"RmInitAdapter failed"),
        "the driver cannot start a GPU",
        REPLACE,
    ),
    (
        re.compile(r"This PCI I/O region assigned to your NVIDIA device is invalid"),
        "the firmware of the host gave a GPU no usable memory region",
        "Enable 'Above 4G Decoding' in the firmware settings of the host",
    ),
    (
        re.compile(
            r"installed in this system .*(?:requires use of the NVIDIA open kernel modules)"
        ),
        "a GPU needs the open kernel modules",
        "Set nvidia_driver_modules to open or auto, then run site.yml",
    ),
    (
        re.compile(r"No NVIDIA GPU found|no NVIDIA devices probed", re.IGNORECASE),
        "the driver found no GPU",
        "Check that the GPU is bound to no other driver: lspci -k -d 10de:",
    ),
)
# The driver was loaded again: its earlier messages about itself no longer hold.
_LOADED = "NVRM: loading NVIDIA UNIX"
_SXID = re.compile(r"nvidia-nvswitch\d+: SXid \(PCI:([0-9a-fA-F:]+)\.\d\): (\d+), Fatal")


@dataclass(frozen=True, order=True)
class LogFault:
    """A fault in the kernel log: where (a PCI address, or empty), what, and the remedy."""

    where: str
    found: str
    remedy: str


def read_faults(lines: Iterable[str]) -> list[LogFault]:
    """Return the faults in the lines of a kernel log, each one once, in order of the first line.

    A later Xid 154 that needs no action ends the faults of its GPU: somebody reset the GPU.
    """
    faults: dict[LogFault, None] = {}
    for line in lines:
        if match := _XID.search(line):
            address, number, rest = _address(match[1]), int(match[2]), match[3] or ""
            if number == 154:
                _apply_action(faults, address, rest)
            elif number in FAULTS:
                meaning, remedy = FAULTS[number]
                found = f"Xid {number}: {meaning}"
                faults[LogFault(address, found, _remedy(remedy, address))] = None
        elif match := _SXID.search(line):
            found = f"fatal error {match[2]} of an NVSwitch (SXid)"
            faults[LogFault(_address(match[1]), found, REBOOT)] = None
        elif _LOADED in line:
            faults = {fault: None for fault in faults if fault.where}
        elif "NVRM" in line:
            for pattern, meaning, remedy in _LINES:
                if pattern.search(line):
                    faults[LogFault("", meaning, remedy)] = None
    return list(faults)


def _apply_action(faults: dict[LogFault, None], address: str, text: str) -> None:
    match = _ACTION.search(text)
    action = match[2] if match else ""
    if action.lower() == "none":
        for fault in [fault for fault in faults if fault.where == address]:
            del faults[fault]
        return
    for words, remedy in _ACTIONS.items():
        if action.lower().startswith(words):
            found = f"Xid 154: the driver asks for '{action}'"
            faults[LogFault(address, found, _remedy(remedy, address))] = None


def _remedy(remedy: str, address: str) -> str:
    text = remedy.format(gpu=address)
    return f"{text}. {STAYS}" if remedy in (RESET, LINKS) else text


def _address(text: str) -> str:
    """Return the PCI address of a log line as sysfs writes it: ``0000:3b:00.0``."""
    return f"{text.lower()}.0"
