# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each command of the pages is run by a test, or has a reason; those without a host run here."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests import page_commands
from tests.contract.tree import ROOT, text
from tests.page_commands import Checkout

TESTS = [*(ROOT / "tests/contract").glob("test_*.py"), *(ROOT / "tests/host").glob("test_*.py")]


def test_each_command_of_the_pages_is_in_one_list() -> None:
    lists = [*page_commands.RUN_BY.values(), *page_commands.NOT_RUN.values()]
    listed = Counter(command for one in lists for command in one)
    pages = {str(page.relative_to(ROOT)): page for page in page_commands.PAGES}
    others = set(pages) - set(page_commands.WHOLE_PAGES)
    written = {command for page in others for command in page_commands.commands(text(pages[page]))}
    assert written - set(listed) == set(), "commands that no test runs"
    assert set(listed) - written == set(), "commands that no page has"
    assert [command for command, count in listed.items() if count > 1] == []


def source_of(test: str) -> str:
    """Return the file that has a test."""
    (file,) = (file for file in TESTS if f"\ndef {test}(" in text(file))
    return text(file)


@pytest.mark.parametrize("test", page_commands.RUN_BY)
def test_the_named_test_runs_its_commands(test: str) -> None:
    assert f'run_by("{test}")' in source_of(test)


@pytest.mark.parametrize(("page", "test"), page_commands.WHOLE_PAGES.items())
def test_the_named_test_reads_the_page(page: str, test: str) -> None:
    assert f'"{page}"' in source_of(test)


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("```sh\na  b   # c\nd \\\n    e\n```\n", ["a b", "d e"]),
        ("```sh\n# a\n\nb '#c'\n```\n", ["b '#c'"]),
        ("```console\n$ a b\nprinted\n```\n", ["a b"]),
        ("1. x\n\n   ```sh\n   a\n   ```\n", ["a"]),
        ("```yaml\na: b\n```\n`a`\n", []),
    ],
)
def test_commands_are_read_from_a_page(page: str, found: list[str]) -> None:
    assert list(page_commands.commands(page)) == found


def test_commands_that_need_no_host_work(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    installed = {"ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "installed")}
    for command in page_commands.run_by("test_commands_that_need_no_host_work"):
        done = checkout.run(command, **(installed if command.startswith("ansible") else {}))
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    collection = tmp_path / "installed/ansible_collections/slipway/host"
    assert (collection / "playbooks/site.yml").is_file()
    for readme in ROOT.glob("roles/*/README.md"):
        assert text(checkout.folder / readme.relative_to(ROOT)) == text(readme)


def test_each_export_of_the_page_works(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    connection = {"ansible_user": "ubuntu", "ansible_ssh_private_key_file": "/keys/k"}
    hosts = {"all": {"hosts": {"gpu01": connection, "gpu02": connection}}}
    (checkout.folder / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))
    for command in page_commands.run_by("test_each_export_of_the_page_works"):
        done = checkout.run(command, HOME=str(tmp_path))
        assert (done.returncode, done.stdout) == (0, ""), f"{command}: {done.stderr}"
        file = command.split()[-1].replace("~", str(tmp_path))
        if "--out" in command:
            assert "gpu01" in text(checkout.folder / file)


def test_an_inventory_that_git_tracked_survives_an_update(tmp_path: Path) -> None:
    """Older versions tracked inventory/hosts.yml, which people edited."""
    commit = "git add -A && git -c user.name=a -c user.email=a@example.org commit -qm"
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def run(command: str, folder: Path) -> None:
        done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    (origin / "inventory").mkdir(parents=True)
    hosts = clone / "inventory/hosts.yml"
    run(f"git init -q . && echo old >inventory/hosts.yml && {commit} old", origin)
    run("git clone -q origin clone && echo mine >clone/inventory/hosts.yml", tmp_path)
    run("git rm -q inventory/hosts.yml && echo /inventory/hosts.yml >.gitignore", origin)
    run(f"{commit} new && mkdir -p inventory", origin)
    for command in page_commands.run_by("test_an_inventory_that_git_tracked_survives_an_update"):
        # An empty folder is none for git.
        run(f"mkdir -p inventory; {command}", clone)
    assert hosts.read_text() == "mine\n"
