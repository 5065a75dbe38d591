#!/usr/bin/env python3
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute on every NVIDIA GPU with only the driver, and print the result as JSON.

Usage: python3 cuda_check.py [--expect NUMBER|ADDRESSES] [--memory-mib N] [--timeout S]
                             [--container] [--all-pairs] [--load-seconds S] [--load-order N]

Exit status: 0 every check passed, 1 a check failed, 2 wrong usage. The checks run in a process of
their own, which is killed at the time limit: a driver can hang. Needs Python 3.8 and its standard
library; run it from its folder, or packed by ``cuda_bundle``.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__ and Path(__file__).is_file():
    # Run as a script: add the collections folder, remove site packages. These may contain another
    # ansible_collections, and the check needs none of them.
    _file = Path(__file__).resolve()
    _kept = [path for path in sys.path if not path.endswith("-packages")]
    sys.path[:] = [str(_file.parents[6]), *(path for path in _kept if path != str(_file.parent))]

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_judge,
    cuda_kernels,
    cuda_run,
)

PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY_CLASSES = "0x10de", ("0x030000", "0x030200")
# Drivers that reserve a GPU for a virtual machine.
PASSTHROUGH = ("vfio-pci", "pci-stub", "pciback", "nvgrace-gpu-vfio-pci")
# A process that waits for the hardware cannot be killed; the parent leaves it after this time.
KILL_SECONDS = 5
MAX_MEMORY_MIB = 4096
# Variables that hide GPUs, forbid the compilation of PTX, or reuse an earlier compilation.
REMOVED = ("CUDA_VISIBLE_DEVICES", "CUDA_DISABLE_PTX_JIT", "CUDA_FORCE_PTX_JIT")
SET = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_CACHE_DISABLE": "1"}


def bus_addresses(pci: Path = PCI) -> list[str]:
    """Return the PCI addresses of the NVIDIA GPUs that belong to the host itself."""
    addresses = []
    for device in sorted(pci.iterdir()) if pci.is_dir() else ():
        try:
            identity = [(device / name).read_text().strip() for name in ("vendor", "class")]
        except OSError:
            continue
        driver = (device / "driver").resolve().name
        is_gpu = identity[0] == NVIDIA and identity[1] in DISPLAY_CLASSES
        if is_gpu and driver not in PASSTHROUGH and not (device / "physfn").is_symlink():
            addresses.append(device.name)
    return addresses


def supervise(options: cuda_run.Options, timeout: float) -> dict[str, Any]:
    """Run the checks in a child process for at most TIMEOUT seconds; return the report."""
    started = time.monotonic()
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(writer, options, timeout)
    os.close(writer)
    collected = Collected()
    try:
        ended = _collect(reader, collected, started + timeout)
        status = _stop(child, kill=not ended)
    except BaseException:
        _stop(child, kill=True)
        raise
    finally:
        os.close(reader)
    if not collected.complete:
        limit = None if ended else timeout
        collected.checks.append(
            cuda_judge.judge_end(collected.step, collected.step_gpu, limit, status, collected.error)
        )
    return cuda_judge.report(
        collected.driver,
        collected.gpus,
        collected.checks,
        collected.copies,
        time.monotonic() - started,
    )


class Collected:
    """The messages of the child process, sorted by kind."""

    def __init__(self) -> None:
        self.driver: dict[str, Any] = {}
        self.gpus: list[cuda_judge.Gpu] = []
        self.checks: list[cuda_judge.Check] = []
        self.copies: list[dict[str, Any]] = []
        self.step, self.step_gpu = "the start", None
        self.error = ""
        self.complete = False

    def add(self, message: dict[str, Any]) -> None:
        """Add one message."""
        kind, content = message["kind"], message["content"]
        if kind == "step":
            self.step, self.step_gpu = content["name"], content["gpu"]
        elif kind == "driver":
            self.driver.update(content)
        elif kind == "gpu":
            self.gpus.append(cuda_judge.Gpu(**content))
        elif kind == "check":
            self.checks.append(cuda_judge.Check(**content))
        elif kind == "copy":
            self.copies.append(content)
        elif kind == "error":
            self.error = content["message"]
        elif kind == "end":
            self.complete = True


def _work(writer: int, options: cuda_run.Options, timeout: float) -> None:
    """Run the checks and send their messages; does not return."""
    status = 1
    try:
        # Also ends this process if its parent was killed.
        signal.alarm(int(timeout) + KILL_SECONDS)
        for name in REMOVED:
            os.environ.pop(name, None)
        os.environ.update(SET)
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            for kind, content in _guarded(options):
                stream.write(json.dumps({"kind": kind, "content": content}) + "\n")
                stream.flush()
        status = 0
    except BrokenPipeError:
        pass
    finally:
        # Skip the exit handlers of the parent: this process is a copy of it.
        os._exit(status)


def _guarded(options: cuda_run.Options) -> Iterator[cuda_run.Message]:
    """Yield the messages of the checks; an unexpected exception becomes one too, and the last."""
    try:
        yield from cuda_run.messages(options)
    except Exception as error:
        yield "error", {"message": f"{type(error).__name__}: {error}"}


def _collect(reader: int, collected: Collected, deadline: float) -> bool:
    """Read messages until the child ends (True) or the DEADLINE passes (False)."""
    rest = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return False
        data = os.read(reader, 1 << 16)
        if not data:
            return True
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            collected.add(json.loads(line))


def _stop(child: int, kill: bool) -> int:
    """Wait for the CHILD, or KILL it first; return its exit status, or minus its signal."""
    if kill:
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.01)
    return -signal.SIGKILL


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; ends the program with status 2 if it is wrong."""
    usage = argparse.ArgumentParser(description="Compute on every NVIDIA GPU, report as JSON.")
    usage.add_argument(
        "--expect",
        help="number of GPUs, or their PCI addresses with commas; default: the GPUs of the bus",
    )
    usage.add_argument(
        "--memory-mib", type=int, default=256, help="memory to test per GPU in MiB (default 256)"
    )
    usage.add_argument("--timeout", type=float, default=120, help="time limit in s (default 120)")
    usage.add_argument(
        "--container", action="store_true", help="this is a container: give remedies for it"
    )
    usage.add_argument(
        "--all-pairs", action="store_true", help="copy between all pairs of GPUs, not in a ring"
    )
    usage.add_argument(
        "--load-seconds", type=float, default=0, help="load all GPUs at the end (default 0: no)"
    )
    usage.add_argument(
        "--load-order",
        type=int,
        default=cuda_kernels.LOAD_ORDER,
        help=f"order of the load's matrices (default {cuda_kernels.LOAD_ORDER})",
    )
    options = usage.parse_args(arguments)
    if not 1 <= options.memory_mib <= MAX_MEMORY_MIB:
        usage.error(f"--memory-mib {options.memory_mib}; expected 1 to {MAX_MEMORY_MIB}")
    period = cuda_kernels.LEFT_PERIOD
    if options.load_order not in range(period, cuda_kernels.MAX_LOAD_ORDER + 1, period):
        usage.error(f"--load-order {options.load_order}; expected a multiple of {period}")
    if options.load_seconds < 0:
        usage.error(f"--load-seconds {options.load_seconds:g}; expected 0 or more")
    if not options.timeout > 0:
        usage.error(f"--timeout {options.timeout:g}; expected more than 0")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the checks, print the report and return the exit status."""
    options = parse(arguments)
    expected: int | list[str] = bus_addresses()
    if options.expect is not None:
        number = options.expect.isdigit()
        expected = int(options.expect) if number else options.expect.lower().split(",")
    memory = options.memory_mib << 20
    checks = cuda_run.Options(
        expected,
        memory,
        options.container,
        options.all_pairs,
        options.load_seconds,
        options.load_order,
    )
    report = supervise(checks, options.timeout + options.load_seconds)
    print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
