# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on the ports that services publish."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers,
    listeners,
    reading,
)

ME = reading.user_name(os.geteuid())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the list of running containers that the engine reports."""
    running: list[dict[str, Any]] = []
    monkeypatch.setattr(containers, "ask_engine", lambda _path: running)
    monkeypatch.setattr(containers, "PUBLISHED", set())
    return running


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])
def listening(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Listen on a port; return address and port."""
    address = str(request.param)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"cannot listen on {address}")
    with server:
        yield address, str(server.getsockname()[1])


def test_a_process_is_named_with_its_owner(engine: list[Any], listening: tuple[str, str]) -> None:
    address, port = listening
    # A connection has the same port, and does not listen.
    with socket.create_connection((address, int(port))):
        assert listeners.ask_listeners([port, "1"]) == {
            "1": [],
            port: [[address, f"process {os.getpid()} ({process_name()}) of {ME}"]],
        }


def process_name() -> str:
    return Path(f"/proc/{os.getpid()}/comm").read_text().strip()


def test_a_container_of_others_is_named(engine: list[Any], listening: tuple[str, str]) -> None:
    address, port = listening
    published = {"IP": address, "PublicPort": int(port), "Type": "tcp"}
    engine.append({"Names": ["/web"], "Ports": [{"PrivatePort": 80}, published]})
    assert listeners.ask_listeners([port])[port] == [[address, "container web"]]


def test_a_service_of_slipway_is_not_in_the_way(
    engine: list[Any], listening: tuple[str, str]
) -> None:
    containers.PUBLISHED.add(listening)
    # Another service is to start, so the tables are read.
    assert listeners.ask_listeners([listening[1], "1"]) == {listening[1]: [], "1": []}


def test_the_tables_are_not_read_while_all_services_run(
    engine: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "read_listeners", lambda *_: pytest.fail("it was read"))
    containers.PUBLISHED.update({("127.0.0.1", "1"), ("127.0.0.1", "2")})
    assert listeners.ask_listeners(["1", "2"]) == {"1": [], "2": []}


def test_without_engine_and_processes_the_user_is_named(
    engine: list[Any], listening: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: str) -> Any:
        raise OSError("no engine")

    monkeypatch.setattr(containers, "ask_engine", fail)
    monkeypatch.setattr(reading, "list_names", lambda _path: None)
    address, port = listening
    assert listeners.ask_listeners([port])[port] == [[address, f"a program of {ME}"]]


def test_connections_are_not_read(engine: list[Any], tmp_path: Path) -> None:
    # The kernel lists listening sockets first.
    listed = "  0: 0100007F:22B8 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 7 1"
    connected = listed.replace(" 0A ", " 01 ")
    table = tmp_path / "tcp"
    other = listed.replace("22B8", "0016")
    table.write_text(f"head\n{other}\n{listed}\n{connected}\nno line of the kernel\n")
    found = list(listeners.read_listeners(str(table), {"8888": []}))
    assert found == [("127.0.0.1", "8888", 0, "7")]


def test_ports_of_services_are_known_by_their_project_or_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def listed(project: str, identity: str, port: int) -> dict[str, Any]:
        return {
            "Id": identity,
            "Labels": {containers.COMPOSE_PROJECT: project, containers.ONE_OFF: "True"},
            "Ports": [{"IP": "127.0.0.1", "PublicPort": port, "Type": "tcp"}],
        }

    running = [
        listed("declared", "a", 1),
        listed("old", "b", 2),
        listed("old", "stranger", 3),
        listed("../old", "b", 4),
        listed("others", "c", 5),
    ]
    monkeypatch.setattr(containers, "ask_engine", lambda _path: running)
    monkeypatch.setattr(containers, "SERVICE_RECORDS", str(tmp_path / "records"))
    (tmp_path / "records").mkdir()
    for file in (tmp_path / "records/old.json", tmp_path / "old.json"):
        file.write_text('{"containers": ["b"]}')
    containers.ask_projects(["declared"])
    assert {port for _address, port in containers.PUBLISHED} == {"1", "2"}
