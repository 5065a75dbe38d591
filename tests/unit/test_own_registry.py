# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of a user's registry, against servers with real TLS on loopback."""

from __future__ import annotations

import base64
import http.server
import json
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images import own_registry
from ansible_collections.slipway.host.plugins.module_utils.images import registry as images_registry
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import Registry
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import facts

PASSWORD = "s3cret-word"
LOGIN = "Basic " + base64.b64encode(f"ana:{PASSWORD}".encode()).decode()


MANIFEST = b'{"config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:l", "size": 7}]}'


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry with accounts, which may ask for a token instead of the login."""

    challenge = 'Basic realm="r"'
    refusal = 401

    def do_GET(self) -> None:
        path, _question, query = self.path.partition("?")
        asks_token = self.challenge.startswith("Bearer") and path != "/token"
        expected = "Bearer t service=s" if asks_token else LOGIN
        is_known = self.headers.get("Authorization") == expected
        self.send_response(200 if is_known else self.refusal if path == "/token" else 401)
        if not is_known:
            self.send_header("WWW-Authenticate", self.challenge)
        self.end_headers()
        answers = {"/token": json.dumps({"token": f"t {query}"}).encode(), "/v2/": b"{}"}
        self.wfile.write(answers.get(path, MANIFEST))

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two self-signed certificates of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("right", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        command += ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def serve(context: ssl.SSLContext | None) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def port(certificates: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "right.crt", certificates / "right.key")
    server = serve(context)
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def make(server: str, ca: Path, password: str = PASSWORD, username: str = "ana") -> Registry:
    return Registry(server, "", ca.read_text(), username, password)


def refused(registry: Registry) -> str:
    with pytest.raises(own_registry.OwnRegistryError) as error:
        own_registry.check(registry)
    message = str(error.value)
    assert PASSWORD not in message + repr(registry)
    assert "; expected " in message
    assert message.endswith(".")
    return message


def test_a_right_login_is_accepted(
    port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody answers there: the registry is not asked through a proxy.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    registry = make(f"127.0.0.1:{port}", certificates / "right.crt")
    own_registry.check(registry)
    described = images_registry.describe(registry, "slipway/small", "cpu")
    assert (described["config"], described["layers"]) == ("sha256:c", {"sha256:l": 7})


def test_each_fault_has_its_sentence(port: int, certificates: Path) -> None:
    right, server = certificates / "right.crt", f"127.0.0.1:{port}"
    assert "'ana' refused (401)" in refused(make(server, right, "wrong"))
    assert "no login (401)" in refused(make(server, right, "", ""))
    assert "self-signed certificate" in refused(make(server, certificates / "other.crt"))
    name = refused(make(f"localhost:{port}", right))
    assert "expected a certificate with this name" in name
    key = certificates / "right.key"
    assert "ml_images_registry.ca cannot be read" in refused(make(server, key))


def test_plain_http_and_no_answer_are_refused(certificates: Path) -> None:
    server = serve(None)
    address = f"127.0.0.1:{server.server_address[1]}"
    registry = make(address, certificates / "right.crt")
    assert f"{address} does not use TLS" in refused(registry)
    server.shutdown()
    server.server_close()
    assert f"cannot reach the registry {address}: " in refused(registry)


def test_a_password_is_never_sent_to_a_token_server_without_tls(
    port: int, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(f"127.0.0.1:{port}", certificates / "right.crt")
    token = f'Bearer realm="https://127.0.0.1:{port}/token",service="s"'
    monkeypatch.setattr(Handler, "challenge", token)
    own_registry.check(registry)
    assert registry.read_manifest("slipway/small", "cpu") == MANIFEST
    monkeypatch.setattr(Handler, "refusal", 403)
    assert "'ana' refused (401)" in refused(make(registry.server, certificates / "right.crt", "no"))
    monkeypatch.setattr(Handler, "challenge", 'Bearer realm="http://127.0.0.1/token"')
    assert "expected an address with https" in refused(registry)


@pytest.mark.parametrize(
    ("address", "server", "path"),
    [
        ("registry.example.org", "registry.example.org", ""),
        ("registry.example.org:5000/team/ml", "registry.example.org:5000", "/team/ml"),
        ("localhost/team", "localhost", "/team"),
    ],
)
def test_an_address_is_split(address: str, server: str, path: str) -> None:
    registry = own_registry.read_option({"address": address})
    assert registry is not None
    assert (registry.server, registry.path) == (server, path)


@pytest.mark.parametrize(
    "address", ["", "team", "http://registry.example.org", "a.b/../x", "a.b/Team", "-a.b", "a.b/x/"]
)
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected HOST\[:PORT\]"):
        own_registry.read_option({"address": address})


@pytest.mark.parametrize("option", ["", None, "registry.example.org/team"])
def test_an_address_as_text_changes_no_delivery(option: str | None) -> None:
    assert own_registry.read_option(option) is None


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (["a.b"], "list; expected"),
        ({"server": "a.b", "password": PASSWORD}, "['password', 'server']; expected"),
        ({"password": PASSWORD}, "['password']; expected"),
        ({"address": "a.b", "ca": "/etc/ca.crt"}, "ca: no certificate"),
        (
            {"address": "a.b", "ca": "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----"},
            "ca: no certificate, or a private key",
        ),
    ],
)
def test_another_option_is_refused(option: object, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)) as error:
        own_registry.read_option(option)
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    ("registry", "present", "expected"),
    [
        (None, [], {}),
        (None, ["old:5000"], {"old:5000": None}),
        (Registry("a.b"), ["a.b"], {"a.b": None}),
        (Registry("a.b", ca="C\n\n"), ["a.b"], {"a.b": "C\n"}),
        (Registry("a.b", ca="C"), ["old:5000"], {"old:5000": None, "a.b": "C\n"}),
    ],
)
def test_only_the_certificates_of_the_declared_registry_stay(
    registry: Registry | None, present: list[str], expected: dict[str, str | None], tmp_path: Path
) -> None:
    files = {
        f"/etc/docker/certs.d/{server}/slipway.crt": content for server, content in expected.items()
    }
    found = ml_images.certificates(registry, present)
    assert {entry["path"]: entry.get("content") for entry in found} == files
    assert all("content" in entry or entry["state"] == "absent" for entry in found)

    for server in present:
        (tmp_path / server).mkdir()
        (tmp_path / server / "slipway.crt").touch()
    (tmp_path / "of-a-user").mkdir()
    (tmp_path / "of-a-user/ca.crt").touch()
    assert facts.read_registry_certificates(str(tmp_path)) == present
    assert facts.read_registry_certificates(f"{tmp_path}/none") == []


def test_a_host_reads_the_registry_of_its_job(tmp_path: Path) -> None:
    assert own_registry.load(tmp_path) is None
    assert own_registry.pack(None) == {}
    registry = Registry("a.b:5000", "/team", "", "ana", PASSWORD)
    for name, content in own_registry.pack(registry).items():
        # Nothing else of a job is removed at its end and closed to others.
        assert name.startswith("secrets/")
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    assert own_registry.load(tmp_path) == registry
    login = json.loads((tmp_path / own_registry.CONFIG / "config.json").read_text())
    assert login == {"auths": {"a.b:5000": {"auth": LOGIN.partition(" ")[2]}}}


def test_the_check_is_a_script_without_other_files(port: int, certificates: Path) -> None:
    def check(password: str) -> str:
        script = own_registry.check_script(
            make(f"127.0.0.1:{port}", certificates / "right.crt", password)
        )
        words = [sys.executable, "-I", "-S", "-"]
        done = subprocess.run(words, input=script, capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout))

    assert check(PASSWORD) == ""
    assert "'ana' refused (401)" in check('it\'s "another"\\')


@pytest.mark.parametrize("login", [{"username": "a"}, {"password": PASSWORD}])
def test_half_a_login_is_refused(login: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected both") as error:
        own_registry.read_option({"address": "a.b", **login})
    assert PASSWORD not in str(error.value)
