# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a proof that a host does the real thing."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.host import verify as host_verify
from ansible_collections.slipway.host.plugins.module_utils.images import smoke as images_smoke
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers as state_containers,
)
from ansible_collections.slipway.host.plugins.module_utils.state import packages
from ansible_collections.slipway.host.plugins.modules import verify

from tests.unit.conftest import RunModule

Program = Callable[[str, str], None]
NETWORK = host_verify.NETWORK
ENGINE_PACKAGE = ["install", "installed", "28.5.2"]
VERSION = {"Version": "28.5.2", "ApiVersion": "1.51"}
ASKED = {"length": 5.1, "width": 2.4}

pytestmark = pytest.mark.usefixtures("installed_engine")


# What stands at a port where another service was expected.
OTHER_WORDS = {
    "/escape": b"HTTP/1.0 200 OK\r\n\r\n\x1b[2J\xc2\x9b31m",
    "/ssh": b"SSH-2.0-x\r\n",
    "/page": b"HTTP/1.0 200 OK\r\n\r\n<html>hello",
}


class Api(http.server.BaseHTTPRequestHandler):
    """Answers virginica to the right question, and errors to all others."""

    def do_GET(self) -> None:
        if self.path in OTHER_WORDS:
            self.wfile.write(OTHER_WORDS[self.path])
            return
        closed = self.path == "/closed" and self.headers["Authorization"] != "Bearer s3cret"
        status = 403 if closed else 500 if self.path == "/broken" else 200
        self._answer(status, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body == ASKED and self.headers["Content-Type"] == "application/json":
            self._answer(200, {"prediction": "virginica", "model": 1})
        else:
            self._answer(422, {"error": "no"})

    def _answer(self, status: int, document: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def install_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host have an engine, whatever the machine has that runs the test."""
    monkeypatch.setattr(
        packages,
        "ask_packages",
        lambda names: {**dict.fromkeys(names), "docker.io": ENGINE_PACKAGE},
    )


def engine(
    monkeypatch: pytest.MonkeyPatch, images: list[Any] | None = None, containers: Any = None
) -> None:
    """Let the probe find these images and containers, on a host without GPUs."""
    install_engine(monkeypatch)
    answers = {
        "/version": VERSION,
        "/images/json": images or [],
        "/containers/json?all=1": containers or [],
    }
    monkeypatch.setattr(state_containers, "ask_engine", answers.__getitem__)
    # test_verify_host has tests of images and containers that are not recorded.
    recorded = {"containers": ["c1"], "starting": False}
    monkeypatch.setattr(state_containers, "read_service_record", lambda _project: recorded)
    monkeypatch.setattr(
        state_containers,
        "read_image_record",
        lambda reference: {"id": "sha256:a"} if reference == "slipway/a:cpu" else {},
    )
    # test_verify_host has tests of these.
    monkeypatch.setattr(host_verify, "_check_running_engine", lambda _declared: [])
    monkeypatch.setattr(gpu_facts, "ask_gpus", lambda: {"devices": []})


def container(published: int, ip: str = "127.0.0.1", **proof: Any) -> dict[str, Any]:
    return {
        "Id": "c1",
        "Labels": {
            "com.docker.compose.project": "iris-api",
            "com.docker.compose.service": "iris-api",
            labels.PROOF: json.dumps({"port": 5000, "path": "/predict", **proof}),
        },
        "Ports": [{"PrivatePort": 5000, "PublicPort": published, "IP": ip}],
    }


EXPECTED: dict[str, Any] = {"post": ASKED, "expect": {"prediction": "virginica"}}


@pytest.mark.parametrize(
    ("ips", "found"),
    [
        (["192.0.2.1"], "192.0.2.1:80"),
        (["::", "0.0.0.0"], "127.0.0.1:80"),
        (["::"], "[::1]:80"),
        (["2001:db8::1"], "[2001:db8::1]:80"),
    ],
)
def test_the_address_of_a_service_on_the_host_is_found(ips: list[str], found: str) -> None:
    ports = [{"PrivatePort": 5000, "PublicPort": 80, "IP": ip} for ip in ips]
    assert host_verify._find_address({"Ports": ports}, 5000) == found


def test_a_container_of_compose_run_is_not_checked(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    once = container(port, port=1)
    once["Labels"]["com.docker.compose.oneoff"] = "True"
    engine(monkeypatch, containers=[once])
    assert [
        check["what"]
        for check in host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=False))
    ] == ["engine", NETWORK]


@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0"])
def test_a_service_that_answers_as_declared_is_proven(
    monkeypatch: pytest.MonkeyPatch, port: int, ip: str
) -> None:
    # A proxy is not asked, which would not know this host and learn its secrets.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    engine(monkeypatch, containers=[container(port, ip, **EXPECTED)])
    proof = host_verify.run_checks(host_verify.Options(smoke=True, daemon_reload=True))
    assert [check["what"] for check in proof] == ["engine", "service iris-api", NETWORK]
    assert all(check["ok"] for check in proof)
    assert '"prediction": "virginica"' in proof[1]["seen"]


@pytest.mark.parametrize(
    ("proof", "seen"),
    [
        ({**EXPECTED, "expect": {"prediction": "setosa"}}, "expected {'prediction': 'setosa'}"),
        ({**EXPECTED, "post": {"length": 0}}, "answered 422"),
        ({**EXPECTED, "port": 5001}, "port 5001 is not published"),
        ({"path": "/ssh"}, "did not answer with HTTP: SSH-2.0-x"),
        ({"path": "/page", "expect": {}}, "answered <html>hello, expected {}"),
        ({"path": "/escape", "expect": {}}, "answered \\x1b[2J\\x9b31m, expected {}"),
    ],
)
def test_a_service_that_does_not_is_told_with_its_answer(
    monkeypatch: pytest.MonkeyPatch, port: int, proof: dict[str, Any], seen: str
) -> None:
    engine(monkeypatch, containers=[container(port, **proof)])
    check = host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))[1]
    assert not check["ok"]
    assert seen in check["seen"]


@pytest.mark.parametrize(
    ("path", "secret", "ok", "seen"),
    [
        (
            "/closed",
            "s3cret\n",
            True,
            "rejected a request without the secret, answered with success",
        ),
        ("/closed", "another", False, "/closed answered 403"),
        ("/open", "s3cret", False, "/open accepted a request without the secret"),
        ("/broken", "s3cret", False, "/broken answered 500 to a request without the secret"),
    ],
)
def test_a_door_opens_with_the_secret_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    port: int,
    path: str,
    secret: str,
    ok: bool,
    seen: str,
) -> None:
    file = tmp_path / "token"
    file.write_text(secret)
    engine(monkeypatch, containers=[container(port, path=path, secret=str(file))])
    check = host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))[1]
    assert check["ok"] is ok
    assert seen in check["seen"]
    assert secret.strip() not in check["seen"]


def test_a_proxy_does_not_see_the_request(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    engine(monkeypatch, containers=[container(port, **EXPECTED)])
    assert all(
        check["ok"]
        for check in host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))
    )


def test_an_address_of_ipv6_is_one_of_a_url() -> None:
    assert host_verify._find_address(container(80, "fd00::1"), 5000) == "[fd00::1]:80"


def test_a_service_that_is_down_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch, containers=[container(1, **EXPECTED)])
    assert (
        "refused"
        in host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))[1]["seen"]
    )


def test_without_an_expectation_any_success_counts(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    engine(monkeypatch, containers=[container(port)])
    assert host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))[1][
        "seen"
    ].endswith("answered with success")


def test_containers_of_others_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        {"Id": "a", "Labels": {"com.docker.compose.service": "web"}},
        {"Id": "b", "Labels": None},
    ]
    engine(monkeypatch, containers=others)
    assert len(host_verify.run_checks(host_verify.Options(smoke=True, daemon_reload=True))) == 2


@pytest.mark.parametrize(
    ("answer", "expected", "contained"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ([1], {"a": 1}, False),
        ({"a": 1}, {"a": {"b": 1}}, False),
        ("x", "x", True),
    ],
)
def test_an_answer_may_say_more_than_expected(answer: Any, expected: Any, contained: bool) -> None:
    assert host_verify.contains(answer, expected) is contained


IMAGES = [
    {
        "Id": "sha256:a",
        "RepoTags": ["slipway/a:cpu"],
        "Labels": {labels.SMOKE: '["sh", "smoke.sh"]'},
    },
    {"Id": "sha256:d", "RepoTags": ["debian:13"], "Labels": None},
    # What an interrupted build left.
    {
        "Id": "sha256:b",
        "RepoTags": ["slipway/b:cpu-candidate"],
        "Labels": {labels.SMOKE: '["true"]'},
    },
    {"Id": "sha256:c", "RepoTags": None, "Labels": {labels.SMOKE: '["true"]'}},
]


def test_the_smoke_test_of_each_recorded_image_runs(
    monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    program("docker", 'echo "$*" >&2; exit 3')
    engine(monkeypatch, images=IMAGES)
    proof = host_verify.run_checks(host_verify.Options(smoke=True, daemon_reload=True))
    assert [check["what"] for check in proof] == ["engine", "image slipway/a:cpu", NETWORK]
    assert "exit status 3" in proof[1]["seen"]
    assert "--entrypoint sh sha256:a smoke.sh" in proof[1]["seen"]
    assert len(host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=True))) == 2


def test_a_smoke_test_that_passes_says_nothing(program: Program) -> None:
    program("docker", "exit 0")
    images_smoke.test("slipway/a:cpu", ["true"], 10)


def test_a_smoke_test_without_end_fails(program: Program) -> None:
    program("docker", 'case "$1" in run) echo its last words; exec sleep 30 ;; esac')
    with pytest.raises(images_smoke.SmokeError, match=r"no end after .*\nits last words"):
        images_smoke.test("slipway/a:cpu", ["true"], 1)


def test_a_smoke_test_has_more_time_on_a_busy_host(
    monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    program("docker", "sleep 2; echo smoke: done")
    monkeypatch.setattr(images_smoke, "STEP_SECONDS", 0.1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (16.0, 1.0, 1.0))
    assert images_smoke.test("slipway/a:cpu", ["true"], 0.8) == ["smoke: done"]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with pytest.raises(images_smoke.SmokeError, match="no end"):
        images_smoke.test("slipway/a:cpu", ["true"], 0.8)


def test_an_engine_that_does_not_answer_ends_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    install_engine(monkeypatch)
    monkeypatch.setattr(state_containers, "DOCKER_SOCKET", "/does/not/exist")
    (check,) = host_verify.run_checks(host_verify.Options(smoke=True, daemon_reload=True))
    assert not check["ok"]
    assert "No such file" in check["seen"]


def test_the_module_fails_with_all_that_went_wrong(
    monkeypatch: pytest.MonkeyPatch, run_module: RunModule, port: int
) -> None:
    wrong = container(port, **{**EXPECTED, "port": 1})
    engine(monkeypatch, containers=[container(port, **EXPECTED), wrong])
    result = run_module(verify, smoke=False)
    assert result["failed"]
    assert result["msg"] == "service iris-api: port 1 is not published on the host"
    assert [check["ok"] for check in result["checks"]] == [True, True, False, True]
    engine(monkeypatch, containers=[container(port, **EXPECTED)])
    result = run_module(verify, smoke=False)
    assert not result["changed"]
    assert result["report"][0] == "ok  engine: Docker Engine 28.5.2, API 1.51"
