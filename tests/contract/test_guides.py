# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides: options of commands exist, variables are those of roles, and guides are short."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.services import users
from ansible_collections.slipway.host.plugins.plugin_utils import roles

from tests.contract.test_repository import commands
from tests.contract.tree import ROLE_IDS, ROOT, text

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md"])
GUIDES = (
    *("requirements", "example", "troubleshooting", "upgrading"),
    *("backup", "glossary", "comparison"),
)
# Verbs whose arguments go to other programs than ansible-playbook.
OTHERS = ("run", "test")
LONGEST_GUIDE = 120


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_is_short(guide: str) -> None:
    assert len(text(DOCS / f"{guide}.md").splitlines()) <= LONGEST_GUIDE


@cache
def known_options(*command: str) -> frozenset[str]:
    """Return the options in the help text of a command."""
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", shown))


def options(command: str) -> list[str]:
    """Return the options in a command of ./slipway, without those of other commands after it."""
    words = re.split(r"[|;&>]", re.sub(r"'[^']*'|\"[^\"]*\"", "", command))[0].split()
    return [word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-zA-Z]", word)]


def unknown_options(page: str) -> Iterator[str]:
    """Yield the options in a page that neither ./slipway nor ansible-playbook has."""
    for command in commands(page):
        words = command.split()
        if words[0] != "./slipway" or len(words) < 2 or words[1].startswith("-"):
            continue
        if words[1] in OTHERS:
            continue
        verb = words[1:3] if words[1:3] == ["images", "lock"] else words[1:2]
        known = known_options("./slipway", *verb, "--help")
        known |= known_options("ansible-playbook", "--help")
        for option in options(command):
            if option not in known and not option.startswith("-vv"):
                yield f"{command}: ./slipway {words[1]} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_in_a_page_exist(page: Path) -> None:
    assert list(unknown_options(text(page))) == []


def test_an_option_that_does_not_exist_is_named() -> None:
    page = "```sh\n./slipway plan --jsn --limit a\n./slipway plan -v -vvv | jq -r '--x'\n```\n"
    assert list(unknown_options(page)) == [
        "./slipway plan --jsn --limit a: ./slipway plan has no option --jsn"
    ]


# Variables of roles in examples.


@cache
def all_options() -> dict[str, roles.Role]:
    """Return the role of each public variable."""
    return {name: role for role in map(roles.load, ROLE_IDS) for name in role.options}


def variables(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables with the prefix of a role in an example, with their values."""
    if isinstance(value, list):
        for one in value:
            yield from variables(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if str(name).startswith(tuple(f"{role}_" for role in ROLE_IDS)):
                yield str(name), one
            else:
                yield from variables(one)


def wrong_variables(page: str) -> Iterator[str]:
    """Yield what is wrong with the variables in the YAML examples of a page."""
    for block in re.findall(r"^```yaml\n(.*?)^```", page, flags=re.M | re.S):
        for name, value in variables(yaml.safe_load(block)):
            if name not in all_options():
                yield f"{name} is not a variable of any role"
            elif "{{" not in str(value):
                yield from roles.check_values(all_options()[name], {name: value})


# The page that explains how to add an option adds one.
EXAMPLES = [page for page in PAGES if page.stem != "add-an-option"]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_variables_in_examples_are_valid(page: Path) -> None:
    assert list(wrong_variables(text(page))) == []


def test_a_wrong_variable_is_named() -> None:
    page = (
        "```yaml\na: [{ml_images_prsent: [x]}]\nuser_access_users: [{name: a, dokcer: true}]\n```"
    )
    found = list(wrong_variables(page + "\n"))
    assert found[0] == "ml_images_prsent is not a variable of any role"
    assert "dokcer" in found[1]


def test_the_service_of_the_complete_inventory_is_for_a_declared_user() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text(DOCS / "example.md"), flags=re.M | re.S)
    declared = yaml.safe_load(block)["gpu_servers"]["vars"]
    (service,) = declared["ml_services_instances"]
    assert users.with_user_id(service, declared["user_access_users"])["uid"] == 2001


NAMED = re.compile(r"`(\w+)(?:\[\]|: |`)")


@pytest.mark.parametrize("guide", [*GUIDES, "services", "fleet"])
def test_variables_in_the_text_of_a_guide_exist(guide: str) -> None:
    page = text(DOCS / f"{guide}.md")
    # Variables of other projects are in the first column of a table.
    own = re.sub(r"^\| [^|]+\|", "", page, flags=re.M) if guide == "comparison" else page
    prefixes = tuple(f"{role}_" for role in ROLE_IDS)
    named = {
        name for name in NAMED.findall(own) if name.startswith(prefixes) and name not in prefixes
    }
    old = {"ml_images_names"}
    assert named - set(all_options()) - old == set()
