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
import tempfile
import threading
import time
import types
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import rootless
from ansible_collections.slipway.host.plugins.module_utils.state import (
    accounts,
    container_description,
    containers,
    files,
    kinds,
    loader,
    packages,
    reading,
    service_files,
    started,
    trees,
    units,
    user_rights,
)
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts
from ansible_collections.slipway.host.plugins.module_utils.state import rootless as state_rootless
from ansible_collections.slipway.host.plugins.plugin_utils import ask_host

from tests.unit import survey

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
    monkeypatch.setattr(reading, "read_file", read_below(tmp_path))
    read_record = reading.read_record
    monkeypatch.setattr(reading, "read_record", lambda path: read_record(f"{tmp_path}{path}"))
    write(tmp_path, "/var/lib/dpkg/status", STATUS)
    write(tmp_path, "/etc/os-release", DEBIAN_13)
    return tmp_path


def read_below(root: Path) -> Any:
    read = reading.read_file
    return lambda path: read(f"{root}{path}")


def write(root: Path, path: str, text: str) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_packages_are_found_by_their_whole_name(root: Path) -> None:
    assert packages.ask_packages(["docker.io", "docker.io-doc", "iptables", "docker"]) == {
        "docker.io": ["hold", "installed", "26.1.5+dfsg1-9+b9"],
        "docker.io-doc": ["deinstall", "config-files", "1.0"],
        "iptables": ["install", "installed", "1.8.11-2"],
        "docker": None,
    }


def test_interrupted_work_of_dpkg_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its database still says that the package is installed.
    write(root, "/var/lib/dpkg/updates/0001", "Package: docker.io\nStatus: hold ok unpacked\n")
    write(root, "/var/lib/dpkg/updates/tmp.i", "#padding\n" * 3)
    names_in = reading.list_names
    monkeypatch.setattr(reading, "list_names", lambda path: names_in(f"{root}{path}"))
    assert packages.ask_packages(["docker.io", "iptables", "new"]) == {
        "docker.io": ["hold", "interrupted", "26.1.5+dfsg1-9+b9"],
        "iptables": ["install", "installed", "1.8.11-2"],
        "new": None,
    }


def test_a_host_without_dpkg_has_no_packages(tmp_path: Path, root: Path) -> None:
    (root / "var/lib/dpkg/status").unlink()
    assert packages.ask_packages(["bash"]) == {"bash": None}


@pytest.mark.usefixtures("only_root_writes")
def test_type_mode_owner_and_digest_of_files_are_asked(tmp_path: Path) -> None:
    file, folder, link = tmp_path / "file", tmp_path / "folder", tmp_path / "link"
    file.write_text("text")
    file.chmod(0o640)
    folder.mkdir(mode=0o750)
    link.symlink_to(file)
    me, mine = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(folder.stat().st_gid).gr_name
    digest = hashlib.sha256(b"text").hexdigest()
    ids = [os.geteuid(), os.getegid()]
    assert files.ask_state(str(file)) == ["file", "0640", me, mine, digest, *ids]
    assert files.ask_state(str(folder)) == ["directory", "0750", me, mine, None, *ids]
    assert (files.ask_state(str(link)) or [])[0] == "link"
    assert files.ask_state(str(tmp_path / "none")) is None
    assert files.ask_state("/dev/null") == ["other", "0666", "root", "root", None, 0, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to somebody unknown")
def test_an_unknown_owner_is_told_by_number(tmp_path: Path) -> None:
    os.chown(tmp_path, 54321, 54322)
    assert (files.ask_state(str(tmp_path)) or [])[2:4] == ["54321", "54322"]


def test_names_times_and_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("ä")
    (tmp_path / "a").write_bytes(b"\xff\x00")
    os.utime(tmp_path / "b", (1.5, 1.5))
    missing = str(tmp_path / "none")
    assert reading.list_names(str(tmp_path)) == ["a", "b"]
    assert reading.list_names(missing) is None
    # Anybody who may write the file can set the time of modification.
    assert files.ask_time(str(tmp_path / "b")) == (tmp_path / "b").stat().st_ctime > 1.5
    assert files.ask_time(missing) is None
    assert files.ask_text(str(tmp_path / "b")) == "ä"
    assert files.ask_text(str(tmp_path / "a")) == "base64:" + base64.b64encode(b"\xff\x00").decode()
    assert files.ask_text(missing) is None
    assert files.ask_text(str(tmp_path)) is None


def test_a_device_or_pipe_in_place_of_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "linked").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("text")
    assert reading.read_file(str(tmp_path / "pipe")) is None
    assert reading.read_file(str(tmp_path / "device")) is None
    assert reading.read_file(str(tmp_path / "linked")) == b"text"


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
    found = accounts.ask_devices(f"{tmp_path}/nvidia")
    assert set(found) == {"video", "root"}
    assert found["video"].removeprefix(f"{tmp_path}/") in ("nvidia0", "nvidia1")
    assert accounts.ask_devices(f"{tmp_path}/none/nvidia") == {}


def test_an_acl_of_what_is_no_folder(tmp_path: Path) -> None:
    assert files.ask_acl(str(tmp_path / "none")) is None
    assert files.ask_acl("/proc/sys") is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("adam:1:65536\nadas:1:7\n", 0),
        ("ada:100000:65536\n", 65536),
        ("ada:100000:1000\n1500:200000:64536\nada:broken\nada:1:x\n", 65536),
    ],
)
def test_subordinate_ids_are_counted(root: Path, text: str, count: int) -> None:
    write(root, "/etc/subuid", text)
    assert state_rootless._count_subordinate_ids("/etc/subuid", "ada", 1500) == count


def test_since_when_a_socket_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "docker.sock")
    assert state_rootless._answering_since(path) == 0
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert state_rootless._answering_since(path) == 0, "nobody listens yet"
        server.listen()
        os.utime(path, (1, 1))
        assert state_rootless._answering_since(path) == Path(path).stat().st_ctime
    assert state_rootless._answering_since(path) == 0, "its file is still there"


def test_an_engine_of_ones_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = types.SimpleNamespace(pw_uid=1500, pw_dir="/home/ada")
    monkeypatch.setattr(pwd, "getpwnam", {"ada": entry}.__getitem__)
    assert state_rootless.ask_rootless("nobody") is None
    assert state_rootless.ask_rootless("ada") == [False, 0, 0, "", 0.0]
    for path in ("/etc/subuid", "/etc/subgid"):
        write(root, path, "ada:100000:65536\n")
    context = f"/home/ada/{state_rootless.CONTEXT_FILE}"
    for text in ("[]", "{", '{"Endpoints": 1}', '{"Endpoints": {"docker": {}}}'):
        write(root, context, text)
        assert state_rootless.ask_rootless("ada") == [False, 65536, 65536, "", 0.0]
    write(root, context, '{"Endpoints": {"docker": {"Host": "unix:///x"}}}')
    assert state_rootless.ask_rootless("ada") == [False, 65536, 65536, "unix:///x", 0.0]


def test_the_context_is_where_docker_keeps_it() -> None:
    digest = hashlib.sha256(state_rootless.CONTEXT.encode()).hexdigest()
    assert f".docker/contexts/meta/{digest}/meta.json" == state_rootless.CONTEXT_FILE
    assert state_rootless.CONTEXT == rootless.CONTEXT


# systemctl answers in its own order of properties, and in blocks parted by an empty line.
SYSTEMCTL = """#!/bin/sh
cat <<'END'
LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
InvocationID=0a1b
FragmentPath=/lib/systemd/system/docker.service
SubState=running
DropInPaths=/usr/lib/systemd/system/docker.service.d/a.conf {folder}/b.conf {folder}/gone.conf
ExecMainStartTimestampMonotonic=2500000

ExecMainStartTimestampMonotonic=0
LoadState=not-found
ActiveState=inactive
UnitFileState=
NeedDaemonReload=yes

ActiveState=activating
SubState=auto-restart-queued
END
"""
DROP_IN = """\
# Environment=commented
[Service]
Environment=PASSWORD=secret
ExecStart=
ExecStart = /bin/dockerd
LimitNOFILE=5
; User=commented
[Unit]
After=x.service
"""


def test_state_and_settings_of_units_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "systemctl"
    command.write_text(SYSTEMCTL.format(folder=tmp_path))
    command.chmod(0o755)
    drop_in = tmp_path / "b.conf"
    drop_in.write_text(DROP_IN)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = units.ask_units(["docker.service", "none.service", "crashed.service"])
    docker, none = found["docker.service"], found["none.service"]
    assert found["crashed.service"]["active"] == "auto-restart"
    digest = hashlib.sha256(DROP_IN.encode()).hexdigest()
    assert docker["files"].pop(str(drop_in)) == [drop_in.stat().st_ctime, digest]
    assert len(docker.pop("files")) == 3
    assert docker.pop("began") == pytest.approx(time.time() - time.monotonic() + 2.5, abs=1)
    assert docker == {
        "load": "loaded",
        "file": "enabled",
        "active": "active",
        "reload": False,
        "start": "0a1b",
        "fragment": "/lib/systemd/system/docker.service",
        "drop_ins": {
            str(drop_in): ["Environment", "ExecStart"],
            str(tmp_path / "gone.conf"): [],
        },
    }
    assert none == {**units.NO_UNIT, "active": "inactive", "reload": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the rights of other users")
def test_whether_a_user_may_write_to_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    ids = os.geteuid(), os.getegid(), os.getgroups()
    assert service_files.ask_writable(f"7:8:{folder}") is None
    folder.mkdir()
    for owner, mode, writable in (
        ((0, 0), 0o755, False),
        ((7, 0), 0o755, True),
        ((0, 8), 0o770, True),
        ((0, 8), 0o760, False),
        ((0, 0), 0o777, True),
    ):
        os.chown(folder, *owner)
        folder.chmod(mode)
        assert service_files.ask_writable(f"7:8:{folder}") is writable
    assert (os.geteuid(), os.getegid(), os.getgroups()) == ids
    file = tmp_path / "file"
    file.touch()
    assert service_files.ask_writable(f"7:8:{file}") is None


def test_a_file_that_a_program_has_read(tmp_path: Path) -> None:
    file = tmp_path / "f"
    assert started.ask_read(str(file)) is None
    assert started.ask_read(str(tmp_path)) is None
    before = time.time() - 1
    file.write_text("old")
    os.utime(file, (1, 1))
    found = started.ask_read(str(file))
    assert found is not None and found[0] > before, "an old time hides nothing"
    os.utime(file, (9e9, 9e9))
    again = started.ask_read(str(file))
    assert again is not None and again[0] < before + 60, "nor does a time to come count"
    assert again[1] == found[1] == hashlib.sha256(b"old").hexdigest()


@pytest.mark.usefixtures("only_root_writes")
def test_the_record_of_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started, "RECORDS", str(tmp_path / "records"))
    file = tmp_path / "records" / "x.service.json"
    assert started.ask_start("x.service") is None
    started.remove_record("x.service")
    files = {"/etc/x": "a", "/etc/none": None}
    started.write_record("x.service", "i1", files)
    assert started.ask_start("x.service") == {"start": "i1", "files": files}
    assert file.stat().st_mode & 0o777 == 0o600
    number = file.stat().st_ino
    started.write_record("x.service", "i1", files)
    assert file.stat().st_ino == number, "an unchanged record is not written again"
    for broken in ("", "{", "[]", '{"start": "i1"}', '{"files": []}'):
        file.write_text(broken)
        assert started.ask_start("x.service") is None
    started.remove_record("x.service")
    assert not file.exists()


def test_a_host_without_systemd_has_no_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert units.ask_units(["docker.service"]) == {"docker.service": None}


def test_users_and_groups_of_this_machine() -> None:
    root = pwd.getpwnam("root")
    assert accounts.ask_users(["root", "nobody-has-this-name"]) == {
        "root": [0, 0, root.pw_dir, root.pw_shell, root.pw_gecos],
        "nobody-has-this-name": None,
    }
    groups = accounts.ask_groups(["root", "nobody-has-this-name"])
    assert groups["root"][0] == 0
    assert groups["nobody-has-this-name"] is None


# The engine, by its socket.

IMAGES = [
    {
        "Id": "sha256:1",
        "Size": 100,
        "RepoTags": ["slipway/iris-api:cpu", "slipway/iris-api:old"],
        "Labels": {"io.slipway.digest": "d1", "maintainer": "somebody"},
    },
    {"Id": "sha256:2", "RepoTags": None, "Labels": None},
]


def container(project: str, service: str, status: str = "Up 2 hours", **labels: str) -> Any:
    marks = {"com.docker.compose.project": project, "com.docker.compose.service": service}
    identity = f"{project}-{service}"
    return {"Id": identity, "State": "running", "Status": status, "Labels": {**marks, **labels}}


CONTAINERS = [
    container("iris-api", "iris-api", "Up 2 hours (healthy)", **{"io.slipway.config": "c1"}),
    container("iris-api", "db", "Up 3 seconds (health: starting)"),
    container("iris-api", "worker", "Up 1 hour (unhealthy)"),
    container("iris-api", "gone"),
    container("iris-api", "once", **{"com.docker.compose.oneoff": "True"}),
    container("somebody-else", "web"),
]
SECRET = "hush-5512"
INSPECTED = {
    "Id": "iris-api-iris-api",
    "Name": "/iris-api-iris-api-1",
    "Image": "sha256:1",
    "Config": {
        "User": "1000:1000",
        "Env": ["PATH=/bin", f"WORD={SECRET}"],
        "Cmd": ["serve", SECRET],
        "Entrypoint": ["/start"],
        "Labels": {"io.slipway.config": "c1", "com.docker.compose.project": "iris-api"},
    },
    "HostConfig": {
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "PortBindings": {"80/tcp": [{"HostIp": "::1", "HostPort": "8080"}], "81/tcp": None},
        "CapAdd": ["CAP_SYS_ADMIN", "NET_ADMIN"],
        "CapDrop": ["ALL"],
        "Privileged": False,
        "PidsLimit": -1,
        "IpcMode": "host",
        "Devices": [{"PathOnHost": "/dev/sda"}],
        "DeviceRequests": [{"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=0"]}],
        "MaskedPaths": [],
        "Memory": 5,
    },
    "Mounts": [
        {"Type": "bind", "Source": "/", "Destination": "/host", "RW": True},
        {"Type": "volume", "Name": "work", "Source": "/var/x", "Destination": "/w", "RW": False},
        {"Type": "volume", "Name": "a" * 64, "Destination": "/unnamed", "RW": True},
        {"Type": "volume", "Name": "b" * 64, "Destination": "/other", "RW": True},
    ],
    "NetworkSettings": {"Networks": {"iris-api_default": {}, "bridge": {}}},
}
BARE = {"Id": "x", "Image": "sha256:2", "Config": {}, "HostConfig": {"MaskedPaths": None}}
IMAGE = {
    "Config": {
        "Env": ["PATH=/bin"],
        "Entrypoint": ["/start"],
        "Cmd": ["other"],
        "Volumes": {"/unnamed": {}},
    }
}


class Engine(http.server.BaseHTTPRequestHandler):
    """Answers what the probe asks of a Docker Engine."""

    answers: Mapping[str, Any] = {
        "/images/json": IMAGES,
        "/images/sha256:1/json": IMAGE,
        "/containers/json": CONTAINERS,
        "/containers/iris-api-iris-api/json": INSPECTED,
        "/containers/iris-api-db/json": {**BARE, "Id": "db"},
        "/containers/iris-api-worker/json": {**BARE, "Id": "worker"},
    }
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = self.answers.get(urllib.parse.urlsplit(self.path).path)
        self.send_response(200 if answer else 404 if self.answers else 500)
        self.end_headers()
        self.wfile.write(json.dumps(answer or {"message": "no"}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Engine]]:
    address = str(tmp_path / "docker.sock")
    monkeypatch.setattr(containers, "DOCKER_SOCKET", address)
    monkeypatch.setattr(Engine, "asked", [])
    with socketserver.UnixStreamServer(address, Engine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Engine
        server.shutdown()
        thread.join()


def test_images_are_found_by_any_of_their_tags(
    engine: type[Engine], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "IMAGE_RECORDS", "/images")
    record = {"digest": "d1", "id": "sha256:0", "origin": "built", "time": 9, "proven": ["smoke"]}
    write(root, "/images/slipway-iris-api-cpu.json", json.dumps(record))
    assert containers.ask_images(["slipway/iris-api:cpu", "slipway/none:cpu"]) == {
        "slipway/iris-api:cpu": [
            "sha256:1",
            {"digest": "d1", "id": "sha256:0", "origin": "built", "time": 9, "bytes": 100},
        ],
        "slipway/none:cpu": None,
    }


def test_containers_are_described_as_the_engine_reports_them(
    engine: type[Engine], root: Path
) -> None:
    write(root, "/sys/fs/cgroup/cgroup.controllers", "memory hugetlb\n")
    write(root, "/var/lib/slipway/services/iris-api.json", '{"containers": ["a"]}')
    found = containers.ask_projects(["iris-api", "other"])
    assert found["other"]["containers"] == [] and found["other"]["record"] is None
    project = found["iris-api"]
    assert project["record"] == {"containers": ["a"], "starting": False}
    assert "memory" in project["limits"]
    assert [(one["service"], one["state"], one["health"]) for one in project["containers"]] == [
        ("iris-api", "running", "healthy"),
        ("db", "running", "starting"),
        ("worker", "running", "unhealthy"),
    ]
    api = project["containers"][0]
    assert api["labels"] == {"io.slipway.config": "c1"}
    assert (api["name"], api["image"], api["user"]) == (
        "iris-api-iris-api-1",
        "sha256:1",
        "1000:1000",
    )
    assert (api["restart"], api["ports"]) == ("on-failure:3", ["::1:8080:80/tcp"])
    assert api["networks"] == ["bridge", "iris-api_default"]
    assert api["mounts"] == [
        ["bind", "/", "/host", True],
        ["volume", "b" * 64, "/other", True],
        ["volume", "work", "/w", False],
    ]
    assert api["settings"] == {
        "cap_add": ["NET_ADMIN", "SYS_ADMIN"],
        "cap_drop": ["ALL"],
        "ipc": "host",
        "systempaths": "unconfined",
        "devices": ["/dev/sda"],
        "gpus": [["cdi", ["nvidia.com/gpu=0"]]],
        "mem_limit": 5,
    }
    differing = [key for key, value in api["own"].items() if value != api["inherited"][key]]
    assert differing == ["command"]
    # Values of variables and commands may be secret, and output of hosts may be logged.
    assert api["variables"] == ["WORD"]
    assert SECRET not in json.dumps(found)


def test_each_image_of_containers_is_asked_for_once(engine: type[Engine], root: Path) -> None:
    containers.ask_projects(["iris-api"])
    assert len([path for path in engine.asked if path.startswith("/images/")]) == 2
    # Stopped containers count as well.
    assert "all=1" in engine.asked[0]
    assert not any("once" in path or "somebody-else" in path for path in engine.asked)


def test_values_of_variables_are_compared_on_the_host(engine: type[Engine], root: Path) -> None:
    right = container_description.digest_of([["PATH", "/bin"], ["WORD", SECRET]])
    wrong = container_description.digest_of([["PATH", "/bin"], ["WORD", "another"]])
    for digest, found in ((right, ["iris-api-iris-api"]), (wrong, [])):
        question = json.dumps(["iris-api", ["PATH", "WORD"], digest])
        answer = survey.answer({"projects": ["iris-api"], "environments": [question]})
        assert answer["environments"] == {"iris-api": found}
        assert digest not in json.dumps(answer)


@pytest.mark.parametrize(
    ("mode", "owner", "counts"),
    [
        (0o600, 0, True),
        (0o644, 0, True),
        (0o620, 0, False),
        (0o602, 0, False),
        (0o600, 65534, False),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_record_that_others_can_write_does_not_count(
    root: Path, mode: int, owner: int, counts: bool
) -> None:
    names = ("images/slipway-x-cpu.json", "services/x.json")
    for name, text in zip(names, ('{"id": "sha256:1"}', '{"containers": ["a"]}'), strict=True):
        write(root, f"/var/lib/slipway/{name}", text)
        (root / "var/lib/slipway" / name).chmod(mode)
        os.chown(root / "var/lib/slipway" / name, owner, 0)
    assert ("id" in containers.read_image_record("slipway/x:cpu")) == counts
    assert (containers.read_service_record("x") is not None) == counts


@pytest.mark.parametrize("text", ["[]", "{", '{"containers": 1}', "{}"])
def test_a_broken_record_of_a_service_knows_no_container(root: Path, text: str) -> None:
    write(root, "/var/lib/slipway/services/x.json", text)
    assert containers.read_service_record("x") == {"containers": [], "starting": False}


def test_an_engine_that_is_not_there_is_told_and_the_rest_is_answered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "DOCKER_SOCKET", str(root / "none.sock"))
    answer = survey.answer({"images": ["a"], "projects": ["b"], "packages": ["iptables"]})
    assert "No such file" in answer["engine"]
    assert answer["packages"] == {"iptables": ["install", "installed", "1.8.11-2"]}


def test_an_engine_that_refuses_is_told(
    engine: type[Engine], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answers", {})
    assert survey.answer({"images": ["a"]})["engine"] == "Docker answered 500"


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
def test_facts_of_the_distribution_are_asked(
    root: Path, release: str, expected: tuple[str, ...]
) -> None:
    write(root, "/etc/os-release", release)
    facts = state_facts.ask_host()
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
    assert state_facts.ask_host()["docker_package"] == package


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
    assert state_facts.ask_reachable([f"{web}/{status}"], 5) == {f"{web}/{status}": reached}


def test_an_address_without_answer_is_unreachable() -> None:
    urls = ["http://127.0.0.1:1/", "file:///does/not/exist", "no address"]
    urls += ["http://mirror:port/gpg", "http://a mirror/gpg"]
    assert state_facts.ask_reachable(urls, 1) == dict.fromkeys(urls, False)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://mirror:port/", "http://a b/"])
def test_why_an_address_gives_nothing(url: str) -> None:
    found = trees.ask_offers([["/data", url, "1", "{}", "{}"]], {"trees": {"/data": None}})
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
    assert trees.ask_offers([asked], {"trees": {"/data": None}}) == {"/data": why}


def test_addresses_are_tried_only_where_no_engine_is_installed(root: Path, web: str) -> None:
    url = f"{web}/200?{{distribution}}"
    assert "reachable" not in survey.answer({}, [url])["facts"]
    write(root, "/var/lib/dpkg/status", "")
    reachable = survey.answer({}, [f"{web}/404"])["facts"]["reachable"]
    assert reachable == {f"{web}/404": True}


def test_an_address_may_name_the_distribution(root: Path) -> None:
    write(root, "/var/lib/dpkg/status", "")
    facts = survey.answer({}, ["file:///no/{distribution}"])["facts"]
    assert list(facts["reachable"]) == ["file:///no/debian"]


# How it is sent.


def test_it_answers_as_a_script_without_the_sites_packages() -> None:
    script = ask_host.script({"users": ["root"], "files": ["/"]})
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"], input=script, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["users"]["root"][0] == 0
    assert answer["files"]["/"][0] == "directory"
    assert answer["engine"] is None


def test_an_empty_question_has_an_empty_answer(root: Path) -> None:
    assert set(survey.answer({})) == {"facts", "engine", "unsafe"}


def sent() -> list[str]:
    """Return the modules that may be sent to a host."""
    always = [module.__name__ for module in (loader, *ask_host.ALWAYS)]
    needs = (name for key in kinds.MODULE_OF_KEY.values() for name in ask_host.needs_of(key))
    return sorted({*always, *kinds.MODULE_OF_KEY.values(), *needs})


@pytest.mark.parametrize("module", sent())
def test_sent_modules_parse_with_the_oldest_python_of_a_host(module: str) -> None:
    ast.parse(ask_host.source_of(module), feature_version=(3, 9))


@pytest.mark.parametrize("module", sent())
def test_sent_modules_import_only_sent_modules(module: str) -> None:
    tree = ast.parse(ask_host.source_of(module))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typing = {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing:
            source = node.module or ""
            if source.startswith("ansible_collections."):
                modules = {f"{source}.{alias.name}" for alias in node.names}
                assert source in sent() or modules <= set(sent())
            else:
                assert source.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("key", kinds.MODULE_OF_KEY)
def test_a_question_is_sent_with_all_modules_that_it_imports(key: str) -> None:
    always = [module.__name__ for module in (loader, *ask_host.ALWAYS)]
    module = kinds.MODULE_OF_KEY[key]
    names = {*always, module, *ask_host.needs_of(module)}
    for name in names:
        for node in ast.parse(ask_host.source_of(name)).body:
            source = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if isinstance(node, ast.ImportFrom) and source.startswith("ansible_collections."):
                assert source in names or {f"{source}.{one.name}" for one in node.names} <= names


def test_a_question_is_sent_with_the_modules_that_it_needs_alone() -> None:
    text = ask_host.script({"users": ["root"]})
    assert "def ask_users" in text
    assert "def ask_projects" not in text
    assert "def compare_users" not in text


def test_every_key_is_answered_by_the_script() -> None:
    question: dict[str, list[Any]] = {key: [] for key in kinds.ASKS}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"],
        input=ask_host.script(question),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(question) <= set(json.loads(done.stdout))


# What lies below folders that others can write.

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture
def home() -> Iterator[Path]:
    """Make the home of somebody below folders that only root can write."""
    with tempfile.TemporaryDirectory(dir="/var/lib") as name:
        base = Path(name)
        base.chmod(0o755)
        (base / "bob").mkdir()
        os.chown(base / "bob", 54321, 54321)
        (base / "secret").write_text("secret")
        yield base / "bob"


def asked(path: Path) -> tuple[Any, Any, Any]:
    """Return what an answer says of a path as a file, as a text, and what is in its way."""
    answer = survey.answer({"files": [str(path)], "texts": [str(path)]})
    return *(answer[kind][str(path)] for kind in ("files", "texts")), answer["unsafe"]


@NEEDS_ROOT
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "device", "endless"])
def test_an_obstacle_in_place_of_a_users_file_is_not_read(home: Path, kind: str) -> None:
    file = home / "file"
    if kind == "link":
        file.symlink_to(home.parent / "secret")
    elif kind == "hard link":
        file.hardlink_to(home.parent / "secret")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5))
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    state, text, unsafe = asked(file)
    assert (state, text) == (None, None)
    assert unsafe[str(file)][0] == str(file)
    words = {
        "link": f"a symbolic link to {home.parent}/secret, owned by root",
        "hard link": "a file with 2 names (hard links), owned by root",
        "pipe": "a named pipe, owned by root",
        "device": "a character device, owned by root",
        "endless": f"more than {reading.MAX_TEXT} bytes",
    }
    assert unsafe[str(file)][1] == words[kind]


@NEEDS_ROOT
def test_no_question_follows_a_users_link(home: Path) -> None:
    (home.parent / "inner").mkdir()
    (home.parent / "inner" / "name").symlink_to("/elsewhere")
    (home / "link").symlink_to(home.parent / "inner")
    place = str(home / "link")
    kinds = ("folders", "links", "texts", "files", "acls")
    for path in (place, f"{place}/name"):
        answer = survey.answer({kind: [path] for kind in kinds})
        assert [answer[kind][path] for kind in kinds] == [None] * 5
        assert answer["unsafe"][path][0] == place


@NEEDS_ROOT
def test_roots_own_links_are_followed_and_a_users_behind_them_are_not(home: Path) -> None:
    (home / "file").write_text("his")
    (home / "link").symlink_to(home.parent / "secret")
    for name, target in (("own", "secret"), ("his", "bob/file"), ("trap", "bob/link")):
        (home.parent / name).symlink_to(target)
    assert asked(home.parent / "own")[1] == "secret"
    assert asked(home.parent / "his")[1] == "his"
    assert asked(home.parent / "trap")[1] is None
    (home.parent / "circle").symlink_to("circle/x")
    assert asked(home.parent / "circle")[1] is None


@NEEDS_ROOT
def test_the_script_answers_as_the_module_does(home: Path) -> None:
    (home / "file").symlink_to("/etc/shadow")
    question = {"texts": [str(home / "file")], "files": [str(home)], "left": ["nobody"]}
    script = ask_host.script(question)
    command = ["/usr/bin/python3", "-I", "-S", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
    answer, here = json.loads(done.stdout), survey.answer(question)
    assert {key: answer[key] for key in ("texts", "files", "left", "unsafe")} == {
        key: here[key] for key in ("texts", "files", "left", "unsafe")
    }
    assert answer["unsafe"]


@NEEDS_ROOT
def test_a_home_that_root_may_not_enter_is_read_as_its_owner(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def look(_path: str) -> str:
        if not used:
            raise PermissionError
        return "text"

    def as_user(name: str, work: Any, _seconds: float) -> Any:
        used.append(name)
        return work()

    monkeypatch.setattr(reading, "_last_visible_owner", lambda _path: "bob")
    monkeypatch.setattr(user_rights, "as_user", as_user)
    assert reading.read_guarded(look, str(home / "file")) == "text"
    assert used == ["bob"]
