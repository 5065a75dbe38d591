# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acceptance checks of files, engine settings and declared things that are missing."""

from __future__ import annotations

import grp
import http.server
import json
import os
import pwd
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import (
    declared,
    engine_settings,
    engine_users,
    installed_files,
)
from ansible_collections.slipway.host.plugins.module_utils.host import verify as host_verify
from ansible_collections.slipway.host.plugins.module_utils.state import containers, packages

Program = Callable[[str, str], None]
DATA_SET = {"path": "/data/pets", "places": [], "owner": "root", "mode": "0755"}
PROVEN = {"labels": {labels.PROOF: '{"port": 1}'}}


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([], {}),
        ([{"refused": []}], {}),
        (
            [
                {"packages": [{"name": "b"}, {"name": "a", "hold": True}]},
                {"packages": [{"name": "c", "state": "absent"}, {"name": "d", "optional": True}]},
            ],
            {"packages": ["a", "b"]},
        ),
        ([{"modules": [{"name": "nvidia"}]}], {"driver": True}),
        ([{"modules": [{"name": "nouveau", "state": "absent"}]}], {"driver": False}),
        (
            [{"packages": [{"name": "nvidia-container-toolkit", "version": "1"}]}],
            {"toolkit": True, "packages": ["nvidia-container-toolkit"]},
        ),
        ([{"packages": [{"name": "nvidia-container-toolkit", "state": "absent"}]}], {}),
        ([{"units": [{"name": "docker.service", "active": True}]}], {"engine": True}),
        ([{"units": [{"name": "docker.service", "active": False}]}], {"engine": False}),
        ([{"units": [{"name": "x.service", "active": True}]}], {}),
        (
            [{"members": [{"group": "docker", "users": ["ada"], "exclusive": True}]}],
            {"docker_users": ["ada"]},
        ),
        ([{"members": [{"group": "docker", "users": ["ada"], "exclusive": False}]}], {}),
        ([{"members": [{"group": "lab", "users": ["ada"], "exclusive": True}]}], {}),
        (
            [
                {"images": [{"reference": "slipway/a:cpu", "digest": "d"}]},
                {"projects": [{"name": "p", "services": [{"name": "web", "config": "c"}]}]},
            ],
            {"images": ["slipway/a:cpu"], "services": {"web": ""}},
        ),
        (
            [
                {
                    "datasets": [
                        {**DATA_SET, "version": "sha256:1"},
                        {**DATA_SET, "version": "1", "offer": ["x"]},
                        {"path": "/data/gone", "state": "absent"},
                    ]
                }
            ],
            {"datasets": [DATA_SET]},
        ),
        (
            [{"projects": [{"name": "p", "services": [{"name": "web", "container": PROVEN}]}]}],
            {"services": {"web": '{"port": 1}'}},
        ),
    ],
)
def test_packages_images_and_services_of_roles_are_collected(
    statements: list[Any], expected: dict[str, Any]
) -> None:
    nothing: dict[str, Any] = {"packages": [], "datasets": [], "images": [], "services": {}}
    assert declared.declare(statements) == {**nothing, **expected}


# Files of packages.

VERIFIED = """\
??5??????   /usr/bin/dockerd
??5?????? c /etc/default/docker
missing     /usr/bin/docker
missing   c /etc/init.d/docker
missing     /usr/share/doc/docker.io/copyright
missing     /usr/share/locale/de/x.mo (Permission denied)
.M.......   /usr/bin/with space
nonsense
"""
EXCLUDED = [(True, "/usr/share/doc/*"), (True, "/usr/share/locale/*")]
CHANGED = [
    ("/usr/bin/dockerd", "was changed"),
    ("/usr/bin/docker", "is missing"),
    ("/usr/bin/with space", "was changed"),
]


def test_files_that_differ_from_their_package() -> None:
    assert list(installed_files.parse(VERIFIED, EXCLUDED)) == CHANGED
    assert list(installed_files.parse("", [])) == []
    everything = [path for path, _what in installed_files.parse(VERIFIED, [])]
    assert "/usr/share/doc/docker.io/copyright" in everything


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("/usr/share/doc/x/README", True),
        ("/usr/share/doc/x/copyright", False),
        ("/usr/bin/docker", False),
    ],
)
def test_paths_that_dpkg_does_not_install(path: str, excluded: bool) -> None:
    text = "# path-exclude=/usr/bin/*\npath-exclude=/usr/share/doc/*\npath-include=/*/copyright\n"
    exclusions = installed_files.read_exclusions([text, "no-debsig\npath-exclude /var/x\n"])
    assert len(exclusions) == 3
    assert installed_files.is_excluded(path, exclusions) is excluded


DPKG_QUERY = """
case $1 in
--show) printf 'installed docker.io\\nconfig-files old\\n' ;;
--search) printf 'docker.io, other: /usr/bin/dockerd\\n%s\\n' \
    'diversion by x from: /usr/bin/docker' 'docker-cli: /usr/bin/docker' ;;
esac
"""


def test_the_package_of_a_changed_file_is_named(program: Program, tmp_path: Path) -> None:
    program("dpkg-query", DPKG_QUERY)
    program("dpkg", f'echo "$*" >{tmp_path}/told; exit 0')
    assert installed_files.check_files([]) == "not applicable: no declared package is installed"
    found = installed_files.check_files(["docker.io", "old"])
    assert found == "all files of 1 packages are as installed"
    assert (tmp_path / "told").read_text() == "--verify docker.io\n"
    program("dpkg", f"cat <<'END'\n{VERIFIED}END\nexit 1")
    with pytest.raises(ValueError, match=r"docker\.io: /usr/bin/dockerd was changed; ") as error:
        installed_files.check_files(["docker.io"])
    assert "docker-cli: /usr/bin/docker is missing" in str(error.value)
    assert str(error.value).endswith("--allow-change-held-packages docker-cli docker.io")
    program("dpkg", "echo broken >&2; exit 2")
    with pytest.raises(ValueError, match="dpkg --verify failed: broken"):
        installed_files.check_files(["docker.io"])


# Settings of the engine.

INFO = {
    "CgroupDriver": "systemd",
    "CDISpecDirs": ["/etc/cdi"],
    "DefaultRuntime": "runc",
    "Labels": ["b=2", "a=1"],
    "LiveRestoreEnabled": True,
    "LoggingDriver": "json-file",
    "RegistryConfig": {"Mirrors": ["https://a.example.org/"]},
    "Runtimes": {"runc": {}, "nvidia": {}},
}


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, []),
        ({"log-driver": "json-file", "live-restore": True, "dns": ["192.0.2.1"]}, []),
        ({"log-driver": "local"}, [("log-driver", '"json-file"', '"local"')]),
        ({"live-restore": False}, [("live-restore", "true", "false")]),
        ({"labels": ["a=1", "b=2"]}, []),
        ({"labels": ["a=1"]}, [("labels", '["a=1", "b=2"]', '["a=1"]')]),
        ({"exec-opts": ["native.cgroupdriver=systemd"]}, []),
        ({"exec-opts": ["other=1"]}, []),
        (
            {"exec-opts": ["native.cgroupdriver=cgroupfs"]},
            [("exec-opts", '"systemd"', '"cgroupfs"')],
        ),
        ({"features": {"cdi": True}}, []),
        ({"features": {"buildkit": True}}, []),
        ({"features": {"cdi": False}}, [("features", '{"cdi": true}', '{"cdi": false}')]),
        ({"registry-mirrors": ["https://a.example.org"]}, []),
        ({"registry-mirrors": []}, [("registry-mirrors", '["https://a.example.org"]', "[]")]),
        ({"runtimes": {"nvidia": {}}}, []),
        ({"runtimes": {"kata": {}}}, [("runtimes", "[]", '["kata"]')]),
        # The engine does not report these.
        ({"debug": True, "features": None}, []),
    ],
)
def test_the_engine_runs_with_its_settings(settings: Any, wrong: list[Any]) -> None:
    assert list(engine_settings.differences(settings, INFO)) == wrong


@pytest.fixture
def daemon_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "daemon.json"
    monkeypatch.setattr(engine_settings, "DAEMON_JSON", str(file))
    monkeypatch.setattr(containers, "ask_engine", {"/info": INFO}.__getitem__)
    return file


def test_another_setting_of_the_running_engine_fails(
    daemon_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 settings" in engine_settings.check_settings(), "a file that is not there"
    daemon_json.write_text('{"log-driver": "json-file", "dns": []}')
    assert "with the 1 settings" in engine_settings.check_settings()
    daemon_json.write_text('{"log-driver": "local"}')
    with pytest.raises(ValueError, match='log-driver is "json-file"; expected "local" as in'):
        engine_settings.check_settings()
    daemon_json.write_text("{")
    with pytest.raises(ValueError, match=r"expected JSON\. Correct the file"):
        engine_settings.check_settings()
    nvidia = {**INFO, "DefaultRuntime": "nvidia"}
    monkeypatch.setattr(containers, "ask_engine", {"/info": nvidia}.__getitem__)
    daemon_json.write_text("{}")
    with pytest.raises(ValueError, match=r"default-runtime is nvidia, and .* does not set it"):
        engine_settings.check_settings()
    daemon_json.write_text('{"default-runtime": "nvidia"}')
    engine_settings.check_settings()


def test_disabled_cgroups_of_the_toolkit_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    monkeypatch.setattr(engine_settings, "TOOLKIT_CONFIG", str(file))
    assert engine_settings.check_toolkit().startswith("not applicable: there is no ")
    file.write_text("[nvidia-container-cli]\nno-cgroups = false\n")
    assert engine_settings.check_toolkit().endswith("does not set no-cgroups")
    file.write_text("[nvidia-container-cli]\nno-cgroups = true\n")
    with pytest.raises(ValueError, match=r"no-cgroups is true in .*; expected false"):
        engine_settings.check_toolkit()


# The rights of each account.


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the rights of other users")
def test_the_socket_is_opened_with_the_rights_of_each_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/run") as folder, socket.socket(socket.AF_UNIX) as server:
        Path(folder).chmod(0o755)
        path = Path(folder) / "docker.sock"
        monkeypatch.setattr(containers, "DOCKER_SOCKET", str(path))
        server.bind(str(path))
        server.listen()
        path.chmod(0o660)
        assert engine_users.list_reaching(["nobody", "daemon"]) == []
        os.chown(path, 0, nobody.pw_gid)
        assert engine_users.list_reaching(["nobody", "daemon"]) == ["nobody"]
        path.chmod(0o666)
        assert engine_users.list_reaching(["nobody", "daemon"]) == ["nobody", "daemon"]
    assert engine_users.list_reaching(["nobody"]) == [], "nothing listens"


# Declared things that are missing.


def prepare(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Let the engine answer; other checks have tests of their own."""
    replies = {"/version": {"Version": "28.5.2", "ApiVersion": "1.51"}, **answers}
    monkeypatch.setattr(containers, "ask_engine", lambda path: replies.get(path, []))
    for module, function in (
        (engine_settings, "check_settings"),
        (engine_users, "check_users"),
        (installed_files, "check_files"),
    ):
        monkeypatch.setattr(module, function, lambda *_arguments: "fine")


def failures(**expected: Any) -> list[str]:
    return [
        check["what"]
        for check in host_verify.run_checks(
            host_verify.Options(smoke=False, daemon_reload=False), expected
        )
        if not check["ok"]
    ]


CHECKS = ["engine settings", "engine access", "container toolkit settings", host_verify.NETWORK]
IMAGE: dict[str, Any] = {
    "Id": "sha256:a",
    "RepoTags": ["slipway/a:cpu"],
    "Labels": {labels.SMOKE: '["true"]'},
}
SERVICE: dict[str, Any] = {
    "Id": "c1",
    "Labels": {"com.docker.compose.service": "web", "com.docker.compose.project": "web"},
    "State": "running",
}


def record_image(folder: Path, identity: str) -> None:
    record = {"reference": "slipway/a:cpu", "id": identity}
    (folder / "slipway-a-cpu.json").write_text(json.dumps(record))


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with the records of images and of services."""
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path))
    monkeypatch.setattr(containers, "SERVICE_RECORDS", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("installed_engine")
def test_a_missing_image_or_service_fails(monkeypatch: pytest.MonkeyPatch, records: Path) -> None:
    prepare(monkeypatch)
    assert failures() == []
    missing = ["image slipway/a:cpu", "service web"]
    declaration: dict[str, Any] = {"images": ["slipway/a:cpu"], "services": {"web": ""}}
    assert failures(**declaration) == missing
    record_image(records, "sha256:a")
    prepare(monkeypatch, **{"/images/json": [IMAGE], "/containers/json?all=1": [SERVICE]})
    assert failures(**declaration) == []
    # An image without the label of its smoke test, and a service that does not run.
    found = {
        "/images/json": [{**IMAGE, "Labels": {}}],
        "/containers/json?all=1": [{**SERVICE, "State": "exited"}],
    }
    prepare(monkeypatch, **found)
    assert failures(**declaration) == missing
    once = {**SERVICE["Labels"], "com.docker.compose.oneoff": "True"}
    prepare(monkeypatch, **{"/containers/json?all=1": [{**SERVICE, "Labels": once}]})
    assert failures(services={"web": ""}) == ["service web"]


@pytest.mark.usefixtures("installed_engine")
def test_an_image_that_is_not_recorded_is_not_run(
    monkeypatch: pytest.MonkeyPatch, records: Path, program: Program
) -> None:
    """Everybody who reaches the engine can give an image the tag and the labels of Slipway."""
    program("docker", "exit 3")
    prepare(monkeypatch, **{"/images/json": [{**IMAGE, "Id": "sha256:b"}]})
    assert [
        check["what"] for check in host_verify.run_checks(host_verify.Options(daemon_reload=False))
    ][1:] == CHECKS
    record_image(records, "sha256:a")
    assert [
        check["what"] for check in host_verify.run_checks(host_verify.Options(daemon_reload=False))
    ][1:] == CHECKS
    assert failures(images=["slipway/a:cpu"]) == ["image slipway/a:cpu"]


@pytest.mark.usefixtures("installed_engine")
def test_without_containers_no_smoke_test_runs(
    monkeypatch: pytest.MonkeyPatch, records: Path, program: Program
) -> None:
    program("docker", "exit 3")
    record_image(records, "sha256:a")
    prepare(monkeypatch, **{"/images/json": [IMAGE]})
    assert "image slipway/a:cpu" in {
        check["what"] for check in host_verify.run_checks(host_verify.Options())
    }
    checks = host_verify.run_checks(host_verify.Options(containers=False))
    assert [check["what"] for check in checks][1:] == CHECKS


def test_an_address_of_another_server_is_not_asked() -> None:
    """A service must not choose what root asks, such as the metadata of a cloud."""
    requests: list[str] = []

    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            host = "localhost" if self.path == "/away" else "127.0.0.1"
            self.send_response(302 if self.path in ("/away", "/here") else 200)
            self.send_header("Location", f"http://{host}:{server.server_port}/end")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        container = {"Ports": [{"PrivatePort": 1, "PublicPort": server.server_port}]}
        with pytest.raises(ValueError, match="/away answered 302"):
            host_verify._check_service(container, {"port": 1, "path": "/away"})
        assert requests == ["/away"]
        host_verify._check_service(container, {"port": 1, "path": "/here"})
        assert requests == ["/away", "/here", "/end"]
        server.shutdown()
        thread.join()


def test_labels_of_a_container_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, records: Path
) -> None:
    """Root reads no file that a label names, unless Slipway started the container."""
    asked: list[tuple[str, Any]] = []

    def check_service(container: Any, proof: Any) -> str:
        asked.append((container["Id"], proof))
        return "fine"

    monkeypatch.setattr(host_verify, "_check_service", check_service)
    lie = {labels.PROOF: json.dumps({"port": 1, "path": "/", "secret": "/etc/shadow"})}
    stranger = {**SERVICE, "Labels": {**SERVICE["Labels"], **lie}}
    monkeypatch.setattr(containers, "ask_engine", lambda _path: [stranger])
    assert [*host_verify._check_services({})] == []
    for project in ("", "../images/web", "/etc"):
        stranger["Labels"]["com.docker.compose.project"] = project
        assert [*host_verify._check_services({})] == []
    stranger["Labels"]["com.docker.compose.project"] = "web"
    assert asked == []
    # The declaration precedes the label.
    assert all(check.ok for check in host_verify._check_services({"web": ""}))
    assert asked == []
    assert all(check.ok for check in host_verify._check_services({"web": '{"port": 5000}'}))
    assert asked.pop() == ("c1", {"port": 5000})
    # Labels of a container never change.
    (records / "web.json").write_text(json.dumps({"containers": ["c1"]}))
    assert all(check.ok for check in host_verify._check_services({}))
    assert asked.pop() == ("c1", json.loads(lie[labels.PROOF]))
    # A container of somebody else beside the recorded one gets no request, and so no secret.
    other = {**stranger, "Id": "c2"}
    monkeypatch.setattr(containers, "ask_engine", lambda _path: [other, stranger])
    assert len([*host_verify._check_services({"web": '{"port": 5000}'})]) == 1
    assert asked == [("c1", {"port": 5000})]


def test_a_missing_engine_fails_where_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "ask_packages", dict.fromkeys)
    prepare(monkeypatch)
    assert failures(engine=True) == ["engine"]
    assert failures(engine=False) == failures() == []


@pytest.mark.usefixtures("installed_engine")
def test_the_declared_packages_and_users_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch)
    asked: list[Any] = []

    def check(names: Any) -> str:
        asked.append(names)
        return ""

    monkeypatch.setattr(installed_files, "check_files", check)
    monkeypatch.setattr(engine_users, "check_users", check)
    assert failures(packages=["docker.io"], docker_users=["ada"]) == []
    assert asked == [["docker.io"], ["ada"]]
    json.dumps(host_verify.run_checks(host_verify.Options(smoke=False, daemon_reload=False)))


def test_users_of_a_directory_service_are_tried_though_it_lists_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pwd.getpwall does not have them; NSS answers for each name."""
    anna = pwd.struct_passwd(("anna@corp", "x", 90001, 90001, "", "/", "/bin/sh"))
    eve = pwd.struct_passwd(("eve@corp", "x", 90002, 90002, "", "/", "/bin/sh"))
    known = {"CORP\\anna": anna, "anna@corp": anna, "eve@corp": eve}
    monkeypatch.setattr(pwd, "getpwall", lambda: [pwd.getpwuid(0)])
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    docker = grp.struct_group(("docker", "x", 998, ["eve@corp", "gone"]))
    monkeypatch.setattr(grp, "getgrnam", lambda _name: docker)
    monkeypatch.setattr(engine_users, "list_reaching", sorted)
    with pytest.raises(ValueError, match="the engine is reached by eve@corp; expected"):
        engine_users.check_users(["CORP\\anna", "gone"])
    monkeypatch.setattr(engine_users, "list_reaching", lambda _accounts: [])
    with pytest.raises(ValueError, match="the engine is not reached by anna@corp; expected"):
        engine_users.check_users(["CORP\\anna"])
