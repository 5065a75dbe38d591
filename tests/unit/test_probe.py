# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe: what it says of files, packages, units, people and containers that are there."""

from __future__ import annotations

import ast
import base64
import grp
import hashlib
import http.server
import json
import os
import pwd
import socket
import socketserver
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless

STATUS = """\
Package: docker.io
Status: hold ok installed
Priority: optional
Version: 26.1.5+dfsg1-9+b9
Description: Linux container runtime
 Package: iptables

Package: docker.io-doc
Status: deinstall ok config-files
Version: 1.0

Package: iptables
Status: install ok installed
Version: 1.8.11-2
"""
DEBIAN_13 = 'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which the probe finds what it reads of the system."""
    monkeypatch.setattr(_probe, "read", read_below(tmp_path))
    write(tmp_path, "/var/lib/dpkg/status", STATUS)
    write(tmp_path, "/etc/os-release", DEBIAN_13)
    return tmp_path


def read_below(root: Path) -> Any:
    read = _probe.read
    return lambda path: read(f"{root}{path}")


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_packages_are_found_by_their_whole_name(root: Path) -> None:
    assert _probe.dpkg(["docker.io", "docker.io-doc", "iptables", "docker"]) == {
        "docker.io": ["hold", "installed", "26.1.5+dfsg1-9+b9"],
        "docker.io-doc": ["deinstall", "config-files", "1.0"],
        "iptables": ["install", "installed", "1.8.11-2"],
        "docker": None,
    }


def test_what_dpkg_was_doing_when_it_was_interrupted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its database still says that the package is installed.
    write(root, "/var/lib/dpkg/updates/0001", "Package: docker.io\nStatus: hold ok unpacked\n")
    write(root, "/var/lib/dpkg/updates/tmp.i", "#padding\n" * 3)
    names_in = _probe.names_in
    monkeypatch.setattr(_probe, "names_in", lambda path: names_in(f"{root}{path}"))
    assert _probe.dpkg(["docker.io", "iptables", "new"]) == {
        "docker.io": ["hold", "interrupted", "26.1.5+dfsg1-9+b9"],
        "iptables": ["install", "installed", "1.8.11-2"],
        "new": None,
    }


def test_a_host_without_dpkg_has_no_packages(tmp_path: Path, root: Path) -> None:
    (root / "var/lib/dpkg/status").unlink()
    assert _probe.dpkg(["bash"]) == {"bash": None}


def test_files(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("text")
    file.chmod(0o640)
    folder.mkdir(mode=0o750)
    link.symlink_to(file)
    me, mine = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(folder.stat().st_gid).gr_name
    digest = hashlib.sha256(b"text").hexdigest()
    ids = [os.geteuid(), os.getegid()]
    assert _probe.file_state(str(file)) == ["file", "0640", me, mine, digest, *ids]
    assert _probe.file_state(str(folder)) == ["directory", "0750", me, mine, None, *ids]
    assert (_probe.file_state(str(link)) or [])[0] == "link"
    assert _probe.file_state(str(tmp_path / "none")) is None
    assert _probe.file_state("/dev/null") == ["other", "0666", "root", "root", None, 0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody unknown")
def test_an_unknown_owner_is_told_by_number(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54322)
    assert (_probe.file_state(str(tmp_path)) or [])[2:4] == ["54321", "54322"]


def test_names_times_and_texts(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("ä")
    (tmp_path / "a").write_bytes(b"\xff\x00")
    os.utime(tmp_path / "b", (1.5, 1.5))
    missing = str(tmp_path / "none")
    assert _probe.names_in(str(tmp_path)) == ["a", "b"]
    assert _probe.names_in(missing) is None
    assert _probe.mtime(str(tmp_path / "b")) == 1.5
    assert _probe.mtime(missing) is None
    assert _probe.text(str(tmp_path / "b")) == "ä"
    assert _probe.text(str(tmp_path / "a")) == "base64:" + base64.b64encode(b"\xff\x00").decode()
    assert _probe.text(missing) is None
    assert _probe.text(str(tmp_path)) is None


def test_what_stands_in_the_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "linked").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("text")
    assert _probe.read(str(tmp_path / "pipe")) is None
    assert _probe.read(str(tmp_path / "device")) is None
    assert _probe.read(str(tmp_path / "linked")) == b"text"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make devices")
def test_devices_that_are_open_to_a_group_alone(tmp_path: Path) -> None:
    video = grp.getgrnam("video").gr_gid
    for name, group, mode in (
        ("nvidia0", video, 0o660),
        ("nvidia1", video, 0o660),
        ("nvidiactl", 0, 0o666),
        ("nvidia-modeset", 0, 0o660),
        ("nvidia-uvm", 54321, 0o660),
        ("nvidia-caps", video, 0o640),
        ("other", video, 0o660),
    ):
        os.mknod(tmp_path / name, 0o020000 | mode, os.makedev(1, 3))
        (tmp_path / name).chmod(mode)
        os.chown(tmp_path / name, 0, group)
    (tmp_path / "nvidia-folder").mkdir()
    found = _probe.devices(f"{tmp_path}/nvidia")
    assert set(found) == {"video", "root"}
    assert found["video"].removeprefix(f"{tmp_path}/") in ("nvidia0", "nvidia1")
    assert _probe.devices(f"{tmp_path}/none/nvidia") == {}


def test_an_acl_of_what_is_no_folder(tmp_path: Path) -> None:
    assert _probe.default_acl(str(tmp_path / "none")) is None
    assert _probe.default_acl("/proc/sys") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("adam:1:65536\nadas:1:7\n", 0),
        ("ada:100000:65536\n", 65536),
        ("ada:100000:1000\n1500:200000:64536\nada:broken\nada:1:x\n", 65536),
    ],
)
def test_subordinate_ids(root: Path, text: str, count: int) -> None:
    write(root, "/etc/subuid", text)
    assert _probe.subordinate_ids("/etc/subuid", "ada", 1500) == count


def test_since_when_a_socket_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    assert _probe.answering_since(path) == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert _probe.answering_since(path) == 0, "nobody listens yet"
        server.listen()
        assert _probe.answering_since(path) == Path(path).stat().st_mtime
    assert _probe.answering_since(path) == 0, "its file is still there"


def test_an_engine_of_ones_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = types.SimpleNamespace(pw_uid=1500, pw_dir="/home/ada")
    monkeypatch.setattr(pwd, "getpwnam", {"ada": entry}.__getitem__)
    assert _probe.rootless("nobody") is None
    assert _probe.rootless("ada") == [False, 0, 0, "", 0.0]
    for path in ("/etc/subuid", "/etc/subgid"):
        write(root, path, "ada:100000:65536\n")
    context = f"/home/ada/{_probe.CONTEXT_FILE}"
    for text in ("[]", "{", '{"Endpoints": 1}', '{"Endpoints": {"docker": {}}}'):
        write(root, context, text)
        assert _probe.rootless("ada") == [False, 65536, 65536, "", 0.0]
    write(root, context, '{"Endpoints": {"docker": {"Host": "unix:///x"}}}')
    assert _probe.rootless("ada") == [False, 65536, 65536, "unix:///x", 0.0]


def test_the_context_is_where_docker_keeps_it() -> None:
    digest = hashlib.sha256(_probe.CONTEXT.encode()).hexdigest()
    assert f".docker/contexts/meta/{digest}/meta.json" == _probe.CONTEXT_FILE
    assert _probe.CONTEXT == rootless.CONTEXT


# systemctl answers in its own order of properties, and in blocks parted by an empty line.
SYSTEMCTL = """#!/bin/sh
cat <<'END'
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
StateChangeTimestampMonotonic=2500000

StateChangeTimestampMonotonic=0
LoadState=not-found
ActiveState=inactive
UnitFileState=
NeedDaemonReload=yes
END
"""


def test_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "systemctl"
    command.write_text(SYSTEMCTL)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = _probe.units(["docker.service", "none.service"])
    assert found["docker.service"][:4] == ["loaded", "enabled", "active", False]
    booted = time.time() - time.monotonic()
    assert found["docker.service"][4] == pytest.approx(booted + 2.5, abs=1)
    assert found["none.service"][:4] == ["not-found", "", "inactive", True]


def test_a_host_without_systemd_has_no_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _probe.units(["docker.service"]) == {"docker.service": None}


def test_users_and_groups_of_this_machine() -> None:
    root = pwd.getpwnam("root")
    assert _probe.users(["root", "nobody-has-this-name"]) == {
        "root": [0, 0, root.pw_dir, root.pw_shell, root.pw_gecos],
        "nobody-has-this-name": None,
    }
    groups = _probe.groups(["root", "nobody-has-this-name"])
    assert groups["root"][0] == 0
    assert groups["nobody-has-this-name"] is None


# The engine, by its socket.

IMAGES = [
    {
        "Id": "sha256:1",
        "RepoTags": ["slipway/iris-api:cpu", "slipway/iris-api:old"],
        "Labels": {"io.slipway.digest": "d1", "maintainer": "somebody"},
    },
    {"Id": "sha256:2", "RepoTags": None, "Labels": None},
]


def container(project: str, service: str, status: str = "Up 2 hours", **labels: str) -> Any:
    marks = {"com.docker.compose.project": project, "com.docker.compose.service": service}
    return {"State": "running", "Status": status, "Labels": {**marks, **labels}}


CONTAINERS = [
    container("iris-api", "iris-api", "Up 2 hours (healthy)", **{"io.slipway.config": "c1"}),
    container("iris-api", "db", "Up 3 seconds (health: starting)"),
    container("iris-api", "worker", "Up 1 hour (unhealthy)"),
    container("somebody-else", "web"),
]


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers what the probe asks of a Docker Engine."""

    answers: Mapping[str, Any] = {"/images/json": IMAGES, "/containers/json": CONTAINERS}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = self.answers.get(urllib.parse.urlsplit(self.path).path)
        self.send_response(200 if answer else 500)
        self.end_headers()
        self.wfile.write(json.dumps(answer or {"message": "no"}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    address = str(tmp_path / "docker.sock")
    monkeypatch.setattr(_probe, "DOCKER_SOCKET", address)
    monkeypatch.setattr(Engine, "asked", [])
    with socketserver.UnixStreamServer(address, Engine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Engine
        server.shutdown()
        thread.join()


def test_images_are_found_by_any_of_their_tags(engine: type[Engine]) -> None:
    assert _probe.images(["slipway/iris-api:cpu", "slipway/none:cpu"]) == {
        "slipway/iris-api:cpu": ["sha256:1", {"io.slipway.digest": "d1"}],
        "slipway/none:cpu": None,
    }


def test_containers_of_all_projects_come_by_one_question(engine: type[Engine]) -> None:
    found = _probe.projects(["iris-api", "other"])
    assert found["other"] == []
    assert [entry[:3] for entry in found["iris-api"]] == [
        ["iris-api", "running", "healthy"],
        ["db", "running", "starting"],
        ["worker", "running", "unhealthy"],
    ]
    assert found["iris-api"][0][3] == {
        "com.docker.compose.service": "iris-api",
        "io.slipway.config": "c1",
    }
    (asked,) = engine.asked
    # Stopped ones count as well.
    assert "all=1" in asked


def test_an_engine_that_is_not_there_is_told_and_the_rest_is_answered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_probe, "DOCKER_SOCKET", str(root / "none.sock"))
    answer = _probe.answer({"images": ["a"], "projects": ["b"], "packages": ["iptables"]})
    assert "No such file" in answer["engine"]
    assert answer["packages"] == {"iptables": ["install", "installed", "1.8.11-2"]}


def test_an_engine_that_refuses_is_told(
    engine: type[Engine], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answers", {})
    assert _probe.answer({"images": ["a"]})["engine"] == "Docker answered 500"


# What the host is.


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (DEBIAN_13, ("Debian", "13", "13", "trixie")),
        (
            "NAME='Ubuntu'\nID=ubuntu\nVERSION_ID='24.04'\nVERSION_CODENAME=noble\n",
            ("Ubuntu", "24.04", "24", "noble"),
        ),
        ("ID=debian\nVERSION_CODENAME=forky\n", ("Debian", "forky", "forky", "forky")),
        ("ID=fedora\nVERSION_ID=44\n", ("fedora", "44", "44", "")),
        ("", ("", "", "", "")),
    ],
    ids=["debian", "ubuntu", "testing", "another", "none"],
)
def test_what_the_host_is(root: Path, release: str, expected: tuple[str, ...]) -> None:
    write(root, "/etc/os-release", release)
    facts = _probe.host_facts()
    keys = ("", "_version", "_major_version", "_release")
    assert tuple(facts[f"distribution{key}"] for key in keys) == expected
    assert facts["architecture"] == os.uname().machine
    assert facts["root"] == (os.geteuid() == 0)


@pytest.mark.parametrize(
    ("status", "package"),
    [
        (STATUS, "docker.io"),
        (STATUS.replace("Package: docker.io\n", "Package: docker-ce\n"), "docker-ce"),
        (STATUS.replace("hold ok installed", "deinstall ok config-files"), ""),
        ("", ""),
    ],
    ids=["distribution", "vendor", "removed", "none"],
)
def test_which_package_holds_the_engine(root: Path, status: str, package: str) -> None:
    write(root, "/var/lib/dpkg/status", status)
    assert _probe.host_facts()["docker_package"] == package


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names; ``/closed`` is there for who has the key."""

    def do_GET(self) -> None:
        closed = 200 if self.headers["X-Key"] == "k" else 404
        self.send_response({"/closed": closed, "/leads": 302}.get(self.path) or int(self.path[1:]))
        if self.path == "/leads":
            self.send_header("Location", "/closed")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "reached"), [(200, True), (404, True), (403, False), (407, False), (503, False)]
)
def test_a_servers_answer_counts_and_a_proxys_refusal_does_not(
    web: str, status: int, reached: bool
) -> None:
    assert _probe.reachable([f"{web}/{status}"], 5) == {f"{web}/{status}": reached}


def test_what_does_not_answer_is_out_of_reach() -> None:
    urls = ["http://127.0.0.1:1/", "file:///does/not/exist", "no address"]
    urls += ["http://mirror:port/gpg", "http://a mirror/gpg"]
    assert _probe.reachable(urls, 1) == dict.fromkeys(urls, False)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://mirror:port/", "http://a b/"])
def test_why_an_address_gives_nothing(url: str) -> None:
    found = _probe.offers([["/data", url, "1", "{}", "{}"]], {"/data": None})
    assert found["/data"].startswith("out of reach: ")


@pytest.mark.parametrize(
    ("path", "headers", "why"),
    [
        ("/closed", '{"X-Key": "k"}', ""),
        ("/closed", "{}", "it answers 404 Not Found"),
        # A key is for the address that it was given with.
        ("/leads", '{"X-Key": "k"}', "it answers 404 Not Found"),
        ("/401", "{}", ""),
    ],
)
def test_an_address_is_asked_with_its_headers(web: str, path: str, headers: str, why: str) -> None:
    asked = ["/data", f"{web}{path}", "1", "{}", headers]
    assert _probe.offers([asked], {"/data": None}) == {"/data": why}


def test_addresses_are_tried_only_where_no_engine_is_installed(root: Path, web: str) -> None:
    url = f"{web}/200?{{distribution}}"
    assert "reachable" not in _probe.answer({"reach": [url]})["facts"]
    write(root, "/var/lib/dpkg/status", "")
    reachable = _probe.answer({"reach": [f"{web}/404"]})["facts"]["reachable"]
    assert reachable == {f"{web}/404": True}


def test_an_address_may_name_the_distribution(root: Path) -> None:
    write(root, "/var/lib/dpkg/status", "")
    facts = _probe.answer({"reach": ["file:///no/{distribution}"]})["facts"]
    assert list(facts["reachable"]) == ["file:///no/debian"]


# How it is sent.


def test_it_answers_as_a_script_without_the_sites_packages() -> None:
    assert _probe.__file__ is not None
    source = Path(_probe.__file__).read_text()
    question = {"users": ["root"], "files": ["/"]}
    script = f"{source}\nprint(json.dumps(answer(json.loads({json.dumps(question)!r}))))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"], input=script, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["users"]["root"][0] == 0
    assert answer["files"]["/"][0] == "directory"
    assert answer["engine"] is None


def test_what_is_not_asked_is_not_looked_at(root: Path) -> None:
    assert set(_probe.answer({})) == {"facts", "engine"}


def test_it_can_be_read_by_the_oldest_python_of_a_host() -> None:
    assert _probe.__file__ is not None
    ast.parse(Path(_probe.__file__).read_text(), feature_version=(3, 9))
