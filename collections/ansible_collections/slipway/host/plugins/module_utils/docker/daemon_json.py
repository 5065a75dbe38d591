# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's daemon.json: merge the project's settings into a file that others may have edited.

Pure functions over text and plain JSON data. The ``daemon_json`` module reads and writes the file,
the survey calls :func:`owned_difference`. :mod:`docker.daemon_json_record` stores which values the
project has set.

Objects are merged key by key. All other values, lists too, are replaced as a whole: an edited list
and two merged lists look the same. A null in the file counts as a missing key, as in dockerd.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_defaults import (
    drop_default_runtime,
    select_defaults,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_record import (
    OwnedKey,
    join_key,
    read_record,
    record_keys,
    split_key,
    withdraw_keys,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_text import (
    DaemonJsonError,
    describe_kind,
    is_plain,
    mask_credentials,
    parse,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.dockerd_reload import (
    applies_on_reload,
    keeps_containers,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import (
    MISSING,
    Json,
    KeyPath,
    changes,
    is_same,
    leaves,
    without_key,
)

__all__ = [
    "DaemonJsonError",
    "Merge",
    "merge",
    "owned_difference",
    "plan_merge",
    "read_record",
]


@dataclass(frozen=True)
class Merge:
    """A merge before it is written: the data ``before`` and ``after``, and the new ``record``.

    ``plain`` is false for a file that is empty or starts with a byte order mark.  Both mean an
    object to engines from 23.0 on; earlier ones do not start on them.
    """

    before: Json
    after: Json
    record: tuple[OwnedKey, ...]
    plain: bool

    @property
    def changed(self) -> bool:
        """Whether the file must be written."""
        return not self.plain or not is_same(self.before, self.after)

    @property
    def differences(self) -> list[str]:
        """The changes, like ``log-opts.max-size: "10m" → "50m"``, without credentials."""
        return [
            f"{join_key(key)}: {_describe_value(old, '(not set)')} → "
            f"{_describe_value(new, '(removed)')}"
            for key, old, new in changes(self.before, self.after)
        ]

    @property
    def restart_required(self) -> bool:
        """Whether a running daemon applies the changes only after a restart."""
        return any(
            not applies_on_reload(key, old, new)
            for (key, *_rest), old, new in changes(self.before, self.after, depth=1)
        )

    @property
    def keeps_containers(self) -> bool:
        """Whether ``live-restore`` keeps containers running while the engine restarts for this."""
        return all(
            keeps_containers(key, old, new)
            for (key, *_rest), old, new in changes(self.before, self.after, depth=1)
        )

    @property
    def reload_required(self) -> bool:
        """Whether a running daemon applies the changes after a reload (SIGHUP)."""
        return not self.restart_required and not is_same(self.before, self.after)


def plan_merge(
    text: str | None,
    settings: Mapping[str, Any],
    absent: Sequence[object] = (),
    record: Sequence[OwnedKey] = (),
    name: str = "daemon.json",
    defaults: Mapping[str, Any] | None = None,
) -> Merge:
    """Return what merging does to a file.

    ``text`` is its content, None if the file is missing.  ``settings`` are the declared nested
    keys, ``absent`` the key paths to remove (``log-opts.max-size``, or a list of keys if a key
    contains a dot), ``record`` the result of :func:`read_record`, ``name`` the file in errors,
    ``defaults`` the settings for keys that nobody set.  Raises DaemonJsonError.
    """
    declared = _to_plain_json(settings)
    removed_keys = [split_key(key) for key in absent]
    _check_contradictions(declared, removed_keys)
    before = parse(text or "", name)
    selected = select_defaults(before, _to_plain_json(defaults or {}), declared, record)
    declared = merge(selected, declared, "the default settings")
    declared_keys = {key for key, _value in leaves(declared)}
    after = withdraw_keys(before, [owned for owned in record if owned.key not in declared_keys])
    for key in removed_keys:
        after = without_key(after, key, keep=len(key))
    # The value that somebody gave to a default of ours is not one that was there before it.
    own_defaults = {key for key, _value in leaves(selected)}
    former = {owned.key: owned for owned in record if owned.key in own_defaults}
    return Merge(
        before=before,
        after=drop_default_runtime(before, merge(after, declared, name), declared),
        record=tuple(
            replace(former[owned.key], ours=owned.ours) if owned.key in former else owned
            for owned in record_keys(withdraw_keys(before, record), declared)
        ),
        plain=text is None or is_plain(text),
    )


def owned_difference(
    text: str,
    settings: Mapping[str, Any],
    absent: Sequence[object] = (),
    record: Sequence[OwnedKey] = (),
    name: str = "daemon.json",
    defaults: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the differences between a file and the declared settings, as sentences.

    The arguments are those of :func:`plan_merge`.  Without ``record``, settings that are no longer
    declared are not reported.  Raises DaemonJsonError.
    """
    return plan_merge(text, settings, absent, record, name, defaults).differences


def merge(data: Json, settings: Mapping[str, Any], name: str = "daemon.json") -> Json:
    """Return ``data`` with ``settings`` in it: objects key by key, all else replaced.

    Keys of ``data`` keep their place, new ones follow in the order of ``settings``.  Raises
    DaemonJsonError if only one of the two values of a key is an object.
    """
    return _merge_objects(data, settings, (), name)


def _to_plain_json(settings: Mapping[str, Any]) -> Json:
    """Return the settings as plain JSON data, without the caller's own types."""
    try:
        plain: Json = json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise DaemonJsonError(f"settings: not JSON data: {error}. Correct the settings.") from None
    for key, value in leaves(plain):
        if value is None:
            raise DaemonJsonError(
                f"settings: {join_key(key)} is null; expected a value. Set a value, leave the "
                "key out, or list it in absent to remove it."
            )
    return plain


def _check_contradictions(settings: Json, absent: Sequence[KeyPath]) -> None:
    for key in absent:
        for setting, _value in leaves(settings):
            if setting[: len(key)] == key:
                raise DaemonJsonError(
                    f"absent: {join_key(key)} contradicts settings, which sets "
                    f"{join_key(setting)}; expected only one of the two. Remove one."
                )


def _merge_objects(data: Json, settings: Mapping[str, Any], at: KeyPath, name: str) -> Json:
    merged = dict(data)
    for key, declared in settings.items():
        present = data.get(key)
        if present is not None and isinstance(present, dict) != isinstance(declared, dict):
            raise DaemonJsonError(
                f"{name}: {join_key((*at, key))} is {describe_kind(present)}; expected "
                f"{describe_kind(declared)}. Correct or remove the key in the file."
            )
        if isinstance(declared, dict):
            merged[key] = _merge_objects(present or {}, declared, (*at, key), name)
        else:
            merged[key] = declared
    return merged


def _describe_value(value: Any, missing: str) -> str:
    return missing if value is MISSING else mask_credentials(json.dumps(value, ensure_ascii=False))
