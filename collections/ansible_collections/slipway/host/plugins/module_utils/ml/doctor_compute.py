# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Computes on the GPUs for ``ml doctor``: on the host, and in a container of an image.

The computation is the CUDA check, which the role ml_aliases installs below ``LIBRARY``. It needs
only Python and the driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARY = Path("/usr/local/lib/slipway")
# The check's folder below LIBRARY: its modules import each other by this name.
FOLDER = "ansible_collections/slipway/host/plugins/module_utils/gpu"
PROGRAM = "cuda_check.py"
# Memory to test per GPU: other users compute on the same GPUs.
MEMORY_MIB = 8
# The check ends by itself at its limit; then a started driver or an engine may need more time.
CHECK_SECONDS = 120
MORE_SECONDS = 60
REMOVE_SECONDS = 30
# Exit statuses of docker for a program that is missing or cannot be executed.
NO_PROGRAM = (126, 127)


class NotDone(Exception):
    """A step was not done and nothing is wrong; the message is the reason."""


class ComputeError(Exception):
    """The computation failed; the message is the reason and the remedy."""


def compute_on_host(addresses: Sequence[str], library: Path) -> str:
    """Compute on the GPUs with these PCI ADDRESSES by the check in LIBRARY; return the result.

    Raise ComputeError if a check fails.
    """
    command = [sys.executable, *_arguments(library), "--expect", ",".join(addresses)]
    return _result(*_run(command))


def compute_in_container(image: str, count: int, by_cdi: bool, library: Path) -> str:
    """Compute on all GPUs, COUNT of them, in a new container of IMAGE; return the result.

    Raise NotDone for an image without Python, ComputeError if a check fails.
    """
    name = f"slipway-doctor-{os.getuid()}-{os.getpid()}"
    gpus = "--device=nvidia.com/gpu=all" if by_cdi else "--gpus=all"
    options = ["--rm", f"--name={name}", "--pull=never", "--network=none", "--entrypoint=python3"]
    mount = f"--volume={library}:{library}:ro"
    command = ["docker", "run", *options, gpus, mount, image, *_arguments(library)]
    try:
        status, output, errors = _run([*command, "--expect", str(count), "--container"])
    except ComputeError:
        _remove(name)
        raise
    if status in NO_PROGRAM and "python3" in errors:
        raise NotDone(f"{image} has no program python3")
    return _result(status, output, errors)


def _arguments(library: Path) -> list[str]:
    """Return the arguments of Python that run the check; raise ComputeError without the check."""
    program = library / FOLDER / PROGRAM
    if not program.is_file():
        raise ComputeError(f"{program} is missing; run site.yml with the role ml_aliases")
    limits = ["--memory-mib", str(MEMORY_MIB), "--timeout", str(CHECK_SECONDS)]
    return ["-ISB", str(program), *limits]


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Run a command for a limited time; return its exit status, output and error output."""
    seconds = CHECK_SECONDS + MORE_SECONDS
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as expired:
        # The driver can keep a process of the check, and so its output, beyond the report.
        if expired.stdout:
            return 1, expired.stdout.decode("utf-8", "replace"), ""
        raise ComputeError(
            f"{os.path.basename(command[0])} did not end within {seconds} s. Look for a hanging "
            "GPU or engine: nvidia-smi, docker info"
        ) from None
    except OSError as error:
        raise ComputeError(f"cannot run {command[0]}: {error.strerror}") from None
    output, errors = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return done.returncode, output, errors


def _remove(name: str) -> None:
    """Remove a container that did not end; an engine that does not answer keeps it."""
    command = ["docker", "container", "rm", "--force", name]
    try:
        subprocess.run(command, capture_output=True, timeout=REMOVE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return


def _result(status: int, output: str, errors: str) -> str:
    """Return the report of the check as text; raise ComputeError for its first failed check."""
    try:
        report = json.loads(output)
        failed = next((check for check in report["checks"] if not check["ok"]), None)
        if failed is not None:
            raise ComputeError(_sentence(failed))
        if report["ok"]:
            return _summary(report)
    except (ValueError, KeyError, TypeError):
        pass
    lines = (errors or output).strip().splitlines() or [f"exit status {status}"]
    raise ComputeError(f"the CUDA check wrote no report: {lines[-1]}")


def _sentence(check: Mapping[str, Any]) -> str:
    gpu = f" of GPU {check['gpu']}" if check["gpu"] else ""
    return (
        f"{check['id']}{gpu}: {check['found']}; expected {check['expected']}. {check['remedy']}"
    ).rstrip()


def _summary(report: Mapping[str, Any]) -> str:
    driver = " with a stand-in driver" if report["driver"]["stand_in"] else ""
    count = len(report["gpus"])
    return (
        f"{count} {'GPU' if count == 1 else 'GPUs'} computed correctly{driver}, newest CUDA "
        f"release of the driver: {report['driver']['cuda_version']}"
    )
