# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The acceptance check of the health of GPUs: judges what the survey reads, and the journal.

Private to the collection.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    accepted_faults,
    health,
    health_facts,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host

JOURNAL = ("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager")


def check(facts: Mapping[str, Any], accepted: Sequence[accepted_faults.Entry] = ()) -> str:
    """Check the health of the host's GPUs; return the result in one line.

    FACTS are those of the survey, ACCEPTED the known faults. Raise ValueError with all others.
    """
    recorded = gpu_host.recorded(facts)
    if gpu_host.loaded(facts) is None:
        if not recorded:
            return "not run: no driver is loaded"
        raise ValueError(
            "no NVIDIA driver is loaded; expected one, because this host is recorded to have "
            f"{recorded} GPUs. Run site.yml, or read the kernel log: journalctl -k --grep NVRM."
        )
    answer = health_facts.ask_health(["cdi", "containers", "smi"]) | {"log": read_log()}
    if not recorded and health.is_removed(facts, answer["smi"]):
        return "not run: no driver is installed"
    findings = accepted_faults.judge(facts, {"health": answer}, accepted)
    told = health.sentences(finding.as_data() for finding in findings)
    faults = [text for kind, text in told if kind == health.FAULT]
    if faults:
        raise ValueError(" ".join(faults))
    begin = "No fault found" if all(kind != health.ACCEPTED for kind, _ in told) else "Known faults"
    warnings = [text for _kind, text in told]
    return " ".join([f"{begin}. GPUs: {gpu_host.count(facts)}.", *warnings])


def read_log(path: str = health_facts.KERNEL_LOG) -> list[str]:
    """Return the driver's lines of the kernel log since the boot, none if it cannot be read.

    The kernel keeps only the newest lines. If older ones are gone, the journal has them.
    """
    try:
        lines, complete = health_facts.read_log(path)
    except OSError:
        return _read_journal()
    return lines if complete else health_facts.newest([*_read_journal(), *lines])


def _read_journal() -> list[str]:
    if shutil.which(JOURNAL[0]) is None:
        return []
    done = subprocess.run(JOURNAL, capture_output=True, text=True, errors="replace", check=False)
    return health_facts.newest(
        [
            line
            for line in done.stdout.splitlines()
            if any(mark in line for mark in health_facts.DRIVER_MARKS)
        ]
    )
