# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells whether a file is an unchanged file of the installed collection.

PRIVATE to the collection. Runs on the controller.

`./slipway build-collection` validates the catalogue before it writes the collection file, and
ansible-galaxy lists the digest of each file in FILES.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

COLLECTION = Path(__file__).resolve().parents[3]


def is_released(file: Path, collection: Path = COLLECTION) -> bool:
    """Return whether a file has the content that the collection was built with."""
    try:
        name = file.resolve().relative_to(collection).as_posix()
    except ValueError:
        return False
    digest = _read_digests(collection).get(name)
    return digest is not None and digest == hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _read_digests(collection: Path) -> Mapping[str, str]:
    """Return file name to SHA-256 digest; empty in the source tree, which has no FILES.json."""
    try:
        entries = json.loads((collection / "FILES.json").read_text(encoding="utf-8"))["files"]
        return {str(entry["name"]): str(entry["chksum_sha256"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
