# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the table of variables in each role's README from its argument spec and its defaults.

Only the text between the two marking lines is written. People write the other text.

Usage: ./slipway run python tools/role_readme.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"
BEGIN = "<!-- variables: written by tools/role_readme.py -->"
END = "<!-- end of variables -->"
# The table refers to defaults/main.yml for a longer default.
WIDEST_DEFAULT = 60

Option = Mapping[str, Any]


class ReadmeError(ValueError):
    """A README has no marking lines for the table."""


def _markdown(text: str | list[str]) -> str:
    """Return an Ansible description as Markdown on one line of a table."""
    line = " ".join([text] if isinstance(text, str) else text)
    line = re.sub(r"\b[COVMEP]\(([^)]*)\)", r"`\1`", line)
    line = re.sub(r"\bI\(([^)]*)\)", r"*\1*", line)
    line = re.sub(r"\bB\(([^)]*)\)", r"**\1**", line)
    return line.replace("|", r"\|")


def _type(option: Option) -> str:
    elements = option.get("elements")
    return f"list of {elements}" if elements else str(option.get("type", "str"))


def _default(option: Option, value: Any) -> str:
    """Return the cell for a default: VALUE as JSON, ``required``, or empty without a default."""
    if option.get("required"):
        return "required"
    if value is None or (option.get("options") and isinstance(value, Mapping)):
        return ""
    # Templates are easier to read without JSON's quotes.
    text = value if isinstance(value, str) and value else json.dumps(value)
    if len(text) > WIDEST_DEFAULT:
        return "see [defaults](defaults/main.yml)"
    return f"`{text}`".replace("|", r"\|")


def _rows(options: Mapping[str, Option], defaults: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield a table row for each option and, after it, for the options within it."""
    for name, option in options.items():
        path = f"{prefix}{name}"
        value = defaults.get(name, option.get("default"))
        meaning = _markdown(option["description"])
        if option.get("choices"):
            meaning += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
        yield f"| `{path}` | {_type(option)} | {_default(option, value)} | {meaning} |"
        inner = "[]." if option.get("elements") else "."
        within = value if isinstance(value, Mapping) else {}
        yield from _rows(option.get("options", {}), within, f"{path}{inner}")


def table(role: Path) -> str:
    """Return the table of a role's variables as Markdown."""
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8")) or {}
    rows = _rows(spec["argument_specs"]["main"]["options"], defaults, "")
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows])


def updated(role: Path, text: str) -> str:
    """Return the README's TEXT with the table of ROLE between the marking lines.

    Raise ReadmeError if one of the lines is missing.
    """
    for mark in (BEGIN, END):
        if mark not in text:
            raise ReadmeError(f"{role.name}/README.md has no line {mark}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(role)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Update the README of every role; return the exit status."""
    for file in sorted(ROLES.glob("*/README.md")):
        text = file.read_text(encoding="utf-8")
        new = updated(file.parent, text)
        if new != text:
            file.write_text(new, encoding="utf-8")
            print(f"wrote {file.relative_to(ROLES.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
