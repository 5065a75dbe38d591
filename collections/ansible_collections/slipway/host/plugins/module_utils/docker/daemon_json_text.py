# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decode, parse and render the text of Docker's daemon.json; parse as strictly as dockerd.

Standard library only, for hosts.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import Json

BYTE_ORDER_MARK = "\ufeff"
# Characters of an invalid line to show on each side of the column; minified files are one long
# line.
SHOWN_COLUMNS = 60

_KINDS: Mapping[type, str] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "a string",
    type(None): "null",
}
_CREDENTIALS = re.compile(r"(?<=://)[^/\s\"]+(?=@)")


class DaemonJsonError(ValueError):
    """The file, the settings or the record cannot be used; the message says what to do."""


class _RefusedError(ValueError):
    """Text that Python's parser accepts but dockerd misreads; ``pattern`` matches it in a line."""

    def __init__(self, reason: str, pattern: str) -> None:
        super().__init__(reason)
        self.pattern = pattern


def parse(text: str, name: str = "daemon.json") -> Json:
    """Return the object in a file's text; an empty text is an empty object.

    Raises DaemonJsonError with line and column for text that is not JSON or not an object, and for
    text that Python accepts but dockerd misreads: duplicate keys, NaN, numbers out of range.
    """
    text = text.removeprefix(BYTE_ORDER_MARK)
    if not text.strip():
        return {}
    try:
        data = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_number,
        )
    except json.JSONDecodeError as error:
        raise DaemonJsonError(_describe_json_error(text, name, error)) from None
    except _RefusedError as error:
        lines = [
            str(number)
            for number, line in enumerate(text.splitlines(), start=1)
            if re.search(error.pattern, line)
        ]
        where = f"line{'s' if len(lines) > 1 else ''} {', '.join(lines)}"
        raise DaemonJsonError(f"{name}: {error} (see {where}).") from None
    except (ValueError, RecursionError) as error:
        raise DaemonJsonError(f"{name}: cannot read JSON: {error}. Correct the file.") from None
    if not isinstance(data, dict):
        raise DaemonJsonError(
            f"{name}: the top level is {describe_kind(data)}; expected an object such as "
            '{"log-driver": "local"}. Correct the file or move it away.'
        )
    return data


def decode(raw: bytes, name: str = "daemon.json") -> str:
    """Return the text of UTF-8 bytes; raises DaemonJsonError with line and column otherwise."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        head = raw[: error.start]
        line = head.count(b"\n") + 1
        column = len(head) - (head.rfind(b"\n") + 1) + 1
        raise DaemonJsonError(
            f"{name}: byte 0x{raw[error.start]:02x} at line {line}, column {column}; expected "
            "UTF-8 text. Convert the file with iconv, or move it away."
        ) from None


def render(data: object) -> str:
    """Return data as JSON text: four spaces of indentation, keys in their order."""
    text = json.dumps(data, indent=4, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which JSON can write only as an escape.
        text = json.dumps(data, indent=4)
    return text + "\n"


def mask_credentials(text: str) -> str:
    """Return text without the user names and passwords of its URLs, such as those of proxies."""
    return _CREDENTIALS.sub("***", text)


def is_plain(text: str) -> bool:
    """Whether engines before 23.0 start on the text: not empty, and no byte order mark."""
    return bool(text.strip()) and not text.startswith(BYTE_ORDER_MARK)


def describe_kind(value: Any) -> str:
    """Return the JSON type of a value, with its article."""
    return _KINDS[type(value)]


def _unique_keys(pairs: list[tuple[str, Any]]) -> Json:
    for key, count in Counter(key for key, _value in pairs).items():
        if count > 1:
            quoted = json.dumps(key, ensure_ascii=False)
            raise _RefusedError(
                f"key {quoted} appears {count} times in one object; expected once, because dockerd "
                "silently uses the last. Remove the others",
                re.escape(quoted) + r"\s*:",
            )
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(
        f"value {name}; expected a number. Correct the value", rf"(?<!\w){re.escape(name)}\b"
    )


def _finite_number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError(
            f"number {digits} is out of range; expected a number of 64 bits. Correct the number",
            re.escape(digits),
        )
    return number


def _describe_json_error(text: str, name: str, error: json.JSONDecodeError) -> str:
    """Return the message for text that is not JSON: line, column, and a caret under the line."""
    # JSONDecodeError counts only \n as the end of a line.
    line = text.split("\n")[error.lineno - 1].rstrip("\r").replace("\t", " ")
    at = error.colno - 1
    start = max(0, at - SHOWN_COLUMNS)
    return (
        f"{name}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}.\n"
        f"    {line[start : at + SHOWN_COLUMNS]}\n"
        f"    {' ' * (at - start)}^\n"
        "Correct the file, then run again. The file was not changed. JSON has no comments, no "
        "comma after the last item, and only double quotes. A missing comma is reported at the "
        "next item."
    )
