# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine must report of a container, derived from its compose service."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.services import expected
from ansible_collections.slipway.host.plugins.module_utils.state import container_description

from tests.unit.containers import described

SERVICE: dict[str, Any] = {
    "image": "slipway/tool:cpu",
    "user": "1000:1000",
    "restart": "unless-stopped",
    "init": True,
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "labels": {"io.slipway.config": "c1"},
}
CDI = {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0"], "capabilities": ["gpu"]}


@pytest.mark.parametrize(
    ("size", "number"),
    [
        ("8g", 8 << 30),
        ("256m", 256 << 20),
        ("1.5G", 3 << 29),
        ("100", 100),
        (100, 100),
        ("64KiB", 64 << 10),
        ("2kb", 2 << 10),
        ("1t", 1 << 40),
        ("7b", 7),
    ],
)
def test_sizes_are_read_as_docker_reads_them(size: str | int, number: int) -> None:
    assert expected.size_in_bytes(size) == number


@pytest.mark.parametrize("size", ["", "g", "1x", "1 2"])
def test_other_sizes_are_refused(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        expected.size_in_bytes(size)


def test_the_defaults_of_a_service() -> None:
    assert expected.expected_container("lab", SERVICE, {}) == {
        "user": "1000:1000",
        "restart": "unless-stopped",
        "networks": ["lab_default"],
        "ports": [],
        "mounts": [],
        "shm_size": 0,
        "settings": {
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "read_only": True,
            "init": True,
        },
        "command": "",
        "healthcheck": "",
        "labels": {"io.slipway.config": "c1"},
        "variables": [],
        "environment": container_description.digest_of([]),
    }


@pytest.mark.parametrize(
    ("key", "value", "setting", "reported"),
    [
        ("mem_limit", "2g", "mem_limit", 2 << 30),
        ("cpus", 1.5, "cpus", 1_500_000_000),
        ("cpus", "0.1", "cpus", 100_000_000),
        ("pids_limit", 512, "pids_limit", 512),
        ("tmpfs", ["/tmp:exec", "/run"], "tmpfs", {"/tmp": "exec", "/run": ""}),
        ("read_only", False, "read_only", None),
        ("init", False, "init", None),
        (
            "deploy",
            {"resources": {"reservations": {"devices": [CDI]}}},
            "gpus",
            [["cdi", ["nvidia.com/gpu=0"]]],
        ),
    ],
)
def test_a_setting_in_the_words_of_the_engine(
    key: str, value: Any, setting: str, reported: Any
) -> None:
    container = expected.expected_container("lab", {**SERVICE, key: value}, {})
    assert container["settings"].get(setting) == reported


def test_mounts_ports_and_commands_in_the_words_of_the_engine() -> None:
    service = {
        **SERVICE,
        "ports": ["[::1]:8888:80", "127.0.0.1:8889:81"],
        "volumes": [
            {"type": "volume", "source": "work", "target": "/work"},
            {"type": "bind", "source": "/srv", "target": "/srv", "read_only": True},
        ],
        "shm_size": "1k",
        "command": ["serve"],
        "healthcheck": {"test": ["CMD", "ask"]},
        "environment": {"B": "2", "A": "1"},
    }
    container = expected.expected_container("lab", service, {"/run/secrets/token": "/etc/token"})
    assert container["ports"] == ["127.0.0.1:8889:81/tcp", "::1:8888:80/tcp"]
    assert container["mounts"] == [
        ["bind", "/etc/token", "/run/secrets/token", False],
        ["bind", "/srv", "/srv", False],
        ["volume", "work", "/work", True],
    ]
    assert container["shm_size"] == 1024
    assert container["command"] == container_description.digest_of(["serve"])
    assert container["healthcheck"] == container_description.digest_of(["CMD", "ask"])
    assert container["variables"] == ["A", "B"]
    assert container["environment"] == container_description.digest_of([["A", "1"], ["B", "2"]])


@pytest.mark.parametrize(
    ("changes", "ordinary"),
    [
        ({}, True),
        ({"config": "another"}, True),
        ({"mounts": [["bind", "/srv", "/srv", True]]}, True),
        ({"user": ""}, False),
        ({"user": "0:1000"}, False),
        ({"user": "root"}, False),
    ],
)
def test_rights_that_slipway_always_gives_are_ordinary(
    changes: dict[str, Any], ordinary: bool
) -> None:
    assert expected.has_ordinary_rights(described(**changes)) == ordinary


@pytest.mark.parametrize(
    "right",
    [
        {"privileged": True},
        {"cap_add": ["SYS_ADMIN"]},
        {"cap_drop": []},
        {"security_opt": ["seccomp=unconfined"]},
        {"devices": ["/dev/sda"]},
        {"device_cgroup_rules": ["a"]},
        {"pid": "host"},
        {"ipc": "host"},
        {"uts": "host"},
        {"userns_mode": "host"},
        {"group_add": ["0"]},
        {"volumes_from": ["x"]},
        {"systempaths": "unconfined"},
    ],
    ids=lambda right: next(iter(right)),
)
def test_a_right_that_no_version_gives(right: dict[str, Any]) -> None:
    settings = {**described()["settings"], **right}
    assert not expected.has_ordinary_rights(described(settings=settings))
