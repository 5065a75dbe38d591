# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form that a report must have before anything uses it. Pure.

A form is a type, a function that accepts a value, a list with the form of all items, or a mapping:
from a key to the form of its value. A key that ends with ``?`` may be missing, the key ``*`` stands
for all keys that are not named. Further keys are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any


def is_time(value: Any) -> bool:
    """Return whether a value is a time in ISO 8601 with a time zone."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def is_time_or_empty(value: Any) -> bool:
    """Return whether a value is a time or the empty text."""
    return value == "" or is_time(value)


def is_day(value: Any) -> bool:
    """Return whether a value is a day in ISO 8601."""
    try:
        return isinstance(value, str) and bool(date.fromisoformat(value))
    except ValueError:
        return False


def is_count(value: Any) -> bool:
    """Return whether a value is a number that is not negative and not absurd."""
    return type(value) in (int, float) and 0 <= value < 1 << 60


FINDING = {
    "where": str,
    "found": str,
    "expected": str,
    "remedy": str,
    "warning": bool,
    "accepted": str,
}
CHECK = {"what": str, "status": str, "found": str, "expected": str, "remedy": str, "stand_in": bool}
STEP = {"role": str, "step": str, "start": is_count, "seconds": is_count, "changed": bool}
OVERVIEW = {
    "roles?": [str],
    "gpus?": [
        {
            "address": str,
            "name": str,
            "memory": is_count,
            "used": is_count,
            "health": str,
            "users": [str],
            "reserved": [str],
        }
    ],
    "driver?": {"version": str, "flavour": str},
    "engine?": str,
    "toolkit?": str,
    "boot?": str,
    "disks?": [{"path": str, "free": is_count, "total": is_count}],
    "packages?": [{"name": str, "version": str, "held": bool}],
    "images?": [{"reference": str, "bytes": is_count, "time": is_count, "present": bool}],
    "services?": [{"name": str, "project": str, "state": str, "urls": {"*": str}}],
}
REPORT = {
    "host": str,
    "command": str,
    "state": str,
    "error": str,
    "hold?": str,
    "system": {"*": str},
    "seen": is_time_or_empty,
    "ran": is_time,
    "overview": OVERVIEW,
    "drift": {"*": [{"kind": str, "name": str, "found": str, "expected": str}]},
    "conflicts": {"*": [{"reason": str}]},
    "health": [FINDING],
    "information": [str],
    "waiting": [str],
    "checks": {"at": is_time_or_empty, "items": [CHECK]},
    "timeline": {"at": is_time_or_empty, "command": str, "steps": [STEP]},
    "events": [{"at": is_time, "kind": str, "text": str}],
    "days": [{"day": is_day, "state": str, "drift": is_count, "faults": is_count, "driver": str}],
}


def find_mismatch(value: Any, form: Any, path: str = "") -> str:
    """Return the path of the first part of a value that does not have the form, empty if none."""
    if isinstance(form, type):
        return "" if type(value) is form else path or "."
    if isinstance(form, list):
        if not isinstance(value, list):
            return path or "."
        parts = ((item, form[0], f"{path}[{number}]") for number, item in enumerate(value))
    elif isinstance(form, Mapping):
        if not isinstance(value, dict):
            return path or "."
        missing = [key for key in form if key[-1] not in "?*" and key not in value]
        if missing:
            return f"{path}.{missing[0]}"
        parts = (
            (item, form.get(key, form.get(f"{key}?", form.get("*"))), f"{path}.{key}")
            for key, item in value.items()
        )
    else:
        return "" if form(value) else path or "."
    found = (find_mismatch(item, part, where) for item, part, where in parts if part is not None)
    return next(filter(None, found), "")
