# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role host_metrics: a file for the textfile collector of node_exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "slipway.prom"


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role.

    The file has any content: it has measured values, which each run replaces. A file of an earlier
    declaration, which the host recorded, is absent.
    """
    folder = options["host_metrics_folder"]
    if folder and not _is_plain_path(folder):
        found = f"host_metrics_folder: found {folder!r}; expected an absolute path without '..'"
        return {"owned": {"refused": [f"{found}. Change the value"], "files": []}}
    path = f"{folder.rstrip('/')}/{NAME}" if folder else ""
    entries = [{"path": path}] if path and options["host_metrics_state"] != "absent" else []
    stale = {path, *filter(_is_file_of_metrics, facts.get("metrics_files", ()))} - {""}
    stale -= {entry["path"] for entry in entries}
    entries += [{"path": one, "state": "absent"} for one in sorted(stale)]
    return {"owned": {"refused": [], "files": entries}}


def _is_file_of_metrics(path: str) -> bool:
    folder, _separator, name = path.rpartition("/")
    return name == NAME and _is_plain_path(folder)


def _is_plain_path(folder: str) -> bool:
    parts = folder.split("/")
    return folder.startswith("/") and folder.strip("/") != "" and not {".", ".."} & {*parts}
