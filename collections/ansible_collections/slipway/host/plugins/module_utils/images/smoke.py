# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs an image's smoke test in a container with few rights.

Runs on hosts, as part of the builder as well as of a module, so it imports little of the project.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.record import Content

# No network, only /tmp writable, no privileges, and a user without an account in the image.
OPTIONS = [
    *("--rm", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec"),
    *("--user", "1234:1234", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    # Docker may set a proxy in containers, which a test on localhost must not use.
    *("--env", "no_proxy=*", "--env", "NO_PROXY=*"),
]


# Exists if the driver's module is loaded and has found a GPU.
GPU_DEVICE = Path("/dev/nvidiactl")
# How often a running smoke test looks at the load of the host.
STEP_SECONDS = 5.0
# Suffix of the tag of an image before its smoke test.
CANDIDATE = "-candidate"
CDI_KIND = "nvidia.com/gpu"


class SmokeError(ValueError):
    """The smoke test failed; the message is the end of its output."""


def _gpu_options(reference: str) -> list[str]:
    """Return the options for access to the host's GPUs; empty for a cpu image or without a GPU."""
    if not GPU_DEVICE.exists():
        return []
    label = f'{{{{index .Config.Labels "{labels.VARIANT}"}}}}'
    if _docker_output("image", "inspect", "--format", label, reference).strip() != "gpu":
        return []
    folders = json.loads(_docker_output("info", "--format", "{{json .}}") or "{}").get(
        "CDISpecDirs"
    )
    by = ["--device", f"{CDI_KIND}=all"] if _is_described(folders or ()) else ["--gpus", "all"]
    # GPUs without a direct connection exchange data by shared memory (NCCL).
    return [*by, "--shm-size", "1g"]


def _docker_output(*words: str) -> str:
    """Return docker's output, empty for an error."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout


def _is_described(folders: Sequence[str]) -> bool:
    """Return whether a CDI specification in one of the engine's FOLDERS describes NVIDIA GPUs."""
    return any(
        CDI_KIND in file.read_text(encoding="utf-8", errors="replace")
        for folder in folders
        for file in Path(folder).glob("*")
        if file.is_file()
    )


def test_content(content: Content, timeout: float) -> list[str]:
    """Run the smoke test that an image's label names; see :func:`test`."""
    command = content.labels.get(labels.SMOKE)
    if command is None:
        raise SmokeError(
            f"no smoke test: label {labels.SMOKE} is missing. Choose an image of the catalogue"
        )
    return test(content.identity, json.loads(command), timeout)


def test(reference: str, command: Sequence[str], timeout: float) -> list[str]:
    """Run the smoke test COMMAND in the image REFERENCE within TIMEOUT seconds.

    On a host with more work than processors, the test has more time: see `_wait`. Return the lines
    that begin with "smoke: ". Raise SmokeError with the end of the output if the test fails.
    """
    entry = ["--entrypoint", command[0], reference]
    name = f"slipway-smoke-{uuid.uuid4().hex}"
    run: list[str] = ["docker", "run", "--name", name, *OPTIONS, *_gpu_options(reference), *entry]
    with subprocess.Popen(
        [*run, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        began = time.monotonic()
        written = _wait(process, timeout)
        problem = f"exit status {process.returncode}" if process.returncode else ""
        if written is None:
            elapsed = time.monotonic() - began
            problem = (
                f"no end after {elapsed:.0f} s; expected one within {timeout:.0f} s, or more on a "
                "busy host"
            )
            # Ending the docker command is not enough: the container would run on and hold its GPUs.
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
            process.kill()
            written = process.communicate()
    output, errors = written
    if problem:
        raise SmokeError("\n".join([problem, *(output + errors).strip().splitlines()[-25:]]))
    return [line for line in output.splitlines() if line.startswith("smoke: ")]


def _wait(process: subprocess.Popen[str], timeout: float) -> tuple[str, str] | None:
    """Return the output and the errors of a process; None if it does not end in TIMEOUT seconds.

    A second counts less while more processes want to run than there are processors: half at twice
    as many, but never less than a tenth.
    """
    left = timeout
    while left > 0:
        began = time.monotonic()
        try:
            return process.communicate(timeout=min(left, STEP_SECONDS))
        except subprocess.TimeoutExpired:
            share = (os.cpu_count() or 1) / max(os.getloadavg()[0], 0.1)
            left -= (time.monotonic() - began) * min(max(share, 0.1), 1)
    return None
