# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the engine comes from, and the owned state that follows."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.lookup.role_plan import without_needs
from ansible_collections.slipway.host.plugins.module_utils.roles import docker_engine
from ansible_collections.slipway.host.plugins.modules import files, held_packages, units

from tests.unit import survey
from tests.unit.role_options import options

KEY = "https://download.docker.com/linux/debian/gpg"
REPOSITORY = {
    "url": "https://download.docker.com/linux/{distribution}",
    "key_url": "https://download.docker.com/linux/{distribution}/gpg",
    "fingerprint": "9DC858229FC7DD38854AE2D88D81803C0EBFCD88",
    "channel": "stable",
}


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "distribution": "Debian",
        "distribution_major_version": "13",
        "distribution_release": "trixie",
        "docker_package": "",
        "docker_snap": False,
        "systemd": True,
        "reachable": {},
        **changes,
    }


def plan(known: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "source": "auto",
        "repository": REPOSITORY,
        "hold": True,
        "settings": {"log-driver": "local"},
        "gpu_access": False,
        "state": "present",
        **changes,
    }
    return docker_engine.plan(known or facts(), options("docker_engine", **asked))


@pytest.mark.parametrize(
    ("wanted", "known", "source"),
    [
        ("auto", {}, "distribution"),
        ("auto", {"reachable": {KEY: True}}, "docker"),
        ("auto", {"reachable": {KEY: False}}, "distribution"),
        # What is installed stays, whatever can be reached.
        ("auto", {"docker_package": "docker.io", "reachable": {KEY: True}}, "distribution"),
        ("auto", {"docker_package": "docker-ce"}, "docker"),
        ("docker", {"docker_package": "docker.io"}, "docker"),
        ("distribution", {"reachable": {KEY: True}}, "distribution"),
    ],
)
def test_the_source_of_the_engine_is_chosen(
    wanted: str, known: dict[str, Any], source: str
) -> None:
    assert plan(facts(**known), source=wanted)["source"] == source


def test_the_vendors_engine_brings_its_repository_and_key() -> None:
    found = plan(source="docker")
    owned = found["owned"]
    assert found["key_url"] == KEY
    assert owned["keyrings"] == [
        {"path": "/etc/apt/keyrings/docker.asc", "fingerprint": REPOSITORY["fingerprint"]}
    ]
    (sources,) = owned["files"]
    assert sources["content"].splitlines()[1:] == [
        "Types: deb",
        "URIs: https://download.docker.com/linux/debian",
        "Suites: trixie",
        "Components: stable",
        "Signed-By: /etc/apt/keyrings/docker.asc",
    ]
    assert {entry["name"] for entry in owned["packages"]} >= {"docker-ce", "docker-buildx-plugin"}
    assert all(entry["hold"] for entry in owned["packages"])


def test_the_distributions_engine_leaves_no_repository_behind() -> None:
    owned = plan(source="distribution")["owned"]
    assert owned["keyrings"] == []
    assert {entry["path"]: entry["state"] for entry in owned["files"]} == {
        docker_engine.SOURCES: "absent",
        docker_engine.KEYRING: "absent",
    }
    assert "docker.io" in {entry["name"] for entry in owned["packages"]}


def test_absent_takes_everything_back() -> None:
    owned = plan(facts(docker_package="docker-ce"), state="absent")["owned"]
    assert {entry["state"] for entry in owned["packages"]} == {"absent"}
    assert {entry["state"] for entry in owned["files"]} == {"absent"}
    assert owned["json"][0]["settings"] == {}
    assert not any(unit["active"] or unit["enabled"] for unit in owned["units"])
    assert owned["keyrings"] == []


def test_removal_keeps_iptables_without_a_hold() -> None:
    owned = plan(facts(docker_package="docker.io"), state="absent")["owned"]
    packages = {entry["name"]: entry for entry in owned["packages"]}
    assert packages["docker.io"] == {"name": "docker.io", "state": "absent"}
    assert packages["iptables"] == {"name": "iptables", "optional": True, "hold": False}


def test_the_engine_is_restarted_after_its_settings_changed() -> None:
    service = plan()["owned"]["units"][-1]
    assert service["name"] == "docker.service"
    assert "/etc/docker/daemon.json" in service["reads"]


LIVE = {"live-restore": True}


@pytest.mark.parametrize(
    ("swarm", "settings", "defaults", "refused"),
    [
        (False, {}, {"live-restore": True, "log-driver": "json-file"}, False),
        (True, {}, {"log-driver": "json-file"}, False),
        (False, LIVE, {"live-restore": True, "log-driver": "json-file"}, False),
        (True, LIVE, {"log-driver": "json-file"}, True),
        (True, {"live-restore": False}, {"log-driver": "json-file"}, False),
    ],
)
def test_live_restore_is_a_default_except_in_a_swarm(
    swarm: bool, settings: dict[str, Any], defaults: dict[str, Any], refused: bool
) -> None:
    owned = plan(
        facts(docker_package="docker-ce", docker_swarm=swarm),
        extra_settings=settings,
        default_settings={"live-restore": True, "log-driver": "json-file"},
    )["owned"]
    assert owned["json"][0]["defaults"] == defaults
    assert [("swarm" in error) for error in owned["refused"]] == [True] * refused


def test_the_settings_file_with_its_record_and_when_to_restart() -> None:
    assert plan(default_settings={}, restart="never")["owned"]["json"] == [
        {
            "path": "/etc/docker/daemon.json",
            "record": "/var/lib/slipway/daemon_json.json",
            "restart": "never",
            "settings": {"log-driver": "local"},
            "defaults": {},
        }
    ]


@pytest.mark.parametrize("distribution", ["Debian", "Ubuntu"])
def test_packages_and_repository_of_docker(distribution: str) -> None:
    found = plan(facts(distribution=distribution), source="docker")["owned"]
    assert found["refused"] == []
    names = ("docker-ce", "docker-ce-cli", "containerd.io")
    plugins = ("docker-buildx-plugin", "docker-compose-plugin")
    assert [entry["name"] for entry in found["packages"]] == [*names, *plugins]
    assert found["keyrings"][0]["path"] == "/etc/apt/keyrings/docker.asc"
    assert found["files"][0] == {
        "path": "/etc/apt/sources.list.d/docker.sources",
        "content": "# Written by Slipway's role docker_engine.\nTypes: deb\n"
        f"URIs: https://download.docker.com/linux/{distribution.lower()}\n"
        "Suites: trixie\nComponents: stable\nSigned-By: /etc/apt/keyrings/docker.asc\n",
    }


@pytest.mark.parametrize(
    ("installed", "source", "removable"),
    [
        ("", "docker", set()),
        ("docker-ce", "docker", set()),
        ("docker.io", "docker", {"docker.io", "containerd", "runc"}),
        ("docker-ce", "distribution", {"docker-ce", "containerd.io"}),
        ("docker.io", "auto", set()),
    ],
)
def test_only_a_declared_source_replaces_the_packages_of_the_other(
    installed: str, source: str, removable: set[str]
) -> None:
    found = plan(facts(docker_package=installed), source=source, removable_packages=["mine"])
    assert found["removable"][0] == "mine"
    assert set(found["removable"][1:]) >= removable
    assert bool(found["removable"][1:]) == bool(removable)
    assert "iptables" not in found["removable"]


def test_a_removed_engine_has_no_default_settings() -> None:
    assert plan(state="absent", default_settings=LIVE)["owned"]["json"][0]["defaults"] == {}


def test_the_statement_is_one_that_the_survey_understands() -> None:
    for source in ("docker", "distribution"):
        survey.check("docker_engine", plan(source=source)["owned"])


@pytest.mark.parametrize(
    ("known", "source", "problem"),
    [
        ({"systemd": False}, "distribution", "not systemd"),
        ({"docker_snap": True}, "distribution", "snap remove docker"),
        (
            {"distribution_major_version": "12"},
            "distribution",
            "Debian 12 has no packages of BuildKit",
        ),
        (
            {"distribution_major_version": "12", "docker_package": "docker.io"},
            "auto",
            "because docker.io is installed. Set docker_engine_source to docker",
        ),
        ({"distribution": "fedora"}, "docker", "docker on fedora 13"),
    ],
)
def test_unsupported_hosts_are_refused(known: dict[str, Any], source: str, problem: str) -> None:
    (refused,) = plan(facts(**known), source=source)["owned"]["refused"]
    assert problem in refused


def test_removal_is_never_refused() -> None:
    assert plan(facts(systemd=False, docker_snap=True), state="absent")["owned"]["refused"] == []


def test_the_modules_take_what_the_plan_declares() -> None:
    owned = without_needs(plan(facts(docker_package="docker-ce"))["owned"])
    for module, kind in ((files, "files"), (units, "units"), (held_packages, "packages")):
        for entry in owned[kind]:
            assert set(entry) <= set(module.ARGUMENT_SPEC[kind]["options"])
    assert without_needs({"refused": ["no systemd"]}) == {"refused": ["no systemd"]}
