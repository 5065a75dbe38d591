# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the repository as a whole keeps to: sizes, addresses, headers, and commands that exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import SHARING_A_HOST
from tests.contract.tree import ROLE_IDS, ROOT, load, tasks, text, tracked_files

MAX_BYTES = 1 << 20
LICENCE = "SPDX-License-Identifier: GPL-3.0-or-later"
PAGES = [file for file in tracked_files() if file.suffix == ".md"]
LOCKS = [file for file in tracked_files() if file.suffix == ".lock"]
SCRIPTS = [
    file
    for file in tracked_files()
    if (file.suffix == ".py" and text(file)) or text(file).startswith("#!/")
]
ROOT_FILES = {
    *(".ansible-lint", ".gitignore", ".pre-commit-config.yaml", ".shellcheckrc", ".yamllint"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "ansible.cfg", "pyproject.toml"),
    *("requirements.lock", "requirements.yml", "site.yml", "slipway"),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# Tests are tables of cases, which may be long.
PRODUCT = [
    file
    for file in tracked_files()
    if file.suffix == ".py" and file.relative_to(ROOT).parts[0] != "tests"
]


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_no_file_is_over_one_mebibyte() -> None:
    assert [name(file) for file in tracked_files() if file.stat().st_size > MAX_BYTES] == []


def test_no_file_of_a_run_is_in_the_root_folder() -> None:
    names = {name(file) for file in tracked_files() if file.parent == ROOT}
    assert names <= ROOT_FILES


@pytest.mark.parametrize("file", SCRIPTS, ids=name)
def test_every_program_names_its_licence(file: Path) -> None:
    assert LICENCE in "\n".join(text(file).splitlines()[:4])


def long_functions(source: str) -> list[str]:
    """Return the functions with more than MAX_FUNCTION_LINES lines."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]


@pytest.mark.parametrize("file", PRODUCT, ids=name)
def test_files_and_functions_of_the_product_are_short(file: Path) -> None:
    assert len(text(file).splitlines()) <= MAX_FILE_LINES
    assert long_functions(text(file)) == []


def test_a_long_function_is_named() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert long_functions(f"def long():\n{body}def short():\n    pass\n") == ["long"]


def test_files_that_share_a_host_run_in_one_process() -> None:
    files = sorted((ROOT / "tests/host").glob("test_*.py"))
    assert [file.name for file in files if "(converged: Site" in text(file)] == [*SHARING_A_HOST]


# A lock names packages, versions and hashes; where they come from is each machine's own matter.


def addresses(lock: str) -> list[str]:
    """Return the addresses that a lock file holds."""
    return re.findall(r"\w+://\S+", lock)


def unhashed(lock: str) -> list[str]:
    """Return the requirements of a lock file that have no hash."""
    entries = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", lock, flags=re.M)).splitlines()
    return [entry for entry in entries if entry.strip() and "--hash=sha256:" not in entry]


@pytest.mark.parametrize("file", LOCKS, ids=name)
def test_a_lock_holds_hashes_and_no_address(file: Path) -> None:
    assert addresses(text(file)) == []
    assert unhashed(text(file)) == []


def test_a_bad_lock_is_recognised() -> None:
    lock = "# for x\na==1 \\\n    --hash=sha256:00\nb @ https://example.org/b.whl\nc==2\n"
    assert addresses(lock) == ["https://example.org/b.whl"]
    assert unhashed(lock) == ["b @ https://example.org/b.whl", "c==2"]


# What only this machine knows belongs into no file: where the checkout lies, and which mirrors and
# indexes pip is set to use here.


def own_paths() -> set[str]:
    """Return the folders of this machine that no file may name."""
    environment = Path(sys.base_prefix)
    folders = {ROOT, environment} if environment.is_relative_to(Path.home()) else {ROOT}
    return {str(folder) for folder in folders if len(folder.parts) > 2}


def own_indexes() -> set[str]:
    """Return the hosts of the package indexes that this machine is set to use."""
    configured = [value for key, value in os.environ.items() if key.endswith("INDEX_URL")]
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    configured += re.findall(r"index-url='([^']*)'", listed)
    hosts = (urlsplit(url).hostname for value in configured for url in value.split())
    return {host for host in hosts if host}


def mentions(content: str, words: set[str]) -> list[str]:
    """Return which of the WORDS the CONTENT holds."""
    return sorted(word for word in words if word in content)


def test_no_file_knows_this_machine() -> None:
    words = own_paths() | own_indexes()
    found = {name(file): mentions(text(file), words) for file in tracked_files()}
    assert {file: words for file, words in found.items() if words} == {}


def test_a_machines_own_path_is_recognised() -> None:
    assert mentions(f"cd {ROOT}/tests", own_paths() or {str(ROOT)}) == [str(ROOT)]


# Names.


def unknown_roles(content: str) -> list[str]:
    """Return the roles that a text says are Slipway's and that are not."""
    return [role for role in re.findall(r"Slipway's role (\w+)", content) if role not in ROLE_IDS]


def test_files_left_on_hosts_name_a_role_that_exists() -> None:
    others = [file for file in tracked_files() if file != Path(__file__)]
    found = {name(file): unknown_roles(text(file)) for file in others}
    assert {file: roles for file, roles in found.items() if roles} == {}


def test_an_unknown_role_is_named() -> None:
    assert unknown_roles("# Written by Slipway's role docker_engin.") == ["docker_engin"]


# Pages.


def verbs() -> set[str]:
    """Return the verbs of ./slipway, as its help lists them."""
    shown = subprocess.run(["./slipway", "--help"], cwd=ROOT, capture_output=True, text=True)
    return set(re.findall(r"^  ([a-z-]+)  ", shown.stdout, flags=re.M))


def commands(page: str) -> Iterator[str]:
    """Yield the commands in a page's shell blocks, and those in its running text."""
    for block in re.findall(r"^```(?:sh|console|bash)\n(.*?)^```", page, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.strip().removeprefix("$ ").partition(" #")[0].strip()
            if command and not command.startswith("#"):
                yield command
    yield from re.findall(r"`(\./slipway [^`]+|ansible-playbook [^`]+)`", page)


def wrong(command: str, known: set[str]) -> str:
    """Return what is wrong with a page's COMMAND, empty where nothing is; KNOWN are the verbs."""
    words = command.split()
    if words[0] == "./slipway" and words[1:] and not words[1].startswith("-"):
        verb = words[1]
        if verb not in known:
            return f"{command}: ./slipway has no verb {verb}"
    if words[0] == "ansible-playbook":
        playbook = next((word for word in words[1:] if word.endswith(".yml")), "")
        if installed := re.match(r"slipway\.host\.(\w+)$", words[1]):
            playbook = "site.yml" if installed[1] == "site" else f"playbooks/{installed[1]}.yml"
        if not (ROOT / playbook).is_file():
            return f"{command}: there is no playbook {playbook}"
    for word in words:
        if word.startswith(("tools/", "tests/", "playbooks/")) and not (ROOT / word).exists():
            return f"{command}: there is no {word}"
    return ""


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_a_pages_commands_exist(file: Path) -> None:
    found = [wrong(command, verbs()) for command in commands(text(file))]
    assert [problem for problem in found if problem] == []


def dead_links(page: str, folder: Path) -> list[str]:
    """Return the links of a page in FOLDER that lead to no file of the repository."""
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)[^)]*\)", page)
    return [link for link in links if not (folder / link).exists()]


@pytest.mark.parametrize("file", PAGES, ids=name)
def test_a_pages_links_lead_somewhere(file: Path) -> None:
    assert dead_links(text(file), file.parent) == []


def test_a_dead_link_is_named() -> None:
    page = "[a](README.md) [b](https://example.org/x) [c](#part) [d](none.md#part) ![e](none.png)"
    assert dead_links(page, ROOT) == ["none.md", "none.png"]


@pytest.mark.parametrize("role", ROLE_IDS)
def test_the_readme_names_every_role(role: str) -> None:
    assert f"roles/{role}/README.md" in text(ROOT / "README.md")


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("```sh\n./slipway sail\n```\n", "./slipway has no verb sail"),
        ("```sh\n# no\nansible-playbook nowhere.yml -v  # yes\n```\n", "no playbook nowhere.yml"),
        ("```sh\nsh tests/nothing.sh\n```\n", "there is no tests/nothing.sh"),
        (
            "```sh\nansible-playbook slipway.host.sail -i a.yml\n```\n",
            "there is no playbook playbooks/sail.yml",
        ),
        ("Run `./slipway sail` now.\n", "./slipway has no verb sail"),
        ("```sh\n./slipway site --check\nansible-playbook site.yml\n```\n", ""),
        ("```sh\nansible-playbook slipway.host.plan -i a.yml\n```\n", ""),
        ("```yaml\n./slipway: sail\n```\n", ""),
    ],
)
def test_a_command_that_does_not_exist_is_named(page: str, problem: str) -> None:
    found = " ".join(wrong(command, {"site"}) for command in commands(page)).strip()
    assert problem in found if problem else not found


def test_the_help_lists_every_verb() -> None:
    script = text(ROOT / "slipway")
    (accepted,) = re.findall(r"^verbs='([a-z -]+)'$", script, flags=re.M)
    assert verbs() == set(accepted.split())


# Settings.


def test_ansible_cfg_names_what_is_there() -> None:
    settings = ConfigParser(interpolation=None)
    settings.read(ROOT / "ansible.cfg")
    assert (ROOT / settings["defaults"]["roles_path"]).is_dir()
    assert "collections" in settings["defaults"]["collections_path"].split(":")
    # Nothing that hides trouble.
    for hiding in ("command_warnings", "deprecation_warnings", "system_warnings"):
        assert hiding not in settings["defaults"]


def test_the_first_runs_benchmark_builds_as_the_builder_does() -> None:
    given = set(re.findall(r"--build-arg (\w+)=", text(ROOT / "bench/first_run.py")))
    assert given == set(re.findall(r"^ARG (\w+)=", text(ROOT / "images/Dockerfile.j2"), re.M))


def test_a_survey_is_no_change() -> None:
    """For ansible-core before 2.21, joining the group of hosts with drift is one."""
    files = [ROOT / "site.yml", *sorted((ROOT / "playbooks").rglob("*.yml"))]
    # A play's tasks are told like a block's, a file of tasks like a play's.
    entries = (
        (file, [*load(file), *(e for p in load(file) for e in p.get("tasks", ()))])
        for file in files
    )
    surveys = [
        task
        for file, its in entries
        for task in tasks(its, file)
        if task.action == "slipway.host.survey"
    ]
    assert len(surveys) >= 3
    assert [str(task) for task in surveys if task.keys.get("changed_when") is not False] == []
