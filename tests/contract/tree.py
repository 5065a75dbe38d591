# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree that the contract tests read: tracked files, roles, and the tasks in them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "collections/ansible_collections/slipway/host/plugins"
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
ROLE_IDS = [path.name for path in ROLES]

BLOCKS = ("block", "rescue", "always")
# Keywords of a task that are not its action.
KEYWORDS = frozenset(
    "action always any_errors_fatal args async become become_exe become_flags become_method "
    "become_user block changed_when check_mode collections connection debugger delay "
    "delegate_facts delegate_to diff environment failed_when ignore_errors ignore_unreachable "
    "listen local_action loop loop_control module_defaults name no_log notify poll port register "
    "remote_user rescue retries run_once tags throttle timeout until vars when".split()
)


class AnsibleLoader(yaml.SafeLoader):
    """YAML as Ansible writes it: its own tags stand for their text."""


for tag in ("!vault", "!unsafe"):
    AnsibleLoader.add_constructor(tag, lambda _loader, node: node.value)


@dataclass(frozen=True)
class Task:
    """One task: where it stands, how many blocks are around it, and what it says."""

    file: Path
    depth: int
    keys: Mapping[str, Any]

    @property
    def action(self) -> str:
        """The name of the module or of the action, empty for a block."""
        return next((key for key in self.keys if key not in KEYWORDS and key[:5] != "with_"), "")

    def __str__(self) -> str:
        """Return where the task is found by a person."""
        return f"{self.file.name}: {self.keys.get('name', self.action or 'block')}"


def load(file: Path) -> Any:
    """Return the YAML document of a file, None where it is empty or not there."""
    return yaml.load(file.read_text(encoding="utf-8"), AnsibleLoader) if file.exists() else None


def tasks(entries: Any, file: Path, depth: int = 0) -> Iterator[Task]:
    """Yield the tasks of a list of tasks, blocks and what is in them included."""
    for keys in entries or ():
        yield Task(file, depth, keys)
        for block in BLOCKS:
            yield from tasks(keys.get(block), file, depth + 1)


def role_tasks(role: Path) -> list[Task]:
    """Return all tasks and handlers of a role."""
    files = sorted([*role.glob("tasks/*.yml"), *role.glob("handlers/*.yml")])
    return [task for file in files for task in tasks(load(file), file)]


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return the files that are, or with the next commit would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    files = (ROOT / name for name in listed.stdout.split("\0") if name)
    return tuple(file for file in files if file.is_file())


def text(file: Path) -> str:
    """Return a file's text, empty for a binary one."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
