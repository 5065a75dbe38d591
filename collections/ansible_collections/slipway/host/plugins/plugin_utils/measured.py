# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a survey measured, as values for the metrics of a host: see module_utils.host.metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import health as gpu_health

ROLE = "host_metrics"
_COLLECTION = Path(__file__).resolve().parents[2]


@cache
def collection_version() -> str:
    """Return the version of the collection, in a checkout or installed; empty if unknown."""
    try:
        text = (_COLLECTION / "galaxy.yml").read_text(encoding="utf-8")
        return str(re.findall(r"^version: *(\S+)", text, re.MULTILINE)[0])
    except (OSError, IndexError):
        pass
    try:
        manifest = json.loads((_COLLECTION / "MANIFEST.json").read_text(encoding="utf-8"))
        return str(manifest["collection_info"]["version"])
    except (OSError, ValueError, KeyError):
        return ""


def measure(
    owned: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    compared: Mapping[str, Any],
    findings: Sequence[gpu_health.Finding],
    seen: Mapping[str, Any],
    answer: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the values of a host, none if no file of metrics is declared for it.

    OWNED and COMPARED are by role, SEEN is the overview of the host.
    """
    files = owned.get(ROLE, {}).get("files", ())
    if all(entry.get("state") == "absent" for entry in files):
        return {}
    smi = ((answer.get("health") or {}).get("smi")) or {}
    live = gpu_health.by_address(smi.get("gpus") or {})
    return {
        "version": collection_version(),
        "drift": {role: len(one.differences) for role, one in compared.items()},
        "conflicts": {role: len(one.conflicts) for role, one in compared.items()},
        # Without a driver, nothing is known of the health of GPUs.
        **({"faulty": any(not one.warning for one in findings)} if "health" in answer else {}),
        "gpus": [
            {
                "uuid": live.get(gpu["address"], {}).get("uuid", ""),
                "model": gpu["name"],
                "driver": seen["driver"]["version"],
                "memory": gpu["memory"],
                "healthy": gpu["health"] not in ("fault", "missing"),
            }
            for gpu in seen["gpus"]
        ],
    }
