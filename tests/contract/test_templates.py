# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every template can be parsed: files of their own, and expressions in YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from tests.contract.tree import ROOT, load, text, tracked_files

FOLDERS = ("playbooks", "roles", "inventory", "molecule", "vars", "site.yml", "tests")
TEMPLATES = [file for file in tracked_files() if file.suffix == ".j2"]
YAML = [
    file
    for file in tracked_files()
    if file.suffix == ".yml" and file.relative_to(ROOT).parts[0] in FOLDERS
]


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def parse(source: str) -> None:
    """Parse a template; raise jinja2.TemplateSyntaxError where it cannot be."""
    jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"]).parse(source)


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a YAML document, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def conditions(value: Any) -> Iterator[str]:
    """Yield what Ansible reads as a bare expression: when, changed_when, that and the like."""
    if isinstance(value, list):
        for inner in value:
            yield from conditions(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("when", "changed_when", "failed_when", "until", "that"):
                yield from (str(one) for one in (inner if isinstance(inner, list) else [inner]))
            else:
                yield from conditions(inner)


def torn_messages(value: Any) -> Iterator[str]:
    """Yield messages of tasks with a line break outside of expressions.

    A folded scalar keeps the line breaks around a line that is indented more than the others.
    """
    if isinstance(value, list):
        for inner in value:
            yield from torn_messages(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("msg", "fail_msg") and isinstance(inner, str):
                if "\n" in re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", inner, flags=re.S):
                    yield inner
            else:
                yield from torn_messages(inner)


@pytest.mark.parametrize("file", YAML, ids=name)
def test_messages_are_on_one_line(file: Path) -> None:
    assert list(torn_messages(load(file))) == []


def test_a_torn_message_is_named() -> None:
    source = "- fail:\n    msg: >-\n      a\n      {{ b\n"
    assert list(torn_messages(yaml.safe_load(f"{source}      | c }}}}\n      d\n"))) == []
    assert len(list(torn_messages(yaml.safe_load(f"{source}         | c }}}}\n      d\n")))) == 1


@pytest.mark.parametrize("file", TEMPLATES, ids=name)
def test_a_template_parses(file: Path) -> None:
    parse(text(file))


@pytest.mark.parametrize("file", YAML, ids=name)
def test_expressions_in_yaml_parse(file: Path) -> None:
    document = load(file)
    for expression in strings(document):
        parse(expression)
    for condition in conditions(document):
        assert "{{" not in condition, "a condition is an expression already"
        parse(f"{{{{ {condition} }}}}")


@pytest.mark.parametrize("source", ["{{ a", "{% if a %}", "{{ a | }}", "{{ 'a }}"])
def test_a_broken_template_is_refused(source: str) -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        parse(source)


def test_conditions_are_found_wherever_they_are() -> None:
    play = [{"tasks": [{"block": [{"when": ["a", "b"]}], "when": "c"}, {"assert": {"that": "d"}}]}]
    assert list(conditions(play)) == ["a", "b", "c", "d"]
