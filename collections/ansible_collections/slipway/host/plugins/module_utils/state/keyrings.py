# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keyrings of apt.

Keys of an entry of keyrings: path, fingerprint of the OpenPGP key that the file must contain, and
no other key. apt reads the file as a user without rights, so it is 0644.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import openpgp
from ansible_collections.slipway.host.plugins.module_utils.state import attributes, files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    Entry,
    Kind,
)

ASKS = files.ASKS
ATTRIBUTES = attributes.exact(attributes.FILE, "root", "root", "0644")


def compare_keyrings(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a keyring."""
    path = entry["path"]
    wanted = openpgp.normalize_fingerprint(entry["fingerprint"])
    text = answer["texts"][path]
    state = answer["files"][path]
    if state is None:
        yield MISSING, f"the key {wanted}"
        return
    yield from attributes.compare(state, ATTRIBUTES)
    if text is None:
        return
    try:
        found = openpgp.fingerprints(openpgp.from_text(text))
    except ValueError as error:
        yield str(error), f"the key {wanted}"
        return
    if found != [wanted]:
        yield f"the key {', '.join(found)}", wanted
    elif text.startswith("base64:") == path.endswith(".asc"):
        yield "another form than its name says", "armoured for .asc, binary for .gpg"


def _state_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "files", [entry["path"]]


def _path_of(entry: Entry) -> list[str]:
    return [entry["path"]]


KINDS = (Kind("keyrings", "path", "texts", compare_keyrings, _state_of, guarded=_path_of),)
