# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what :mod:`gpu.health` judges, on the host itself: nvidia-smi and the kernel log.

Private to the collection.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from ansible_collections.slipway.host.plugins.module_utils.gpu import health, nvidia_smi

SMI = "nvidia-smi"
KERNEL_LOG = "/dev/kmsg"
JOURNAL = ("journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager")
# A GPU that is off the bus can block nvidia-smi for minutes.
SMI_SECONDS = 120
# The largest record of the kernel log.
RECORD_BYTES = 8192
_RECORD = re.compile(r"\d+,(\d+),[^;]*;(.*)")


def check(addresses: Sequence[str], expected: int) -> str:
    """Check the health of the GPUs with these PCI ADDRESSES; return the result in one line.

    EXPECTED is the number of GPUs that the host is recorded to have. Raise ValueError with all
    faults, or if the driver does not answer.
    """
    if not expected and shutil.which(SMI) is None:
        return "not run: no driver is installed"
    findings = health.judge_missing(expected, len(addresses))
    if addresses:
        findings += health.judge_smi(_query_smi(), addresses)
    findings += health.judge_kernel_log(read_kernel_log())
    faults = [str(finding) for finding in findings if not finding.warning]
    if faults:
        raise ValueError(" ".join(faults))
    warnings = [str(finding) for finding in findings if finding.warning]
    return " ".join([f"No fault found. GPUs: {len(addresses)}.", *warnings])


def _query_smi() -> str:
    program = shutil.which(SMI)
    if program is None:
        raise ValueError(
            f"{SMI} is missing; expected it with the driver. Run site.yml to install it"
        )
    limit = ["timeout", "--kill-after=5", str(SMI_SECONDS)]
    done = subprocess.run(
        [*limit, program, "-q", "-x"], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        raise ValueError(nvidia_smi.failure(done.returncode, done.stderr or done.stdout))
    return done.stdout


def read_kernel_log(path: str = KERNEL_LOG) -> list[str]:
    """Return the lines of the kernel log since the boot, none if it cannot be read.

    The kernel keeps only the newest lines. If older ones are gone, the journal has them.
    """
    try:
        records = list(_read_records(path))
    except OSError:
        return _read_journal()
    complete = bool(records) and records[0][0] == 0
    return [*([] if complete else _read_journal()), *(line for _time, line in records)]


def _read_records(path: str) -> Iterator[tuple[int, str]]:
    """Yield sequence number and text of each record of the kernel log."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                text = os.read(descriptor, RECORD_BYTES).decode("utf-8", "replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The kernel overwrote the next record; the one after it can be read.
                continue
            if not text:
                return
            for line in text.splitlines():
                if match := _RECORD.match(line):
                    yield int(match[1]), match[2]
    finally:
        os.close(descriptor)


def _read_journal() -> list[str]:
    if shutil.which(JOURNAL[0]) is None:
        return []
    done = subprocess.run(JOURNAL, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.splitlines()
