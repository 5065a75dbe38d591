# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host builds for another one, and what a delivery checks on the host that pulls."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.images import (
    commands,
    delivery,
    fetching,
    offering,
    record,
    registry,
)
from ansible_collections.slipway.host.plugins.module_utils.images.commands import BuildError
from ansible_collections.slipway.host.plugins.module_utils.images.delivery import Candidate
from ansible_collections.slipway.host.plugins.module_utils.state import containers, listeners, paths

AMD, ARM = "x86_64", "aarch64"
IMAGES = {"slipway/iris-api:cpu": "1", "slipway/jupyter:cpu": "2"}
HOSTS = {
    "old": Candidate(AMD, {**IMAGES, "slipway/jupyter:cpu": "0"}),
    "arm": Candidate(ARM, IMAGES),
    "more": Candidate(AMD, {**IMAGES, "slipway/pytorch:cpu": "3"}),
    "same": Candidate(AMD, IMAGES),
    "less": Candidate(AMD, {"slipway/iris-api:cpu": "1"}),
    "unknown": Candidate(None, None),
    "failed": None,
    "held": Candidate(AMD, IMAGES, "disk swap"),
}


@pytest.mark.parametrize(
    ("wanted", "host", "hosts", "builder"),
    [
        (["auto"], "h", ["h", "same"], None),
        (["auto"], "h", ["same", "h"], "same"),
        (["auto"], "h", ["old", "arm", "more", "h"], "more"),
        (["auto"], "h", ["failed", "unknown", "h", "same"], None),
        (["auto"], "h", ["old", "arm", "failed", "unknown"], None),
        ([], "h", ["same", "h"], None),
        (["h", "same"], "h", ["same", "h"], None),
        (["same"], "h", ["h", "same"], "same"),
        (["arm", "same"], "h", ["h"], "same"),
        # The builder says itself whether it can build, if this run did not look at it.
        (["unknown"], "h", ["h"], "unknown"),
        (["failed", "same"], "h", ["h"], "same"),
        (["auto"], "h", ["held", "same", "h"], "same"),
        (["held", "same"], "h", ["h"], "same"),
        (["less"], "h", ["h"], "less"),
    ],
)
def test_the_builder_of_a_host(
    wanted: list[str], host: str, hosts: list[str], builder: str | None
) -> None:
    own = Candidate(AMD, IMAGES)
    assert delivery.choose_builder(wanted, host, own, hosts, HOSTS.get) == builder


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (["arm"], "arm has the architecture aarch64; expected a host that builds for h"),
        # To build for the other host would replace its own image, which has the same tag.
        (["old"], "old has another slipway/jupyter:cpu"),
        (["arm", "failed"], "arm has the architecture aarch64; failed failed in this run"),
        (["held"], "held is held: disk swap; expected a host that builds for h"),
    ],
)
def test_a_declared_builder_that_cannot_build_is_refused(wanted: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        delivery.choose_builder(wanted, "h", Candidate(AMD, IMAGES), ["h"], HOSTS.get)


def test_declared_images_are_read_from_all_roles() -> None:
    owned: list[dict[str, Any]] = [{"images": [{"reference": "a", "digest": "1"}]}, {"files": []}]
    assert delivery.declared_images(owned) == {"a": "1"}


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  inode
   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:4E21 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 13 1
"""


@pytest.mark.parametrize(("port", "problem"), [(22, "other addresses"), (20001, "is not there")])
def test_a_forward_that_others_reach_is_refused(
    port: int, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tcp").write_text(TCP)
    monkeypatch.setattr(listeners, "TABLES", (str(tmp_path / "tcp"), str(tmp_path / "tcp6")))
    with pytest.raises(fetching.FetchError, match=problem):
        fetching.check_forward(port)
    fetching.check_forward(20000)


@pytest.mark.parametrize(
    "output",
    [
        "{b}: Pulling fs layer\n{b}: Download complete\n{b}: Pull complete\n",
        # The store of containerd.
        "{b}: Pulling fs layer\n{b}: Download complete\n",
    ],
)
def test_received_bytes_are_those_of_transferred_layers(output: str) -> None:
    layers = {f"sha256:{digit * 64}": size for digit, size in (("a", 100), ("b", 7), ("c", 1))}
    output = f"{'a' * 12}: Already exists\n{output.format(b='b' * 12)}Digest: sha256:x\n"
    assert fetching.received_bytes(output, layers) == 7


def job_of(folder: Path) -> Path:
    image: dict[str, Any] = {
        "name": "small",
        "reference": "slipway/small:cpu",
        "digest": "1",
        "parent": None,
        "smoke_timeout": 5,
        "adds": 10**30,
        "manifest": "sha256:m",
        "config": "sha256:c",
        "layers": {},
    }
    (folder / "job.json").write_text(
        json.dumps({"images": [image], "builder": "b", "source": "b", "port": 20000, "prefix": ""})
    )
    return folder


def test_a_host_without_space_says_how_much_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def docker(action: str, command: list[str], timeout: float | None = None) -> str:
        return f"{tmp_path} []"

    monkeypatch.setattr(fetching, "check_forward", lambda port: None)
    monkeypatch.setattr(fetching, "run_or_fail", docker)
    monkeypatch.setattr(record, "inspect_image", lambda reference: None)
    monkeypatch.setattr(record, "secure_records", lambda: None)
    monkeypatch.setattr(record, "is_recorded", lambda *words: False)
    monkeypatch.setattr(record, "remove_replaced", lambda references: None)
    monkeypatch.setattr(fetching, "remove_delivery_references", lambda prefix: None)
    with (tmp_path / "progress").open("w") as stream:
        result = fetching.Fetcher(job_of(tmp_path), Progress(stream)).run()
    assert result["fetched"] == []
    (reason,) = result["failed"].values()
    assert re.match(r"no space in .*: found .* free; expected at least .* for this image", reason)


def test_a_registry_listens_on_loopback_and_serves_read_only() -> None:
    settings = json.loads(registry.configuration(5000, readonly=True))
    assert settings["http"]["addr"] == "127.0.0.1:5000"
    assert settings["storage"]["maintenance"]["readonly"]["enabled"] is True
    assert settings["storage"]["delete"]["enabled"] is False
    assert "auth" not in settings


def test_a_registry_that_takes_images_asks_for_a_password(login: registry.Login) -> None:
    settings = json.loads(registry.configuration(5000, readonly=False))
    assert settings["auth"]["htpasswd"]["path"] == "/var/lib/slipway/registry/push/users"
    with pytest.raises(OSError, match="401"):
        registry.describe(registry.Login(login.port, "another"), "slipway/small", "cpu")
    # To be asked for the password is an answer.
    assert registry._answers(login.port)


def test_the_password_is_hashed_with_bcrypt() -> None:
    hashed = registry.hash_password("abc")
    assert re.fullmatch(r"\$2b\$04\$[./A-Za-z0-9]{53}", hashed)
    words = ["perl", "-e", "print crypt('abc', $ARGV[0])", hashed]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == hashed


def test_a_host_without_bcrypt_offers_no_images(program: Callable[[str, str], None]) -> None:
    program("perl", "echo '*0'")
    with pytest.raises(registry.RegistryError, match="cannot hash a password: no bcrypt"):
        registry.hash_password("abc")


@pytest.mark.parametrize(
    ("record", "share"),
    [
        (None, 1.0),
        ("{}", 1.0),
        ('{"layers": ["sha256:a"]}', 0.25),
        ('{"layers": ["sha256:a", "sha256:b"]}', 0.0),
        ("[]", 1.0),
    ],
)
def test_the_share_of_an_image_that_a_host_lacks(
    record: str | None, share: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "record.json"
    if record is not None:
        file.write_text(record)
    monkeypatch.setattr(containers, "image_record_path", lambda reference: str(file))
    monkeypatch.setattr(paths, "read_file", lambda path: Path(path).read_text())
    image = {"reference": "r", "layers": {"sha256:a": 75, "sha256:b": 25}}
    assert fetching.missing_share(image) == share


LOGIN = registry.Login(0, "a password")


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers every request with a manifest, and with a digest that is a lie."""

    content = b'{"config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:l", "size": 7}]}'

    def do_GET(self) -> None:
        is_known = self.headers["Authorization"] == f"Basic {LOGIN.basic}"
        self.send_response(200 if is_known else 401)
        self.send_header("Docker-Content-Digest", "sha256:lie")
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[registry.Login]:
    """A registry that somebody else may have written to."""
    # Nobody answers there: the registry of this host is not asked through a proxy.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield registry.Login(server.server_port, LOGIN.password)
        server.shutdown()


def test_the_digest_of_a_manifest_is_computed(login: registry.Login) -> None:
    found = registry.describe(login, "slipway/small", "cpu")
    assert found["manifest"] == f"sha256:{hashlib.sha256(Registry.content).hexdigest()}"
    assert (found["config"], found["layers"]) == ("sha256:c", {"sha256:l": 7})


@pytest.mark.parametrize(
    ("identity", "is_offered"),
    [
        ("sha256:c", True),
        (f"sha256:{hashlib.sha256(Registry.content).hexdigest()}", True),
        ("sha256:lie", False),
        ("sha256:other", False),
    ],
)
def test_only_the_content_of_the_engine_is_offered(
    identity: str,
    is_offered: bool,
    login: registry.Login,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setattr(offering, "run_or_fail", lambda action, command: "")
    content = record.Content(identity, {}, None, 10)
    monkeypatch.setattr(record, "inspect_image", lambda reference: content)
    with (tmp_path / "progress").open("w") as stream:
        if is_offered:
            offered = offering.push({"slipway/small:cpu": "1"}, Progress(stream), login, tmp_path)
            assert offered["slipway/small:cpu"]["size"] == 10
        else:
            with pytest.raises(BuildError, match="another content"):
                offering.push({"slipway/small:cpu": "1"}, Progress(stream), login, tmp_path)


def test_references_of_deliveries_are_removed_and_no_others(
    program: Callable[[str, str], None], tmp_path: Path
) -> None:
    listed = "127.0.0.1:15055/slipway/a cpu <none>\n127.0.0.1:20001/slipway/b <none> sha256:1\n"
    listed += "127.0.0.1:5000/team/c latest <none>\nslipway/a cpu sha256:1\n"
    listed += "r.example/team/slipway/a <none> sha256:2\nr.example/team/a v1 sha256:3\n"
    listed += "rXexample/team/slipway/a v1 sha256:3\nr.example/slipway/a v1 sha256:3\n"
    program("docker", f"[ $2 = ls ] && printf '{listed}' || echo $4 >>{tmp_path}/removed")
    commands.remove_delivery_references()
    removed = (tmp_path / "removed").read_text().split()
    of_ssh = ["127.0.0.1:15055/slipway/a:cpu", "127.0.0.1:20001/slipway/b@sha256:1"]
    assert removed == of_ssh
    (tmp_path / "removed").unlink()
    commands.remove_delivery_references("r.example/team/")
    removed = (tmp_path / "removed").read_text().split()
    assert removed == [*of_ssh, "r.example/team/slipway/a@sha256:2"]


def test_the_last_lease_ends_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RUNTIME", tmp_path)
    monkeypatch.setattr(registry, "LOCK", str(tmp_path / "lock"))
    for host in ("a-m-1", "b-m-1", "c-m-2"):
        (tmp_path / f"lease-{host}").touch()

    def release(host: str) -> str:
        # systemctl is replaced: nothing of this machine is stopped.
        script = f"systemctl() {{ :; }}; {registry.release_script(host)}"
        done: Any = subprocess.run(
            ["sh", "-ec", script], capture_output=True, text=True, check=True
        )
        return str(done.stdout).strip()

    # A lease, all those of a run, and again.
    assert [release("c-m-2"), release("*-m-1"), release("*-m-1")] == ["", "ended", "ended"]


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
@pytest.mark.parametrize("opener", ["shell", "module"])
def test_only_root_can_open_the_lock_of_leases(
    opener: str, mode: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other user could hold the lock, and with it every delivery and survey."""
    lock = tmp_path / "lock"
    monkeypatch.setattr(registry, "RUNTIME", tmp_path)
    monkeypatch.setattr(registry, "LOCK", str(lock))
    if mode is not None:
        lock.touch()
        lock.chmod(mode)
    if opener == "module":
        with registry._locked():
            assert lock.stat().st_mode & 0o777 == 0o600
    else:
        script = f"umask 022; systemctl() {{ :; }}; {registry.release_script('a-m-1')}"
        subprocess.run(["sh", "-ec", script], check=True)
    assert lock.stat().st_mode & 0o777 == 0o600
