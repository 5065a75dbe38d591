# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A front door for one service on three hosts: attacks, an update and a lost host under load."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group
from lab.processes import wait_until
from tests import page_commands
from tests.host.conftest import ROOT, Named, Run, Site
from tests.host.test_removal import Found, look
from tests.host.test_remove import remove

pytestmark = pytest.mark.host

SHARED = ("_shared", "Dockerfile.j2", "bases.yml", "bases.schema.json", "image.schema.json")
IMAGE = """
title: Echo
description: For tests.
licence: GPL-3.0-or-later
version: "1.0"
packages: [python3]
files:
  - {from: echo.py, to: /srv/echo.py}
command: [python3, /srv/echo.py]
ports: {web: 7000}
healthcheck: {command: [python3, /srv/echo.py, ask], interval: 5}
smoke: {file: smoke.sh}
services:
  web:
    publish: {web: 7000}
    urls: {web: /}
    endpoint: {port: web, path: /healthz}
    health_path: /healthz
"""
# Answers with its version and its host; echoes the first line behind an upgrade to a websocket.
ECHO = """
import json, os, sys, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if sys.argv[1:]:
    urllib.request.urlopen("http://127.0.0.1:7000/healthz", timeout=3)
    sys.exit()
VERSION = os.environ["VERSION"]
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self.wfile.write(self.rfile.readline())
            return
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length).decode()
        host = os.environ["REPLICA"]
        body = json.dumps({"version": VERSION, "host": host, "sent": sent}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *words):
        pass
if VERSION == "broken":
    sys.exit("broken")
ThreadingHTTPServer(("", 7000), Handler).serve_forever()
"""
CONFIG, CADDYFILE = "/etc/caddy/slipway.json", "/etc/caddy/Caddyfile"
DROP_IN = "/etc/systemd/system/caddy.service.d/slipway.conf"
ROOT_CERTIFICATE = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
KEY, CERTIFICATE = "/etc/ssl/private/lab.key", "/etc/ssl/lab.pem"
NAME, OTHER_NAME = "echo.example.org", "other.example.org"
SITES: list[dict[str, Any]] = [
    {"service": "echo", "address": NAME},
    # Another address of the same service, with a certificate of the administrator.
    {
        "service": "echo",
        "address": OTHER_NAME,
        "port": 8443,
        "certificate": CERTIFICATE,
        "key": KEY,
        "sticky": True,
    },
]
HOSTS = ("door-1", "door-2", "door-3")
MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    f" -addext subjectAltName=DNS:{OTHER_NAME} -keyout {KEY} -out {CERTIFICATE} 2>/dev/null; "
    f"chmod 600 {KEY}"
)
# At least so many requests are sent, at most so many, by so many clients.
REQUESTS, MOST, CLIENTS = 2000, 20000, 4


class Door(Site):
    """The host of the front door, which runs the service too; ``others`` are the other hosts."""

    others: list[Site]
    images: Path

    @property
    def extra(self) -> dict[str, Any]:  # type: ignore[override]
        return {
            "slipway_roles": ["docker_engine", "ml_images", "ml_services", "ml_front_door"],
            "ml_catalogue_folder": str(self.images),
            "host_verify_smoke": False,
        }

    def make_catalogue(self) -> None:
        """Make a catalogue with one small image."""
        self.images = self.folder / "images"
        self.images.mkdir()
        for name in SHARED:
            source = ROOT / "images" / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, self.images / name)
        (self.images / "echo").mkdir()
        (self.images / "echo/image.yml").write_text(IMAGE)
        (self.images / "echo/echo.py").write_text(ECHO)
        (self.images / "echo/smoke.sh").write_text("#!/bin/sh\necho smoke: well\n")
        shutil.copytree(ROOT / "images/iris-api", self.images / "iris-api")

    def declare_door(
        self, version: str = "one", service: str = "echo", bind_address: str = "0.0.0.0"
    ) -> None:
        """Write the inventory of all hosts; another version replaces all containers."""
        sites = dict(zip(HOSTS, (self, *self.others), strict=True))
        hosts = {
            name: {
                **site.connection,
                "ml_services_instances": [
                    {
                        "name": service,
                        "bind_address": "127.0.0.1" if site is self else bind_address,
                        "environment": {"REPLICA": name, "VERSION": version},
                    }
                ],
            }
            for name, site in sites.items()
        }
        variables = {
            "ml_images_present": [service],
            "ml_front_door_host": "door-1",
            "ml_front_door_sites": [{**site, "service": service} for site in SITES],
        }
        inventory = {"all": {"hosts": hosts, "vars": variables}}
        self.inventory.write_text(yaml.safe_dump(inventory))

    def connect(self, site: int = 0) -> ssl.SSLSocket:
        """Return a connection to a site of the front door, whose certificate was checked."""
        context = ssl.create_default_context(cafile=str(self.folder / f"ca-{site}.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        port = SITES[site].get("port", 443)
        plain = socket.create_connection((self.host.address, port), timeout=30)
        return context.wrap_socket(plain, server_hostname=SITES[site]["address"])

    def ask(
        self, path: str = "/", body: str = "", site: int = 0, cookie: str = ""
    ) -> tuple[int, Any, str]:
        """Return status, JSON answer and cookie of a request to the front door."""
        connection = http.client.HTTPSConnection(SITES[site]["address"], timeout=30)
        connection.sock = self.connect(site)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"} if body else {}
            headers |= {"Cookie": cookie} if cookie else {}
            connection.request("POST" if body else "GET", path, body or None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            found = json.loads(text) if answer.status == 200 else text
            return answer.status, found, answer.headers.get("Set-Cookie", "")

    def slipway(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project."""
        command = [str(ROOT / "slipway"), verb, "-i", str(self.inventory)]
        extra = ["-e", json.dumps(self.extra)]
        return subprocess.run([*command, *extra], capture_output=True, text=True, check=False)


class Load(threading.Thread):
    """Sends requests until told to finish; a client tries again once, a second later."""

    def __init__(self, ask: Callable[[str], str], pause: float) -> None:
        super().__init__(daemon=True)
        self.ask, self.pause = ask, pause
        self.results: Counter[str] = Counter()
        self.errors: list[str] = []
        self.sent, self.over, self.lock = 0, threading.Event(), threading.Lock()

    def run(self) -> None:
        clients = [threading.Thread(target=self.send, daemon=True) for _client in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def send(self) -> None:
        while True:
            with self.lock:
                if self.sent >= (REQUESTS if self.over.is_set() else MOST):
                    return
                self.sent += 1
                number = self.sent
            result = self.try_once(number)
            if result == "lost":
                time.sleep(1)
                result = self.try_once(number).replace("answered", "answered the second time")
            with self.lock:
                self.results[result] += 1
            time.sleep(self.pause)

    def try_once(self, number: int) -> str:
        try:
            return self.ask(str(number))
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"request {number}: {error!r}")
            return "lost"

    def finish(self) -> None:
        """Send the requests that are left; check that none was wrong or lost."""
        self.pause = 0
        self.over.set()
        self.join()
        print(dict(self.results))
        assert self.results.total() == self.sent >= REQUESTS
        assert set(self.results) <= {"answered", "answered the second time"}, self.errors


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    group = Group("pytest-front-door")
    group.remove()
    folder = tmp_path_factory.mktemp("front-door")
    door, *others = (Site(group.ensure(HostSpec(name, base=ENGINE_BASE)), folder) for name in HOSTS)
    bare = Door(door.host, folder)
    bare.others = others
    bare.make_catalogue()
    bare.declare_door()
    bare.on("apt-get -qq update; apt-get -qq install -y openssl >/dev/null")
    yield bare
    group.remove()


@pytest.fixture(scope="module")
def before(bare: Door) -> Found:
    """The host of the front door before the first run."""
    return look(bare)


@pytest.fixture(scope="module")
def door(bare: Door, before: Found) -> Door:
    bare.on(MAKE_CERTIFICATE)
    bare.declare_door()
    run = bare.run("site.yml", "--diff")
    assert run.status == "successful", run.output
    key = bare.on(f"sed -n 2p {KEY}")
    assert len(key) > 30
    assert key not in run.output
    (command,) = page_commands.run_by("test_the_door_answers_and_a_second_run_changes_nothing")
    for number, shown in enumerate((command, f"cat {CERTIFICATE}")):
        (bare.folder / f"ca-{number}.pem").write_text(bare.on(shown))
    return bare


def test_what_is_in_the_way_stops_the_door_before_a_change(bare: Door, before: Found) -> None:
    bare.declare_door(bind_address="127.0.0.1")
    refused = bare.run("site.yml", "--limit", "door-1")
    assert refused.status == "failed"
    assert (
        "host door-2 has address 127.0.0.1 for it; expected an address that the" in refused.output
    )
    bare.declare_door()
    bare.on(f"mkdir -p /etc/caddy; printf 'their.example.org\\n' >{CADDYFILE}")
    assert ("ml_front_door", "obstacles", CADDYFILE) in bare.plan("--limit", "door-1")[1]
    bare.on("rm -r /etc/caddy; systemd-run --quiet --unit=theirs python3 -m http.server 443")
    bare.on("sleep 1")
    _status, named = bare.plan("--limit", "door-1")
    # The certificate of the other port does not exist yet.
    expected: Named = {("ml_front_door", "door_ports", port) for port in ("443", "8443")}
    assert {one for one in named if one[0] == "ml_front_door"} == expected
    bare.on("systemctl stop theirs")
    assert look(bare).since(before) == []


def test_a_check_of_bare_hosts_changes_nothing(bare: Door, before: Found) -> None:
    bare.on(MAKE_CERTIFICATE)
    run = bare.run("site.yml", "--check", "--diff", "--limit", "door-1")
    assert run.status == "successful", run.output
    assert "ml_front_door: Write the configuration of Caddy" in run.changed()
    assert set(look(bare).since(before)) == {KEY, CERTIFICATE}


def test_the_door_answers_and_a_second_run_changes_nothing(door: Door) -> None:
    hosts = Counter(door.ask()[1]["host"] for _number in range(12))
    assert set(hosts) == set(HOSTS)
    status, answer, _cookie = door.ask(body="hello")
    assert (status, answer["version"], answer["sent"]) == (200, "one", "hello")
    assert door.plan() == (0, set())
    assert door.converge(slipway_survey=False).changed() == set()
    run = door.run("site.yml", "--limit", "door-2", slipway_roles=["ml_aliases"])
    assert run.status == "successful", run.output
    other = door.others[0]
    assert other.on("ml url echo").splitlines() == [
        f"front door  https://{NAME}/",
        f"front door  https://{OTHER_NAME}:8443/",
        f"web         http://{other.host.address}:7000/",
    ]


def test_only_the_ports_of_sites_listen_and_nobody_reads_a_key(door: Door) -> None:
    found = door.on("ss -Hltnup | grep caddy | awk '{print $1, $5}' | sort").splitlines()
    assert found == ["tcp *:443", "tcp *:8443"]
    user = door.host.user
    for path in ("/run/caddy-keys/0.key", "/run/caddy/admin.sock", ROOT_CERTIFICATE):
        door.on(f"test -e {path}")
        assert door.try_as(user, f"test -e {path}").returncode == 1, path
    keys = door.on("stat -c '%U %G %a' /run/caddy /run/caddy-keys /run/caddy-keys/0.key")
    assert keys.splitlines() == ["caddy caddy 700", "root caddy 750", "root caddy 440"]
    assert door.on(f"stat -c '%U %a' {KEY}") == "root 600"


def test_a_browser_stays_on_its_host_and_websockets_work(door: Door) -> None:
    _status, first, cookie = door.ask(site=1)
    cookie = cookie.partition(";")[0]
    assert cookie.startswith("slipway_echo=")
    same = {door.ask(site=1, cookie=cookie)[1]["host"] for _number in range(9)}
    assert same == {first["host"]}
    with door.connect() as connection:
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        answer = connection.makefile("rwb")
        assert b" 101 " in answer.readline()
        while answer.readline().strip():
            pass
        connection.sendall(b"both ways\n")
        assert answer.readline() == b"both ways\n"


def test_tampers_are_drift_and_repaired(door: Door) -> None:
    rows = {
        "config": (f"echo {{}} >{CONFIG}", {("ml_front_door", "files", CONFIG)}),
        "unit": (
            "systemctl disable --now caddy 2>/dev/null",
            {("ml_front_door", "units", "caddy.service")},
        ),
    }
    door.repair(rows)
    assert door.ask()[0] == 200
    # A new certificate is loaded without a restart.
    started = door.on("systemctl show --value --property=ExecMainStartTimestamp caddy")
    door.repair({"key": (MAKE_CERTIFICATE, {("ml_front_door", "units", "caddy.service")})})
    assert door.plan() == (0, set())
    assert door.on("systemctl show --value --property=ExecMainStartTimestamp caddy") == started
    (door.folder / "ca-1.pem").write_text(door.on(f"cat {CERTIFICATE}"))
    assert door.ask(site=1)[0] == 200


def is_right(door: Door, number: str) -> str:
    """Ask for an echo; raise OSError for an error of the door, which a client tries again."""
    status, answer, _cookie = door.ask(body=number)
    if status >= 500:
        raise OSError(status)
    return "answered" if (status, answer["sent"]) == (200, number) else "wrong"


def replaced(run: Run) -> list[str]:
    """Return the hosts in the order in which their services were replaced."""
    return [
        event["event_data"]["host"]
        for event in run.events
        if event["event"] == "runner_on_ok"
        and event["event_data"]["task"].startswith("Start declared services")
        and event["event_data"]["res"].get("changed")
    ]


def test_a_stopped_service_loses_no_small_request(door: Door) -> None:
    other = door.others[0]
    other.on("docker stop --time 0 echo-echo-1")
    # The health check does not know it yet.
    assert [is_right(door, str(number)) for number in range(20)] == ["answered"] * 20
    other.on("docker start echo-echo-1")
    assert wait_until(lambda: bool(door.ask()[1]["host"] == HOSTS[1]), 30)


def test_a_client_that_sends_too_little_harms_nobody(door: Door) -> None:
    short = f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\n\r\nshort".encode()
    with door.connect() as connection:
        connection.sendall(short)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(100)
    # No host is left out because of that request.
    assert {door.ask()[1]["host"] for _number in range(12)} == set(HOSTS)


def test_a_broken_version_reaches_one_host_only(door: Door) -> None:
    door.declare_door("broken")
    run = door.run("site.yml", ml_services_timeout=20)
    assert run.status == "failed"
    failed = [
        (event["event_data"]["task"][:4], event["event_data"]["res"]["msg"])
        for event in run.events
        if event["event"] == "runner_on_failed"
    ]
    assert [task for task, _message in failed] == ["Star", "Stop", "Stop"]
    assert "failed, which is behind the front door too" in failed[1][1]
    versions = Counter(door.ask()[1]["version"] for _number in range(12))
    assert versions == {"one": 12}


@pytest.mark.long
def test_an_update_loses_no_request(door: Door) -> None:
    door.declare_door("two")
    load = Load(lambda number: is_right(door, number), pause=0.05)
    load.start()
    run = door.converge()
    assert sorted(replaced(run)) == list(HOSTS)
    load.finish()
    assert door.plan() == (0, set())
    verified = door.slipway("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    checked = f"front door https://{NAME}: service echo answers through the front door and on each"
    assert checked in " ".join(verified.stdout.split())


def is_virginica(door: Door, _number: str) -> str:
    """Ask for a prediction; raise OSError for an error of the door."""
    status, answer, _cookie = door.ask("/predict", '{"length": 5.1, "width": 2.4}')
    if status >= 500:
        raise OSError(status)
    return "answered" if status == 200 and answer["prediction"] == "virginica" else "wrong"


@pytest.mark.long
def test_an_update_of_iris_api_loses_no_request(door: Door) -> None:
    door.declare_door("one", "iris-api")
    door.converge()
    load = Load(lambda number: is_virginica(door, number), pause=0.05)
    load.start()
    door.declare_door("two", "iris-api")
    run = door.converge()
    load.finish()
    assert sorted(replaced(run)) == list(HOSTS)
    door.declare_door("two")
    door.converge()


def test_a_killed_host_loses_no_request(door: Door) -> None:
    load = Load(lambda number: is_right(door, number), pause=0.02)
    load.start()
    time.sleep(1)
    lost = door.others[1].host
    # systemd stops the host at once, without its services.
    door.others[1].try_as(lost.user, "sudo kill -s RTMIN+14 1")
    load.finish()


@pytest.mark.long
def test_removal_leaves_nothing(door: Door, before: Found) -> None:
    images = json.dumps({"ml_catalogue_folder": str(door.images)})
    done = remove(door, "--yes", "--limit", "door-1", "-e", images)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not {one for one in look(door).since(before) if "caddy" in one}
    door.on(
        "! ls -d /var/lib/caddy /var/log/caddy /run/caddy* /etc/systemd/system/caddy* 2>/dev/null"
    )
    assert door.on(f"stat -c %a {KEY}") == "600"
