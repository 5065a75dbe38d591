# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the result of a smoke test depends on beside the image.

Runs on hosts, as part of the builder as well as of modules: Python 3.10, standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

# Settings of the engine and of the container toolkit, the loaded driver, and this boot.
FILES = (
    "/etc/docker/daemon.json",
    "/etc/nvidia-container-runtime/config.toml",
    "/proc/driver/nvidia/version",
    "/proc/sys/kernel/random/boot_id",
)
# Folders of CDI specifications, and of the engine's unit.
FOLDERS = ("/etc/cdi", "/run/cdi", "/etc/systemd/system/docker.service.d")
# Names in this folder are the PCI addresses of the driver's GPUs.
GPUS = "/proc/driver/nvidia/gpus"
# Programs that give GPUs to containers; a new version has another time or size.
PROGRAMS = ("/usr/bin/nvidia-container-runtime", "/usr/bin/nvidia-container-cli")


def digest() -> str:
    """Return a digest that changes with the system of a smoke test, empty if Docker is silent.

    It covers the versions of the engine and its runtimes, their settings, the kernel, the boot, the
    loaded driver, its GPUs, and how containers get them.
    """
    try:
        version = containers.ask_engine("/version")
    except (OSError, ValueError, IndexError):
        return ""
    found = [version, *map(_content, _files()), _names(GPUS), *map(_stamp, PROGRAMS)]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _files() -> Iterator[str]:
    yield from FILES
    for folder in FOLDERS:
        for name in _names(folder):
            yield f"{folder}/{name}"


def _names(folder: str) -> list[str]:
    """Return the sorted names in a folder, none if it cannot be read."""
    try:
        return sorted(entry.name for entry in Path(folder).iterdir())
    except OSError:
        return []


def _content(path: str) -> list[str]:
    """Return path and content digest of a file, which is empty if the file cannot be read."""
    content = reading.read_file(path)
    return [path, "" if content is None else hashlib.sha256(content).hexdigest()]


def _stamp(path: str) -> list[int]:
    """Return size and time of a program, none if there is no program."""
    try:
        info = Path(path).stat()
    except OSError:
        return []
    return [info.st_size, info.st_mtime_ns]
