# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways into and out of containers that the engine's proxy hides, and commands as a user.

tests/host/test_site.py tries them on a host.
"""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import (
    apt_check,
    reach_check,
    verify,
)
from ansible_collections.slipway.host.plugins.module_utils.state import containers, packet_filter

Program = Callable[[str, str], None]
IMAGE = "slipway/a:cpu"
TARGET = ("archive.example", "192.0.2.7", 80)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {"team": "172.18.0.0/16", "bridge": "172.17.0.0/16"}
    monkeypatch.setattr(packet_filter, "bridge_subnets", lambda: found)
    monkeypatch.setattr(reach_check, "find_targets", lambda _uris: iter([TARGET]))
    return found


@pytest.mark.usefixtures("networks")
def test_both_kinds_of_networks_are_tried(program: Program, tmp_path: Path) -> None:
    program(
        "docker", f'echo "$4 $6 $9" "${{10}}" "${{11}}" >>{tmp_path}/told; echo name connection'
    )
    seen = reach_check.check_outward([], [IMAGE, "other"])
    assert seen == "containers of bridge and team resolve and reach archive.example:80"
    assert (tmp_path / "told").read_text().splitlines() == [
        f"--network={name} {IMAGE} archive.example 192.0.2.7 80" for name in ("bridge", "team")
    ]


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo name; exit 1", "do not reach other hosts: found no connection to 192.0.2.7:80"),
        ("exit 1", "do not reach other hosts"),
        ("echo connection; exit 0", "do not resolve names: found no address for archive.example"),
        ("echo 'no such network' >&2; exit 125", "no container started in network bridge: found"),
    ],
)
@pytest.mark.usefixtures("networks")
def test_a_container_that_reaches_less_than_the_host_fails(
    program: Program, script: str, problem: str
) -> None:
    program("docker", script)
    with pytest.raises(ValueError, match=problem):
        reach_check.check_outward([], [IMAGE])


def test_the_probe_is_a_script_that_finds_name_and_connection(
    program: Program, networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for docker runs the probe on this machine."""
    program("docker", 'while [ "$1" != -c ]; do shift; done; exec sh "$@"')
    networks.pop("team")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(
            reach_check, "find_targets", lambda _uris: iter([("localhost", "127.0.0.1", port)])
        )
        assert "resolve and reach localhost" in reach_check.check_outward([], [IMAGE])
        monkeypatch.setattr(
            reach_check, "find_targets", lambda _uris: iter([("x.invalid", "127.0.0.1", port)])
        )
        with pytest.raises(ValueError, match="do not resolve names"):
            reach_check.check_outward([], [IMAGE])
    with pytest.raises(ValueError, match="do not reach other hosts"):
        reach_check.check_outward([], [IMAGE])


def test_a_host_without_a_way_out_is_said(
    networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reach_check.check_outward([], []).startswith("not tried: no image")
    monkeypatch.setattr(reach_check, "find_targets", lambda _uris: iter(()))
    assert "reaches no server" in reach_check.check_outward([], [IMAGE])
    networks.clear()
    assert "no bridge network" in reach_check.check_outward([], [IMAGE])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server of this machine that every name but one resolves to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def resolve(name: str, *_words: Any) -> Any:
            if name == "gone.example":
                raise socket.gaierror(name)
            return [(socket.AF_INET, 1, 6, "", (name, 0))]

        def connect(address: tuple[str, int], _seconds: float) -> socket.socket:
            if address[1] != port:
                raise ConnectionRefusedError
            return socket.socket()

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket, "create_connection", connect)
        yield port


def test_targets_are_servers_that_the_host_reaches(server: int) -> None:
    uris = [
        "file:/srv/apt",
        "cdrom:[Debian]/",
        f"http://gone.example:{server}/debian",
        "http://192.0.2.8/debian",
        "https://192.0.2.9:bad/debian",
        # A mirror on the host itself says nothing about the network.
        f"http://127.0.0.1:{server}/debian",
        f"http://192.0.2.7:{server}/debian",
    ]
    assert list(reach_check.find_targets(uris)) == [("192.0.2.7", "192.0.2.7", server)]


# Published ports.


def published(ip: str, port: int = 5000, **more: Any) -> dict[str, Any]:
    return {"Names": ["/api"], "Ports": [{"IP": ip, "PublicPort": port, "Type": "tcp", **more}]}


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (published("0.0.0.0"), [("api", "0.0.0.0", 5000)]),
        (published("192.0.2.1"), [("api", "192.0.2.1", 5000)]),
        (published("127.0.0.1"), []),
        (published("::"), []),
        (published("0.0.0.0", Type="udp"), []),
        ({"Names": ["/x"], "Ports": [{"PrivatePort": 5, "Type": "tcp"}]}, []),
        ({"Names": ["/x"], "Ports": None}, []),
    ],
)
def test_ports_beyond_this_host(container: dict[str, Any], expected: list[Any]) -> None:
    assert list(reach_check.list_published([container, container])) == expected


@pytest.mark.parametrize(
    ("routes", "subnet"),
    [
        ([{"dst": "default"}], "10.255.255.252/30"),
        ([{"dst": "10.0.0.0/8"}], "192.168.255.252/30"),
        ([{"dst": "10.0.0.0/8"}, {"dst": "192.168.0.0/16"}], "172.31.255.252/30"),
        ([{"dst": "10.255.255.253"}], "192.168.255.252/30"),
        ([{"dst": "0.0.0.0/0"}], None),
    ],
)
def test_the_network_beside_the_host_is_a_free_one(
    routes: list[dict[str, str]], subnet: str | None
) -> None:
    assert reach_check.free_subnet(routes) == subnet


def test_what_cannot_be_tried_is_said(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert reach_check.check_published([]).startswith("not tried: no container publishes")
    program("ip", "echo '[]'")
    program("unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    program("nsenter", "exit 1")
    seen = reach_check.check_published([published("0.0.0.0")])
    assert seen.endswith("network namespace: unshare failed: Operation not permitted")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert reach_check.check_published([published("0.0.0.0")]) == (
        "not tried: unshare, nsenter, ip not found on this host"
    )


@pytest.mark.parametrize(
    ("rules", "closed", "passes"),
    [
        ("-N DOCKER-USER", False, True),
        ("-N DOCKER-USER", True, False),
        ("-N DOCKER-USER\n-A DOCKER-USER -j RETURN", True, False),
        # Somebody closed the port on purpose, perhaps.
        ("-N DOCKER-USER\n-A DOCKER-USER -i eth0 -j DROP", True, True),
    ],
)
def test_a_port_that_does_not_answer_from_outside(
    rules: str, closed: bool, passes: bool, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("iptables", f"printf '%s\\n' '{rules}'")
    for name in ("ip", "unshare", "nsenter"):
        program(name, "exit 1")

    class Beside:
        def __enter__(self) -> tuple[int, str]:
            return 1, "10.255.255.253"

        def __exit__(self, *_error: object) -> None: ...

    monkeypatch.setattr(reach_check, "_network_beside", Beside)
    monkeypatch.setattr(reach_check, "_answers", lambda *_words: not closed)
    if passes:
        seen = reach_check.check_published([published("0.0.0.0")])
        assert ("DOCKER-USER" in seen) == closed
        return
    with pytest.raises(ValueError, match=r"no connection to api \(0.0.0.0:5000\)"):
        reach_check.check_published([published("0.0.0.0")])


# Commands as a user.


def account(name: str, uid: int, shell: str = "/bin/bash") -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", shell))


ALICE, BOB, SYNC = account("alice", 1000), account("bob", 1001), account("sync", 4, "/bin/sync")


@pytest.mark.parametrize(
    ("accounts", "docker_users", "expected"),
    [
        ([SYNC, ALICE, BOB], [], ALICE),
        ([SYNC, ALICE, BOB], ["bob"], BOB),
        ([account("svc", 1002, "/usr/sbin/nologin"), account("nobody", 65534)], [], None),
    ],
)
def test_an_ordinary_user_is_chosen(accounts: Any, docker_users: list[str], expected: Any) -> None:
    assert reach_check.find_user(accounts, docker_users) == expected


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read; only the owner can read those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the rights of another user")
def test_a_command_that_a_user_cannot_run_fails(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = pwd.getpwuid(65534)
    command = open_folder / "ml"
    monkeypatch.setattr(reach_check, "COMMAND", command)
    assert reach_check.check_command([]) == "not tried: the command ml is not installed"
    command.write_text('#!/bin/sh\n[ "$1" = --help ] || { echo "no $1" >&2; exit 3; }\n')
    command.chmod(0o755)
    monkeypatch.setattr(reach_check, "find_user", lambda *_words: None)
    assert reach_check.check_command([]) == "not tried: this host has no ordinary user"
    monkeypatch.setattr(reach_check, "find_user", lambda *_words: me)
    assert reach_check.check_command([]) == f"user {me.pw_name} runs ml --help"
    with pytest.raises(
        ValueError, match=r"cannot run ml list: found exit code 3 \(no list\); expected"
    ):
        reach_check.check_command([me.pw_name])
    # As after an installation under umask 077.
    command.chmod(0o700)
    with pytest.raises(ValueError, match=r"cannot run ml --help: found .*Permission denied"):
        reach_check.check_command([])


def test_verify_tries_all_ways_with_what_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    for name in ("check_outward", "check_published", "check_command"):
        monkeypatch.setattr(
            reach_check, name, lambda *words, name=name: tried.append([name, *words])
        )
    images = [
        {"Id": "sha256:b", "RepoTags": ["b:1"], "Labels": {labels.SMOKE: "[]"}},
        {"Id": "sha256:a", "RepoTags": ["a:1"], "Labels": {labels.SMOKE: "[]"}},
        # An image whose content nobody recorded is not started.
        {"Id": "sha256:c", "RepoTags": ["c:1"], "Labels": {labels.SMOKE: "[]"}},
        {"Id": "sha256:d", "RepoTags": ["d:1"], "Labels": None},
    ]
    recorded = {"a:1": "sha256:a", "b:1": "sha256:b", "c:1": "sha256:other", "d:1": "sha256:d"}
    monkeypatch.setattr(containers, "read_image_record", lambda name: {"id": recorded[name]})
    answers = {"/images/json": images, "/containers/json": ["running"]}
    monkeypatch.setattr(containers, "ask_engine", answers.__getitem__)
    facts = {"apt_sources": {"/etc/apt/sources.list": [["http://x/debian", "trixie", [], ""]]}}
    monkeypatch.setattr(apt_check, "check", lambda: "fine")
    declared = {"docker_users": ["root", "nobody-there"]}
    checks = [check.what for check in verify._check_ways(facts, declared, True, True)]
    assert checks == [
        *("apt settings", "commands of users", "network from containers", "published ports")
    ]
    # A broken packet filter has its own error.
    assert [check.what for check in verify._check_ways(facts, declared, False, True)] == checks[:2]
    assert [row[0] for row in tried] == [
        *("check_command", "check_outward", "check_published", "check_command")
    ]
    assert sorted(tried[:3]) == [
        ["check_command", ["root", "nobody-there"]],
        ["check_outward", ["http://x/debian"], ["sha256:a", "sha256:b"]],
        ["check_published", ["running"]],
    ]
    # A host in a closed network asks no name server.
    tried.clear()
    closed = list(verify._check_ways(facts, {**declared, "bundle": True}, True, True))
    assert "check_outward" not in [row[0] for row in tried]
    assert [check.what for check in closed] == checks
    assert (closed[2].ok, closed[2].seen) == (True, verify.NO_SERVERS)
