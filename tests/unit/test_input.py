# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the survey refuses of an inventory, by the roles' argument specs, before it asks a host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.plugin_utils import roles

NAME = {"type": "str", "required": True}
PERSON = {
    "name": NAME,
    "uid": {"type": "int"},
    "gpu": {"type": "bool"},
    "groups": {"type": "list", "elements": "str"},
    "comment": {"type": "str"},
}
OPTIONS = {
    "crew_people": {"type": "list", "elements": "dict", "options": PERSON},
    "crew_names": {"type": "list", "elements": "str"},
    "crew_build": {"type": "dict", "options": {"proxy": {"type": "dict"}}},
    "crew_version": {"type": "str"},
    "crew_hold": {"type": "bool"},
    "crew_reboot": {"type": "str", "choices": ["idle", "never"]},
    "crew_timeout": {"type": "int"},
    "crew_any": {"type": "raw"},
}


def role(name: str = "crew", options: dict[str, Any] | None = None) -> roles.Role:
    return roles.Role(
        name, Path(name), {"crew_names": []}, OPTIONS if options is None else options, ()
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("crew_names", "alice", "crew_names must be a list, such as [...]; with -e"),
        ("crew_names", None, "crew_names has no value"),
        ("crew_names", [5], "crew_names[0] must be text"),
        ("crew_names", ["a", None], "crew_names[1] has no value"),
        ("crew_people", {"name": "a"}, "crew_people must be a list"),
        ("crew_people", ["alice"], "crew_people[0] must have keys and values"),
        ("crew_people", [{"name": 123}], "crew_people[0].name must be text"),
        ("crew_people", [{"name": None}], "crew_people[0].name has no value"),
        ("crew_people", [{"name": "a", "groups": "lab"}], "crew_people[0].groups must be a list"),
        ("crew_people", [{"name": "a", "uid": "1000"}], "uid must be a number, without quotes"),
        ("crew_people", [{"name": "a", "gpu": "no"}], "gpu must be true or false, without quotes"),
        ("crew_people", [{"name": "a", "uid": "7"}], "a template of text ends with '| int'"),
        ("crew_people", [{"name": "a", "comment": ["b"]}], "comment must be text"),
        ("crew_people", [{"name": "a", "dokcer": True}], "unknown key crew_people.dokcer"),
        ("crew_build", "x=y", "crew_build must have keys and values"),
        ("crew_build", {"proxy": "http://a"}, "crew_build.proxy must have keys and values"),
        ("crew_version", 1.20, "crew_version must be text: put it in quotes"),
        ("crew_version", True, "crew_version must be text: put it in quotes"),
        ("crew_reboot", False, "must be one of: idle, never"),
        ("crew_hold", "perhaps", "crew_hold"),
    ],
)
def test_values_that_the_validator_would_convert_are_errors(
    name: str, value: Any, words: str
) -> None:
    assert words in "; ".join(roles.check_values(role(), {name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crew_names", []),
        ("crew_people", [{"name": "a", "uid": 1000, "gpu": False, "groups": None}]),
        ("crew_people", [{"name": "a", "comment": 5}]),
        ("crew_version", 580),
        ("crew_hold", "no"),
        ("crew_timeout", "60"),
        ("crew_any", "all"),
        ("crew_any", [0, 1]),
    ],
)
def test_values_that_the_roles_can_read_are_accepted(name: str, value: Any) -> None:
    assert roles.check_values(role(), {name: value}) == []


def test_an_invalid_value_is_not_shown() -> None:
    found = roles.check_values(role(), {"crew_names": "hunter2", "crew_people": ["hunter2"]})
    assert len(found) == 2
    assert "hunter2" not in str(found)


ROLES = [
    role(),
    role(
        "ml_images", {"ml_images_present": {"aliases": ["ml_images_names"]}, "ml_images_build": {}}
    ),
    role("user_access", {"user_access_users": {}, "user_access_docker_exclusive": {}}),
]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ml_images_nmaes", "role ml_images has no variable ml_images_nmaes; did you mean"),
        ("user_access_colour", "role user_access has no variable user_access_colour"),
        ("ml_image_names", "no role has a variable ml_image_names; did you mean ml_images_present"),
        ("user_acess_users", "did you mean user_access_users"),
        ("users_access_users", "did you mean user_access_users"),
    ],
)
def test_a_misspelt_name_is_an_error(name: str, words: str) -> None:
    (found,) = roles.find_unknown_variables([name, "ml_images_present"], ROLES)
    assert words in found


@pytest.mark.parametrize(
    "name",
    [
        "ml_images_present",
        "ml_images_names",
        "ml_models",
        "ml_images",
        "user",
        "users",
        "user_name",
        "crewing",
    ],
)
def test_other_names_are_ignored(name: str) -> None:
    assert list(roles.find_unknown_variables([name], ROLES)) == []
