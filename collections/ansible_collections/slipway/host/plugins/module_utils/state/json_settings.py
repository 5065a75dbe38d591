# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys in a JSON file that others own too.

Keys of an entry of json (``?``: optional): path, settings: the keys that the role owns, defaults?:
settings for keys that nobody set, absent?: keys that must be absent, record?: where the module
daemon_json records what it set, so that a dropped key is seen, restart?: when the daemon may be
restarted for a change (``idle``, ``always``, ``never``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json
from ansible_collections.slipway.host.plugins.module_utils.state import files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    Entry,
    Kind,
)

ASKS = files.ASKS


def compare_json(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differing keys of a JSON file."""
    text = answer["texts"][entry["path"]]
    if text is None:
        if entry["settings"] or entry.get("defaults"):
            yield MISSING, "a file with the declared keys"
        return
    # A broken file raises: somebody must look at it before anything is changed.
    for line in _plan_merge(entry, text, answer).differences:
        yield line, "as declared"


def plan_entry(entry: Entry, answer: Answer) -> daemon_json.Merge | None:
    """Return the merge of the declared keys into a JSON file, None where there is no file."""
    text = answer["texts"][entry["path"]]
    return None if text is None else _plan_merge(entry, text, answer)


def _plan_merge(entry: Entry, text: str, answer: Answer) -> daemon_json.Merge:
    recorded = answer["texts"].get(entry.get("record"))
    try:
        record = daemon_json.read_record(recorded or "", entry["path"])
    except daemon_json.DaemonJsonError:
        record = ()  # a broken record counts as a lost one, as in the module
    return daemon_json.plan_merge(
        text,
        entry["settings"],
        entry.get("absent", ()),
        record,
        name=entry["path"],
        defaults=entry.get("defaults"),
    )


def _record_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("record"):
        yield "texts", [entry["record"]]


KINDS = (Kind("json", "path", "texts", compare_json, _record_of),)
