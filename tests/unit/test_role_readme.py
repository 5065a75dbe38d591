# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of variables in a role's README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import role_readme


def rows(folder: Path, options: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return the rows of the table of a role with these OPTIONS and DEFAULTS."""
    for name, document in (
        ("meta/argument_specs.yml", {"argument_specs": {"main": {"options": options}}}),
        ("defaults/main.yml", defaults),
    ):
        (folder / name).parent.mkdir()
        (folder / name).write_text(yaml.safe_dump(document, sort_keys=False))
    return role_readme.table(folder).splitlines()[2:]


@pytest.mark.parametrize(
    ("option", "defaults", "row"),
    [
        ({"type": "int"}, {"x": 1}, "| `x` | int | `1` | A. |"),
        ({"type": "bool"}, {"x": True}, "| `x` | bool | `true` | A. |"),
        ({"type": "str"}, {"x": ""}, '| `x` | str | `""` | A. |'),
        ({"type": "str"}, {"x": "{{ y | lower }}"}, r"| `x` | str | `{{ y \| lower }}` | A. |"),
        ({"type": "str", "required": True}, {}, "| `x` | str | required | A. |"),
        ({"type": "str"}, {}, "| `x` | str |  | A. |"),
        (
            {"type": "list", "elements": "str"},
            {"x": ["a", "b"]},
            '| `x` | list of str | `["a", "b"]` | A. |',
        ),
        (
            {"type": "str", "choices": ["a", "b"]},
            {"x": "a"},
            "| `x` | str | `a` | A. One of `a`, `b`. |",
        ),
        (
            {"type": "dict"},
            {"x": {"key": "long" * 20}},
            "| `x` | dict | see [defaults](defaults/main.yml) | A. |",
        ),
    ],
)
def test_a_variable_is_a_row(
    tmp_path: Path, option: dict[str, Any], defaults: dict[str, Any], row: str
) -> None:
    assert rows(tmp_path, {"x": {"description": "A.", **option}}, defaults) == [row]


def test_keys_of_a_variable_have_their_own_rows(tmp_path: Path) -> None:
    options = {
        "build": {
            "type": "dict",
            "description": "How.",
            "options": {"source": {"type": "str", "description": "Whence."}},
        },
        "users": {
            "type": "list",
            "elements": "dict",
            "description": "Who.",
            "options": {
                "name": {"type": "str", "description": "Name.", "required": True},
                "docker": {"type": "bool", "description": "May.", "default": False},
            },
        },
    }
    assert rows(tmp_path, options, {"build": {"source": "auto"}, "users": []}) == [
        "| `build` | dict |  | How. |",
        "| `build.source` | str | `auto` | Whence. |",
        "| `users` | list of dict | `[]` | Who. |",
        "| `users[].name` | str | required | Name. |",
        "| `users[].docker` | bool | `false` | May. |",
    ]


def test_ansibles_markup_becomes_markdown(tmp_path: Path) -> None:
    words = ["Use C(a), not O(b).", "I(Never) B(both), a | b."]
    (row,) = rows(tmp_path, {"x": {"type": "str", "description": words}}, {})
    assert row.endswith(r"| Use `a`, not `b`. *Never* **both**, a \| b. |")


def test_only_the_text_between_the_marks_is_written(tmp_path: Path) -> None:
    rows(tmp_path, {}, {})
    text = f"# Words\n\n{role_readme.BEGIN}\nold\n{role_readme.END}\n\nMore words.\n"
    new = role_readme.updated(tmp_path, text)
    assert new.startswith("# Words\n\n")
    assert new.endswith(f"{role_readme.END}\n\nMore words.\n")
    assert "old" not in new
    assert role_readme.updated(tmp_path, new) == new
