# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verdicts of the CUDA check: compares results with expectations, without any call of the driver.

Runs on Python 3.8 and newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import cuda_errors

# Version of the report's format. Increase it when the meaning of a field changes.
SCHEMA = 1

LIBRARY, INIT, COUNT = "cuda-library", "cuda-init", "gpu-count"
CONTEXT, COMPILE, SUM, PRODUCT = (
    "gpu-context",
    "gpu-compile",
    "gpu-vector-sum",
    "gpu-matrix-product",
)
MEMORY, COPY, PEER_COPY = "gpu-memory", "gpu-copy", "gpu-peer-copy"
LOAD = "gpu-load"
TIME_LIMIT, PROCESS = "time-limit", "check-process"
# In the order in which the checks run.
DRIVER_CHECKS = (LIBRARY, INIT, COUNT)
GPU_CHECKS = (CONTEXT, COMPILE, SUM, PRODUCT, MEMORY, COPY)

BAD_ARITHMETIC = (
    "Stop using this GPU. Check its cooling and power, run the check again, and replace the GPU "
    "if the result stays wrong."
)
BAD_MEMORY = (
    "Stop using this GPU. Read the ECC errors and remapped rows (nvidia-smi -q -d "
    "ECC,ROW_REMAPPER), reset the GPU, and replace it if the error stays."
)
BAD_COPY = (
    "Check the slot and the PCIe or NVLink errors (nvidia-smi nvlink -e, journalctl -k --grep "
    "'AER|Xid'), then run the check again."
)
NO_LIBRARY = "Install the driver (./slipway site), then run ldconfig."
NO_LIBRARY_IN_CONTAINER = cuda_errors.NEW_CONTAINER
# Xid 79 is NVIDIA's code for a GPU that is no longer reachable over PCIe.
MISSING_GPU = (
    f"{cuda_errors.KERNEL_LOG} Xid 79 means that a GPU fell off the bus: reboot the host, then "
    "check the GPU's seat and power."
)
HANG = (
    "Look for a hanging GPU: nvidia-smi, then journalctl -k --grep 'NVRM|Xid|blocked for more'. "
    "Reset the GPU or reboot the host."
)


@dataclass(frozen=True)
class Check:
    """One check: what was expected and found, on which GPU (PCI address), in how many seconds.

    ``remedy`` is empty for a check that passed.
    """

    id: str
    ok: bool
    expected: str
    found: str
    remedy: str = ""
    gpu: str | None = None
    seconds: float = 0.0

    def timed(self, seconds: float) -> Check:
        """Return the check with its duration."""
        return replace(self, seconds=round(seconds, 3))


@dataclass(frozen=True)
class Gpu:
    """One GPU, or MIG slice of a GPU, as the driver describes it; ``address`` is as in sysfs."""

    number: int
    name: str
    address: str
    memory_bytes: int
    compute_capability: str
    mig_slice: bool


def is_mig_slice(name: str) -> bool:
    """Return whether a device NAME is that of a MIG slice, such as ``NVIDIA A100 MIG 1g.5gb``."""
    return " MIG " in name


def judge_error(
    check: str,
    expected: str,
    code: int,
    name: str | None,
    function: str,
    in_container: bool,
    gpu: str | None = None,
    details: str = "",
) -> Check:
    """Return the failed CHECK of a driver FUNCTION that returned an error CODE."""
    found = f"{function}: {cuda_errors.describe(code, name)}"
    if details:
        found += f" ({details})"
    return Check(check, False, expected, found, cuda_errors.remedy(code, in_container), gpu)


def judge_count(
    gpus: Sequence[Gpu], expected: int | Sequence[str], in_container: bool = False
) -> Check:
    """Compare the driver's GPUs with those EXPECTED: a number, or the PCI addresses of the bus.

    With MIG, the driver shows a program one slice and hides the other slices and GPUs, so one
    slice is enough there.
    """
    count = expected if isinstance(expected, int) else len(expected)
    slices = [gpu for gpu in gpus if gpu.mig_slice]
    if slices:
        found = f"{_plural(len(slices), 'MIG slice')} ({', '.join(gpu.name for gpu in slices)})"
        return Check(COUNT, True, f"a MIG slice of {_plural(count, 'GPU')}", found)
    addresses = [gpu.address for gpu in gpus]
    found = _plural(len(gpus), "GPU") + (f" ({', '.join(addresses)})" if addresses else "")
    missing = [] if isinstance(expected, int) else sorted(set(expected) - set(addresses))
    ok = len(gpus) == count and not missing
    if missing:
        found += f"; missing: {', '.join(missing)}"
    remedy = cuda_errors.NEW_CONTAINER if in_container else MISSING_GPU
    return Check(COUNT, ok, _plural(count, "GPU"), found, "" if ok else remedy)


def judge_result(check: str, gpu: str, offset: int, expected: bytes, result: bytes) -> Check:
    """Judge a computation by the first differing byte OFFSET of its RESULT, -1 if all agree."""
    size = len(expected)
    if offset < 0:
        return Check(check, True, f"{size} bytes as computed on the CPU", "the same", gpu=gpu)
    remedy = {MEMORY: BAD_MEMORY, COPY: BAD_COPY, PEER_COPY: BAD_COPY}.get(check, BAD_ARITHMETIC)
    correct, actual = (data[offset : offset + 4].hex() for data in (expected, result))
    where = f"{actual or 'nothing'} at byte {offset}"
    return Check(check, False, f"{correct or 'nothing'} at byte {offset}", where, remedy, gpu)


def judge_end(
    step: str, gpu: str | None, limit: float | None, status: int, error: str = ""
) -> Check:
    """Return the failed check of a process that did not finish.

    It was stopped at its LIMIT in seconds, or ended by its own ERROR or with a STATUS: an exit
    status, or minus the number of a signal.
    """
    where = f"during {step}" + (f" on GPU {gpu}" if gpu else "")
    if limit is not None:
        return Check(TIME_LIMIT, False, f"an end within {limit:g} s", f"no end {where}", HANG, gpu)
    if error:
        details = f"{error} {where}"
        return Check(PROCESS, False, "a complete run", details, cuda_errors.REPORT_BUG, gpu)
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    return Check(PROCESS, False, "a complete run", f"{ended} {where}", HANG, gpu)


def not_run(checks: Sequence[Check], gpus: Sequence[Gpu]) -> list[dict[str, str | None]]:
    """Return the checks, with their GPU, that an earlier failure prevented."""
    ran = {(check.id, check.gpu) for check in checks}
    planned: list[tuple[str, str | None]] = [(name, None) for name in DRIVER_CHECKS]
    planned += [(name, gpu.address) for gpu in gpus for name in GPU_CHECKS]
    return [{"id": name, "gpu": gpu} for name, gpu in planned if (name, gpu) not in ran]


def report(
    driver: Mapping[str, Any],
    gpus: Sequence[Gpu],
    checks: Sequence[Check],
    copies: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """Return the whole report as data for JSON.

    COPIES are measured copies with ``gigabytes_per_second``, 1 GB being 10**9 bytes.
    """
    return {
        "schema": SCHEMA,
        "ok": bool(checks) and all(check.ok for check in checks),
        "driver": dict(driver),
        "gpus": [asdict(gpu) for gpu in gpus],
        "checks": [asdict(check) for check in checks],
        "copies": [dict(copy) for copy in copies],
        "not_run": not_run(checks, gpus),
        "seconds": round(seconds, 3),
    }


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return the failed checks of a report as sentences."""
    return [
        f"{check['id']}{' of GPU ' + check['gpu'] if check['gpu'] else ''}: {check['found']}; "
        f"expected {check['expected']}. {check['remedy']}"
        for check in results["checks"]
        if not check["ok"]
    ]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
