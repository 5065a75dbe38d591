# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute the plan of a role from variables: read the role's options, call its pure function.

The plan of role NAME is ``plan(facts, options)`` in ``module_utils/roles/NAME.py``. The survey and
the role's own tasks (lookup ``slipway.host.role_plan``) both reach it here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.utils.display import Display
from ansible_collections.slipway.host.plugins.plugin_utils import old_names, roles

PACKAGE = "ansible_collections.slipway.host.plugins.module_utils.roles"
Vars = roles.Vars
Template = Callable[[Any], Any]

display = Display()


class EvaluationError(AnsibleActionFail):
    """A variable has no value; it may need facts of the host that are not known yet."""


def plan(name: str, variables: Mapping[str, Any], template: Template, facts: Any) -> Vars:
    """Return the plan of a role for one host.

    VARIABLES are the variables of the host, not templated; TEMPLATE evaluates a value. FACTS is
    ``ansible_facts['slipway']``; the plan also gets ``address`` and ``inventory_name`` of the host,
    the names of all ``hosts``, the ``groups`` and the ``role_path`` on the controller. A module
    with the name of a fact in FACT_OF_HOSTS gets this fact of all hosts in ``fact_of_hosts``, one
    with the name of a role in OPTIONS_OF_HOSTS its options in ``options_of_hosts``. Raise
    AnsibleActionFail for invalid options.
    """
    role = roles.load(name)
    module = load_module(name)
    options = read_options(role, variables, template)
    options.update(read_shared_options(module, variables, template))
    address = variables.get("ansible_host") or variables.get("inventory_hostname", "localhost")
    host_facts = {
        **(facts or {}),
        "address": evaluate("ansible_host", address, template),
        "hosts": variables.get("groups", {}).get("all", ()),
        "groups": variables.get("groups", {}),
        "inventory_name": variables.get("inventory_hostname", "localhost"),
        "role_path": str(role.path),
    }
    if fact := getattr(module, "FACT_OF_HOSTS", ""):
        host_facts["fact_of_hosts"] = FactOfHosts(fact, variables)
    if other := getattr(module, "OPTIONS_OF_HOSTS", ""):
        host_facts["options_of_hosts"] = OptionsOfHosts(other, name, variables)
    try:
        return dict(module.plan(host_facts, options))
    except ValueError as error:
        # Ansible would repeat the message of each cause.
        raise AnsibleActionFail(f"role {name}: {error}") from None


def role_template(templar: Any, name: str, variables: Vars, facts: Any) -> Template:
    """Return a function that evaluates variables of a host as in the tasks of a role.

    TEMPLAR is that of an action; FACTS is ``ansible_facts['slipway']``.
    """
    role = roles.load(name)

    def template(value: Any) -> Any:
        scope = {
            **role.defaults,
            **variables,
            "ansible_facts": {**variables.get("ansible_facts", {}), "slipway": facts},
            "role_path": str(role.path),
        }
        return templar.copy_with_new_env(available_variables=scope).template(value)

    return template


class FactOfHosts:
    """One fact of all hosts. The variables of a host are read when its fact is asked for."""

    def __init__(self, fact: str, variables: Mapping[str, Any]) -> None:
        self.fact = fact
        self.hostvars: Any = variables.get("hostvars", {})

    def get(self, host: str) -> Any:
        """Return the fact of a host, None if it is not known."""
        if host not in self.hostvars:
            return None
        read = getattr(self.hostvars, "raw_get", self.hostvars.get)
        return read(host).get("ansible_facts", {}).get(self.fact)


class OptionsOfHosts:
    """The options of one role on all hosts, evaluated when they are asked for.

    They include the option ``address`` of the role that asks, by default ``ansible_host``.
    """

    def __init__(self, role: str, asking: str, variables: Mapping[str, Any]) -> None:
        self.role, self.asking = role, asking
        self.hostvars: Any = variables.get("hostvars", {})
        self.known: dict[str, Vars | None] = {}

    def get(self, host: str) -> Vars | None:
        """Return the options on a host, None for a host that the inventory does not have."""
        if host not in self.known:
            self.known[host] = self._read(host) if host in self.hostvars else None
        return self.known[host]

    def _read(self, host: str) -> Vars:
        # The variables of a host evaluate themselves, by the host's own variables.
        variables: Mapping[str, Any] = self.hostvars[host]
        option = f"{self.asking}_address"
        try:
            options = read_options(roles.load(self.role), variables, _keep)
            options.update(read_shared_options(load_module(self.role), variables, _keep))
            address = variables.get(option) or variables.get("ansible_host") or host
        except AnsibleError as error:
            raise EvaluationError(
                f"Cannot read the options of role {self.role} on host {host}: "
                f"{_root_message(error)}."
            ) from error
        return {**options, option: str(address)}


def _keep(value: Any) -> Any:
    """Return a value that is evaluated already."""
    return value


def preload() -> None:
    """Load every role and its plan before Ansible forks, so that its processes share them.

    PRELOAD of a module: functions that read files which are the same on all hosts.
    """
    for name in roles.all_names():
        _plain_defaults(roles.load(name))
        with suppress(AnsibleActionFail):
            module = load_module(name)
            for shared in getattr(module, "SHARED_OPTIONS", ()):
                roles.owner(shared)
            for read in getattr(module, "PRELOAD", ()):
                read()


def load_module(name: str) -> Any:
    """Return the module with the plan of a role; raise AnsibleActionFail if the role has none."""
    try:
        module = importlib.import_module(f"{PACKAGE}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{PACKAGE}.{name}":
            raise
        module = None
    # Such as ml_catalogue: other roles include it.
    if not hasattr(module, "plan"):
        raise AnsibleActionFail(
            f"role {name} has no plan; expected plan(facts, options) in "
            f"module_utils/roles/{name}.py of the collection slipway.host. If slipway_roles names "
            "the role, remove it there"
        )
    return module


def read_options(role: roles.Role, variables: Mapping[str, Any], template: Template) -> Vars:
    """Return the value of each option of a role, converted to its declared type.

    A nested key that is not set is absent. Raise AnsibleActionFail if a value cannot be evaluated
    or has the wrong type.
    """
    defaults = _plain_defaults(role)
    values = accept_set_options(role, role.options, variables, template)
    for name in role.options:
        if name not in values and name not in defaults:
            values[name] = evaluate(name, role.defaults.get(name), template)
    return {**defaults, **_convert(role, values)}


def read_shared_options(module: Any, variables: Mapping[str, Any], template: Template) -> Vars:
    """Return the options of other roles that the plan in MODULE reads; None if not set."""
    shared_options: Vars = {}
    for shared in getattr(module, "SHARED_OPTIONS", ()):
        owner = roles.load(roles.owner(shared))
        values = _convert(owner, accept_set_options(owner, [shared], variables, template))
        shared_options[shared] = values.get(shared)
    return shared_options


def accept_set_options(
    role: roles.Role, names: Iterable[str], variables: Mapping[str, Any], template: Template
) -> Vars:
    """Return the values of `set_options`; display its warnings and raise its errors."""
    values, findings = set_options(role, names, variables, template)
    if findings.errors:
        raise AnsibleActionFail(f"{'; '.join(findings.errors)}.")
    display_warnings(findings)
    return values


def display_warnings(findings: old_names.Findings) -> None:
    """Display each warning; Ansible displays equal warnings once in a run."""
    for warning in dict.fromkeys(findings.warnings):
        display.warning(warning)


def set_options(
    role: roles.Role, names: Iterable[str], variables: Mapping[str, Any], template: Template
) -> tuple[Vars, old_names.Findings]:
    """Return the values of the options in NAMES that VARIABLES set, by their new names.

    The values are evaluated, not converted. The findings are about old names in use.
    """
    findings = old_names.Findings()
    values: Vars = {}
    for name in names:
        option = role.options[name]
        set_name = old_names.find_set_name(name, option, variables, role.defaults, findings)
        if set_name is not None:
            value = evaluate(set_name, variables[set_name], template)
            values[name] = old_names.to_new_name(name, set_name, option, value, findings)
    return values, findings


@cache
def _plain_defaults(role: roles.Role) -> Vars:
    """Return the converted defaults without templates: the same for every host."""
    plain = {
        name: role.defaults.get(name)
        for name in role.options
        if not _has_template(role.defaults.get(name))
    }
    return _convert(role, plain)


def _convert(role: roles.Role, values: Vars) -> Vars:
    if not values:
        return {}
    spec = {name: role.options[name] for name in values}
    result = ArgumentSpecValidator(spec).validate(values)
    if result.error_messages:
        raise AnsibleActionFail(f"role {role.name}: {'; '.join(result.error_messages)}")
    converted = result.validated_parameters
    return {name: _remove_unset(spec[name], converted[name]) for name in values}


def _remove_unset(option: Vars, value: Any) -> Any:
    """Return a value without the nested keys that the validator adds as None."""
    nested = option.get("options")
    if not nested or value is None:
        return value
    if isinstance(value, list):
        return [_remove_unset(option, entry) for entry in value]
    return {
        key: _remove_unset(nested.get(key, {}), entry)
        for key, entry in value.items()
        if entry is not None
    }


def evaluate(name: str, value: Any, template: Template) -> Any:
    """Return the value of a variable; raise EvaluationError with its name if that fails."""
    if not _has_template(value):
        return value
    try:
        return template(value)
    except AnsibleError as error:
        raise EvaluationError(
            f"Cannot evaluate variable {name}: {_root_message(error)}."
        ) from error


def _has_template(value: Any) -> bool:
    """Return whether any text in a value may contain a template."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value or "{#" in value
    if isinstance(value, Mapping):
        return any(map(_has_template, value.values())) or any(map(_has_template, value))
    if isinstance(value, (list, tuple, set)):
        return any(map(_has_template, value))
    # Ansible resolves values of other types, such as vaulted values.
    return not isinstance(value, (bool, int, float, type(None)))


def _root_message(error: BaseException) -> str:
    """Return the message of the first error in the chain of causes: it says what to do."""
    while error.__cause__:
        error = error.__cause__
    return str(error).rstrip(".")
