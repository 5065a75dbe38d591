# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Default settings for daemon.json, which do not override other settings.

A default applies to a key without a value: neither the inventory sets it, nor the file had it
before the project wrote the file. A default that the project wrote is repaired like any other
setting.

Standard library only, for hosts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.slipway.host.plugins.module_utils.docker.daemon_json_record import OwnedKey
from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import (
    MISSING,
    Json,
    KeyPath,
    leaves,
    look_up,
    replace_key,
    without_key,
)

# Docker's own default for "log-driver".
LOG_DRIVER = "json-file"
# Runtimes that the engine has without a key in "runtimes".
BUILT_IN_RUNTIMES = ("runc", "io.containerd.", "com.docker.")


def select_defaults(
    before: Json, defaults: Json, declared: Json, record: Sequence[OwnedKey]
) -> Json:
    """Return the defaults that apply to a file with the content BEFORE.

    DECLARED are the settings of the inventory, RECORD the keys that the project set earlier.
    """
    foreign = _without_own_keys(before, record)
    selected: Json = {}
    for key, value in leaves(defaults):
        if _is_set(foreign, key) or _is_set(declared, key):
            continue
        if key[0] == "log-opts" and not _fits_log_driver(foreign, declared, defaults):
            continue
        _insert(selected, key, value)
    return selected


def drop_default_runtime(before: Json, after: Json, declared: Json) -> Json:
    """Return AFTER without a ``default-runtime`` that lost its entry in ``runtimes``.

    The engine does not start containers with a default runtime that it does not know. A default
    runtime that the inventory declares stays; ``dockerd`` then rejects the content.
    """
    name = after.get("default-runtime")
    if (
        not isinstance(name, str)
        or name.startswith(BUILT_IN_RUNTIMES)
        or "default-runtime" in declared
    ):
        return after
    is_known, was_known = (
        isinstance(data.get("runtimes"), dict) and name in data["runtimes"]
        for data in (after, before)
    )
    if is_known or not was_known:
        return after
    return without_key(after, ("default-runtime",), keep=0)


def _without_own_keys(data: Json, record: Sequence[OwnedKey]) -> Json:
    """Return data as it was before the project set the recorded keys."""
    for owned in record:
        if look_up(data, owned.key) is MISSING:
            continue
        if owned.replaced:
            data = replace_key(data, owned.key, owned.before)
        else:
            data = without_key(data, owned.key, keep=owned.existed)
    return data


def _is_set(data: Json, key: KeyPath) -> bool:
    """Return whether data has a value at a key path, or a value that is not an object above it."""
    value = data
    for part in key:
        if not isinstance(value, dict):
            return True
        if value.get(part) is None:
            return False
        value = value[part]
    return True


def _fits_log_driver(foreign: Json, declared: Json, defaults: Json) -> bool:
    """Return whether the effective log driver is the driver of the default log options."""
    default_driver = defaults.get("log-driver", LOG_DRIVER)
    return bool(
        (declared.get("log-driver") or foreign.get("log-driver") or default_driver)
        == default_driver
    )


def _insert(data: Json, key: KeyPath, value: object) -> None:
    for part in key[:-1]:
        data = data.setdefault(part, {})
    data[key[-1]] = value
