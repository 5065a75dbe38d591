# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every plugin of the collection keeps to: its words match its code, hosts can run it."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.tree import PLUGINS, ROLES, ROOT, load, tasks

COLLECTION = "slipway.host"
PACKAGE = "ansible_collections.slipway.host.plugins"
# The keys in which an option's documentation and its argument spec must agree.
SAME = ("type", "required", "default", "choices", "elements", "aliases")
# An action plugin without a module of its own would have no documentation.
MODULES = sorted(file.stem for file in (PLUGINS / "modules").glob("*.py"))
LOOKUPS = sorted(file.stem for file in (PLUGINS / "lookup").glob("*.py"))
OTHERS = {"callback": sorted(file.stem for file in (PLUGINS / "callback").glob("*.py"))}


@cache
def plugin(kind: str, name: str) -> Any:
    """Return the Python module of a plugin."""
    return importlib.import_module(f"{PACKAGE}.{kind}.{name}")


def documentation(kind: str, name: str) -> dict[str, Any]:
    """Return the DOCUMENTATION of a plugin as data."""
    found: dict[str, Any] = yaml.safe_load(plugin(kind, name).DOCUMENTATION)
    for fragment in found.get("extends_documentation_fragment", []):
        # FILE, or FILE.PART for another part than DOCUMENTATION.
        file, _dot, part = fragment.removeprefix(f"{COLLECTION}.").partition(".")
        shared = plugin("doc_fragments", file).ModuleDocFragment
        text = getattr(shared, part.upper() or "DOCUMENTATION")
        found["options"] = {**yaml.safe_load(text)["options"], **found["options"]}
    return found


def argument_spec(name: str) -> dict[str, Any]:
    """Return the ARGUMENT_SPEC of a module, or of its action plugin if that does the work."""
    kind = "modules" if hasattr(plugin("modules", name), "ARGUMENT_SPEC") else "action"
    spec: dict[str, Any] = plugin(kind, name).ARGUMENT_SPEC
    return spec


def disagreements(
    documented: Mapping[str, Any], spec: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Yield where the documented options and an argument spec differ, suboptions included."""
    for name in sorted({*documented, *spec}):
        where = f"{path}{name}"
        if name not in spec or name not in documented:
            yield f"{where} is only in the {'documentation' if name in documented else 'spec'}"
            continue
        one, other = documented[name], spec[name]
        if not one.get("description"):
            yield f"{where} has no description"
        for key in SAME:
            absent: Any = {"required": False, "type": "str"}.get(key)
            if one.get(key, absent) != other.get(key, absent):
                yield f"{where}: {key} is documented as {one.get(key)}, specified {other.get(key)}"
        inner = one.get("suboptions", {}), other.get("options", {})
        yield from disagreements(*inner, f"{where}.")


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_documentation_is_its_argument_spec(name: str) -> None:
    documented = documentation("modules", name)
    assert documented["module"] == name
    assert list(disagreements(documented.get("options", {}), argument_spec(name))) == []


GOOD: dict[str, Any] = {"type": "int", "default": 1, "description": "How many."}


@pytest.mark.parametrize(
    ("documented", "spec", "problem"),
    [
        ({"a": GOOD}, {}, "a is only in the documentation"),
        ({}, {"a": {}}, "a is only in the spec"),
        ({"a": GOOD}, {"a": {"type": "str", "default": 1}}, "a: type is documented as int"),
        ({"a": GOOD}, {"a": {"type": "int"}}, "a: default is documented as 1, specified None"),
        ({"a": {"type": "int"}}, {"a": {"type": "int"}}, "a has no description"),
        (
            {"a": {"description": "A.", "choices": ["x"]}},
            {"a": {"choices": ["x", "y"]}},
            "a: choices is documented as ['x']",
        ),
        (
            {"a": {"description": "A.", "suboptions": {"b": GOOD}}},
            {"a": {"options": {"b": {"type": "int", "default": 2}}}},
            "a.b: default is documented as 1, specified 2",
        ),
    ],
)
def test_a_disagreement_is_named(
    documented: dict[str, Any], spec: dict[str, Any], problem: str
) -> None:
    assert problem in "\n".join(disagreements(documented, spec))


@pytest.mark.parametrize("name", MODULES)
def test_a_modules_examples_use_it_as_documented(name: str) -> None:
    options = documentation("modules", name).get("options", {})
    examples = yaml.safe_load(plugin("modules", name).EXAMPLES)
    module = f"{COLLECTION}.{name}"
    used = [task.keys[module] or {} for task in tasks(examples, Path(name)) if module in task.keys]
    assert used, "no example uses the module"
    needed = {option for option, words in options.items() if words.get("required")}
    for given in used:
        assert needed <= set(given) <= set(options)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_does_in_check_mode_and_with_diff(name: str) -> None:
    attributes = documentation("modules", name)["attributes"]
    for attribute in ("check_mode", "diff_mode"):
        assert attributes[attribute]["support"] in ("full", "partial", "none")
        assert attributes[attribute]["description"]
    assert attributes["check_mode"]["support"] == "full"
    returned = yaml.safe_load(plugin("modules", name).RETURN)
    assert all(value.get("description") and value.get("type") for value in returned.values())


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_lookups_examples_are_yaml_and_use_it(name: str) -> None:
    examples = plugin("lookup", name).EXAMPLES
    assert yaml.safe_load(examples)
    assert f"{COLLECTION}.{name}" in examples


@pytest.mark.parametrize(
    ("kind", "names"), [("module", MODULES), ("lookup", LOOKUPS), *OTHERS.items()]
)
def test_ansible_doc_shows_every_plugin(kind: str, names: list[str]) -> None:
    wanted = [f"{COLLECTION}.{name}" for name in names]
    shown = subprocess.run(
        [Path(sys.executable).parent / "ansible-doc", "--json", "--type", kind, *wanted],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(json.loads(shown.stdout)) == wanted


def imports(file: Path) -> set[str]:
    """Return the modules that a Python file imports, the project's own by their full name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if node.level:
                folder = file.parent.relative_to(PLUGINS)
                package = ".".join([PACKAGE, *folder.parts, *filter(None, [node.module])])
            found |= {package, *(f"{package}.{alias.name}" for alias in node.names)}
    return found


def on_hosts(file: Path, seen: set[Path] | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the file and the name of each import that a host would carry out to run FILE."""
    seen = set() if seen is None else seen
    if file in seen:
        return
    seen.add(file)
    for name in imports(file):
        own = PLUGINS / f"{name.removeprefix(f'{PACKAGE}.').replace('.', '/')}.py"
        if name.startswith(f"{PACKAGE}.module_utils.") and own.exists():
            yield from on_hosts(own, seen)
        elif not name.startswith("ansible_collections."):
            yield file, name


def foreign(file: Path) -> list[str]:
    """Return the imports of host code that a host's bare Python does not have."""
    return sorted(
        f"{where.name}: {name}"
        for where, name in on_hosts(file)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not name.startswith("ansible.module_utils")
    )


HOST_CODE = [PLUGINS / f"modules/{name}.py" for name in MODULES]
HOST_CODE += [PLUGINS / f"module_utils/{name}.py" for name in ("state/kinds", "images/builder")]
HOST_CODE += sorted((PLUGINS / "module_utils/ml").glob("*.py"))
HOST_CODE += sorted((PLUGINS / "module_utils/gpu").glob("cuda_*.py"))


@pytest.mark.parametrize("file", HOST_CODE, ids=lambda file: file.stem)
def test_code_for_hosts_needs_nothing_but_python(file: Path) -> None:
    assert foreign(file) == []


def test_a_foreign_import_is_named(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import json\nfrom ansible.module_utils.basic import AnsibleModule\n"
        f"from {PACKAGE}.module_utils.images import job\n"
    )
    # By way of the catalogue, which reads YAML and renders templates.
    assert {"context.py: jinja2", "strict_yaml.py: yaml"} <= set(foreign(file))


def test_every_module_sets_the_environment_of_hosts() -> None:
    """Modules without code of their own have an action plugin, which runs commands by itself."""
    without = {
        name
        for name in MODULES
        if "HostModule(" not in (PLUGINS / f"modules/{name}.py").read_text()
        and hasattr(plugin("modules", name), "ARGUMENT_SPEC")
    }
    direct = {
        file.stem
        for file in PLUGINS.rglob("*.py")
        if "AnsibleModule(" in file.read_text() and file.name != "module.py"
    }
    assert (without, direct) == (set(), set())


def test_every_detached_program_sets_the_environment_of_hosts() -> None:
    programs = [
        file for file in PLUGINS.rglob("*.py") if "run_locked(folder, LOCK" in file.read_text()
    ]
    assert programs
    assert [file for file in programs if "environment.apply()" not in file.read_text()] == []


def test_only_one_function_runs_commands_through_the_connection() -> None:
    users = [
        file.stem
        for file in PLUGINS.rglob("*.py")
        if "_low_level_execute_command(" in file.read_text()
    ]
    assert users == ["host_command"]


def test_docker_commands_of_roles_name_the_local_engine() -> None:
    commands = [
        task.keys[task.action]["argv"]
        for role in ROLES
        for file in sorted((role / "tasks").glob("*.yml"))
        for task in tasks(load(file), file)
        if task.action == "ansible.builtin.command"
    ]
    docker = [argv for argv in commands if argv[0] == "docker"]
    assert docker
    assert {argv[1] for argv in docker} == {"--host=unix:///run/docker.sock"}


@pytest.mark.parametrize("file", ["callback/live.py", "callback/summary.py", "action/survey.py"])
def test_plugins_of_each_run_load_shared_code_from_byte_code(file: str) -> None:
    tree = ast.parse((PLUGINS / file).read_text())
    imports = [
        f"{node.module}.{node.names[0].name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(PACKAGE)
    ]
    assert imports[0] == f"{PACKAGE}.plugin_utils.bytecode_cache"
