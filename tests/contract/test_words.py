# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Text for people avoids constructions that readers misunderstood.

Add a file to COVERED when its text is rewritten. Add a pattern to PATTERNS, with reason and
examples, when a reader misunderstands a construction.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.contract.tree import ROLE_IDS, ROOT, load, text, tracked_files

# Files whose text is checked; `*` also matches `/`.
COVERED = (
    "roles/*",
    "playbooks/*",
    "site.yml",
    "molecule/*.yml",
    "inventory/*",
    "vars/*",
    "bench/*.yml",
    "bench/*.py",
    "images/*.yml",
    "images/compose.yaml",
    "images/*.j2",
    "images/*.sh",
    "images/*.in",
    "images/_shared/bill-of-materials",
    "images/_shared/environment",
    "images/_shared/install-apt",
    "images/_shared/start",
    "images/deepdocker/install-rstudio",
    "images/deepdocker/named",
    "images/deepdocker/rstudio-password",
    "images/fastai/jupyter-on-gpu",
    "images/legacy-torch7/build-nn",
    "collections/*/galaxy.yml",
    "collections/*/plugins/module_utils/gpu/*.py",
    "collections/*/plugins/module_utils/images/*.py",
    "collections/*/plugins/module_utils/ml/*.py",
    "collections/*/plugins/module_utils/roles/*.py",
    "collections/*/plugins/module_utils/apt/*.py",
    "collections/*/plugins/module_utils/data/*.py",
    "collections/*/plugins/module_utils/docker/*.py",
    "collections/*/plugins/module_utils/host/*.py",
    "collections/*/plugins/action/*.py",
    "collections/*/plugins/modules/*.py",
    "collections/*/plugins/callback/*.py",
    "collections/*/plugins/doc_fragments/*.py",
    "collections/*/plugins/lookup/*.py",
    "collections/*/plugins/plugin_utils/*.py",
    "collections/*/slipway/host/README.md",
    "collections/*/slipway/host/meta/*",
    "collections/*/slipway/host/tests/*",
    "changelogs/config.yaml",
    "tests/host/*.py",
    "tests/unit/alias_runner.py",
    "tests/unit/fake_engine.py",
    "tests/unit/test_aliases*.py",
    "tests/unit/test_builder.py",
    "tests/unit/test_catalogue.py",
    "tests/unit/test_image*.py",
    "tests/unit/test_iris_api.py",
    "tests/unit/test_lab_*.py",
    "tests/unit/test_lock*.py",
    "tests/unit/test_role_readme.py",
    "tests/unit/test_simulated_hosts.py",
    "tools/*.py",
    "lab/*.py",
    "slipway",
    "tools/*.sh",
    "tests/run.sh",
    "ansible.cfg",
    "pyproject.toml",
    "requirements.yml",
    ".ansible-lint",
    ".yamllint",
    ".pre-commit-config.yaml",
    ".config/*",
)
# Files that match COVERED but are not rewritten yet.
NOT_YET: tuple[str, ...] = ()


class Pattern(NamedTuple):
    """A construction to avoid, why, a sentence that has it, and a better sentence."""

    regex: str
    reason: str
    example: str
    better: str


NOUN = "the noun is missing: name the thing"
VERB = "not an ordinary verb of the field"
OWNER = "'to be' with 'of' for ownership"
DUTY = "old-fashioned form for a duty or a plan"
IDIOM = "an idiom that non-native readers do not know"
CLAUSE = "a clause in the place of a noun or of a plain condition"

PATTERNS = (
    Pattern(
        r"what (it|they) (takes?|uses?|knows?|needs?)",
        NOUN,
        "Install what it takes",
        "Install download tools",
    ),
    Pattern(
        r"what (there (is|was)|(is|was) there)",
        NOUN,
        "Tell what was there",
        "List previous packages",
    ),
    Pattern(r"what came with", NOUN, "Ask what came with them", "Refresh package facts"),
    Pattern(
        r"(packages|versions|state|those) of before",
        NOUN,
        "Return to the packages of before",
        "Reinstall the previous packages",
    ),
    Pattern(r"the real thing", IDIOM, "Do the real thing", "Run acceptance checks"),
    Pattern(r"let (the |a )?\w+ know", VERB, "Let the engine know", "Configure the Docker runtime"),
    Pattern(
        r"have (it|them|the \w+( \w+)?) (in the|there)",
        VERB,
        "Have it there after the reboot",
        "Check the kernel module after the reboot",
    ),
    Pattern(
        r"ask(s|ed)? (what|which|who|whether)", VERB, "Ask what the host is", "Gather host facts"
    ),
    Pattern(r"forgets? (its|their|the)", VERB, "Forget its way back", "Delete the rollback record"),
    Pattern(r"ways? back", IDIOM, "and keep the way back", "with a rollback record"),
    Pattern(
        r"(is|are) of (nobody|no one|the group)",
        OWNER,
        "the limits of 'x' are of nobody",
        "'x' is not a user, @group or *",
    ),
    Pattern(r"(is|are) nobody's", OWNER, "Port 9 is nobody's", "No server listens on port 9"),
    Pattern(
        r"(its|their|his|somebody's|nobody's) business",
        IDIOM,
        "they are somebody's business",
        "users own these files",
    ),
    Pattern(r"shall", DUTY, "those who shall have none", "users without an engine"),
    Pattern(
        r"(is|are) (not )?to (be|hold|have|go)",
        DUTY,
        "images that the host is not to hold",
        "undeclared images",
    ),
    Pattern(
        r"which ha(s|ve) to be", DUTY, "the group G, which has to be in it", "group G is not in it"
    ),
    Pattern(r"anew", IDIOM, "Log in anew", "Reset the SSH connection"),
    Pattern(
        r"comes? to no value", IDIOM, "since X comes to no value", "Cannot evaluate variable X"
    ),
    Pattern(
        r"is no (name|way|use|list)",
        CLAUSE,
        "'x': is no name for an image",
        "invalid image name 'x'",
    ),
    Pattern(
        r", since (it|they|there|nobody|no|the|its|an?|what|that|in) ",
        "'since' for 'because': readers think of a time",
        "may be /tmp, since it is shared",
        "may be /tmp, because users share it",
    ),
    Pattern(
        r"where (only )?that (is|helps|was)",
        CLAUSE,
        "Reboot where only that helps",
        "Reboot to load the NVIDIA module",
    ),
    Pattern(
        r"(none|empty|nothing|raises? \w+) where",
        CLAUSE,
        "Return the link, None where there is none",
        "Return the link, None if there is no link",
    ),
    Pattern(
        r"(can|could|cannot) be had",
        IDIOM,
        "where its package can be had",
        "if its package is available",
    ),
    Pattern(r"out of reach", IDIOM, "Ubuntu was out of reach", "Ubuntu was not available"),
    Pattern(
        r"as good as (being )?root", IDIOM, "which is as good as root", "root-equivalent access"
    ),
    Pattern(
        r"sees? to it", IDIOM, "and sees to it that they keep them", "and keeps them up to date"
    ),
    Pattern(r"len(t|ds?) to", IDIOM, "What the builder lends to a build", "Build settings"),
    Pattern(
        r"whoever|whosoever", IDIOM, "as whoever the container runs as", "as the container's user"
    ),
    Pattern(
        r"(was|is|are) settled", VERB, "Who may push was settled", "The login on the host decides"
    ),
    Pattern(r"does not do:", IDIOM, "reloading it does not do: idle", "cannot be loaded"),
    Pattern(
        r"(see|in) (apt-get|pip|uv)'s words|its words above",
        IDIOM,
        "see its words above",
        "see the errors above",
    ),
)

# Verbs that say nothing about the action of a task, with the verb to use.
WEAK_VERBS = {
    "Ask": "Gather, Read or Check",
    "Bring": "Install or Update",
    "Do": "Run",
    "Forget": "Delete",
    "Give": "Set or Restore",
    "Have": "Load, Install or Check",
    "Keep": "Enable or Hold",
    "Know": "Check",
    "Let": "Configure or Allow",
    "Look": "Read or Check",
    "Make": "Create, Build or Install",
    "Name": "Tag",
    "Prove": "Verify or Run",
    "Refuse": "Fail on",
    "Remember": "Record or Mark",
    "Require": "Fail if",
    "Return": "Reinstall",
    "Say": "Report",
    "See": "List or Read",
    "Settle": "Load or Configure",
    "Take": "Remove",
    "Tell": "Report",
}
PRONOUN = re.compile(r"\b(it|them|they|what|who|whom)\b", re.IGNORECASE)


# Extracting text.


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def is_covered(path: str) -> bool:
    """Return whether the text of the file at PATH is checked."""
    return any(fnmatchcase(path, glob) for glob in COVERED) and not any(
        fnmatchcase(path, glob) for glob in NOT_YET
    )


def python_text(source: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of the comments and strings of Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # A bar keeps the ends of two strings from being read as one sentence.
            yield from enumerate(f"| {node.value}".split("\n"), node.lineno)


def lines(path: str, content: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of the lines of a file that people read."""
    if path.endswith(".py"):
        yield from sorted(python_text(content))
    else:
        yield from enumerate(content.split("\n"), 1)


def problems(path: str, content: str) -> Iterator[str]:
    """Yield the constructions of PATTERNS in a file, also those that are split over two lines."""
    joined, starts = "", []
    for number, line in lines(path, content):
        starts.append((len(joined), number))
        joined += re.sub(r"^[\s#;>]+", "", line).rstrip() + " "
    for pattern in PATTERNS:
        regex = pattern.regex if pattern.regex.startswith(",") else rf"\b({pattern.regex})"
        end = "" if pattern.regex.endswith((" ", ":")) else r"\b"
        for match in re.finditer(regex + end, joined, re.IGNORECASE):
            first = max(number for start, number in starts if start <= match.start())
            where = f"{path}:{first}: '{match[0].strip()}'"
            yield f"{where}: {pattern.reason}. Better, for example: {pattern.better}"


# Constructions.


@pytest.mark.parametrize("file", [f for f in tracked_files() if is_covered(name(f))], ids=name)
def test_text_has_no_construction_that_readers_misunderstand(file: Path) -> None:
    assert list(problems(name(file), text(file))) == []


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.example)
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tasks.yml", "- name: {}\n"),
        ("page.md", "# Title\n\n{}.\n"),
        ("tool.sh", 'say "{}"\n'),
        ("code.py", 'def f():\n    """{}."""\n'),
        ("code.py", "x = 1  # {}\n"),
        ("code.py", 'message = f"{{host}}: {}"\n'),
    ],
)
def test_a_construction_is_found(path: str, source: str, pattern: Pattern) -> None:
    found = "\n".join(problems(path, source.format(pattern.example)))
    assert pattern.reason in found
    assert list(problems(path, source.format(pattern.better))) == []


def test_a_construction_over_two_lines_is_found_with_its_line() -> None:
    (found,) = problems("tool.sh", "#!/bin/sh\n# Runs the check, and does the real\n# thing.\n")
    assert found.startswith("tool.sh:2: 'the real thing'")


def test_python_code_is_not_text() -> None:
    assert list(problems("code.py", "shall = anew\n")) == []


@pytest.mark.parametrize("glob", COVERED)
def test_every_covered_glob_matches_a_file(glob: str) -> None:
    """A file that moves must not leave the check unnoticed."""
    assert any(fnmatchcase(name(file), glob) for file in tracked_files())


# Names of plays and tasks.


def names(entries: Any) -> Iterator[str]:
    """Yield the names of plays, tasks and blocks."""
    sections = ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always")
    for entry in entries or ():
        if "name" in entry:
            yield entry["name"]
        yield from chain.from_iterable(names(entry.get(section)) for section in sections)


def wrong_names(found: list[str]) -> Iterator[str]:
    """Yield what is wrong with the names of one role or playbook."""
    for title in found:
        verb = title.split()[0]
        if verb in WEAK_VERBS:
            yield f"'{title}': instead of '{verb}' write {WEAK_VERBS[verb]}"
        if not verb[0].isupper() or verb in ("The", "It", "They", "Is", "Both", "All"):
            yield f"'{title}' does not begin with a verb"
        if pronoun := PRONOUN.search(title):
            yield f"'{title}': name the thing instead of '{pronoun[0]}'"


def duplicates(found: list[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [title for title, count in Counter(found).items() if count > 1]


PLAYBOOK_PATH = r"site\.yml|playbooks/.*\.yml|molecule/\w+/(converge|prepare|verify)\.yml"
PLAYBOOKS = [
    file
    for file in tracked_files()
    if re.fullmatch(PLAYBOOK_PATH, name(file)) and is_covered(name(file))
]


@pytest.mark.parametrize("file", PLAYBOOKS, ids=name)
def test_a_playbook_names_what_is_done(file: Path) -> None:
    assert list(wrong_names(list(names(load(file))))) == []


@pytest.mark.parametrize("role", ROLE_IDS)
def test_a_role_names_what_is_done(role: str) -> None:
    files = [*(ROOT / "roles" / role).glob("tasks/*.yml")]
    found = {name(file): list(names(load(file))) for file in sorted(files)}
    assert duplicates([*chain.from_iterable(found.values())]) == []
    covered = chain.from_iterable(found[path] for path in found if is_covered(path))
    assert list(wrong_names([*covered])) == []


@pytest.mark.parametrize(
    ("title", "problem"),
    [
        *((f"{verb} the host", f"instead of '{verb}'") for verb in WEAK_VERBS),
        ("The host is ready", "does not begin with a verb"),
        ("install the driver", "does not begin with a verb"),
        ("Start them", "name the thing instead of 'them'"),
        ("Install what aliases need", "name the thing instead of 'what'"),
    ],
)
def test_a_wrong_name_is_found(title: str, problem: str) -> None:
    tasks = [{"name": "Gather host facts"}, {"block": [{"name": title}]}]
    assert problem in "\n".join(wrong_names(list(names(tasks))))


def test_a_duplicate_name_is_found() -> None:
    assert duplicates(["Gather host facts", "Install Docker", "Gather host facts"]) == [
        "Gather host facts"
    ]
