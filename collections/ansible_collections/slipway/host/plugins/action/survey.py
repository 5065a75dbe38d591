# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.survey: ask a host once, compare it with its owned state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Must be the first import: it loads the modules below from byte code.
from ansible_collections.slipway.host.plugins.plugin_utils import bytecode_cache  # noqa: F401

# isort: split
from ansible_collections.slipway.host.plugins.module_utils.gpu import accepted_faults
from ansible_collections.slipway.host.plugins.module_utils.gpu import health as gpu_health
from ansible_collections.slipway.host.plugins.module_utils.host import declared as host_declared
from ansible_collections.slipway.host.plugins.module_utils.images import fit, index
from ansible_collections.slipway.host.plugins.module_utils.state import (
    consequences,
    engine,
    kinds,
    model,
    projects,
    space,
    trees,
)
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    batches,
    holds,
    image_registry,
    image_source,
    measured,
    registered_results,
    role_plans,
    roles,
    ssh_forward,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import declared, host_plans
from ansible_collections.slipway.host.plugins.plugin_utils.fleet import overview

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "list", "elements": "str"},
    "compare": {"type": "bool"},
    "expect_no_drift": {"type": "bool", "default": False},
    "fail_on_conflict": {"type": "bool", "default": False},
    "hold_only": {"type": "bool", "default": False},
}
# The groups of hosts that the plays after the survey run on.
GROUPS = ("slipway_drift", "slipway_conflict", "slipway_fault", "slipway_metrics")
# The group of the hosts on which a role has drift: this and the name of the role.
ROLE_GROUP = "slipway_apply_"
# If the facts still differ after so many attempts, the host is changing right now.
ATTEMPTS = 3
# host_verify has no owned state, but options that the survey uses.
DRIVER, VERIFY = "nvidia_driver", "host_verify"

Vars = roles.Vars
Plans = Mapping[str, Mapping[str, Any]]

display = Display()


def preload() -> None:
    """Load roles, plans and catalogue before Ansible forks a process for each host.

    Ansible imports this file in its main process, so that the forked processes share the result.
    """
    ask_host.preload()
    role_plans.preload()
    for folder in roles.ROLES_PATH:
        catalogue = Path(folder).resolve().parent / "images"
        if catalogue.is_dir():
            index.fingerprint(catalogue)


preload()


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: Vars | None = None) -> dict[str, Any]:
        """Survey one host, see the documentation of slipway.host.survey."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        hold = holds.find_reason(variables, self._templar.template)
        if not hold:
            batches.check(variables, self._templar.template)
        if hold or self._task.args.get("hold_only"):
            self._join_groups(result, [holds.GROUP if hold else holds.READY])
            return {**result, "changed": False, "hold": hold, "drift": []}
        return self._survey(result, variables)

    def _survey(self, result: dict[str, Any], variables: Vars) -> dict[str, Any]:
        """Return the RESULT of the survey of a host that is not held."""
        arguments = self._arguments(variables)
        names = [str(name) for name in arguments["roles"]]
        self._packages = declared.open_packages(variables, self._templar.template)
        cached = self._checked_facts(names, variables)
        facts, owned, answer = self._ask(names, variables, cached)
        ssh_forward.end_left(self, str(variables.get("inventory_hostname")))
        known = [
            *projects.without_image(list(owned.values()), answer),
            *([] if self._task.check_mode else registered_results.conflicts(names, variables)),
        ]
        compared = compare_with_images(owned, answer, known)
        drift = {name: one.differences for name, one in compared.items()}
        conflicts = {name: one.conflicts for name, one in compared.items() if one.conflicts}
        if arguments["fail_on_conflict"]:
            refuse_conflicts(conflicts)
        for sentence in trees.skipped_trees(answer):
            display.warning(f"{variables.get('inventory_hostname')}: {sentence}")
        waiting: set[str] = set()
        if arguments["expect_no_drift"]:
            waiting = registered_results.find_waiting(variables)
            expect_no_drift(drift, waiting)
        drifted = [name for name in names if drift[name] or not arguments["compare"]]
        self._refuse_changes({name: owned[name] for name in drifted}, answer)
        health = accepted_faults.judge(facts, answer, self._accepted(variables, facts))
        faults = [finding for finding in health if not finding.warning]
        urls = overview.service_urls(owned, compared, answer)
        seen = overview.describe(facts, owned, answer, health, urls)
        metrics = measured.measure(owned, compared, health, seen, answer)
        images = self._describe_images(owned, drift, variables, answer)
        self._join_groups(result, find_groups(drifted, conflicts, faults, metrics))
        result.update(
            changed=False,
            ansible_facts={"slipway": facts},
            drift=drifted,
            urls=urls,
            overview=seen,
            metrics=metrics,
            consequences=self._find_consequences(owned, drift, answer),
            declared=declare(owned, compared, waiting),
            health=[finding.as_data() for finding in health],
            information=engine.information(list(owned.values()), answer, kinds.ALL),
            differences=as_data(drift),
            conflicts=as_data(conflicts),
            **images,
        )
        return result

    def _checked_facts(self, names: list[str], variables: Vars) -> Any:
        """Check the input of the roles; return the cached facts, or new ones that it needed."""
        cached = variables.get("ansible_facts", {}).get("slipway")
        try:
            self._check_input(names, variables, cached)
        except role_plans.EvaluationError:
            if cached is not None:
                raise
            # A setting may use facts of the host, such as its number of GPUs.
            cached = self._ask_facts(names, variables, ask_host.ask(self, {}, [])["facts"])
            self._check_input(names, variables, cached)
        return cached

    def _arguments(self, variables: Vars) -> Vars:
        """Return the task's arguments; those that are not set come from variables."""
        from_variables = {
            name: role_plans.evaluate(variable, variables[variable], self._templar.template)
            for name, variable in (("roles", "slipway_roles"), ("compare", "slipway_survey"))
            if variable in variables
        }
        self._task.args = {"compare": True, **from_variables, **self._task.args}
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        if arguments["roles"] is None:
            raise AnsibleActionFail(
                "survey: no roles; expected the argument 'roles' or the variable slipway_roles. "
                "Set one of them."
            )
        return dict(arguments)

    def _ask(
        self, names: list[str], variables: Vars, facts: Any
    ) -> tuple[Mapping[str, Any], Plans, model.Answer]:
        """Return the facts of the host, the owned state of each role and the host's answer.

        FACTS are the cached facts of an earlier run, or None. Owned state depends on facts, so a
        host whose facts have changed is asked again.
        """
        earlier = facts
        if facts is not None and self._packages:
            facts = {**facts, "reachable": {}}
        elif facts is not None and not facts["docker_package"]:
            # Facts of a run with a bundle or other roles lack the answers of some servers.
            urls = self._reachable_urls(names, variables, facts)
            facts = facts if ask_host.knows_reachable(facts, urls) else None
        cached = facts is not None
        for _attempt in range(ATTEMPTS):
            if facts is None:
                cached = False
                facts = self._ask_facts(names, variables, earlier)
            # Current facts may no longer have the reason for a refusal.
            try:
                owned = self._owned(names, variables, facts)
            except AnsibleActionFail:
                if not cached:
                    raise
                facts = None
                continue
            if cached and any(statement.get("refused") for statement in owned.values()):
                facts = None
                continue
            refuse_unsupported(owned, self._end())
            question = engine.question(list(owned.values()), kinds.ALL)
            question["space"] = [*space.TEMPORARY, *space.WRITTEN]
            question.update(disks=[*space.DISKS], boot=[])
            answer = ask_host.ask(self, {**question, **gpu_health.question(facts)})
            used = facts
            if is_same_host(answer["facts"], used):
                break
            facts = None
        return used, owned, answer

    def _refuse_changes(self, needed: Plans, answer: model.Answer) -> None:
        """Fail if the roles NEEDED cannot change the host: disk full, or packages not in a bundle.

        NEEDED: owned state of each role that will run.
        """
        if needed and (reason := space.find_full(answer["space"])):
            raise AnsibleActionFail(reason + self._end())
        transport = self._connection.transport
        declared.refuse_missing_packages(self._packages, needed, answer, transport, self._end())

    def _find_consequences(
        self, owned: Plans, drift: Mapping[str, list[model.Difference]], answer: model.Answer
    ) -> list[dict[str, str]]:
        """Return what the repair of the drift disturbs on the host.

        The host is asked again only if the drift leads to a change that can disturb it.
        """
        triggers = consequences.find_triggers(owned, drift, answer)
        if not triggers or self._task.args.get("expect_no_drift"):
            return []
        return consequences.describe(triggers, ask_host.ask(self, consequences.question(triggers)))

    def _owned(self, names: list[str], variables: Vars, facts: Any) -> Plans:
        """Return the owned state of each role."""
        return {
            name: host_plans.plan(name, variables, self._template(name, variables, facts), facts)[
                "owned"
            ]
            for name in names
        }

    def _ask_facts(self, names: list[str], variables: Vars, earlier: Any) -> Any:
        """Return the facts of the host; settings may use EARLIER facts."""
        return ask_host.ask(self, {}, self._reachable_urls(names, variables, earlier))["facts"]

    def _reachable_urls(self, names: list[str], variables: Vars, facts: Any) -> list[str]:
        """Return the URLs that the host tries, because the plan of a role needs the result."""
        all_urls: list[str] = []
        # With the packages of a bundle, no vendor's repository is used.
        for name in () if self._packages else names:
            urls = getattr(role_plans.load_module(name), "reachable_urls", None)
            if urls:
                template = self._template(name, variables, facts)
                all_urls += urls(role_plans.read_options(roles.load(name), variables, template))
        return all_urls

    def _template(self, name: str, variables: Vars, facts: Any) -> role_plans.Template:
        """Return a function that evaluates variables as in the tasks of a role."""
        return role_plans.role_template(self._templar, name, variables, facts)

    def _check_input(self, names: list[str], variables: Vars, facts: Any) -> None:
        """Fail on unknown variables and wrong values before the host is asked."""
        loaded = [roles.load(name) for name in [*names, VERIFY]]
        problems = list(roles.find_unknown_variables(variables, loaded))
        checked: set[str] = set()
        for role in loaded:
            # Several roles can inherit the same option: check it once.
            unchecked = [name for name in role.options if name not in checked]
            checked.update(unchecked)
            template = self._template(role.name, variables, facts)
            values, findings = role_plans.set_options(role, unchecked, variables, template)
            role_plans.display_warnings(findings)
            problems += findings.errors
            problems += roles.check_values(role, values) if values else []
            if not problems:
                problems += accepted_faults.find_errors(values.get(accepted_faults.OPTION, ()))
        if problems:
            raise AnsibleActionFail("; ".join(dict.fromkeys(problems)) + self._end())

    def _accepted(self, variables: Vars, facts: Any) -> Sequence[accepted_faults.Entry]:
        """Return the known faults of GPUs that the owner of the host accepts."""
        role, template = roles.load(VERIFY), self._template(VERIFY, variables, facts)
        return list(role_plans.read_options(role, variables, template)[accepted_faults.OPTION])

    def _describe_images(self, owned: Plans, drift: Vars, variables: Vars, answer: Any) -> Vars:
        """Return the declared images, and what decides where they come from.

        Fail if the host lacks images, and all builders are held or its registry cannot be used.
        """
        template = self._template(image_source.ROLE, variables, answer["facts"])
        builder = image_source.read_builder(owned, drift, variables, answer, template)
        server = image_registry.check_declared(self, builder, variables, template, self._end())
        transport = self._connection.transport
        return image_source.describe(owned, variables, answer, builder, transport, server)

    def _end(self) -> str:
        """Return the end of an error; before the last survey, roles may have changed the host."""
        return "." if self._task.args.get("expect_no_drift") else ". Nothing was changed."

    def _join_groups(self, result: dict[str, Any], parents: list[str]) -> None:
        """Add the host to groups."""
        if not parents:
            return
        # A task can add a host to one group only, and that group to several parents.
        group = "_and_".join(parents)
        above = parents if len(parents) > 1 else ["all"]
        # ansible-core 2.19 and 2.20 read the group from the result, as for group_by.
        result.update(add_group=group, parent_groups=above)
        if hasattr(self, "add_group"):  # 2.21 and later
            self.add_group(group, parent_group_names=above)


def find_groups(drifted: Sequence[str], *found: object) -> list[str]:
    """Return those GROUPS of which a host has something, and one for each role with drift."""
    groups = [name for name, one in zip(GROUPS, (drifted, *found), strict=True) if one]
    return groups + [ROLE_GROUP + name for name in drifted]


def as_data(found: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the differences or conflicts of roles as plain mappings, only of roles with any."""
    return {name: [vars(one) for one in several] for name, several in found.items() if several}


def refuse_conflicts(conflicts: Mapping[str, Sequence[model.Conflict]]) -> None:
    """Fail if there are conflicts."""
    sentences = [one.reason for several in conflicts.values() for one in several]
    if sentences:
        raise AnsibleActionFail(" ".join(sentences))


def refuse_unsupported(owned: Plans, end: str) -> None:
    """Fail if a role does not support this host; END is the end of the message."""
    reasons = [
        f"{name}: {reason}"
        for name, statement in owned.items()
        for reason in statement.get("refused", ())
    ]
    if reasons:
        raise AnsibleActionFail("; ".join(reasons) + end)
    for name, statement in owned.items():
        engine.check(name, statement, kinds.ALL)


def declare(
    owned: Plans, compared: Mapping[str, model.Comparison], waiting: Collection[str]
) -> dict[str, Any]:
    """Return what the acceptance checks expect, and the roles whose changes wait."""
    expected = engine.without_conflicts(owned, compared, kinds.ALL)
    return {**host_declared.declare(expected.values()), "waiting": sorted(waiting)}


def compare_with_images(
    owned: Plans, answer: model.Answer, known: Sequence[model.Conflict]
) -> dict[str, model.Comparison]:
    """Return where the host differs; images that it cannot run are conflicts.

    CUDA releases do not count where the driver is about to change: the role ml_images compares
    again after that.
    """
    compared = engine.compare(owned, answer, kinds.ALL, known)
    driver = compared.get(DRIVER)
    differences = driver.differences if driver else []
    changes = any(one.kind in ("packages", "modules") for one in differences)
    unfit = fit.conflicts(owned.values(), answer, driver_changes=changes)
    return engine.compare(owned, answer, kinds.ALL, [*known, *unfit]) if unfit else compared


def expect_no_drift(
    drift: Mapping[str, list[model.Difference]], waiting: Collection[str] = ()
) -> None:
    """Fail if the host still differs after the roles ran; roles in WAITING may differ."""
    left = [
        f"{name}: {difference}"
        for name, differences in drift.items()
        if name not in waiting
        for difference in differences
    ]
    if left:
        raise AnsibleActionFail(
            f"the roles ran, but the host still differs: {'; '.join(left)}. Run again. If the "
            "differences remain, another program on the host changes the declared state back."
        )


def is_same_host(facts: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of facts lead to the same owned state."""
    return {**facts, "reachable": None} == {**other, "reachable": None}
