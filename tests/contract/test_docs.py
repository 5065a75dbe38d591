# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages of docs/: records of decisions with their index, links to every page, and examples."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.images import declaration

from tests.contract.tree import ROOT, text

DOCS = ROOT / "docs"
DECISIONS = DOCS / "decisions"
RECORDS = sorted(path for path in DECISIONS.iterdir() if path.name != "README.md")
SECTIONS = ["Context", "Decision", "Consequences"]
STATUS = re.compile(r"accepted|proposed|superseded by \[(\d{4})\]\((\d{4}-[a-z0-9-]+\.md)\)")


def field(record: str, name: str) -> str:
    """Return the value of the field NAME in the head of a record, empty if it is missing."""
    match = re.search(rf"^- {name}: (.+)$", record.partition("\n## ")[0], flags=re.M)
    return match[1] if match else ""


def is_date(value: str) -> bool:
    """Whether VALUE is a date in the form 2026-11-20 that exists in the calendar."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return False
    try:
        date.fromisoformat(value)
    except ValueError:
        return False
    return True


def wrong_record(name: str, record: str, number: int) -> Iterator[str]:
    """Yield what is wrong with the file NAME, the record with this NUMBER in the sequence."""
    if not re.fullmatch(rf"{number:04d}-[a-z0-9]+(-[a-z0-9]+)*\.md", name):
        yield f"{name}: the file name must be {number:04d}-slug.md"
    if not re.match(rf"# {number:04d}\. \S", record):
        yield f"{name}: the first line must be '# {number:04d}. TITLE'"
    if not is_date(field(record, "Date")):
        yield f"{name}: 'Date' must be like 2026-11-20, found {field(record, 'Date')!r}"
    status = STATUS.fullmatch(field(record, "Status"))
    if not status:
        yield f"{name}: unknown status {field(record, 'Status')!r}"
    elif status[1] and not status[2].startswith(f"{status[1]}-"):
        yield f"{name}: the status names {status[1]} and links to {status[2]}"
    sections = re.findall(r"^## (.+)\n\n(\S?)", record, flags=re.M)
    if [title for title, _start in sections] != SECTIONS or not all(s for _title, s in sections):
        yield f"{name}: the sections must be {', '.join(SECTIONS)}, none of them empty"


def index_row(name: str, record: str) -> str:
    """Return the row of the index for a record."""
    number, _, title = record.partition("\n")[0].removeprefix("# ").partition(". ")
    status = re.sub(r"\[(\d+)\]\([^)]*\)", r"\1", field(record, "Status"))
    return f"| [{number}]({name}) | {title} | {field(record, 'Date')} | {status} |"


def test_decisions_are_numbered_and_complete() -> None:
    found = [
        problem
        for number, path in enumerate(RECORDS, 1)
        for problem in wrong_record(path.name, text(path), number)
    ]
    assert RECORDS
    assert found == []


def test_the_index_lists_every_decision_in_order() -> None:
    rows = re.findall(r"^\| \[\d+\].*$", text(DECISIONS / "README.md"), flags=re.M)
    assert rows == [index_row(path.name, text(path)) for path in RECORDS]


GOOD = """# 0002. Sail by night

- Date: 2026-02-28
- Status: superseded by [0003](0003-sail-by-day.md)

## Context

Rocks.

## Decision

- A lamp.

## Consequences

Oil.
"""


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("0002-sail-by-night.md", "", "", ""),
        ("0003-sail-by-night.md", "", "", "file name must be 0002-slug.md"),
        ("0002-Sail.md", "", "", "file name must be 0002-slug.md"),
        ("0002-sail.md", "# 0002.", "# 2.", "first line must be '# 0002. TITLE'"),
        ("0002-sail.md", "2026-02-28", "2026-02-30", "found '2026-02-30'"),
        ("0002-sail.md", "2026-02-28", "28 Feb 2026", "found '28 Feb 2026'"),
        ("0002-sail.md", "- Date: 2026-02-28\n", "", "found ''"),
        ("0002-sail.md", "superseded by [0003]", "perhaps [0003]", "unknown status"),
        ("0002-sail.md", "[0003]", "[0004]", "names 0004 and links to 0003-sail-by-day.md"),
        ("0002-sail.md", "## Context", "## Reason", "sections must be"),
        ("0002-sail.md", "Oil.\n", "", "none of them empty"),
    ],
)
def test_a_wrong_record_is_named(name: str, old: str, new: str, problem: str) -> None:
    found = "; ".join(wrong_record(name, GOOD.replace(old, new, 1) if old else GOOD, 2))
    assert problem in found if problem else not found


def test_an_index_row_has_number_title_date_and_status() -> None:
    assert index_row("0002-sail-by-night.md", GOOD) == (
        "| [0002](0002-sail-by-night.md) | Sail by night | 2026-02-28 | superseded by 0003 |"
    )


def unlinked(pages: list[str], index: str) -> list[str]:
    """Return the PAGES of docs/ that the text of the README does not link to."""
    return [page for page in pages if f"](docs/{page})" not in index]


def test_the_readme_links_every_page() -> None:
    pages = [str(path.relative_to(DOCS)) for path in sorted(DOCS.glob("*.md"))]
    assert unlinked([*pages, "decisions/README.md"], text(ROOT / "README.md")) == []


def test_a_page_without_a_link_is_named() -> None:
    assert unlinked(["a.md", "b.md"], "[a](docs/a.md) docs/b.md") == ["b.md"]


def broken_examples(page: str) -> Iterator[str]:
    """Yield the errors of the YAML and Python blocks of a page that cannot be parsed."""
    for language, block in re.findall(r"^```(yaml|python)\n(.*?)^```", page, flags=re.M | re.S):
        try:
            if language == "yaml":
                yaml.safe_load(block)
            else:
                compile(textwrap.dedent(block), "example", "exec")
        except (yaml.YAMLError, SyntaxError) as error:
            yield f"{language}: {error}"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_examples_can_be_parsed(page: Path) -> None:
    assert list(broken_examples(text(page))) == []


def test_a_broken_example_is_named() -> None:
    page = "```yaml\na: [\n```\n```python\nif\n```\n```yaml\na: 1\n```\n```sh\nif\n```\n"
    assert [error.partition(":")[0] for error in broken_examples(page)] == ["yaml", "python"]


def test_the_page_about_images_has_every_key_of_an_alias() -> None:
    page = (DOCS / "add-an-image.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "images/image.schema.json").read_text(encoding="utf-8"))
    keys = schema["properties"]["aliases"]["additionalProperties"]["properties"]
    section = page.partition("### Add commands")[2].partition("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == set(keys)


def test_examples_of_image_declarations_are_valid() -> None:
    page = (DOCS / "add-an-image.md").read_text(encoding="utf-8")
    schema = json.loads((ROOT / "images/image.schema.json").read_text(encoding="utf-8"))
    examples = [yaml.safe_load(one) for one in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert len(examples) == 4
    for example in examples:
        # The examples after the first one show only the keys of their subject.
        problems = [str(problem) for problem in declaration.validate(example, schema)]
        assert [problem for problem in problems if "missing key" not in problem] == []
