# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel modules.

Keys of an entry of modules (``?``: optional): name, version?, state? (``absent``: not loaded).
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]


def ask_modules(names: list[str]) -> Json:
    """Return the version of each kernel module that is loaded, empty where it states none."""
    return {
        name: reading.read_word(f"/sys/module/{name}/version")
        if os.path.isdir(f"/sys/module/{name}")
        else None
        for name in names
    }


ASKS = {"modules": lambda names, _reply: ask_modules(names)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import Kind


def compare_modules(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a kernel module."""
    version = answer["modules"][entry["name"]]
    if entry.get("state", "present") == "absent":
        if version is not None:
            yield "loaded", "not loaded"
    elif version is None:
        yield "not loaded", "loaded"
    elif entry.get("version") and version != entry["version"]:
        yield f"version {version or 'unknown'} is loaded", f"version {entry['version']}"


KINDS = (Kind("modules", "name", "modules", compare_modules),)
