# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the survey and the tasks of a role get from variables to the plan of the role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError, AnsibleUndefinedVariable
from ansible_collections.slipway.host.plugins.plugin_utils import role_plans, roles

TEMPLATES = {"{{ team }}": "lab", "{{ people }}": [{"name": "bob"}], "{{ number }}": "42"}


def template(value: Any) -> Any:
    """Evaluate the templates above at any depth, as Ansible does."""
    if isinstance(value, str):
        return TEMPLATES.get(value, value)
    if isinstance(value, dict):
        return {template(key): template(entry) for key, entry in value.items()}
    return [template(entry) for entry in value]


def fail(_value: Any) -> Any:
    raise AssertionError("a value without a template is not evaluated")


def read(role: str, **variables: Any) -> dict[str, Any]:
    return role_plans.read_options(roles.load(role), variables, template)


def test_options_have_the_types_of_the_argument_spec() -> None:
    found = read("docker_engine", docker_engine_hold="no")
    assert found["docker_engine_hold"] is False
    assert found["docker_engine_restart"] == "idle"
    assert found["docker_engine_repository"]["channel"] == "stable"


def test_shared_options_have_the_types_of_their_own_role() -> None:
    module = SimpleNamespace(SHARED_OPTIONS=("slurm_accounting", "slurm_controller"))
    found = role_plans.read_shared_options(module, {"slurm_accounting": "false"}, template)
    assert found == {"slurm_accounting": False, "slurm_controller": None}


def test_a_nested_key_that_nobody_set_is_absent() -> None:
    found = read("user_access", user_access_users=[{"name": "alice", "uid": "1500"}])
    (user,) = found["user_access_users"]
    assert user["uid"] == 1500
    assert user["state"] == "present"
    assert "shell" not in user and "groups" not in user


def test_templates_of_the_inventory_are_evaluated() -> None:
    found = read("user_access", user_access_users="{{ people }}")
    assert [user["name"] for user in found["user_access_users"]] == ["bob"]


def test_a_value_of_the_wrong_type_is_an_error_of_the_role() -> None:
    with pytest.raises(AnsibleActionFail, match=r"^role docker_engine: .*docker_engine_hold"):
        read("docker_engine", docker_engine_hold="perhaps")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ team }}", "lab"),
        (["a", "{{ team }}"], ["a", "lab"]),
        ({"a": {"b": "{{ team }}"}}, {"a": {"b": "lab"}}),
        ({"{{ team }}": 1}, {"lab": 1}),
    ],
)
def test_a_template_at_any_depth_is_evaluated(value: Any, expected: Any) -> None:
    def evaluate(given: Any) -> Any:
        assert given == value
        return expected

    assert role_plans.evaluate("x", value, evaluate) == expected


@pytest.mark.parametrize("value", ["text", 5, 1.5, True, None, [], ["a"], {"a": [1]}, ("a",)])
def test_a_value_without_templates_is_not_evaluated(value: Any) -> None:
    assert role_plans.evaluate("x", value, fail) == value


@pytest.mark.parametrize("text", ["{{ a }}", "{% if a %}b{% endif %}", "{# remark #}"])
def test_every_kind_of_template_is_evaluated(text: str) -> None:
    assert role_plans.evaluate("x", text, lambda _value: "evaluated") == "evaluated"


def test_a_value_of_another_type_is_left_to_ansible() -> None:
    assert role_plans.evaluate("x", SimpleNamespace(), lambda _value: "decrypted") == "decrypted"


def test_an_error_names_the_variable_and_the_reason_at_its_root() -> None:
    def undefined(_value: Any) -> Any:
        try:
            raise AnsibleUndefinedVariable("'team' is undefined.")
        except AnsibleError as error:
            raise AnsibleError("Error while resolving value") from error

    with pytest.raises(AnsibleActionFail) as caught:
        role_plans.evaluate("user_access_users", "{{ team }}", undefined)
    words = "Cannot evaluate variable user_access_users: 'team' is undefined"
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("role", ["host_verify", "ml_catalogue"])
def test_a_role_without_a_plan_is_named(role: str) -> None:
    with pytest.raises(AnsibleActionFail, match=f"role {role} has no plan; expected plan"):
        role_plans.load_module(role)
    # Its processes still get all other roles.
    role_plans.preload()


class Plan:
    """Stands in for the plan of the role docker_engine; records what it gets."""

    SHARED_OPTIONS = ("nvidia_container_toolkit_state", "ml_images_present")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(role_plans, "load_module", lambda _name: self)

    def plan(self, facts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        self.facts, self.options = facts, options
        if options["docker_engine_source"] == "distribution":
            raise ValueError("no packages")
        return {"owned": {}}


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"inventory_hostname": "gpu01"}, "gpu01"),
        ({"inventory_hostname": "gpu01", "ansible_host": "10.0.0.1"}, "10.0.0.1"),
        ({"inventory_hostname": "gpu01", "ansible_host": "{{ team }}"}, "lab"),
        ({}, "localhost"),
    ],
)
def test_a_plan_gets_the_address_of_the_host(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any], address: str
) -> None:
    stand_in = Plan(monkeypatch)
    assert role_plans.plan("docker_engine", variables, template, {"kernel": "6"}) == {"owned": {}}
    folder = str(roles.load("docker_engine").path)
    own = {"address": address, "hosts": (), "groups": {}, "role_path": folder}
    own["inventory_name"] = variables.get("inventory_hostname", "localhost")
    assert stand_in.facts == {"kernel": "6", **own}
    everyone = {**variables, "groups": {"all": ["gpu01", "gpu02"]}}
    role_plans.plan("docker_engine", everyone, template, {})
    assert stand_in.facts["hosts"] == ["gpu01", "gpu02"]


@pytest.mark.parametrize("facts", [None, {}])
def test_a_plan_gets_the_options_of_other_roles_that_the_inventory_sets(
    monkeypatch: pytest.MonkeyPatch, facts: Any
) -> None:
    stand_in = Plan(monkeypatch)
    variables = {"nvidia_container_toolkit_state": "absent", "docker_engine_hold": False}
    role_plans.plan("docker_engine", variables, template, facts)
    assert stand_in.options["nvidia_container_toolkit_state"] == "absent"
    assert stand_in.options["ml_images_present"] is None
    assert stand_in.options["docker_engine_hold"] is False


def test_a_setting_that_a_plan_refuses_is_an_error_of_its_role(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Plan(monkeypatch)
    with pytest.raises(AnsibleActionFail, match=r"^role docker_engine: no packages"):
        role_plans.plan("docker_engine", {"docker_engine_source": "distribution"}, template, None)


def test_an_unknown_role_is_named_with_the_folders() -> None:
    with pytest.raises(AnsibleActionFail, match=r"role 'no_such_role' not found in /.*; expected"):
        roles.load("no_such_role")
