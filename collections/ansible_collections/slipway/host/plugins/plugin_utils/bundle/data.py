# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archives of data sets in a bundle: files ``data/HEX`` by their SHA-256."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import Manifest

FOLDER = "data"
ALGORITHM = "sha256:"


def find(manifest: Manifest, entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the paths in a bundle of the archives that it has, by path on the host.

    ENTRIES: data sets, whose ``version`` is the checksum of the archive if one is declared.
    """
    paths = {entry.path for entry in manifest.files}
    found = {
        entry["path"]: f"{FOLDER}/{entry['version'].removeprefix(ALGORITHM)}"
        for entry in entries
        if entry.get("version", "").startswith(ALGORITHM)
    }
    return {target: path for target, path in found.items() if path in paths}
