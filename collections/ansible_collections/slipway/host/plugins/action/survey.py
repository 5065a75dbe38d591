# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of slipway.host.survey: one question to a host, compared with its owned state."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import become_loader, connection_loader, shell_loader
from ansible.utils.display import Display

# First, since it decides how the others are loaded.
from ansible_collections.slipway.host.plugins.plugin_utils import _bytecode  # noqa: F401

# isort: split
from ansible_collections.slipway.host.plugins.module_utils import _owned
from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json
from ansible_collections.slipway.host.plugins.module_utils.images import index
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_aliases
from ansible_collections.slipway.host.plugins.plugin_utils import _ask, _roles, _templates

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "list", "elements": "str"},
    "enabled": {"type": "bool"},
    "settled": {"type": "bool", "default": False},
}
GROUP = "slipway_drift"
# A host whose facts change between two questions changes while it is asked.
ATTEMPTS = 3

Vars = _roles.Vars

display = Display()


def warm() -> None:
    """Do once in the controller's main process what the workers of all hosts inherit.

    Ansible imports this file there and forks a worker for each host: what is read here is read
    once a run, not once a host.
    """
    roles = [_roles.load(role) for role in _roles.all_names()]
    plugins = (Path(__file__).parent.parent / "filter").glob("*.py")
    _templates.prepare(
        ([role.defaults, role.own] for role in roles),
        [f"slipway.host.{plugin.stem}" for plugin in plugins],
    )
    for folder in _roles.ROLES_PATH:
        catalogue = Path(folder).resolve().parent / "images"
        if catalogue.is_dir():
            index.fingerprint(catalogue)
    ml_aliases.program_sources()
    # How hosts are reached, unless the inventory says otherwise.
    connection_loader.get(C.config.get_config_value("DEFAULT_TRANSPORT"), class_only=True)
    become_loader.get(C.config.get_config_value("DEFAULT_BECOME_METHOD"), class_only=True)
    shell_loader.get("sh", class_only=True)
    # What is here now stays: no worker's collector need go through it, and copy it by doing so.
    gc.freeze()


warm()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: Vars | None = None) -> dict[str, Any]:
        """Survey one host, see the documentation of slipway.host.survey."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = self._arguments(variables)
        # Plain strings: Ansible's own are other keys for the cache.
        roles = [str(role) for role in arguments["roles"]]
        facts = variables.get("ansible_facts", {}).get("slipway")
        answer: _owned.Answer = {}
        owned: dict[str, Mapping[str, Any]] = {}
        self._check_input(variables, roles)
        remembered = facts is not None
        for _attempt in range(ATTEMPTS):
            if facts is None:
                remembered = False
                reach = self._templated(variables, roles, "reach", {})
                facts = _ask.ask(self, {"reach": list(reach.values())})["facts"]
            owned = self._templated(variables, roles, "owned", facts)
            if remembered and any(its.get("refused") for its in owned.values()):
                # What stood in the way may be gone since.
                facts = None
                continue
            self._refuse(owned)
            answer = _ask.ask(self, _owned.question(list(owned.values())))
            if same_host(answer["facts"], facts):
                break
            facts = None
        try:
            drift = {role: _owned.differences(owned[role], answer) for role in roles}
        except (daemon_json.DaemonJsonError, _owned.ConflictError) as error:
            raise AnsibleActionFail(f"{error}\nNothing was changed.") from error
        if missing := _owned.without_image(list(owned.values()), answer):
            raise AnsibleActionFail("; ".join(missing) + ". Nothing was changed.")
        for sentence in _owned.left_out(answer):
            display.warning(f"{variables.get('inventory_hostname')}: {sentence}")
        if arguments["settled"]:
            self._expect_none(drift)
        acting = [role for role in roles if drift[role] or not arguments["enabled"]]
        if acting:
            self._join_group(result)
        result.update(
            changed=False,
            ansible_facts={"slipway": facts},
            drift=acting,
            urls={
                name: url
                for statement in owned.values()
                for project in statement.get("projects", ())
                for name, url in project.get("urls", {}).items()
            },
            differences={
                role: [vars(difference) for difference in found]
                for role, found in drift.items()
                if found
            },
        )
        return result

    def _arguments(self, variables: Vars) -> Vars:
        """Return the task's arguments, those left out from variables.

        As arguments, two templates would be compiled for each host, a tenth of what it costs.
        """
        given = {
            name: self._templar.template(variables[variable])
            for name, variable in (("roles", "slipway_roles"), ("enabled", "slipway_survey"))
            if variable in variables
        }
        self._task.args = {"enabled": True, **given, **self._task.args}
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        if arguments["roles"] is None:
            raise AnsibleActionFail("which roles? Give 'roles', or the variable slipway_roles")
        return dict(arguments)

    def _refuse(self, owned: Mapping[str, Mapping[str, Any]]) -> None:
        """Fail before the first change where a role cannot work on this host."""
        found = [f"{role}: {why}" for role, its in owned.items() for why in its.get("refused", ())]
        if found:
            raise AnsibleActionFail("; ".join(found) + ". Nothing was changed.")
        for role, statement in owned.items():
            _owned.check(role, statement)

    def _expect_none(self, drift: Mapping[str, list[_owned.Difference]]) -> None:
        """Fail where the roles ran and something still differs."""
        left = [f"{role}: {one}" for role, found in drift.items() for one in found]
        if left:
            raise AnsibleActionFail(
                f"the roles ran, but the host still differs: {'; '.join(left)}. Run again; if it "
                "stays, something on the host works against the declared state."
            )

    def _templated(self, variables: Vars, roles: list[str], what: str, facts: Any) -> Vars:
        """Return ``__<role>_<what>`` of each role as the role itself would see it."""
        found: Vars = {}
        templar = self._templar.copy_with_new_env()
        _templates.use_prepared(templar)
        for role in map(_roles.load, roles):
            plan, name = f"__{role.name}_plan", f"__{role.name}_{what}"
            # Where the owned state is part of a plan, one template less is compiled for each host.
            source = plan if what == "owned" and plan in role.own else name
            if source in role.own:
                templar.available_variables = role.scope(variables, facts)
                try:
                    value = templar.template(role.own[source])
                except AnsibleError as error:
                    raise AnsibleActionFail(f"role {role.name}: {innermost(error)}") from None
                found[role.name] = value["owned"] if source == plan else value
            elif what == "owned":
                raise AnsibleActionFail(f"role {role.name} states no {name} in its vars/main.yml")
        return found

    def _check_input(self, variables: Vars, roles: list[str]) -> None:
        """Fail where the inventory says what no role understands, before the host is asked."""
        loaded = [_roles.load(role) for role in roles]
        found = list(_roles.misspelt(variables, loaded))
        seen: set[str] = set()
        for role in loaded:
            # What several roles inherit is wrong once.
            given = {k: variables[k] for k in role.options if k in variables and k not in seen}
            seen.update(given)
            if given:
                scope = role.scope(variables, variables.get("ansible_facts", {}).get("slipway"))
                templar = self._templar.copy_with_new_env(available_variables=scope)
                found += _roles.wrong(role, {k: value(templar, k, given[k]) for k in given})
        if found:
            raise AnsibleActionFail("; ".join(dict.fromkeys(found)) + ". Nothing was changed.")

    def _join_group(self, result: dict[str, Any]) -> None:
        """Put the host into the group of hosts that the next plays act on."""
        # ansible-core 2.19 and 2.20 read this from the result, as from group_by's.
        result.update(add_group=GROUP, parent_groups=["all"])
        if hasattr(self, "add_group"):  # 2.21 and later
            self.add_group(GROUP, parent_group_names=["all"])


def value(templar: Any, name: str, source: Any) -> Any:
    """Return what a variable comes to; raise AnsibleActionFail with its name where it does not."""
    try:
        return templar.template(source)
    except AnsibleError as error:
        raise AnsibleActionFail(f"nothing was changed, since {name} comes to no value") from error


def innermost(error: BaseException) -> BaseException:
    """Return the error that the others were raised from: the one that says what to do."""
    while error.__cause__:
        error = error.__cause__
    return error


def same_host(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two sets of facts lead to the same owned state."""
    return {k: v for k, v in one.items() if k != "reachable"} == {
        k: v for k, v in other.items() if k != "reachable"
    }
