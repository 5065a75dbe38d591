# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which drift disturbs a host, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import consequences, units
from ansible_collections.slipway.host.plugins.module_utils.state.consequences import Triggers

from tests.unit import survey

DAEMON_JSON = "/etc/docker/daemon.json"
ID = "a" * 64


def json_entry(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"json": [{"path": DAEMON_JSON, "settings": settings, "restart": "idle", **changes}]}


def unit(**changes: Any) -> dict[str, Any]:
    return {"units": [{"name": "docker.service", "active": True, "restart": "never", **changes}]}


def package(name: str, **changes: Any) -> dict[str, Any]:
    return {"packages": [{"name": name, **changes}]}


INSTALLED = ["install", "installed", "1.0"]
RUNNING = {
    **units.NO_UNIT,
    "load": "loaded",
    "file": "enabled",
    "active": "active",
    "began": 100.0,
    "start": "i1",
}


def answer(**changes: Any) -> dict[str, Any]:
    """Return the answer of a host with a running engine that reads an older daemon.json."""
    return {
        "engine": None,
        "unsafe": {},
        "texts": {DAEMON_JSON: json.dumps({"mtu": 1})},
        "targets": {DAEMON_JSON: ["file", "0644", "root", "root", None, 0, 0]},
        "units": {"docker.service": RUNNING},
        "starts": {"docker.service": None},
        "reads": {"/etc/x": [200.0, "a"], "/etc/old": [50.0, "b"]},
        "packages": {
            **dict.fromkeys(("docker-ce", "new", "nvidia-container-toolkit")),
            **dict.fromkeys(("docker.io", "docker-cli"), INSTALLED),
        },
        "modules": {"nvidia": None},
        **changes,
    }


def triggers_of(owned: dict[str, Any], **found: Any) -> Triggers:
    reply = answer(**found)
    drift = {"docker_engine": survey.differences(owned, reply)}
    return consequences.find_triggers({"docker_engine": owned}, drift, reply)


NO_FILE: dict[str, Any] = {"texts": {DAEMON_JSON: None}, "targets": {DAEMON_JSON: None}}
STOPPED = {"units": {"docker.service": {**RUNNING, "active": "inactive"}}}


@pytest.mark.parametrize(
    ("owned", "found", "docker"),
    [
        (json_entry({"mtu": 2}), {}, [("idle", True)]),
        (json_entry({"bip": "192.0.2.1/24"}), {}, [("idle", False)]),
        (json_entry({"mtu": 2}), NO_FILE, [("idle", True)]),
        # A reload is enough, nothing differs, and another daemon.
        (json_entry({"debug": True}), {}, []),
        (json_entry({"mtu": 1}), {}, []),
        (json_entry({"mtu": 2}, restart=None), {}, []),
        (unit(reads=["/etc/x"]), {}, [("never", True)]),
        (unit(reads=["/etc/old"]), {}, []),
        (unit(active=False), {}, [("never", False)]),
        (unit(), STOPPED, []),
        (package("docker.io", version="2.0"), {}, [("idle", False)]),
        (package("docker.io", state="absent"), {}, [("idle", False)]),
        (package("docker.io", hold=True), {}, []),
        (package("docker-cli", version="2.0"), {}, []),
        (package("docker-ce"), {}, []),
        (package("nvidia-container-toolkit"), {}, [("idle", True)]),
        ({**unit(), **package("docker.io", version="2.0")}, {}, [("never", False)]),
    ],
)
def test_changes_that_restart_docker_are_found(
    owned: dict[str, Any], found: dict[str, Any], docker: list[tuple[str, bool]]
) -> None:
    assert triggers_of(owned, **found).docker == docker


def test_changes_of_units_modules_and_packages_disturb() -> None:
    assert triggers_of(unit(active=False, restart=None)).units == {"docker.service": "stop"}
    assert triggers_of(unit(reads=["/etc/x"], restart=None)).units == {"docker.service": "restart"}
    assert triggers_of({"modules": [{"name": "nvidia"}]}).driver
    found = triggers_of(package("new"))
    assert found.own == {"new"}
    (command,) = found.simulations
    assert command[:2] == ["apt-get", "--simulate"]
    assert "--quiet=2" not in command
    assert not triggers_of(unit())
    assert not triggers_of({"files": [{"path": "/etc/x", "state": "absent"}]}, files={"/etc/x": 1})


def container(**changes: Any) -> dict[str, Any]:
    plain = {"id": ID, "name": "train", "image": "x:1", "owner": "", "comes_back": False}
    return {**plain, "gpu": False, **changes}


def described(triggers: Triggers, *containers: Any, simulated: str = "", **users: Any) -> list[str]:
    reply = {
        "users_of_host": {
            "containers": {"live_restore": False, "containers": list(containers)},
            "gpu_processes": [],
            "sessions": [],
            **users,
        },
        "apt_simulations": {" ".join(command): simulated for command in triggers.simulations},
    }
    return [
        f"{one['kind']} {one['name']}: {one['effect']}"
        for one in consequences.describe(triggers, reply)
    ]


def test_a_restart_names_the_containers_that_stop() -> None:
    restart = Triggers(docker=[("always", True)])
    web = container(name="web", comes_back=True, owner="compose project web")
    assert described(restart, container(owner="alice", gpu=True), web) == [
        "restart docker.service: would restart",
        "container train: would stop (owner alice, image x:1, uses a GPU)",
        "container web: would stop (owner compose project web, image x:1, starts again)",
    ]
    assert described(restart) == ["restart docker.service: would restart"]


def test_a_restart_that_waits_says_why() -> None:
    restart = Triggers(docker=[("idle", True)])
    waits, would_stop = described(restart, container())
    assert waits.startswith("restart docker.service: restart waits: container train (image x:1)")
    assert would_stop == (
        "container train: would stop if Docker restarted (owner unknown, image x:1)"
    )
    kept = {"live_restore": True, "containers": [container()]}
    assert described(restart, containers=kept) == [
        "restart docker.service: would restart; containers keep running"
    ]
    assert described(restart, containers=None) == []


def test_the_strictest_of_several_restarts_counts() -> None:
    kept = {"live_restore": True, "containers": [container()]}
    both = Triggers(docker=[("idle", True), ("idle", False)])
    assert "restart waits" in described(both, containers=kept)[0]


SIMULATED = """Reading package lists...
The following packages will be REMOVED:
  theirs
The following packages will be DOWNGRADED:
  old own
0 upgraded, 1 newly installed.
Remv theirs [1.0]
Inst own [2.0] (1.0 Debian:13)
Inst old [3.0] (2.0 Debian:13)
Inst new (1.0 Debian:13)
Inst better [1.0] (2.0 Debian:13)
"""


def test_packages_that_go_or_become_older_are_named() -> None:
    triggers = Triggers(simulations=[["apt-get", "x"]], own={"own", "new", "better"})
    assert described(triggers, simulated=SIMULATED) == [
        "package old: would be downgraded to 2.0 (is 3.0; no role declares this package)",
        "package own: would be downgraded to 1.0 (is 2.0)",
        "package theirs: would be removed (is 1.0; no role declares this package)",
    ]


def test_users_of_the_host_are_named_where_something_is_disturbed() -> None:
    users: dict[str, Any] = {
        "gpu_processes": [
            {
                "pid": 7,
                "command": "py\x1b[2J",
                "user": "bob",
                "devices": ["/dev/nvidia0"],
                "container": ID,
            },
            {
                "pid": 8,
                "command": "sh",
                "user": "eve",
                "devices": ["/dev/nvidia1"],
                "container": "",
            },
        ],
        "sessions": [{"user": "carol", "terminal": "pts/0", "from": "203.0.113.9"}],
    }
    found = described(Triggers(driver=True), container(), **users)
    assert found[0].startswith("driver nvidia: would be loaded again; if that fails")
    assert found[1:] == [
        # What a host answers is data.
        "gpu_process 7: py\\x1b[2J of bob in container train uses /dev/nvidia0",
        "gpu_process 8: sh of eve uses /dev/nvidia1",
        "session carol: is logged in at pts/0 from 203.0.113.9",
    ]
    assert described(Triggers(simulations=[["apt-get", "x"]]), **users) == []
