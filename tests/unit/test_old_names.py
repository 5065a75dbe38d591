# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Old names of options: accepted with a warning, refused beside the new name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.slipway.host.plugins.plugin_utils import old_names, role_plans, roles

UNTIL = f"is accepted until version {old_names.ACCEPTED_UNTIL}."

# Each renamed option with the old form, the new form and the start of the warning.
RENAMED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "ml_services",
        {"ml_services_projects": [{"name": "a"}]},
        {"ml_services_instances": [{"name": "a"}]},
        "ml_services_projects is now named ml_services_instances.",
    ),
    (
        "ml_services",
        {"ml_services_publish": "0.0.0.0"},
        {"ml_services_bind_address": "0.0.0.0"},
        "ml_services_publish is now named ml_services_bind_address.",
    ),
    (
        "ml_services",
        {"ml_services_instances": [{"name": "a", "publish": "::1"}]},
        {"ml_services_instances": [{"name": "a", "bind_address": "::1"}]},
        "ml_services_instances[].publish is now named bind_address.",
    ),
    (
        "ml_services",
        {"ml_services_instances": [{"name": "a", "secrets": [{"name": "b", "variable": "C"}]}]},
        {
            "ml_services_instances": [
                {"name": "a", "secrets": [{"name": "b", "path_variable": "C"}]}
            ]
        },
        "ml_services_instances[].secrets[].variable is now named path_variable.",
    ),
    (
        "ml_services",
        {"ml_catalogue_args": {"a": {"B": "c"}}},
        {"ml_catalogue_build_args": {"a": {"B": "c"}}},
        "ml_catalogue_args is now named ml_catalogue_build_args.",
    ),
    (
        "ml_images",
        {"ml_images_names": ["a"]},
        {"ml_images_present": ["a"]},
        "ml_images_names is now named ml_images_present.",
    ),
    (
        "docker_engine",
        {"docker_engine_nvidia": False},
        {"docker_engine_gpu_access": False},
        "docker_engine_nvidia is now named docker_engine_gpu_access.",
    ),
    (
        "nvidia_driver",
        {"nvidia_driver_version_gone": "newest"},
        {"nvidia_driver_version_fallback": "newest"},
        "nvidia_driver_version_gone is now named nvidia_driver_version_fallback.",
    ),
    (
        "nvidia_driver",
        {"nvidia_driver_version_gone": "fail"},
        {"nvidia_driver_version_fallback": "none"},
        "nvidia_driver_version_gone: fail is now named nvidia_driver_version_fallback: none.",
    ),
    (
        "user_access",
        {"user_access_shared": [{"group": "lab"}]},
        {"user_access_shared_folders": [{"group": "lab"}]},
        "user_access_shared is now named user_access_shared_folders.",
    ),
    (
        "user_access",
        {"user_access_limits": [{"who": "*", "nofile": 4096}]},
        {"user_access_limits": [{"applies_to": "*", "nofile": 4096}]},
        "user_access_limits[].who is now named applies_to.",
    ),
]


def as_is(value: Any) -> Any:
    return value


def set_options(role: str, variables: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    loaded = roles.load(role)
    return role_plans.set_options(loaded, loaded.options, variables, as_is)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    displayed: list[str] = []
    monkeypatch.setattr(role_plans.display, "warning", displayed.append)
    return displayed


@pytest.mark.parametrize(("role", "old", "new", "warning"), RENAMED)
def test_an_old_name_means_the_new_one(
    role: str, old: dict[str, Any], new: dict[str, Any], warning: str
) -> None:
    values, findings = set_options(role, old)
    assert values == new and not findings.errors
    (sentence,) = set(findings.warnings)
    assert sentence.startswith(warning) and sentence.endswith(UNTIL)
    values, findings = set_options(role, new)
    assert values == new and findings == old_names.Findings()


@pytest.mark.parametrize(("role", "old", "new", "warning"), RENAMED)
def test_a_plan_gets_the_same_options_by_either_name(
    role: str, old: dict[str, Any], new: dict[str, Any], warning: str, warnings: list[str]
) -> None:
    loaded = roles.load(role)
    read = role_plans.read_options(loaded, new, as_is)
    assert not warnings
    assert role_plans.read_options(loaded, old, as_is) == read
    assert len(warnings) == 1 and warnings[0].startswith(warning)
    # The tasks of a role also have its defaults.
    assert role_plans.read_options(loaded, {**loaded.defaults, **old}, as_is) == read


@pytest.mark.parametrize(("role", "old", "new", "warning"), RENAMED)
def test_ansibles_own_validation_accepts_an_old_name(
    role: str, old: dict[str, Any], new: dict[str, Any], warning: str
) -> None:
    # As the action validate_argument_spec does: it reads the variables that the spec names.
    spec = roles.load(role).options
    values = {name: value for name, value in old.items() if name in spec}
    assert ArgumentSpecValidator(spec).validate(values).error_messages == []


@pytest.mark.parametrize(("role", "old", "new", "warning"), RENAMED)
def test_an_old_name_is_not_misspelt(
    role: str, old: dict[str, Any], new: dict[str, Any], warning: str
) -> None:
    assert list(roles.find_unknown_variables(old, [roles.load(role)])) == []


@pytest.mark.parametrize(
    ("role", "variables", "error"),
    [
        (
            "ml_services",
            {"ml_services_publish": "::1", "ml_services_bind_address": "127.0.0.1"},
            "ml_services_publish and ml_services_bind_address are both set; expected only "
            "ml_services_bind_address. Remove ml_services_publish",
        ),
        (
            "ml_services",
            {"ml_services_instances": [{"name": "a", "publish": "::1", "bind_address": "::1"}]},
            "ml_services_instances[]: publish and bind_address are both set; expected only "
            "bind_address. Remove publish",
        ),
        (
            "user_access",
            {"user_access_limits": [{"who": "*", "applies_to": "*"}]},
            "user_access_limits[]: who and applies_to are both set",
        ),
        (
            "nvidia_driver",
            {"nvidia_driver_version_gone": "fail", "nvidia_driver_version_fallback": "newest"},
            "nvidia_driver_version_gone and nvidia_driver_version_fallback are both set",
        ),
    ],
)
def test_both_names_stop_the_run(role: str, variables: dict[str, Any], error: str) -> None:
    _values, findings = set_options(role, variables)
    assert findings.errors[0].startswith(error)
    with pytest.raises(AnsibleActionFail) as raised:
        role_plans.read_options(roles.load(role), variables, as_is)
    assert str(raised.value).startswith(error)
    # A role asks for its plan between changes.
    assert "Nothing was changed" not in str(raised.value)


def test_both_names_stop_a_role_that_runs_without_the_survey() -> None:
    variables = {
        **roles.load("ml_services").defaults,
        "ml_services_publish": "::1",
        "ml_services_bind_address": "0.0.0.0",
    }
    _values, findings = set_options("ml_services", variables)
    assert len(findings.errors) == 1


def test_an_old_name_without_a_value_is_not_set() -> None:
    variables = {"ml_images_names": None, "ml_images_present": ["a"]}
    values, findings = set_options("ml_images", variables)
    assert values == {"ml_images_present": ["a"]} and findings == old_names.Findings()


def test_a_warning_about_two_entries_is_one_sentence(warnings: list[str]) -> None:
    limits = [{"who": "a", "nofile": 4096}, {"who": "b", "nofile": 4096}]
    role_plans.read_options(roles.load("user_access"), {"user_access_limits": limits}, as_is)
    assert len(warnings) == 1


def test_the_old_name_is_evaluated() -> None:
    variables = {"ml_services_publish": "{{ address }}"}
    role = roles.load("ml_services")
    options = role_plans.read_options(role, variables, lambda value: "::1")
    assert options["ml_services_bind_address"] == "::1"


@pytest.mark.parametrize("name", ["ml_images_present", "ml_images_names"])
def test_an_option_that_another_role_reads_has_both_names(name: str, warnings: list[str]) -> None:
    facts = {"distribution": "Ubuntu", "gpu": {}}
    variables = {name: ["jupyter"], "ml_catalogue_folder": str(Path.cwd() / "images")}
    owned = role_plans.plan("ml_aliases", variables, as_is, facts)["owned"]
    assert owned["links"][0]["names"] == ["ml", "notebook"]
    assert len(warnings) == (name == "ml_images_names")


def test_a_misspelt_old_name_is_answered_with_the_new_one() -> None:
    (sentence,) = roles.find_unknown_variables(["ml_services_projcts"], [roles.load("ml_services")])
    assert sentence.endswith("did you mean ml_services_instances")


def test_renamed_values_belong_to_declared_old_names() -> None:
    names: dict[str, str] = {}
    for role in roles.all_names():
        names |= old_names.new_names(roles.load(role).options)
    for name, values in old_names.RENAMED_VALUES.items():
        choices = roles.load(roles.owner(name)).options[names[name]]["choices"]
        assert set(values.values()) <= set(choices) and not set(values) & set(choices)
