# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyrings of apt.

Keys of an entry of keyrings: path, fingerprint of the OpenPGP key that the file must contain.
"""

from __future__ import annotations

from collections.abc import Iterator

from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.state import files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    Entry,
    Kind,
)

ASKS = files.ASKS


def compare_keyrings(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a keyring."""
    text = answer["texts"][entry["path"]]
    if text is None:
        yield MISSING, f"the key {entry['fingerprint']}"
        return
    try:
        found = openpgp.fingerprints(openpgp.from_text(text))
    except ValueError as error:
        yield str(error), f"the key {entry['fingerprint']}"
        return
    if openpgp.normalize_fingerprint(entry["fingerprint"]) not in found:
        yield f"the key {', '.join(found)}", entry["fingerprint"]


KINDS = (Kind("keyrings", "path", "texts", compare_keyrings),)
