# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects: what an image declares of its services, and what a host adds to them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import with_defaults
from ansible_collections.slipway.host.plugins.module_utils.images.index import Planned
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_services
from ansible_collections.slipway.host.plugins.module_utils.services import gpus as services_gpus

from tests.contract.tree import ROOT
from tests.unit import gpu_facts, survey
from tests.unit.role_options import options

IMAGES = ROOT / "images"
SCHEMA = json.loads((IMAGES / "image.schema.json").read_text(encoding="utf-8"))
DIGEST = "d" * 64
TOKEN = "/etc/slipway/services/tool/secrets/token"

Plan = dict[str, Any]


def image(variant: str = "cpu", **declared: Any) -> Planned:
    """Return an image that declares services, as a host should hold it."""
    settings = with_defaults({"ports": {"api": 5000}, **declared}, SCHEMA)
    return Planned("tool", variant, f"slipway/tool:{variant}", DIGEST, None, None, {}, settings)


def serving(**service: Any) -> Planned:
    """Return an image whose one service is published and has a page."""
    service = {"publish": {"api": 5000}, "urls": {"api": "/predict"}, **service}
    return image(services={"api": service}, volumes={"work": "/work"})


PUBLISHED = serving(
    endpoint={"port": "api", "path": "/predict", "post": {"a": 1}, "expect": {"b": 2}},
    memory="256m",
    pids=128,
)
# As Jupyter: whoever has the token comes in.
CLOSED = serving(
    urls={"api": "/lab?token={token}"},
    endpoint={"port": "api", "secret": "token"},
    secrets={"token": {"path_variable": "TOKEN_FILE"}},
)


def plan(build: Planned, *declared: dict[str, Any], **host: Any) -> Plan:
    """Return the plan for projects, the first named tool, of one image."""
    names = ("tool", "second", "third")
    projects = [
        ml_services.Project({"name": name, **one}, build)
        for name, one in zip(names, declared or ({},), strict=False)
    ]
    return ml_services.assemble_projects(projects, ml_services.Host(**{"name": "gpu01", **host}))


def project(build: Planned = PUBLISHED, **declared: Any) -> Plan:
    """Return the plan of one project."""
    (found,) = plan(build, declared)["projects"]
    assert isinstance(found, dict)
    return found


def document(found: Plan) -> dict[str, Any]:
    """Return the compose file."""
    content = yaml.safe_load(found["files"][-1]["content"])
    assert isinstance(content, dict)
    return content


def compose(found: Plan) -> dict[str, Any]:
    """Return the one service of the compose file."""
    (service,) = document(found)["services"].values()
    assert isinstance(service, dict)
    return service


def error(build: Planned, *declared: dict[str, Any]) -> str:
    """Return why a plan is refused."""
    with pytest.raises(ml_services.ServiceError) as caught:
        plan(build, *declared)
    return str(caught.value)


def test_a_service_runs_what_was_proven_here_with_the_least_rights() -> None:
    service = compose(project())
    assert service["image"] == "slipway/tool:cpu"
    assert service["pull_policy"] == "never"
    assert service["user"] == "1000:1000"
    assert service["read_only"] and service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert (service["mem_limit"], service["pids_limit"]) == ("256m", 128)
    assert {"command", "environment", "healthcheck", "secrets"} & set(service) == set()


@pytest.mark.parametrize(
    ("declared", "ports", "url"),
    [
        ({}, ["127.0.0.1:5000:5000"], "http://127.0.0.1:5000/predict"),
        ({"bind_address": "0.0.0.0"}, ["0.0.0.0:5000:5000"], "http://gpu01:5000/predict"),
        ({"bind_address": "192.0.2.7"}, ["192.0.2.7:5000:5000"], "http://192.0.2.7:5000/predict"),
        ({"ports": {"api": 8080}}, ["127.0.0.1:8080:5000"], "http://127.0.0.1:8080/predict"),
        ({"ports": {"api": "8080"}}, ["127.0.0.1:8080:5000"], "http://127.0.0.1:8080/predict"),
        ({"bind_address": "::1"}, ["[::1]:5000:5000"], "http://[::1]:5000/predict"),
        ({"bind_address": "::"}, ["[::]:5000:5000"], "http://gpu01:5000/predict"),
    ],
    ids=["by default", "everywhere", "one address", "another port", "text", "IPv6", "any IPv6"],
)
def test_the_url_of_a_service_follows_its_ports(
    declared: dict[str, Any], ports: list[str], url: str
) -> None:
    found = project(**declared)
    assert compose(found)["ports"] == ports
    assert found["projects"][0]["urls"] == {"tool": url}
    assert json.loads(compose(found)["labels"]["io.slipway.urls"]) == {"api": url}


def test_a_service_that_publishes_nothing_has_no_address_and_no_proof() -> None:
    found = project(image(services={"api": {}}))
    assert "ports" not in compose(found)
    assert found["projects"][0]["urls"] == {}
    assert set(compose(found)["labels"]) == {docker_labels.CONFIG}


def test_a_service_with_several_pages_has_an_address_for_each() -> None:
    build = image(
        ports={"lab": 1, "board": 2, "ssh": 3},
        services={
            "all": {"publish": {"lab": 1, "board": 2, "ssh": 3}, "urls": {"lab": "/", "board": "/"}}
        },
    )
    assert set(project(build)["projects"][0]["urls"]) == {"tool lab", "tool board"}


def test_the_proof_stands_on_the_container() -> None:
    proof = json.loads(compose(project())["labels"][docker_labels.PROOF])
    assert proof == {"port": 5000, "path": "/predict", "post": {"a": 1}, "expect": {"b": 2}}


def test_settings_of_the_host_override_those_of_the_image() -> None:
    found = project(
        memory="1g", cpus=1.5, pids=9, shm_size="8g", environment={"B": 2, "A": True, "C": None}
    )
    service = compose(found)
    limits = [service[key] for key in ("mem_limit", "cpus", "pids_limit", "shm_size")]
    assert limits == ["1g", 1.5, 9, "8g"]
    # Compose wants text, and the order of a mapping is no difference.
    assert service["environment"] == {"A": "True", "B": "2", "C": ""}
    assert list(service["environment"]) == ["A", "B", "C"]


@pytest.mark.parametrize(
    "value", ["1e3", "0o17", "1e-3", "+.5", "0.1e5", "1", "0x1F", "0b11", "-1.", "1_000", "1E3"]
)
def test_a_text_that_yaml_1_2_takes_for_a_number_is_quoted(value: str) -> None:
    (file,) = (one for one in project(environment={"A": value})["files"] if "content" in one)
    assert f"      A: '{value}'\n" in file["content"]


@pytest.mark.parametrize("value", ["256m", "1234:1234", "a1", "1.2.3", "e3", "x"])
def test_other_texts_are_written_as_before(value: str) -> None:
    (file,) = (one for one in project(environment={"A": value})["files"] if "content" in one)
    assert yaml.safe_load(file["content"])["services"]["tool"]["environment"]["A"] == value
    assert f"      A: {value}\n" in file["content"] or value == "1234:1234"


def test_compose_replaces_nothing_in_a_value() -> None:
    assert compose(project(environment={"A": "a$b ${C}"}))["environment"] == {"A": "a$$b $${C}"}


def test_an_image_may_have_several_services() -> None:
    health = {"command": ["ask"], "interval": 7}
    build = image(
        services={
            "api": {"environment": {"A": "1"}},
            "board": {"command": ["board", "--all"], "healthcheck": health},
        }
    )
    first, second = compose(project(build)), compose(project(build, service="board"))
    assert (first["environment"], "command" in first) == ({"A": "1"}, False)
    assert second["command"] == ["board", "--all"]
    assert second["healthcheck"] == {
        "test": ["CMD", "ask"],
        "interval": "7s",
        "timeout": "5s",
        "start_period": "30s",
        "start_interval": "1s",
        "retries": 3,
    }


def test_the_survey_is_told_what_the_compose_file_says() -> None:
    found = project()
    (owned,) = found["projects"]
    config = compose(found)["labels"][docker_labels.CONFIG]
    (service,) = owned["services"]
    container = service.pop("container")
    assert service == {
        "name": "tool",
        "config": config,
        "image": DIGEST,
        "reference": "slipway/tool:cpu",
    }
    assert container["labels"] == compose(found)["labels"]
    assert container["networks"] == ["tool_default"]
    assert container["ports"] == ["127.0.0.1:5000:5000/tcp"]
    file = found["files"][-1]
    assert file["path"] == "/etc/slipway/services/tool/compose.yaml"
    assert file["content"].startswith("# Written by Slipway's role ml_services")
    assert file["mode"] == "0600"


def test_the_role_owns_what_its_projects_do_and_nothing_else_in_its_folder() -> None:
    found = plan(CLOSED, {}, {"ports": {"api": 5001}})
    owned = found["owned"]
    survey.check("ml_services", owned)
    assert owned["folders"][0] == {"path": found["folder"], "entries": ["tool", "second"]}
    assert {"path": "/etc/slipway/services/tool/secrets", "entries": ["token"]} in owned["folders"]
    assert [entry["name"] for entry in owned["projects"]] == ["tool", "second"]
    assert len(owned["secrets"]) == 2


def test_another_setting_is_another_configuration_and_the_same_is_the_same() -> None:
    def config(**declared: Any) -> str:
        return str(project(**declared)["projects"][0]["services"][0]["config"])

    assert config() == config()
    different = [
        *(config(), config(memory="1g"), config(bind_address="0.0.0.0"), config(cpus=2)),
        *(config(uid=7), config(volumes={"work": "/srv"}), config(volumes={"work": "/srv:ro"})),
    ]
    assert len(set(different)) == len(different)
    assert config(environment={"A": "1", "B": "2"}) == config(environment={"B": "2", "A": "1"})


# Data


@pytest.mark.parametrize(
    ("declared", "user"),
    [
        ({}, "1000:1000"),
        ({"uid": 1234}, "1234:1234"),
        ({"uid": 1234, "gid": 50}, "1234:50"),
        ({"gid": 50}, "1000:50"),
    ],
)
def test_a_service_runs_as_the_declared_user(declared: dict[str, Any], user: str) -> None:
    assert compose(project(**declared))["user"] == user


def test_volumes_of_an_image_outlive_the_project() -> None:
    found = project()
    assert compose(found)["volumes"] == [
        {"type": "volume", "source": "tool_work", "target": "/work"}
    ]
    assert found["volumes"] == ["tool_work"]
    # So that compose neither makes nor removes it.
    assert document(found)["volumes"] == {"tool_work": {"external": True}}


NOTES = {"path": "/srv/notes", "owner": "7", "group": "8", "is_volume": True}


@pytest.mark.parametrize(
    ("volumes", "mounted", "made"),
    [
        (
            {"work": "/srv/notes"},
            {"type": "bind", "source": "/srv/notes", "target": "/work"},
            {**NOTES, "read_only": False},
        ),
        (
            {"work": "/srv/notes:ro"},
            {"type": "bind", "source": "/srv/notes", "target": "/work", "read_only": True},
            {**NOTES, "read_only": True},
        ),
        (
            {"work": "other_work:ro"},
            {"type": "volume", "source": "other_work", "target": "/work", "read_only": True},
            None,
        ),
    ],
)
def test_a_volume_may_be_a_folder_of_the_host_or_another_one(
    volumes: dict[str, str], mounted: dict[str, Any], made: dict[str, Any] | None
) -> None:
    found = project(volumes=volumes, uid=7, gid=8)
    assert compose(found)["volumes"] == [mounted]
    assert found["mounts"] == ([made] if made else [])


def test_a_folder_that_another_project_reads_is_made_for_the_one_that_writes() -> None:
    reader = {"volumes": {"work": "/srv/x:ro"}, "ports": {"api": 1}, "uid": 8}
    writer = {"volumes": {"work": "/srv/x"}, "uid": 7}
    found = plan(PUBLISHED, reader, writer)
    mount = {"path": "/srv/x", "owner": "7", "group": "7", "read_only": False, "is_volume": True}
    assert found["owned"]["mounts"] == [mount, mount]
    first = compose(found["projects"][0])
    assert first["volumes"][0]["read_only"]


def test_a_folder_may_be_mounted_where_the_image_has_no_volume() -> None:
    found = project(volumes={"/data": "/srv/d:ro"})
    assert [one["target"] for one in compose(found)["volumes"]] == ["/work", "/data"]
    # It may be a file.
    assert [one["is_volume"] for one in found["mounts"]] == [False]


# Secrets


def test_a_secret_is_a_file_and_nowhere_its_content() -> None:
    found = project(CLOSED)
    service = compose(found)
    assert service["secrets"] == ["token"]
    assert document(found)["secrets"] == {"token": {"file": TOKEN}}
    assert service["environment"] == {"TOKEN_FILE": "/run/secrets/token"}
    assert found["secrets"] == [{"path": TOKEN, "owner": "1000", "group": "1000"}]
    assert found["files"][0] == {
        "path": "/etc/slipway/services/tool/secrets", "state": "directory", "mode": "0700"
    }  # fmt: skip
    # A container that has an older one is made anew.
    assert found["projects"][0]["since"] == [TOKEN]


def test_people_are_told_where_the_token_is() -> None:
    found = project(CLOSED)
    assert found["projects"][0]["urls"] == {"tool": f"http://127.0.0.1:5000/lab (token: {TOKEN})"}
    labels = compose(found)["labels"]
    assert labels["io.slipway.token"] == TOKEN
    assert json.loads(labels[docker_labels.PROOF])["secret"] == TOKEN


def test_an_address_may_ask_something_else() -> None:
    found = project(serving(urls={"api": "/?page=1"}))
    assert found["projects"][0]["urls"] == {"tool": "http://127.0.0.1:5000/?page=1"}


def test_a_secret_may_be_given() -> None:
    given = [{"name": "token", "content": "from the vault"}]
    found = project(CLOSED, secrets=given, uid=7)
    assert found["secrets"] == [
        {"path": TOKEN, "owner": "7", "group": "7", "content": "from the vault"}
    ]
    assert "vault" not in found["files"][-1]["content"]
    found = project(CLOSED, secrets=[{"name": "token", "file": "/root/token"}])
    assert found["secrets"][0]["source"] == "/root/token"


def test_a_host_may_add_secrets() -> None:
    added = {"name": "hub", "file": "/root/hub", "path_variable": "HUB_TOKEN_FILE"}
    found = project(CLOSED, secrets=[added])
    assert compose(found)["secrets"] == ["token", "hub"]
    assert compose(found)["environment"]["HUB_TOKEN_FILE"] == "/run/secrets/hub"


KEYS = {"path_variable": "KEYS_FILE"}


def test_a_secret_that_is_not_given_may_be_left_out() -> None:
    build = serving(secrets={"keys": {**KEYS, "otherwise": "omitted"}})
    assert "secrets" not in compose(project(build))
    given = project(build, secrets=[{"name": "keys", "content": "ssh-ed25519 AAAA"}])
    assert compose(given)["secrets"] == ["keys"]


# What cannot be


NEEDY = serving(secrets={"keys": {**KEYS, "otherwise": "refused"}})


@pytest.mark.parametrize(
    ("build", "declared", "problem"),
    [
        (image(), {}, "image tool declares no service"),
        (PUBLISHED, {"ports": {"web": 80}}, "no port 'web'; expected one of: api"),
        (image(ports={}, services={"a": {}}), {"ports": {"web": 80}}, "expected one of: none"),
        (
            PUBLISHED,
            {"service": "apj"},
            "no service 'apj'; expected one of: api. Did you mean 'api'?",
        ),
        (
            PUBLISHED,
            {"volumes": {"wrk": "/srv"}},
            "no volume 'wrk'; expected one of: work. Did you mean 'work'?",
        ),
        (
            PUBLISHED,
            {"volumes": {"work": "srv/notes"}},
            "volumes.work: 'srv/notes'; expected an absolute path or the name",
        ),
        (PUBLISHED, {"volumes": {"work": "/srv:rw"}}, "with :ro at the end"),
        (PUBLISHED, {"ports": {"api": "web"}}, "ports.api: 'web'; expected a number from 1 to"),
        (PUBLISHED, {"ports": {"api": 70000}}, "ports.api: 70000; expected a number from 1 to"),
        (
            PUBLISHED,
            {"bind_address": "everywhere"},
            "bind_address: 'everywhere'; expected an address",
        ),
        (PUBLISHED, {"memory": "lots"}, "memory: 'lots'; expected a size such as 8g"),
        (PUBLISHED, {"shm_size": "8 GB"}, "shm_size: '8 GB'; expected a size such as 8g"),
        (PUBLISHED, {"environment": {"A B": "x"}}, "environment: name 'A B'; expected letters"),
        (
            PUBLISHED,
            {"environment": {"A": {"b": "s3cret"}}},
            "environment.A: not text and not a number",
        ),
        (PUBLISHED, {"uid": 0}, "uid: 0; expected another uid than root's"),
        (PUBLISHED, {"uid": "0"}, "uid: 0; expected another uid than root's"),
        (PUBLISHED, {"uid": 3000000000}, "uid: 3000000000; expected at most 2147483647"),
        (PUBLISHED, {"uid": -1}, "uid: -1; expected at most 2147483647"),
        (PUBLISHED, {"gid": 2**31}, "gid: 2147483648; expected at most 2147483647"),
        (PUBLISHED, {"memory": "1m"}, "memory: '1m'; expected at least 6m"),
        (PUBLISHED, {"memory": "6000k"}, "memory: '6000k'; expected at least 6m"),
        (PUBLISHED, {"cpus": 0.001}, "cpus: 0.001; expected at least 0.01"),
        (
            PUBLISHED,
            {"environment": {"A": "s3\0cret"}},
            "environment.A: contains the character NUL",
        ),
        (PUBLISHED, {"ports": {"api": 70000}}, "ports.api: 70000; expected a number from 1"),
        (PUBLISHED, {"ports": {"api": 0}}, "expected a number from 1"),
        (PUBLISHED, {"ports": {"api": None}}, "ports.api: None; expected a number"),
        (PUBLISHED, {"bind_address": "eth0"}, "bind_address: 'eth0'; expected an address"),
        (PUBLISHED, {"memory": "a lot"}, "memory: 'a lot'; expected a size"),
        (PUBLISHED, {"name": "My Tool"}, "expected lower-case letters"),
        (PUBLISHED, {"name": "n" * 201}, "a name of 201 characters; expected at most 200"),
        (PUBLISHED, {"name": "../../root"}, "expected lower-case letters"),
        (NEEDY, {}, "secret keys is missing; expected"),
        (CLOSED, {"secrets": [{"name": "tokn", "content": "x"}]}, "Did you mean 'token'?"),
        (CLOSED, {"secrets": [{"name": "token"}]}, "expected either content or file"),
        (
            CLOSED,
            {"secrets": [{"name": "../x", "content": "x", "path_variable": "X"}]},
            "expected lower-case letters",
        ),
        (CLOSED, {"secrets": [{"name": "token", "content": "x", "file": "/y"}]}, "either"),
        (
            CLOSED,
            {"secrets": [{"name": "token", "content": " "}]},
            "secret token: empty; expected content",
        ),
    ],
)
def test_impossible_projects_are_refused(
    build: Planned, declared: dict[str, Any], problem: str
) -> None:
    assert problem in error(build, declared)


def test_mistakes_of_all_services_are_reported_at_once() -> None:
    message = error(PUBLISHED, {"uid": 3000000000}, {}, {"memory": "1m"})
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "service tool",
        "service third",
    ]


@pytest.mark.parametrize(
    "declared",
    [
        {"memory": "6m"},
        {"memory": "0"},
        {"uid": 2**31 - 1},
        {"cpus": 0.01},
        {"gid": 0},
        {"name": "n" * 200},
    ],
)
def test_the_limits_of_docker_themselves_are_accepted(declared: dict[str, Any]) -> None:
    assert compose(project(**declared))


def test_a_refusal_never_tells_a_secret() -> None:
    assert "cret" not in error(PUBLISHED, {"environment": {"A": "s3\0cret"}})
    assert "s3cret" not in error(CLOSED, {"secrets": [{"name": "x", "content": "s3cret"}]})


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ({}, {}, True),
        ({}, {"ports": {"api": 5001}}, False),
        ({"bind_address": "192.0.2.1"}, {"bind_address": "192.0.2.2"}, False),
        ({"bind_address": "192.0.2.1"}, {"bind_address": "0.0.0.0"}, True),
        ({"bind_address": "::"}, {}, True),
    ],
)
def test_a_port_of_the_host_is_one_projects(
    first: dict[str, Any], second: dict[str, Any], clash: bool
) -> None:
    if clash:
        assert "service second: port 5000" in error(PUBLISHED, first, second)
    else:
        assert len(plan(PUBLISHED, first, second)["projects"]) == 2


def test_two_projects_of_one_name_are_refused() -> None:
    assert "duplicate name" in error(PUBLISHED, {}, {"name": "tool", "ports": {"api": 1}})


# GPUs


def gpus(*declared: Any, variant: str = "gpu", **host: Any) -> list[str]:
    """Return the GPUs of projects, as their labels say."""
    build = image(variant, services={"api": {}})
    found = plan(
        build, *({"gpus": one} for one in declared), gpus=services_gpus.Gpus(**{"count": 4, **host})
    )
    return [compose(one)["labels"].get("io.slipway.gpus", "") for one in found["projects"]]


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (["all"], ["0,1,2,3"]),
        ([[1, 3]], ["1,3"]),
        ([["0:1"]], ["0:1"]),
        ([2], ["0,1"]),
        (["2"], ["0,1"]),
        ([1, [0], 2], ["1", "0", "2,3"]),
        ([1, ["0:1"]], ["1", "0:1"]),
        ([["0:0"], ["0:1"]], ["0:0", "0:1"]),
        ([None, "none", 0], ["", "", ""]),
    ],
)
def test_which_gpus_a_project_has(declared: list[Any], found: list[str]) -> None:
    assert gpus(*declared) == found


def test_without_gpus_all_is_none() -> None:
    assert gpus("all", count=0) == [""]
    assert gpus("all", variant="cpu", count=0) == [""]


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (["al"], "gpus: 'al'; expected all, none, a number"),
        ([True], "expected all, none, a number"),
        ([-1], "expected all, none, a number"),
        ([[4]], "gpus: GPU 4 does not exist; expected one of: 0, 1, 2, 3."),
        ([["x"]], "GPU x does not exist"),
        ([5], "service tool: gpus: 5 requested, 4 of this host's 4 GPUs are free"),
        (["all", 1], "service second: gpus: 1 requested, 0 of this host's 4 GPUs are free"),
        ([[0, 1], [1, 2]], "services tool and second: both reserve GPU 1"),
        ([[0], ["0:1"]], "services tool and second: both reserve GPU 0:1"),
        (["all", "all"], "ml_services_share_gpus"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(declared: list[Any], problem: str) -> None:
    with pytest.raises(services_gpus.GpuError, match=problem):
        gpus(*declared)


def test_an_image_without_a_build_for_gpus_gets_none() -> None:
    for wanted in (1, [0]):
        with pytest.raises(services_gpus.GpuError, match="no gpu build"):
            gpus(wanted, variant="cpu")


def test_projects_share_gpus_where_the_host_says_so() -> None:
    assert gpus("all", [0], shared=True) == ["0,1,2,3", "0"]
    # What the fewest have comes first.
    assert gpus([0, 1, 2], [0], 2, shared=True) == ["0,1,2", "0", "1,3"]


@pytest.mark.parametrize(
    ("cdi", "device"),
    [
        (True, {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]}),
        (False, {"driver": "nvidia", "device_ids": ["0", "2"]}),
    ],
)
def test_how_compose_is_told_of_gpus(cdi: bool, device: dict[str, Any]) -> None:
    build = image("gpu", services={"api": {}})
    (found,) = plan(build, {"gpus": [0, 2]}, gpus=services_gpus.Gpus(4, cdi=cdi))["projects"]
    reserved = compose(found)["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{**device, "capabilities": ["gpu"]}]


# The whole plan, with the project's own catalogue.


def filtered(
    *projects: dict[str, Any], args: Any = None, model: str = "none", **changes: Any
) -> list[Plan]:
    asked = options("ml_services", instances=list(projects), **changes)
    asked["ml_catalogue_build_args"] = args or {}
    facts = {**gpu_facts.facts(model), "address": "gpu01"}
    found = ml_services.plan(facts, asked)["projects"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("images", "names"),
    [(["iris-api"], ["iris-api"]), (["ml-python", "iris-api"], ["iris-api"]), (["ml-python"], [])],
)
def test_iris_api_is_the_default_service_of_a_host_with_its_image(
    images: list[str], names: list[str]
) -> None:
    asked = options("ml_services", instances=None) | {"ml_images_present": images}
    found = ml_services.plan(gpu_facts.facts("none"), asked)
    assert [project["name"] for project in found["projects"]] == names
    assert found["owned"]["folders"][0]["entries"] == names
    assert [project["urls"] for project in found["owned"]["projects"]] == [
        {"iris-api": "http://127.0.0.1:5000/predict"} for _ in names
    ]
    assert [project["ports"] for project in found["projects"]] == [
        ["127.0.0.1:5000"] for _ in names
    ]


def test_the_image_is_named_like_the_project_unless_it_is_given() -> None:
    named, by_image = filtered(
        {"name": "iris-api"},
        {"name": "second", "image": "iris-api", "ports": {"api": 5001}},
        bind_address="0.0.0.0",
    )
    assert named["projects"][0]["urls"] == {"iris-api": "http://gpu01:5000/predict"}
    assert by_image["projects"][0]["urls"] == {"second": "http://gpu01:5001/predict"}
    assert compose(named)["image"] == compose(by_image)["image"]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "irisapi"}, "irisapi"),
        ({"name": "iris-api", "ports": {"web": 1}}, "no port .web"),
        ({"name": "iris-api", "gpus": 1}, "no gpu build"),
    ],
)
def test_an_impossible_project_is_refused(entry: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        filtered(entry)


@pytest.mark.parametrize(
    ("engine", "driver"),
    [("", "cdi"), ("26.1.5+dfsg1-9", "cdi"), ("5:29.0.1-1", "cdi"), ("24.0.7-0", "nvidia")],
)
def test_the_engine_decides_how_gpus_are_handed_out(engine: str, driver: str) -> None:
    facts = gpu_facts.facts("8xh100", docker_version=engine)
    project = {"name": "lab", "image": "jupyter", "gpus": [7]}
    found = ml_services.plan(facts, options("ml_services", instances=[project]))
    (device,) = compose(found["projects"][0])["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == driver


def test_rstudio_is_only_where_the_image_is_built_with_it() -> None:
    project = {"name": "rstudio", "image": "deepdocker", "service": "rstudio"}
    with pytest.raises(
        ml_services.ServiceError, match="expected a value in ml_catalogue_build_args"
    ):
        filtered(project)
    args = {"deepdocker": {"RSTUDIO_URL": "https://mirror.example/r.deb", "RSTUDIO_SHA256": "0"}}
    assert compose(filtered(project, args=args)[0])["command"] == ["run_all.sh", "rstudio"]


def declared_services() -> list[tuple[str, str]]:
    found = []
    for file in sorted(IMAGES.glob("*/image.yml")):
        for service in yaml.safe_load(file.read_text(encoding="utf-8")).get("services", {}):
            found.append((file.parent.name, service))
    return found


@pytest.mark.parametrize(("image", "service"), declared_services())
def test_every_service_of_the_catalogue_can_be_a_project(image: str, service: str) -> None:
    keys = [{"name": "authorized_keys", "content": "ssh-ed25519 AAAA alice"}]
    project = {"name": "one", "image": image, "service": service}
    if service == "ssh":
        project["secrets"] = keys  # type: ignore[assignment]
    args = {"deepdocker": {"RSTUDIO_URL": "https://mirror.example/r.deb", "RSTUDIO_SHA256": "0"}}
    # The service of vllm needs a GPU.
    made = compose(filtered(project, args=args, model="t4")[0])
    # Otherwise a service of an image that others stand on would run what those run.
    assert made.get("command") or image in ("iris-api", "tensorboard")
    assert made["ports"]


@pytest.mark.parametrize("image", ["pytorch", "tensorflow", "fastai", "keras", "ml-python"])
def test_images_inherit_the_services_of_what_they_stand_on(image: str) -> None:
    (lab,) = filtered({"name": "lab", "image": image})
    assert compose(lab)["command"] == ["start-notebook.py"]


# The compose file for people.

PEOPLE = yaml.safe_load((IMAGES / "compose.yaml").read_text(encoding="utf-8"))
OF_THE_CATALOGUE = {
    "jupyter": ("ml-python", "jupyter"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "iris-api": ("iris-api", "api"),
    "shiny": ("deepdocker", "shiny"),
    "rstudio": ("deepdocker", "rstudio"),
}


@pytest.mark.parametrize("name", PEOPLE["services"])
def test_the_compose_file_for_people_starts_services_as_the_role_does(name: str) -> None:
    image, service = OF_THE_CATALOGUE[name]
    args = {"deepdocker": {"RSTUDIO_URL": "https://mirror.example/r.deb", "RSTUDIO_SHA256": "0"}}
    project = {"name": name, "image": image, "service": service}
    ours = compose(filtered(project, args=args)[0])
    theirs = PEOPLE["services"][name]
    assert image in theirs["image"]
    same = ("command", "ports", "pull_policy", "read_only", "init", "cap_drop", "security_opt")
    limits = ("restart", "mem_limit", "pids_limit", "shm_size")
    for key in (*same, *limits):
        assert theirs.get(key) == ours.get(key), key
    assert set(theirs.get("environment", {})) == set(ours.get("environment", {}))
    assert len(theirs.get("secrets", ())) == len(ours.get("secrets", ()))
