# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the last requested reboot, so that a reboot without effect is not repeated.

Standard library only, for hosts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import STATE_FOLDER
from ansible_collections.slipway.host.plugins.module_utils.state import paths, reading

RECORD = f"{STATE_FOLDER}/reboot.json"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def read_reason(file: str = RECORD, boot_id: str = BOOT_ID) -> str:
    """Return the reason of the last reboot that was requested and done, empty without one."""
    try:
        record = json.loads(reading.read_file(file) or b"{}")
    except ValueError:
        return ""
    if not isinstance(record, dict) or record.get("boot_id") in (None, reading.read_word(boot_id)):
        return ""
    return str(record.get("reason", ""))


def write_reason(reason: str, file: str = RECORD, boot_id: str = BOOT_ID) -> None:
    """Record that a reboot of the running system is requested for a REASON."""
    record = {"reason": reason, "boot_id": reading.read_word(boot_id)}
    with paths.opened_parent(file, make=True) as (folder, name):
        folder.replace(name, json.dumps(record).encode(), 0o600, os.geteuid(), os.getegid())


def delete(file: str = RECORD) -> None:
    """Delete the record, because its reason no longer exists."""
    Path(file).unlink(missing_ok=True)
