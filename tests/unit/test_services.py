# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects: what an image declares of its service, and what a host adds to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.slipway.host.plugins.filter.services_plan import services_plan
from ansible_collections.slipway.host.plugins.module_utils import _owned, _services
from ansible_collections.slipway.host.plugins.module_utils._image_index import Planned

from tests.contract.tree import ROOT

DIGEST = "d" * 64


def image(ports: dict[str, int] | None = None, **service: Any) -> Planned:
    """Return an image that declares a service, as a host should hold it."""
    declared = {"ports": {"api": 5000} if ports is None else ports, "service": service}
    return Planned("tool", "cpu", "slipway/tool:cpu", DIGEST, declared)


PUBLISHED = image(
    publish={"api": 5000},
    endpoint={"port": "api", "path": "/predict", "post": {"a": 1}, "expect": {"b": 2}},
    memory="256m",
    pids=128,
)


def project(declared: dict[str, Any] | None = None, build: Planned = PUBLISHED) -> dict[str, Any]:
    return _services.project({"name": "tool", **(declared or {})}, build, "127.0.0.1", "gpu01")


def compose(found: dict[str, Any]) -> dict[str, Any]:
    """Return the one service of the compose file."""
    content = yaml.safe_load(found["file"]["content"])
    (service,) = content["services"].values()
    assert isinstance(service, dict)
    return service


def test_a_service_runs_what_was_proven_here_with_the_least_rights() -> None:
    service = compose(project())
    assert service["image"] == "slipway/tool:cpu"
    assert service["pull_policy"] == "never"
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert (service["mem_limit"], service["pids_limit"]) == ("256m", 128)


@pytest.mark.parametrize(
    ("declared", "ports", "url"),
    [
        ({}, ["127.0.0.1:5000:5000"], "http://127.0.0.1:5000/predict"),
        ({"publish": "0.0.0.0"}, ["0.0.0.0:5000:5000"], "http://gpu01:5000/predict"),
        ({"publish": "192.0.2.7"}, ["192.0.2.7:5000:5000"], "http://192.0.2.7:5000/predict"),
        ({"ports": {"api": 8080}}, ["127.0.0.1:8080:5000"], "http://127.0.0.1:8080/predict"),
    ],
    ids=["by default", "everywhere", "one address", "another port"],
)
def test_where_a_service_is_found(declared: dict[str, Any], ports: list[str], url: str) -> None:
    found = project(declared)
    assert compose(found)["ports"] == ports
    assert found["project"]["url"] == url


def test_a_service_that_publishes_nothing_has_no_address() -> None:
    found = project(build=image(endpoint={"port": "api"}))
    assert "ports" not in compose(found)
    assert found["project"]["url"] is None


def test_a_service_without_an_endpoint_has_no_address_and_no_proof() -> None:
    found = project(build=image(publish={"api": 5000}))
    assert found["project"]["url"] is None
    assert set(compose(found)["labels"]) == {_owned.LABEL_CONFIG}


def test_the_proof_stands_on_the_container() -> None:
    proof = json.loads(compose(project())["labels"][_owned.LABEL_PROOF])
    assert proof == {"port": 5000, "path": "/predict", "post": {"a": 1}, "expect": {"b": 2}}


def test_what_the_host_says_goes_before_what_the_image_says() -> None:
    service = compose(
        project({"memory": "1g", "cpus": 1.5, "environment": {"B": 2, "A": True, "C": "x"}})
    )
    assert (service["mem_limit"], service["cpus"]) == ("1g", 1.5)
    # Compose wants text, and the order of a mapping is no difference.
    assert service["environment"] == {"A": "True", "B": "2", "C": "x"}
    assert list(service["environment"]) == ["A", "B", "C"]


def test_the_survey_is_told_what_the_compose_file_says() -> None:
    found = project()
    assert found["project"]["services"] == [
        {"name": "tool", "config": compose(found)["labels"][_owned.LABEL_CONFIG], "image": DIGEST}
    ]
    assert found["file"]["path"] == "/etc/slipway/services/tool/compose.yaml"
    assert found["file"]["content"].startswith("# Written by Slipway's role ml_services")


def test_another_setting_is_another_configuration_and_the_same_is_the_same() -> None:
    def config(**declared: Any) -> str:
        return str(project(declared)["project"]["services"][0]["config"])

    assert config() == config()
    different = [config(), config(memory="1g"), config(publish="0.0.0.0"), config(cpus=2)]
    assert len(set(different)) == len(different)
    assert config(environment={"A": "1", "B": "2"}) == config(environment={"B": "2", "A": "1"})


@pytest.mark.parametrize(
    ("declared", "build", "problem"),
    [
        ({}, Planned("tool", "cpu", "r", DIGEST, {}), "image tool declares no service"),
        ({"ports": {"web": 80}}, PUBLISHED, "image tool has no port named web; it has api"),
        ({"ports": {"web": 80}}, image(ports={}), "it has none"),
    ],
)
def test_what_an_image_does_not_have_is_refused(
    declared: dict[str, Any], build: Planned, problem: str
) -> None:
    if not build.image.get("service") and "service" in build.image:
        build.image["service"]["restart"] = "always"
    with pytest.raises(_services.ServiceError, match=problem):
        project(declared, build)


# The filter, with the project's own catalogue.


def test_the_filter_takes_the_image_of_the_projects_name() -> None:
    folder = str(ROOT / "images")
    named, by_image = services_plan(
        [{"name": "iris-api"}, {"name": "second", "image": "iris-api", "ports": {"api": 5001}}],
        folder,
        "cpu",
        "debian-13",
        publish="0.0.0.0",
        host="gpu01",
    )["projects"]
    assert named["project"]["url"] == "http://gpu01:5000/predict"
    assert by_image["project"]["url"] == "http://gpu01:5001/predict"
    assert compose(named)["image"] == compose(by_image)["image"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [({"name": "irisapi"}, "irisapi"), ({"name": "iris-api", "ports": {"web": 1}}, "port named")],
)
def test_the_filter_says_what_is_wrong(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(AnsibleFilterError, match=problem):
        services_plan([entry], str(ROOT / "images"), "cpu", "debian-13")
