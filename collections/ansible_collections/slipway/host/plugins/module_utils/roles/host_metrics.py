# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role host_metrics: a file for the textfile collector of node_exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "slipway.prom"


def plan(_facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role.

    The file has any content: it has measured values, which each run replaces.
    """
    folder = options["host_metrics_folder"]
    if not folder:
        return {"owned": {"refused": [], "files": []}}
    if not _is_plain_path(folder):
        found = f"host_metrics_folder: found {folder!r}; expected an absolute path without '..'"
        return {"owned": {"refused": [f"{found}. Change the value"], "files": []}}
    entry = {"path": f"{folder.rstrip('/')}/{NAME}"}
    if options["host_metrics_state"] == "absent":
        entry["state"] = "absent"
    return {"owned": {"refused": [], "files": [entry]}}


def _is_plain_path(folder: str) -> bool:
    parts = folder.split("/")
    return folder.startswith("/") and folder.strip("/") != "" and not {".", ".."} & {*parts}
