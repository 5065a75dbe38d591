# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the survey says of an inventory that a role could not work with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import _roles

OPTIONS = {
    "lab_users": {
        "type": "list",
        "elements": "dict",
        "options": {"name": {"type": "str"}, "keys": {"type": "list", "elements": "str"}},
    },
    "lab_build": {
        "type": "dict",
        "options": {"indexes": {"type": "list", "elements": "str"}},
    },
    "lab_kernels": {"type": "list", "elements": "str"},
}
DEFAULTS: dict[str, Any] = {"lab_users": [], "lab_build": {}, "lab_kernels": None}
ROLE = _roles.Role("lab", Path("lab"), DEFAULTS, {}, OPTIONS, ())


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"lab_users": [{"name": "a", "keys": ["k"]}], "lab_build": {}, "lab_kernels": []}, []),
        ({"lab_users": [{"name": "a", "keys": None}]}, []),
        ({"lab_kernels": None}, []),
        ({"lab_users": None}, ["role lab: lab_users is empty; leave it out, or write []"]),
        ({"lab_build": None}, ["role lab: lab_build is empty; leave it out, or write {}"]),
        (
            {"lab_users": [{"name": "a", "keys": "k"}]},
            ["role lab: lab_users.keys is a text, must be a list"],
        ),
        (
            {"lab_build": {"indexes": "a,b"}},
            ["role lab: lab_build.indexes is a text, must be a list"],
        ),
        ({"lab_users": [{"nme": "a"}]}, ["role lab: unknown key lab_users.nme. Supported"]),
        ({"lab_users": [1]}, ["role lab: Value '1' in the sub", "role lab: Elements value for"]),
    ],
)
def test_what_cannot_be_a_value_is_told_with_what_can(
    values: dict[str, Any], found: list[str]
) -> None:
    said = _roles.wrong(ROLE, values)
    assert len(said) == len(found)
    for sentence, beginning in zip(said, found, strict=True):
        assert sentence.startswith(beginning)
