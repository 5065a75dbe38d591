# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every role keeps to.  Each rule is seen failing on a role that breaks it."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.contract.tree import ROLE_IDS, ROLES, ROOT, Task, load, role_tasks
from tools import role_readme

MAX_LINES = 60
MAX_TASKS = 25
MAX_DEPTH = 2
FREE_FORM = ("command", "shell", "raw", "script", "expect")
# What begins with ansible_ and is no fact: Ansible's own variables, and how hosts are reached.
MAGIC = frozenset(
    "ansible_become ansible_become_user ansible_check_mode ansible_collections ansible_diff_mode "
    "ansible_facts ansible_host ansible_index_var ansible_local ansible_loop ansible_loop_var "
    "ansible_managed ansible_playbook_python ansible_play_hosts ansible_play_hosts_all "
    "ansible_port ansible_python_interpreter ansible_role_name ansible_user "
    "ansible_version".split()
)


def documentation(role: Path) -> Iterator[str]:
    """A role says what it is: defaults, argument spec, metadata and README."""
    for name in ("defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "README.md"):
        if not (role / name).is_file():
            yield f"lacks {name}"


def entry_point(role: Path) -> Iterator[str]:
    """A role that does something has tasks and is tested by a molecule scenario of its name."""
    if (role / "tasks").is_dir():
        if not (role / "tasks/main.yml").is_file():
            yield "lacks tasks/main.yml"
        if not (role.parents[1] / "molecule" / role.name / "converge.yml").is_file():
            yield f"lacks the scenario molecule/{role.name}"


def size(role: Path) -> Iterator[str]:
    """A role can be read in one sitting."""
    for file in role.glob("tasks/*.yml"):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{file.name} has {lines} lines, at most {MAX_LINES}"
    found = [task for task in role_tasks(role) if task.file.parent.name == "tasks" and task.action]
    if len(found) > MAX_TASKS:
        yield f"has {len(found)} tasks, at most {MAX_TASKS}"
    for task in found:
        if task.depth > MAX_DEPTH:
            yield f"{task} is in {task.depth} blocks, at most {MAX_DEPTH}"


def plain_tasks(role: Path) -> Iterator[str]:
    """Tasks name modules in full, hide no errors and do not rewrite variables."""
    for task in role_tasks(role):
        if task.action and task.action.count(".") < 2:
            yield f"{task}: '{task.action}' is not a full module name"
        if "ignore_errors" in task.keys:
            yield f"{task}: ignores errors"
        if task.action.endswith(".set_fact"):
            yield f"{task}: sets a fact; a variable in vars/main.yml says the same"
        if "name" not in task.keys:
            yield f"{task}: has no name"


def commands(role: Path) -> Iterator[str]:
    """A command says why no module serves, and when it changed something."""
    for task in role_tasks(role):
        if task.action.split(".")[-1] not in FREE_FORM:
            continue
        if "changed_when" not in task.keys:
            yield f"{task}: lacks changed_when"
        if not _comment_above(task):
            yield f"{task}: lacks a comment that says why a command"


def _comment_above(task: Task) -> bool:
    lines = task.file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.strip() == f"- name: {task.keys.get('name')}":
            return lines[number - 1].strip().startswith("#")
    return False


def facts(role: Path) -> Iterator[str]:
    """Facts are read as ansible_facts['x'], which is what the next ansible-core leaves."""
    for file in (*role.rglob("*.yml"), *role.rglob("*.j2")):
        for word in re.findall(r"\bansible_\w+", file.read_text(encoding="utf-8")):
            if word not in MAGIC:
                yield f"{file.name}: '{word}' is an injected fact"


def names(role: Path) -> Iterator[str]:
    """Variables carry the role's name; private ones two underscores before it."""
    for name in load(role / "defaults/main.yml") or {}:
        if not name.startswith(f"{role.name}_"):
            yield f"default '{name}' should begin with {role.name}_"
    for name in load(role / "vars/main.yml") or {}:
        if not name.startswith(f"__{role.name}_"):
            yield f"'{name}' in vars should begin with __{role.name}_"
    for task in role_tasks(role):
        register = task.keys.get("register")
        if register and not register.startswith(f"__{role.name}_"):
            yield f"{task}: registers '{register}', should begin with __{role.name}_"


def comments(role: Path) -> Iterator[str]:
    """Every public variable is explained where it is set."""
    above = ""
    for line in (role / "defaults/main.yml").read_text(encoding="utf-8").splitlines():
        key = re.match(r"(\w+):", line)
        if key and not above.startswith("#"):
            yield f"'{key[1]}' has no comment above it in defaults/main.yml"
        above = line


def specification(role: Path) -> Iterator[str]:
    """The argument spec and the defaults name the same variables, with the same values."""
    defaults = load(role / "defaults/main.yml") or {}
    spec = load(role / "meta/argument_specs.yml")["argument_specs"]
    options = {name: option for entry in spec.values() for name, option in entry["options"].items()}
    for name in sorted(set(defaults) - set(options)):
        yield f"'{name}' is in the defaults but not in the argument spec"
    for name, option in options.items():
        if name not in defaults:
            if not option.get("required"):
                yield f"'{name}' is in the argument spec but not in the defaults"
        elif "default" in option and option["default"] != defaults[name]:
            yield f"'{name}' is {defaults[name]!r} by default, the spec says {option['default']!r}"
    yield from _undescribed(options)


def schema(role: Path) -> Iterator[str]:
    """The argument spec fits the schema of ansible-lint, which does not know `aliases`."""
    folder = importlib.resources.files("ansiblelint") / "schemas" / "role-arg-spec.json"
    validator = Draft202012Validator(json.loads(folder.read_text(encoding="utf-8")))
    spec = _without_aliases(load(role / "meta/argument_specs.yml"))
    yield from (f"{error.json_path}: {error.message}" for error in validator.iter_errors(spec))


def _without_aliases(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_aliases(entry) for entry in value]
    if isinstance(value, dict):
        is_option = "description" in value
        return {
            key: _without_aliases(entry)
            for key, entry in value.items()
            if not (is_option and key == "aliases")
        }
    return value


def renamed(role: Path) -> Iterator[str]:
    """Tasks read a renamed option from the role's plan, which also knows its old name."""
    spec = load(role / "meta/argument_specs.yml")["argument_specs"]
    options = {name: option for entry in spec.values() for name, option in entry["options"].items()}
    for name in (name for name, option in options.items() if option.get("aliases")):
        for file in sorted([*role.glob("vars/*.yml"), *role.glob("tasks/*.yml")]):
            expression = rf"(\{{\{{|when:|that:)[^\n]*\b{name}\b"
            if re.search(expression, file.read_text(encoding="utf-8")):
                yield f"{file.name}: '{name}' has an old name: read the plan instead"


def _undescribed(options: dict[str, Any]) -> Iterator[str]:
    for name, option in options.items():
        if not option.get("description"):
            yield f"'{name}' has no description"
        if option.get("type") == "list" and "elements" not in option:
            yield f"'{name}' is a list of what? (elements)"
        yield from _undescribed(option.get("options", {}))


def truths(role: Path) -> Iterator[str]:
    """What is true or false is asked by `bool`: `-e x=false` is a string, and those are true."""
    spec = load(role / "meta/argument_specs.yml")["argument_specs"]
    options = {name: option for entry in spec.values() for name, option in entry["options"].items()}
    for name in (name for name, option in options.items() if option.get("type") == "bool"):
        for file in sorted([*role.glob("vars/*.yml"), *role.glob("tasks/*.yml")]):
            text = file.read_text(encoding="utf-8")
            # A parameter that is nothing else is converted by its module.
            text = re.sub(rf'"{{{{ {name} }}}}"$', "", text, flags=re.M)
            if re.search(rf"\b{name}\b(?! \| bool\b)", text):
                yield f"{file.name}: '{name}' lacks | bool"


def readme(role: Path) -> Iterator[str]:
    """The README's table is what tools/role_readme.py makes of the argument spec."""
    file = role / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    try:
        if role_readme.updated(role, text) != text:
            yield "README.md is out of date: ./slipway run python tools/role_readme.py"
    except role_readme.ReadmeError as error:
        yield str(error)


RULES = (
    *(documentation, entry_point, size, plain_tasks, commands, facts),
    *(names, comments, specification, schema, renamed, truths, readme),
)
Rule = Callable[[Path], Iterator[str]]


@pytest.mark.parametrize("role", ROLES, ids=ROLE_IDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_role_keeps_each_rule(rule: Rule, role: Path) -> None:
    assert list(rule(role)) == []


@pytest.fixture
def role(tmp_path: Path) -> Path:
    """Return a role that keeps all rules."""
    files = {
        "defaults/main.yml": "---\n# How many.\nsail_count: 1\n# Whether.\nsail_up: true\n",
        "meta/main.yml": "---\ngalaxy_info: {}\n",
        "meta/argument_specs.yml": (
            "argument_specs:\n  main:\n    short_description: Sails\n    options:\n"
            "      sail_count: {type: int, description: How many., default: 1}\n"
            "      sail_up: {type: bool, description: Whether., default: true}\n"
        ),
        "vars/main.yml": "---\n__sail_owned: {}\n",
        "tasks/main.yml": (
            "---\n- name: Set sail\n  ansible.builtin.debug:\n"
            "    msg: \"{{ ansible_facts['distribution'] }}\"\n  register: __sail_result\n"
            '  when: sail_up | bool\n  vars:\n    up: "{{ sail_up }}"\n'
        ),
        "handlers/main.yml": "---\n- name: Reef\n  ansible.builtin.debug:\n",
        "README.md": f"# sail\n\n{role_readme.BEGIN}\n{role_readme.END}\n",
    }
    folder = tmp_path / "roles/sail"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(
        role_readme.updated(folder, files["README.md"]), encoding="utf-8"
    )
    scenario = tmp_path / "molecule/sail"
    scenario.mkdir(parents=True)
    (scenario / "converge.yml").touch()
    return folder


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_role_passes(rule: Rule, role: Path) -> None:
    assert list(rule(role)) == []


TASK = "---\n- name: Set sail\n  ansible.builtin.debug:\n"


@pytest.mark.parametrize(
    ("rule", "file", "text", "problem"),
    [
        (documentation, "README.md", None, "lacks README.md"),
        (documentation, "meta/argument_specs.yml", None, "lacks meta/argument_specs.yml"),
        (entry_point, "tasks/main.yml", None, "lacks tasks/main.yml"),
        (entry_point, "../../molecule/sail/converge.yml", None, "lacks the scenario molecule/sail"),
        (size, "tasks/main.yml", "# long\n" * 61, "main.yml has 61 lines, at most 60"),
        (size, "tasks/many.yml", TASK[4:] * 25, "has 26 tasks, at most 25"),
        (
            size,
            "tasks/main.yml",
            '- block: [{block: [{block: [{"ansible.builtin.debug": {}, name: deep}]}]}]\n',
            "main.yml: deep is in 3 blocks, at most 2",
        ),
        (plain_tasks, "tasks/main.yml", "- name: A\n  debug:\n", "is not a full module name"),
        (plain_tasks, "tasks/main.yml", TASK + "  ignore_errors: false\n", "ignores errors"),
        (plain_tasks, "tasks/main.yml", "- ansible.builtin.debug:\n", "has no name"),
        (plain_tasks, "handlers/main.yml", "- name: A\n  debug:\n", "is not a full module name"),
        (
            plain_tasks,
            "tasks/main.yml",
            "- name: A\n  block:\n    - name: B\n      ansible.builtin.set_fact: {a: 1}\n",
            "main.yml: B: sets a fact",
        ),
        (
            commands,
            "tasks/main.yml",
            "---\n# No module asks it.\n- name: A\n  ansible.builtin.command: uptime\n",
            "lacks changed_when",
        ),
        (
            commands,
            "tasks/main.yml",
            "---\n- name: A\n  ansible.builtin.command: uptime\n  changed_when: false\n",
            "lacks a comment that says why",
        ),
        (facts, "tasks/main.yml", '- name: "{{ ansible_distribution }}"\n', "is an injected fact"),
        (facts, "templates/a.j2", "{{ ansible_default_ipv4.address }}", "is an injected fact"),
        (names, "defaults/main.yml", "---\n# A.\ncount: 1\n", "should begin with sail_"),
        (names, "vars/main.yml", "---\nsail_owned: {}\n", "should begin with __sail_"),
        (names, "tasks/main.yml", TASK + "  register: result\n", "registers 'result'"),
        (comments, "defaults/main.yml", "---\nsail_count: 1\n", "has no comment above it"),
        (comments, "defaults/main.yml", "# A.\nsail_a: 1\nsail_b: 1\n", "'sail_b' has no comment"),
        (specification, "defaults/main.yml", "---\n# A.\nsail_count: 2\n", "is 2 by default"),
        (specification, "defaults/main.yml", "---\n", "'sail_count' is in the argument spec but"),
        (
            specification,
            "defaults/main.yml",
            "sail_count: 1\nsail_colour: red\n",
            "'sail_colour' is in the defaults but",
        ),
        (
            specification,
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {sail_count: {type: list, description: A.}}}}\n",
            "is a list of what?",
        ),
        (
            specification,
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {sail_count: {options: {a: {}}}}}}\n",
            "'a' has no description",
        ),
        (
            schema,
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {sail_a: {description: A., tpye: str}}}}\n",
            "Additional properties are not allowed ('tpye' was unexpected)",
        ),
        (
            renamed,
            "meta/argument_specs.yml",
            "argument_specs: {main: {options: {sail_up: {aliases: [sail_mast]}}}}\n",
            "main.yml: 'sail_up' has an old name",
        ),
        (truths, "vars/main.yml", "__sail_a: '{{ f(sail_up) }}'\n", "'sail_up' lacks | bool"),
        (truths, "tasks/main.yml", TASK + "  when: not sail_up\n", "'sail_up' lacks | bool"),
        (readme, "README.md", "# sail\n", "has no line"),
        (
            readme,
            "README.md",
            f"# sail\n\n{role_readme.BEGIN}\n{role_readme.END}\n",
            "README.md is out of date",
        ),
    ],
)
def test_a_broken_role_is_named(
    role: Path, rule: Rule, file: str, text: str | None, problem: str
) -> None:
    if text is None:
        (role / file).unlink()
    else:
        (role / file).parent.mkdir(exist_ok=True)
        (role / file).write_text(text, encoding="utf-8")
    assert problem in "\n".join(rule(role))


def test_every_surveyed_role_is_there_and_is_surveyed_in_order() -> None:
    """Roles run after those that they build on, which the README's table shows in this order."""
    surveyed = load(ROOT / "vars/roles.yml")["slipway_roles"]
    assert set(surveyed) <= set(ROLE_IDS)
    # The rest states no owned state: data for others, and the proof at the end.
    assert set(ROLE_IDS) - set(surveyed) == {"ml_catalogue", "host_verify"}
