# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The system on which a smoke test runs: what its result depends on beside the image.

Runs on hosts, as part of the builder as well as of modules: Python 3.10, standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import DAEMON_JSON
from ansible_collections.slipway.host.plugins.module_utils.docker.rootless import CDI_FOLDERS
from ansible_collections.slipway.host.plugins.module_utils.host.engine_settings import (
    TOOLKIT_CONFIG,
)
from ansible_collections.slipway.host.plugins.module_utils.host.reboot_record import BOOT_ID
from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

# Settings, the loaded driver, this boot, and the programs that give GPUs to containers.
FILES = (
    *(DAEMON_JSON, TOOLKIT_CONFIG, "/proc/driver/nvidia/version", BOOT_ID),
    *("/usr/bin/nvidia-container-runtime", "/usr/bin/nvidia-container-cli"),
)
# Folders of CDI specifications, and of drop-ins of the engine's unit.
FOLDERS = (*CDI_FOLDERS, "/etc/systemd/system/docker.service.d")
# Names in this folder are the PCI addresses of the driver's GPUs.
GPUS = "/proc/driver/nvidia/gpus"


def digest() -> str:
    """Return a digest that changes with the system, empty if Docker Engine does not answer.

    It covers the versions of the engine and its runtimes, their settings, the kernel, the boot, the
    loaded driver, its GPUs, and how containers get them.
    """
    try:
        version = containers.ask_engine("/version")
    except (OSError, ValueError, IndexError):
        return ""
    found = [version, *map(_content, _files()), reading.list_names(GPUS)]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _files() -> Iterator[str]:
    yield from FILES
    for folder in FOLDERS:
        for name in reading.list_names(folder) or ():
            yield f"{folder}/{name}"


def _content(path: str) -> list[str]:
    """Return path and content digest of a file, which is empty if the file cannot be read."""
    content = reading.read_file(path)
    return [path, "" if content is None else hashlib.sha256(content).hexdigest()]
