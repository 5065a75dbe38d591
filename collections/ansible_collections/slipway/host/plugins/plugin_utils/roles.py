# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the defaults and the argument specs of the roles, and check variables against them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import UnsupportedError
from ansible.parsing.dataloader import DataLoader
from ansible_collections.slipway.host.plugins.plugin_utils import old_names

Vars = dict[str, Any]

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The installed collection, or its source in the project.
COLLECTION = Path(__file__).resolve().parents[2]


def find_roles_path(collection: Path = COLLECTION) -> list[str]:
    """Return the folders with roles: those of the project, then Ansible's setting ``roles_path``.

    An installed collection contains the roles. In the project they are beside ``collections/``.
    """
    roots = (collection, *collection.parents[3:4])
    own = [str(root / "roles") for root in roots if (root / "vars/roles.yml").is_file()]
    return [*own[:1], *C.config.get_config_value("DEFAULT_ROLES_PATH", variables=vars(C))]


ROLES_PATH = find_roles_path()


@dataclass(frozen=True, eq=False)
class Role:
    """One role, including the variables of its dependencies.

    ``defaults`` are its default variables, not templated; ``options`` are its public variables as
    ``meta/argument_specs.yml`` declares them.
    """

    name: str
    path: Path
    defaults: Vars
    options: Vars
    dependencies: tuple[str, ...]


def read_plain(file: Path) -> Vars:
    """Return the content of a YAML file without templates; Ansible's loader takes twice as long."""
    try:
        return dict(yaml.load(file.read_bytes(), Loader=LOADER) or {})
    except FileNotFoundError:
        return {}


@cache
def load(name: str) -> Role:
    """Return a role, which is read once per process; raise AnsibleActionFail if it is missing."""
    for folder in ROLES_PATH:
        path = Path(folder) / name
        if path.is_dir():
            break
    else:
        raise AnsibleActionFail(
            f"role '{name}' not found in {', '.join(ROLES_PATH)}; expected a role of Slipway. "
            "Correct the name."
        )

    def read(file: Path) -> Vars:
        if not file.is_file():
            return {}
        return dict(DataLoader().load_from_file(str(file), trusted_as_template=True) or {})

    defaults = read(path / "defaults" / "main.yml")
    specs = read_plain(path / "meta" / "argument_specs.yml").get("argument_specs", {})
    options = dict(specs.get("main", {}).get("options") or {})
    needs = read_plain(path / "meta" / "main.yml").get("dependencies", [])
    for dependency in needs:
        base = load(str(dependency["role"]))
        defaults = {**base.defaults, **defaults}
        options = {**base.options, **options}
    return Role(name, path, defaults, options, tuple(str(need["role"]) for need in needs))


@cache
def all_names() -> tuple[str, ...]:
    """Return the names of all roles; each process looks for them once."""
    files = (file for root in ROLES_PATH for file in Path(root).glob("*/meta/main.yml"))
    return tuple(sorted(file.parent.parent.name for file in files))


@cache
def owner(option: str) -> str:
    """Return the name of the role that declares an option; the name is a prefix of the option."""
    return max((name for name in all_names() if option.startswith(f"{name}_")), key=len)


def find_unknown_variables(variables: Iterable[str], roles: Iterable[Role]) -> Iterator[str]:
    """Yield an error for each variable with the prefix of a role that is not an option of the role.

    Ansible ignores unknown variables. A typing error in the prefix itself, as in
    ``ml_image_names``, is found by comparing the whole name with all options.
    """
    owners = {role.name: role for role in roles}
    for role in list(owners.values()):
        owners.update({need: load(need) for need in role.dependencies})
    prefixes = tuple(f"{role}_" for role in owners)
    accepted = {name: old_names.new_names(role.options) for name, role in owners.items()}
    new_names = {old: new for names in accepted.values() for old, new in names.items()}
    beginnings = tuple({prefix[:2] for prefix in prefixes})
    for name in sorted(name for name in variables if name.startswith(beginnings)):
        if not name.startswith(prefixes):
            # One or two letters differ. An inventory rarely has such a variable of its own.
            if near := difflib.get_close_matches(name, new_names, n=1, cutoff=0.92):
                yield f"no role has a variable {name}; did you mean {new_names[near[0]]}"
            continue
        owner = max((role for role in owners if name.startswith(f"{role}_")), key=len)
        if name in accepted[owner]:
            continue
        near = difflib.get_close_matches(name, accepted[owner], n=1)
        options = ", ".join(sorted(owners[owner].options))
        hint = f"did you mean {new_names[near[0]]}" if near else f"expected one of {options}"
        yield f"role {owner} has no variable {name}; {hint}"


def check_values(role: Role, values: Mapping[str, Any]) -> list[str]:
    """Return the errors in VALUES of a role's options, according to its argument spec."""
    spec = {name: role.options[name] for name in values}
    type_errors = [
        error
        for name, value in values.items()
        for error in _check_type(spec[name], value, name, role.defaults.get(name) is not None)
    ]
    if type_errors:
        # The validator would report the same values again, with other messages.
        return [f"role {role.name}: {error}" for error in type_errors]
    errors = ArgumentSpecValidator(spec).validate(dict(values)).errors
    return [
        f"role {role.name}: {'unknown key ' if isinstance(error, UnsupportedError) else ''}"
        f"{error.msg.rstrip('.')}"
        for error in errors
    ]


def _check_type(option: Vars, value: Any, name: str, required: bool = True) -> Iterator[str]:
    """Yield an error for each value that the validator would silently convert to another type.

    The roles would read, for example, a string as the list of its letters. The errors do not show
    values, because they may be secret.
    """
    kind = option.get("type", "str")
    # Variables themselves may come from -e or an INI inventory, where every value is a string: the
    # roles convert booleans and numbers.
    nested = "." in name or "[" in name
    if value is None:
        if required:
            yield f"{name} has no value: set a value, or remove {name}"
    elif kind == "list":
        yield from _check_list(option, value, name, "" if nested else f'{{"{name}": [...]}}')
    elif kind == "dict":
        yield from _check_dict(option, value, name)
    elif kind in ("bool", "int"):
        if nested and isinstance(value, str):
            expected = "true or false" if kind == "bool" else "a number"
            yield (
                f"{name} must be {expected}, without quotes; "
                f"a template of text ends with '| {kind}'"
            )
    elif kind in ("str", "path") and "choices" not in option and not isinstance(value, str):
        # A whole number is the same as text; 1.20 would become 1.2.
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (nested and required):
            yield f"{name} must be text: put it in quotes"


def _check_list(option: Vars, value: Any, name: str, example: str) -> Iterator[str]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        yield f"{name} must be a list, such as [...]" + (
            f"; with -e: '{example}'" if example else ""
        )
        return
    element = {**option, "type": option.get("elements", "raw")}
    for number, entry in enumerate(value):
        yield from _check_type(element, entry, f"{name}[{number}]")


def _check_dict(option: Vars, value: Any, name: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name} must have keys and values, such as {{key: value}}"
        return
    for key, nested in (option.get("options") or {}).items():
        if key in value:
            required = bool(nested.get("required", False))
            yield from _check_type(nested, value[key], f"{name}.{key}", required)
