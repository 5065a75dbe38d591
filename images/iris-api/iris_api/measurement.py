# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns the body of a request into a measured petal, or says exactly what is wrong with it.

Nothing here knows of Flask, so every rule can be tested as a function of bytes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

MAX_BODY = 4096
"""Bytes a request may have; a measurement needs about thirty."""

MAX_CENTIMETRES = 100.0
"""No petal is longer than a metre; whoever sends more has sent another unit."""

FIELDS = ("length", "width")


@dataclass(frozen=True)
class Measurement:
    """Length and width of a petal in cm, each above 0 and at most MAX_CENTIMETRES."""

    length: float
    width: float


class InvalidRequest(Exception):
    """A request that cannot be answered: the HTTP status, the field at fault and what is wrong."""

    def __init__(self, status: int, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.status = status
        self.field = field


def parse(body: bytes, content_type: str) -> Measurement:
    """Return the measurement in a JSON body.

    `content_type` is the media type alone, without parameters. Raise InvalidRequest: 415 for
    another media type, 413 for a body over MAX_BODY bytes, 400 for what is not a JSON object,
    422 for an object that does not hold exactly the two lengths.
    """
    if content_type != "application/json":
        raise InvalidRequest(
            415, "Content-Type", f"is {content_type or 'missing'}; send application/json"
        )
    if len(body) > MAX_BODY:
        raise InvalidRequest(413, "body", f"is larger than {MAX_BODY} bytes")
    document = _object(body)
    # A misspelt key is both unknown and missing; naming the unknown one shows the typo.
    for key in document:
        if key not in FIELDS:
            raise InvalidRequest(422, key, f"is not known; send {' and '.join(FIELDS)} only")
    return Measurement(**{field: _centimetres(document, field) for field in FIELDS})


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise InvalidRequest(400, "body", 'is empty; send {"length": 5.1, "width": 2.4}')
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise InvalidRequest(400, "body", "is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidRequest(400, "body", f"is not JSON: {error.msg} at {where}") from error
    except RecursionError as error:
        raise InvalidRequest(400, "body", "is nested too deeply") from error
    if not isinstance(document, dict):
        raise InvalidRequest(
            400, "body", f"is {_kind(document)}; send a JSON object with length and width"
        )
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidRequest(422, twice, "is given more than once")
    return document


def _centimetres(document: dict[str, Any], field: str) -> float:
    if field not in document:
        raise InvalidRequest(422, field, "is missing; send the petal's size in cm")
    value = document[field]
    # bool is a subclass of int: true would otherwise pass as 1 cm.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(422, field, f"is {_kind(value)}; send a number of cm")
    # Python's parser takes NaN and Infinity, which JSON lacks, and reads 1e999 as infinite.
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(422, field, f"is {value}; send a finite number of cm")
    if value > MAX_CENTIMETRES:
        raise InvalidRequest(
            422, field, f"is too large; a petal has at most {MAX_CENTIMETRES:g} cm"
        )
    if value <= 0:
        raise InvalidRequest(422, field, "must be more than 0 cm")
    return float(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds[type(value)]
