# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container toolkit as owned state, and what the engine has to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.roles import docker_engine
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit as toolkit,
)

from lab import nvidia_packages
from tests.unit import survey
from tests.unit.gpu_facts import facts
from tests.unit.role_options import options

REPOSITORY = {
    "url": "http://mirror/deb/{architecture}",
    "key_url": "http://mirror/key",
    "fingerprint": "F" * 40,
}
LOADED: dict[str, Any] = {"loaded": "580.178.04"}
CDI = {"features": {"cdi": True}}
CGROUPFS = {"exec-opts": ["native.cgroupdriver=cgroupfs"]}
TRUE = "[nvidia-container-cli]\nno-cgroups = true\n"


def plan(
    given: Mapping[str, Any], version: str = "1.20.1", hold: bool = True, state: str = "present"
) -> dict[str, Any]:
    asked = options(
        "nvidia_container_toolkit",
        version=version,
        repository=REPOSITORY,
        hold=hold,
        state=state,
    )
    found = toolkit.plan(given, asked)
    survey.check("nvidia_container_toolkit", found["owned"])
    return found


@pytest.mark.parametrize("model", ["none", "vfio"])
def test_a_host_without_gpus_of_its_own_owns_nothing(model: str) -> None:
    found = plan(facts(model))
    assert not found["needed"]
    assert found["owned"] == {"refused": []}


def test_all_four_packages_have_one_version_and_are_held() -> None:
    found = plan(facts("t4"))
    assert found["needed"] and found["owned"]["refused"] == []
    assert found["owned"]["packages"] == [
        {"name": package.name, "version": "1.20.1-1", "hold": True}
        for package in sorted(
            (one for one in nvidia_packages.toolkit() if one.version == "1.20.1-1"),
            key=lambda one: toolkit.PACKAGES.index(one.name),
        )
    ]


@pytest.mark.parametrize(
    ("version", "upgrade", "refused"),
    [("1.20.1", False, True), ("1.20.1", True, False), ("1.20.0", False, False)],
)
def test_a_version_that_was_rolled_back_comes_again_only_by_an_upgrade(
    version: str, upgrade: bool, refused: bool
) -> None:
    left = {name: ["1.20.1-1", "1.20.0-1"] for name in toolkit.PACKAGES}
    given = facts("t4", rolled_back=left)
    asked = options(
        "nvidia_container_toolkit", version=version, repository=REPOSITORY, upgrade=upgrade
    )
    found = toolkit.plan(given, asked)["owned"]["refused"]
    assert bool(found) == refused
    assert all("Declare 1.20.0 (nvidia_container_toolkit_version)" in why for why in found)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("1.20", "'1.20'; expected a version such as"),
        ("latest", "'latest'; expected a version"),
        (1.2, "1.2; expected a version such as"),
        ("1.17.7", "expected at least 1.17.8"),
        ("1.17.8", None),
        ("1.20.1", None),
    ],
)
def test_versions_that_containers_break_out_of_are_refused(version: Any, words: str | None) -> None:
    found = plan(facts("t4"), version)
    assert (found["owned"]["refused"] == []) == (words is None)
    for why in found["owned"]["refused"]:
        assert words and words in why


@pytest.mark.parametrize(
    ("version", "more", "units", "watched"),
    [
        ("1.20.1", LOADED, 2, True),
        ("1.18.0", LOADED, 2, True),
        # Before the driver is loaded there is nothing to describe.
        ("1.20.1", {}, 2, False),
        ("1.17.9", LOADED, 0, False),
    ],
)
def test_the_specification_is_kept_current_by_the_packages_units(
    version: str, more: dict[str, Any], units: int, watched: bool
) -> None:
    owned = plan(facts("t4", **more), version)["owned"]
    assert len(owned["units"]) == units
    assert bool(owned["derived"]) == watched
    for entry in owned["derived"]:
        assert entry["required"]
        assert "/lib/modules/6.8.0-149-generic/modules.dep" in entry["since"]


def test_disabled_cgroups_are_an_obstacle_of_gpu_hosts() -> None:
    path = "/etc/nvidia-container-runtime/config.toml"
    found = plan(facts("t4", **LOADED))["owned"]
    assert [entry["path"] for entry in found["obstacles"]] == [path]
    compared = survey.compare({"": {"obstacles": found["obstacles"]}}, {"texts": {path: TRUE}})
    (conflict,) = compared[""].conflicts
    assert conflict.reason.startswith(f"no-cgroups is true in {path}; expected false, because")
    assert "obstacles" not in plan(facts("none"))["owned"]


def test_all_that_a_gpu_host_owns_besides_the_packages() -> None:
    found = plan(facts("t4", **LOADED))
    written = "# Written by Slipway's role nvidia_container_toolkit.\n"
    assert found["key_url"] == "http://mirror/key"
    assert found["owned"]["keyrings"] == [
        {"path": "/etc/apt/keyrings/nvidia-container-toolkit.asc", "fingerprint": "F" * 40}
    ]
    assert [entry for entry in found["owned"]["files"] if "content" in entry] == [
        {
            "path": "/etc/apt/sources.list.d/nvidia-container-toolkit.sources",
            "content": f"{written}Types: deb\nURIs: http://mirror/deb/amd64\nSuites: /\n"
            "Signed-By: /etc/apt/keyrings/nvidia-container-toolkit.asc\n",
        },
        {
            "path": "/etc/apt/preferences.d/slipway-nvidia-container-toolkit.pref",
            "content": f"{written}Package: {' '.join(toolkit.PACKAGES)}\n"
            "Pin: version 1.20.1-1\nPin-Priority: 1001\n",
        },
        {
            "path": "/etc/apt/apt.conf.d/60slipway-nvidia-container-toolkit",
            "content": written.replace("#", "//")
            + "Unattended-Upgrade::Package-Blacklist {\n"
            + '    "nvidia-container-";\n    "libnvidia-container";\n};\n',
        },
    ]
    units = "/etc/systemd/system/nvidia-cdi-refresh"
    assert found["owned"]["units"] == [
        {
            "name": "nvidia-cdi-refresh.path",
            "enabled": True,
            "unit_files": [f"{units}.path"],
            "active": True,
        },
        {
            "name": "nvidia-cdi-refresh.service",
            "enabled": True,
            "unit_files": [f"{units}.service"],
        },
    ]
    assert found["owned"]["derived"] == [
        {
            "path": "/var/run/cdi/nvidia.yaml",
            "required": True,
            "since": [
                "/lib/modules/6.8.0-149-generic/modules.dep",
                "/var/lib/dpkg/info/nvidia-container-toolkit-base.list",
                "/sys/module/nvidia/version",
            ],
            "holds": "nvidia.com/gpu",
            "alone_in": ["/etc/cdi", "/var/run/cdi"],
        }
    ]


def test_stale_lists_and_a_stale_specification_go() -> None:
    absent = {
        entry["path"]
        for entry in plan(facts("t4"))["owned"]["files"]
        if entry.get("state") == "absent"
    }
    assert "/etc/cdi/nvidia.yaml" in absent
    assert "/etc/apt/sources.list.d/nvidia-docker.list" in absent


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_repository_is_that_of_the_hosts_architecture(machine: str, name: str) -> None:
    found = plan(facts("t4", architecture=machine))
    (sources,) = (e["content"] for e in found["owned"]["files"] if e["path"] == toolkit.SOURCES)
    assert f"URIs: http://mirror/deb/{name}\n" in sources


def test_without_a_hold_unattended_upgrades_may_take_it() -> None:
    files = {entry["path"]: entry for entry in plan(facts("t4"), hold=False)["owned"]["files"]}
    assert files[toolkit.UNATTENDED]["state"] == "absent"


def test_removal_names_all_that_was_written() -> None:
    here, gone = plan(facts("t4")), plan(facts("t4"), state="absent")
    assert not gone["needed"]
    written = {e["path"] for e in here["owned"]["files"] if "content" in e}
    written |= {e["path"] for e in here["owned"]["keyrings"]}
    assert written <= {e["path"] for e in gone["owned"]["files"] if e["state"] == "absent"}
    assert all(entry["state"] == "absent" for entry in gone["owned"]["packages"])


# --- the engine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "more"),
    [
        # On by default there, unless somebody switched it off.
        ("5:29.7.2-1~ubuntu.24.04~noble", CDI),
        ("28.2.0", CDI),
        ("5:28.1.1-1~debian", CDI),
        ("26.1.5+dfsg1-9+b9", CDI),
        ("25.0.0", CDI),
        ("24.0.9", CGROUPFS),
        ("20.10.24+dfsg1-1+deb12u1", CGROUPFS),
        # Until it is known, nothing is chosen that another engine would not want.
        ("", {}),
    ],
)
def test_containers_keep_their_gpus_in_the_way_of_the_engine(
    version: str, more: dict[str, Any]
) -> None:
    settings = toolkit.engine_settings(facts("t4", docker_version=version))
    assert settings == {"runtimes": toolkit.RUNTIME, **more}
    assert "default-runtime" not in settings


def test_an_engine_without_gpus_needs_to_know_nothing() -> None:
    assert toolkit.engine_settings(facts("none", docker_version="26.1.5")) == {}


@pytest.mark.parametrize(
    ("model", "nvidia", "state", "keys"),
    [
        ("t4", True, "present", {"runtimes", "features", "debug"}),
        ("t4", False, "present", {"debug"}),
        ("none", True, "present", {"debug"}),
        ("t4", True, "absent", set()),
    ],
)
def test_the_engines_role_writes_the_keys_for_both(
    model: str, nvidia: bool, state: str, keys: set[str]
) -> None:
    given = facts(model, docker_version="26.1.5", docker_package="docker.io")
    repository = {**REPOSITORY, "channel": "stable"}
    asked = options(
        "docker_engine",
        source="distribution",
        repository=repository,
        settings={"debug": True},
        default_settings={},
        gpu_access=nvidia,
        state=state,
    )
    owned = docker_engine.plan(given, asked)["owned"]
    (entry,) = owned["json"]
    assert {*entry["settings"], *entry["defaults"]} == keys
    service = next(unit for unit in owned["units"] if unit["name"] == "docker.service")
    # The engine looks for the toolkit's hooks when it starts.
    watches = set(toolkit.HOOKS_INSTALLED) <= set(service["reads"])
    assert watches == ("runtimes" in keys or (state == "absent" and model == "t4"))


def engine(mine: Mapping[str, Any], model: str = "t4", version: str = "26.1.5") -> dict[str, Any]:
    given = facts(model, docker_version=version, docker_package="docker.io")
    asked = options(
        "docker_engine",
        source="distribution",
        repository=REPOSITORY,
        settings=mine,
        gpu_access=True,
    )
    owned: dict[str, Any] = docker_engine.plan(given, asked)["owned"]
    return owned


def test_settings_of_the_owner_override_defaults() -> None:
    mine = {"runtimes": {"nvidia": {"path": "/opt/runtime"}}, "features": {"buildkit": False}}
    settings = engine(mine)["json"][0]["settings"]
    assert settings["runtimes"]["nvidia"]["path"] == "/opt/runtime"
    assert settings["features"] == {"cdi": True, "buildkit": False}


@pytest.mark.parametrize("version", ["29.1.3", "28.2.0", "26.1.5", ""])
def test_cdi_is_not_switched_off_where_gpus_come_by_it(version: str) -> None:
    (refused,) = engine({"features": {"cdi": False}}, version=version)["refused"]
    assert "docker_engine_extra_settings" in refused
    assert "nvidia_container_toolkit_state: absent" in refused


@pytest.mark.parametrize(
    ("features", "model", "version"),
    [
        pytest.param({"cdi": False}, "none", "29.1.3", id="no GPUs"),
        pytest.param({"cdi": False}, "t4", "24.0.9", id="an engine that has none"),
        pytest.param({"cdi": True}, "t4", "29.1.3", id="switched on"),
        pytest.param({"buildkit": False}, "t4", "29.1.3", id="another feature"),
    ],
)
def test_features_are_the_owners_elsewhere(features: Any, model: str, version: str) -> None:
    assert engine({"features": features}, model, version)["refused"] == []
