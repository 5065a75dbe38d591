# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs an image's smoke test in a container with few rights.

Runs on hosts, as part of the builder as well as of a module, so it imports little of the project.
"""

from __future__ import annotations

import json
import subprocess
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

    Return its lines that begin with "smoke: ". Raise SmokeError with the end of its output if
    the test fails.
    """
    entry = ["--entrypoint", command[0], reference]
    name = f"slipway-smoke-{uuid.uuid4().hex}"
    run: list[str] = ["docker", "run", "--name", name, *OPTIONS, *_gpu_options(reference), *entry]
    try:
        completed = subprocess.run(
            [*run, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # The time-out ended only the docker command; the container still runs and holds its GPUs.
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        raise SmokeError(f"no end after {timeout:.0f} s") from None
    if completed.returncode != 0:
        output = (completed.stdout + completed.stderr).strip().splitlines()[-25:]
        raise SmokeError("\n".join([f"exit status {completed.returncode}", *output]))
    return [line for line in completed.stdout.splitlines() if line.startswith("smoke: ")]
