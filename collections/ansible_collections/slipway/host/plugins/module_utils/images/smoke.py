# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run an image's smoke test: the least a container can have must be enough for it.

Runs on hosts, as part of the builder as well as of a module, so it imports little of the project.
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker import labels

# No network, nothing writable but /tmp, no privilege, and a user that the image has never heard of.
OPTIONS = [
    *("--rm", "--init", "--network", "none", "--read-only", "--tmpfs", "/tmp:exec"),
    *("--user", "1234:1234", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    # Docker may give containers a proxy, which a test that talks to itself must not ask.
    *("--env", "no_proxy=*", "--env", "NO_PROXY=*"),
]


# There where the driver's module is loaded and a GPU is found.
GPU_DEVICE = Path("/dev/nvidiactl")
# The end of the tag of an image that is not proven yet.
CANDIDATE = "-candidate"
CDI_KIND = "nvidia.com/gpu"


class SmokeError(ValueError):
    """The image does not do its job; the message is what it said."""


def _gpus(reference: str) -> list[str]:
    """Return the options that lend a gpu image the host's GPUs, none where there are none."""
    if not GPU_DEVICE.exists():
        return []
    label = f'{{{{index .Config.Labels "{labels.VARIANT}"}}}}'
    if _asked("image", "inspect", "--format", label, reference).strip() != "gpu":
        return []
    folders = json.loads(_asked("info", "--format", "{{json .}}") or "{}").get("CDISpecDirs")
    return ["--device", f"{CDI_KIND}=all"] if _is_described(folders or ()) else ["--gpus", "all"]


def _asked(*words: str) -> str:
    """Return what docker answers, nothing where it has no answer."""
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout


def _is_described(folders: Sequence[str]) -> bool:
    """Whether a CDI specification in one of the engine's FOLDERS tells of NVIDIA's GPUs."""
    return any(
        CDI_KIND in file.read_text(encoding="utf-8", errors="replace")
        for folder in folders
        for file in Path(folder).glob("*")
        if file.is_file()
    )


def test(reference: str, command: Sequence[str], timeout: float) -> list[str]:
    """Run the smoke test COMMAND in the image REFERENCE within TIMEOUT seconds.

    Return the lines in which it says what it proved. Raise SmokeError with the end of its output
    where it fails.
    """
    entry = ["--entrypoint", command[0], reference]
    name = f"slipway-smoke-{uuid.uuid4().hex}"
    run: list[str] = ["docker", "run", "--name", name, *OPTIONS, *_gpus(reference), *entry]
    try:
        done = subprocess.run(
            [*run, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # Only the command has ended by that; its container would go on, and keep its GPUs.
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
        raise SmokeError(f"no end after {timeout:.0f} s") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-25:]
        raise SmokeError("\n".join([f"exit status {done.returncode}", *said]))
    return [line for line in done.stdout.splitlines() if line.startswith("smoke: ")]
