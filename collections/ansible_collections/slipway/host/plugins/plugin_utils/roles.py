# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The project's roles as data: defaults and argument specs, without running the roles."""

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
    """One role with what it inherits from its dependencies.

    ``defaults`` are its default variables, not templated; ``options`` are its public variables as
    ``meta/argument_specs.yml`` declares them.
    """

    name: str
    path: Path
    defaults: Vars
    options: Vars
    dependencies: tuple[str, ...]


def read_plain(file: Path) -> Vars:
    """Return a YAML file that holds no templates; Ansible's own loader takes twice as long."""
    try:
        return dict(yaml.load(file.read_bytes(), Loader=LOADER) or {})
    except FileNotFoundError:
        return {}


@cache
def load(name: str) -> Role:
    """Return a role; each is read once a process.  Raise AnsibleActionFail where there is none."""
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


def all_names() -> list[str]:
    """Return the names of the roles that are there."""
    found = (folder for root in ROLES_PATH for folder in Path(root).glob("*/meta/main.yml"))
    return sorted(file.parent.parent.name for file in found)


@cache
def owner(option: str) -> str:
    """Return the role that declares an option: the one with whose name the option begins."""
    return max((name for name in all_names() if option.startswith(f"{name}_")), key=len)


def misspelt(variables: Iterable[str], roles: Iterable[Role]) -> Iterator[str]:
    """Yield a sentence for each of VARIABLES that is named like a role's but is none of its own.

    Ansible itself takes a misspelt variable for one that nobody reads.  Where the role's own name
    is what was misspelt, as in ``ml_image_names``, the rest of it tells.
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
            # As near as one or two letters; who has such a name for something else is rare.
            if near := difflib.get_close_matches(name, new_names, n=1, cutoff=0.92):
                yield f"no role has a variable {name}; did you mean {new_names[near[0]]}"
            continue
        owner = max((role for role in owners if name.startswith(f"{role}_")), key=len)
        if name in accepted[owner]:
            continue
        near = difflib.get_close_matches(name, accepted[owner], n=1)
        known = ", ".join(sorted(owners[owner].options))
        hint = f"did you mean {new_names[near[0]]}" if near else f"it has {known}"
        yield f"role {owner} has no variable {name}; {hint}"


def wrong(role: Role, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with VALUES of the role's variables, by its argument spec."""
    spec = {name: role.options[name] for name in values}
    found = [
        words
        for name, value in values.items()
        for words in _misshapen(spec[name], value, name, role.defaults.get(name) is not None)
    ]
    if found:
        # The validator would say the same again, in other words.
        return [f"role {role.name}: {words}" for words in found]
    errors = ArgumentSpecValidator(spec).validate(dict(values)).errors
    return [
        f"role {role.name}: {'unknown key ' if isinstance(error, UnsupportedError) else ''}"
        f"{error.msg.rstrip('.')}"
        for error in errors
    ]


def _misshapen(option: Vars, value: Any, name: str, needed: bool = True) -> Iterator[str]:
    """Yield where the validator would convert a value before it judges it.

    The roles read what was given: a text as the list of its letters, for one.  Values are not
    shown, since they may be secret.
    """
    kind = option.get("type", "str")
    # What stands at the top may come from -e or an INI inventory, which know text alone: switches
    # and numbers are converted by the roles.
    inside = "." in name or "[" in name
    if value is None:
        if needed:
            yield f"{name} has no value: give it one, or leave it out"
    elif kind == "list":
        if not isinstance(value, Sequence) or isinstance(value, str):
            on_command_line = "" if inside else f"; with -e: '{{\"{name}\": [...]}}'"
            yield f"{name} must be a list, such as [...]{on_command_line}"
            return
        element = {**option, "type": option.get("elements", "raw")}
        for number, one in enumerate(value):
            yield from _misshapen(element, one, f"{name}[{number}]")
    elif kind == "dict":
        if not isinstance(value, Mapping):
            yield f"{name} must have keys and values, such as {{key: value}}"
            return
        for key, its in (option.get("options") or {}).items():
            if key in value:
                yield from _misshapen(
                    its, value[key], f"{name}.{key}", bool(its.get("required", False))
                )
    elif kind in ("bool", "int") and inside and isinstance(value, str):
        what = "true or false" if kind == "bool" else "a number"
        yield f"{name} must be {what}, without quotes; a template of text ends with '| {kind}'"
    elif kind in ("str", "path") and "choices" not in option and not isinstance(value, str):
        # A whole number loses nothing where it is made text; 1.20 does.
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (inside and needed):
            yield f"{name} must be text: put it in quotes"
