# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and change nested JSON objects by key path.

Pure functions: arguments are not changed.  Standard library only, for hosts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

Json: TypeAlias = "dict[str, Any]"
KeyPath: TypeAlias = "tuple[str, ...]"

MISSING: Final = object()


def leaves(settings: Json, at: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the key path and value of each leaf; an empty object is a leaf."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def look_up(data: Json, key: KeyPath) -> Any:
    """Return the value at a key path, MISSING if there is no such key."""
    value: Any = data
    for part in key:
        if not isinstance(value, dict) or part not in value:
            return MISSING
        value = value[part]
    return value


def replace_key(data: Json, key: KeyPath, value: Any) -> Json:
    """Return data with the value at an existing key path replaced."""
    head, rest = key[0], key[1:]
    return {**data, head: replace_key(data[head], rest, value) if rest else value}


def without_key(data: Json, key: KeyPath, keep: int) -> Json:
    """Return data without a key path.

    Parent objects that become empty are removed too, except the first ``keep`` of them.
    """
    head, rest = key[0], key[1:]
    inner: Any = data.get(head)
    if rest and not isinstance(inner, dict):
        return data
    if rest:
        inner = without_key(inner, rest, keep - 1)
        if inner or keep > 0:
            return {**data, head: inner}
    return {name: value for name, value in data.items() if name != head}


def changes(
    before: Json, after: Json, at: KeyPath = (), depth: int | None = None
) -> Iterator[tuple[KeyPath, Any, Any]]:
    """Yield key path, old and new value of each change, at most ``depth`` levels deep."""
    for key in before | after:
        old, new = before.get(key, MISSING), after.get(key, MISSING)
        if is_same(old, new):
            continue
        if isinstance(old, dict) and isinstance(new, dict) and depth != len(at) + 1:
            yield from changes(old, new, (*at, key), depth)
        else:
            yield (*at, key), old, new


def is_same(value: Any, other: Any) -> bool:
    """Compare as JSON: the order of keys does not matter, and true is not 1 (in Python it is)."""
    if value is MISSING or other is MISSING:
        return value is other
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)
