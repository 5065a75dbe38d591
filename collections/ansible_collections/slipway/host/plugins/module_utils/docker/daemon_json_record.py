# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the keys that the project set in daemon.json, and the values they replaced.

If a value in the file differs from the recorded value, it belongs to the user:

* A setting that is no longer declared is replaced by the recorded earlier value, or removed.
* A setting that was edited after the last run and is no longer declared stays as it is.
* A declared setting is repaired even without a record. If the record is lost, values that were
  written before count as the user's own and are not removed later.

Standard library only, for hosts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_text import (
    DaemonJsonError,
    render,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import (
    Json,
    KeyPath,
    is_same,
    leaves,
    look_up,
    replace_key,
    without_key,
)


@dataclass(frozen=True)
class OwnedKey:
    """A key path that the project set in the file.

    ``ours`` is the value that the project set.  ``existed`` is how many leading parts of ``key``
    existed before.  All of them: the project replaced the value ``before``.  Fewer: it added
    the key, and objects beyond these parts are removed again once they are empty.
    """

    key: KeyPath
    ours: Any
    existed: int
    before: Any = None

    @property
    def replaced(self) -> bool:
        """Whether the project replaced a value."""
        return self.existed == len(self.key)


def split_key(key: object) -> KeyPath:
    """Return the parts of ``"log-opts.max-size"`` or ``["log-opts", "max-size"]``.

    Raises DaemonJsonError for any other value.
    """
    parts = key.split(".") if isinstance(key, str) else key
    if (
        not isinstance(parts, list | tuple)
        or not parts
        or not all(isinstance(part, str) and part for part in parts)
    ):
        raise DaemonJsonError(
            f"absent: {key!r}; expected a key path such as log-opts.max-size. If a key "
            "contains a dot, write a list: [log-opts, max-size]."
        )
    return tuple(parts)


def join_key(key: Sequence[str]) -> str:
    """Return a key path with dots between its parts; parts that contain dots are quoted."""
    return ".".join(
        part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False)
        for part in key
    )


def read_record(text: str, path: str) -> tuple[OwnedKey, ...]:
    """Return the recorded keys of the file at ``path``; () for an empty text.

    Raises DaemonJsonError if ``text`` is not a record.
    """
    return tuple(_read_entry(entry) for entry in _read_records(text).get(path, []))


def update_record(text: str, path: str, record: Sequence[OwnedKey]) -> str:
    """Return the record's text with the entries of one file replaced, "" if nothing is left.

    Raises DaemonJsonError if ``text`` is not a record.
    """
    records = _read_records(text) | {path: [asdict(owned) for owned in record]}
    if not record:
        del records[path]
    return render(records) if records else ""


def record_keys(data: Json, settings: Json) -> Iterator[OwnedKey]:
    """Yield the record of the keys that ``settings`` would set in ``data``."""
    for key, value in leaves(settings):
        existed, value_before = 0, data
        for part in key:
            if not isinstance(value_before, dict) or value_before.get(part) is None:
                break
            existed, value_before = existed + 1, value_before[part]
        yield OwnedKey(key, value, existed, value_before if existed == len(key) else None)


def withdraw_keys(data: Json, record: Sequence[OwnedKey]) -> Json:
    """Return the data without the recorded keys, with the values that they replaced."""
    for owned in record:
        if not is_same(look_up(data, owned.key), owned.ours):
            continue
        if owned.replaced:
            data = replace_key(data, owned.key, owned.before)
        else:
            data = without_key(data, owned.key, keep=owned.existed)
    return data


def _read_records(text: str) -> dict[str, Any]:
    """Return the record's entries by file; raises DaemonJsonError if the text is not a record."""
    try:
        records = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise DaemonJsonError(f"not JSON: {error}") from None
    if not isinstance(records, dict) or not all(
        isinstance(entries, list) for entries in records.values()
    ):
        raise DaemonJsonError("not an object of lists")
    return records


def _read_entry(entry: Any) -> OwnedKey:
    try:
        owned = OwnedKey(split_key(entry["key"]), entry["ours"], entry["existed"], entry["before"])
    except (TypeError, KeyError) as error:
        raise DaemonJsonError(f"invalid entry: {error}") from None
    if not isinstance(owned.existed, int) or not 0 <= owned.existed <= len(owned.key):
        raise DaemonJsonError(f"invalid entry: existed is {owned.existed!r}")
    return owned
