# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys in a JSON file that others own too.

Keys of an entry of json (``?``: optional): path, settings: the keys that the role owns, defaults?:
settings for keys that nobody set, absent?: keys that must be absent, record?: where the module
daemon_json records what it set, so that a dropped key is seen, restart?: when the daemon may be
restarted for a change (``idle``, ``always``, ``never``).

The file is root's and at most 0644; a stricter mode stays. Root's own link to another file of root
stays too. The record is 0600.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import (
    daemon_json,
    daemon_json_record,
)
from ansible_collections.slipway.host.plugins.module_utils.state import attributes, files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    ConflictError,
    Entry,
    Kind,
)

ASKS = files.ASKS
# The file may be closed to others, but nobody else may write it.
FILE_ATTRIBUTES = attributes.Attributes(least=0o600, most=0o644)
# It may have passwords of proxies.
RECORD_ATTRIBUTES = attributes.exact(attributes.FILE, "root", "root", "0600")


def compare_json(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differing keys of a JSON file."""
    text = answer["texts"][entry["path"]]
    state = answer["targets"][entry["path"]]
    if text is None and state is None:
        if entry["settings"] or entry.get("defaults"):
            yield MISSING, "a file with the declared keys"
        return
    yield from attributes.compare(state, FILE_ATTRIBUTES)
    if text is None:
        return
    # A broken file raises: somebody must look at it before anything is changed.
    merge = _plan_merge(entry, text, answer)
    for line in merge.differences:
        yield line, "as declared"
    if entry.get("record"):
        yield from _compare_record(entry, answer, merge)


def plan_entry(entry: Entry, answer: Answer) -> daemon_json.Merge:
    """Return the merge of the declared keys into a JSON file, which may be missing."""
    return _plan_merge(entry, answer["texts"][entry["path"]], answer)


def _recorded(entry: Entry, answer: Answer) -> tuple[str, Sequence[daemon_json_record.OwnedKey]]:
    """Return the text of the record and its keys; a broken record counts as a lost one."""
    text = answer["texts"].get(entry.get("record")) or ""
    try:
        return text, daemon_json.read_record(text, entry["path"])
    except daemon_json.DaemonJsonError:
        return "", ()


def _plan_merge(entry: Entry, text: str | None, answer: Answer) -> daemon_json.Merge:
    _text, record = _recorded(entry, answer)
    try:
        return daemon_json.plan_merge(
            text,
            entry["settings"],
            entry.get("absent", ()),
            record,
            name=entry["path"],
            defaults=entry.get("defaults"),
        )
    except daemon_json.DaemonJsonError as error:
        # Somebody must look at a broken file: its meaning is unknown. The message marks a column
        # by a line with a caret.
        words = (line.strip() for line in str(error).splitlines() if line.strip(" ^"))
        raise ConflictError(" ".join(words)) from error


def _compare_record(entry: Entry, answer: Answer, merge: daemon_json.Merge) -> Iterator[Change]:
    """Yield the differences of the record: its attributes, and a text that is not of this file."""
    path = entry["record"]
    if state := answer["targets"].get(path):
        for found, expected in attributes.compare(state, RECORD_ATTRIBUTES):
            yield f"its record {path}: {found}", expected
    present = answer["texts"].get(path) or ""
    text, _record = _recorded(entry, answer)
    expected_text = daemon_json_record.update_record(text, entry["path"], merge.record)
    if present != expected_text and not merge.changed:
        yield f"its record {path} {'differs' if present else 'is ' + MISSING}", "as declared"


def _paths_of(entry: Entry) -> list[str]:
    return [path for path in (entry["path"], entry.get("record")) if path]


def _texts_and_targets_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "texts", _paths_of(entry)
    yield "targets", _paths_of(entry)


KINDS = (Kind("json", "path", "texts", compare_json, _texts_and_targets_of, guarded=_paths_of),)
