# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages in a bundle: the pool on the controller, the check of hosts, apt's source."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.action import verify
from ansible_collections.slipway.host.plugins.module_utils.apt import bundle_source
from ansible_collections.slipway.host.plugins.module_utils.apt.run import Apt, AptError
from ansible_collections.slipway.host.plugins.modules import bundle_packages as maker
from ansible_collections.slipway.host.plugins.modules import held_packages, package_set
from ansible_collections.slipway.host.plugins.plugin_utils import apt_module, ask_host
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    archive,
    declared,
    delivery,
    packages,
    serving,
    signature,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    Entry,
    Manifest,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import (
    Bundle,
    open_bundle,
)

RunModule = Callable[..., dict[str, Any]]
FACTS = {"distribution": "Debian", "distribution_release": "trixie", "architecture": "x86_64"}
RELEASE = "debian-trixie-x86_64"
DATA = f"data/{hashlib.sha256(b'data').hexdigest()}"
CONTROL = "Package: {name}\nVersion: 1:2.0+x~1\nArchitecture: amd64\nDescription: text\n more\n"


def describe(name: str, content: bytes = b"deb", **changed: Any) -> dict[str, Any]:
    """Return a package as a host describes it."""
    described = {
        "file": f"{name}_1%3a2.0+x~1_amd64.deb",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "control": CONTROL.format(name=name),
    }
    return {**described, **changed}


def add(pool: packages.Pool, described: dict[str, Any], content: bytes = b"deb") -> bool:
    """Copy a package to a pool; return whether it was received."""
    path = pool.place(described)
    if path is not None:
        path.write_bytes(content)
        pool.add(described)
    return path is not None


def make_pool(folder: Path, *names: str) -> dict[str, bytes]:
    pool = packages.Pool(folder, FACTS)
    assert all(add(pool, describe(name)) for name in names)
    return {path: file.read_bytes() for path, file in packages.pool_files(folder)}


def test_pools_of_the_same_packages_are_identical(tmp_path: Path) -> None:
    first, second = make_pool(tmp_path / "1", "a1", "b1"), make_pool(tmp_path / "2", "b1", "a1")
    assert first == second
    folder = f"packages/{RELEASE}"
    files = [f"{folder}/pool/{name}_1_2.0+x~1_amd64.deb" for name in ("a1", "b1")]
    assert sorted(first) == [f"{folder}/Packages", *files]
    one, other = first[f"{folder}/Packages"].decode().split("\n\n")
    digest = hashlib.sha256(b"deb").hexdigest()
    added = f"Filename: pool/a1_1_2.0+x~1_amd64.deb\nSize: 3\nSHA256: {digest}"
    assert one == CONTROL.format(name="a1") + added
    assert other.startswith("Package: b1\n")


def test_a_package_of_two_hosts_is_received_once(tmp_path: Path) -> None:
    pool = packages.Pool(tmp_path, FACTS)
    assert [add(pool, describe("a1")), add(pool, describe("a1"))] == [True, False]
    with pytest.raises(BundleError, match="two hosts have different files"):
        add(pool, describe("a1", b"other"), b"other")


@pytest.mark.parametrize("content", [b"deB", b"de", b"deb+"])
def test_other_bytes_than_the_host_described_are_refused(tmp_path: Path, content: bytes) -> None:
    pool = packages.Pool(tmp_path, FACTS)
    with pytest.raises(BundleError, match=r"package a1_.* bytes with SHA-256 "):
        add(pool, describe("a1"), content)
    assert not (tmp_path / RELEASE / "Packages").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"file": "../a1_1_amd64.deb"},
        {"file": "a1_1_amd64.deb/../../x_1_amd64.deb"},
        {"file": "a1_1_amd64.deb\n"},
        {"file": "a1_{{x}}_amd64.deb"},
        {"file": "a1_1%2f_amd64.deb"},
        {"file": f"a1_{'1' * 250}_amd64.deb"},
        {"file": "b1_1_amd64.deb"},
        {"sha256": "0"},
        {"size": "3"},
        {"size": True},
        {"control": "Package: a1\n\nPackage: other\n"},
        {"control": "Package: a1\n \nPackage: other\n"},
        {"control": "Package: a1\nfilename: elsewhere\n"},
        {"control": "Package: a1\nSHA256: 1\n"},
        {"control": "Package: a1\nMD5sum: 1\n"},
        {"control": "Description: Package: a1\n"},
        {"control": "Package: a1\n" + " x\n" * (1 << 19)},
        {"control": ""},
    ],
)
def test_hostile_descriptions_of_packages_are_refused(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    pool = packages.Pool(tmp_path, FACTS)
    with pytest.raises(BundleError, match="invalid name or control fields; expected"):
        pool.place(describe("a1", **changed))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("release", ["../..", "a/b", "{{ x }}", "", "a b", "x" * 300])
def test_hostile_names_of_releases_are_refused(tmp_path: Path, release: str) -> None:
    facts = {**FACTS, "distribution": release, "distribution_release": ""}
    with pytest.raises(BundleError, match="expected"):
        add(packages.Pool(tmp_path / "pool", facts), describe("a1"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with the packages a1 and b1 of Debian 13."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    files = {**make_pool(tmp_path / "pool", "a1", "b1"), "project.tar": b"project", DATA: b"data"}
    entries = tuple(
        Entry(path, len(files[path]), hashlib.sha256(files[path]).hexdigest(), "package")
        for path in sorted(files)
    )
    content = Manifest(requested={}, project={}, controller={}, files=entries).as_json()
    signed = signature.sign(content, signature.make_own_key())
    parts = [(archive.MANIFEST, content), (archive.SIGNATURE, signed), *sorted(files.items())]
    archive.write(tmp_path / "b.tar", parts)
    return open_bundle(tmp_path / "b.tar")


def test_the_variables_of_a_host_name_a_bundle_with_packages(bundle: Bundle) -> None:
    def template(value: Any) -> Any:
        return str(value).replace("{{ name }}", "b")

    named = {declared.BUNDLE: f"{bundle.path.parent}/{{{{ name }}}}.tar"}
    opened = declared.open_packages(named, template)
    assert opened and packages.list_releases(opened.manifest) == [RELEASE]
    assert declared.read_named(named, template) == opened.manifest
    assert declared.open_packages({}, template) is None
    assert declared.open_packages({declared.BUNDLE: None}, template) is None
    assert declared.read_named({declared.BUNDLE: None}, template) is None
    with pytest.raises(AnsibleActionFail, match="replaced during the run"):
        declared.open_packages({**named, declared.CHECKED: "0" * 64}, template)
    for function in (declared.open_packages, declared.read_named):
        with pytest.raises(AnsibleActionFail, match="cannot open /none"):
            function({declared.BUNDLE: "/none"}, template)


def test_acceptance_checks_know_of_a_bundle_without_a_survey(bundle: Bundle) -> None:
    named = {declared.BUNDLE: str(bundle.path)}
    closed = {"level": "full", "declared": {"bundle": True}}
    assert verify.with_bundle({"level": "full"}, named, str) == closed
    assert verify.with_bundle({**closed, "declared": {"engine": "x"}}, named, str) == {
        **closed,
        "declared": {"engine": "x", "bundle": True},
    }
    assert verify.with_bundle({"level": "full"}, {}, str) == {"level": "full"}


INSTALLED = ["install", "installed", "1"]
A, B, C = ({"name": name} for name in ("a1", "b1", "c1"))
HEADERS = {"name": "linux-headers-6.8.0-1-x", "optional": True}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, ""),
        ({"owned": {"packages": [A, {**C, "optional": True}, {**C, "state": "absent"}]}}, ""),
        ({"owned": {"packages": [C]}, "packages": {"c1": INSTALLED}}, ""),
        ({"owned": {"packages": [C]}}, "b.tar has no package c1 for debian-trixie-x86_64; exp"),
        (
            {"owned": {"packages": [C]}, "packages": {"c1": ["deinstall", "config-files", "1"]}},
            "has no package c1",
        ),
        (
            {"facts": {**FACTS, "distribution_release": "bookworm"}},
            "has packages for debian-trixie-x86_64; expected debian-bookworm-x86_64.",
        ),
        ({"facts": {**FACTS, "architecture": "aarch64"}}, "expected debian-trixie-aarch64."),
        ({"facts": {**FACTS, "distribution_release": "../trixie"}}, "expected debian-../trixie-x"),
        ({"transport": "local"}, "connection local; expected ssh"),
        ({"owned": {"packages": [{**A, "version": "1:2.0+x~1"}]}}, ""),
        ({"owned": {"packages": [{**A, "version": "1:3.*"}]}}, ""),
        ({"owned": {"packages": [{**C, "version": "1:3.*"}]}}, "has no package c1=1:3.* for"),
        ({"owned": {"packages": [{**A, "version": "1:2.0"}]}}, "has no package a1=1:2.0 for deb"),
        (
            {"owned": {"packages": [{**C, "version": "1"}]}, "packages": {"c1": INSTALLED}},
            "",
        ),
        (
            {"owned": {"packages": [{**C, "version": "2"}]}, "packages": {"c1": INSTALLED}},
            "has no package c1=2 for",
        ),
        ({"owned": {"packages": [HEADERS]}}, "has no package linux-headers-6.8.0-1-x for"),
        (
            {"owned": {"packages": [HEADERS]}, "packages": {HEADERS["name"]: INSTALLED}},
            "",
        ),
        # Roles that install nothing need no packages for their release.
        (
            {
                "owned": {"packages": [{**C, "state": "absent"}]},
                "transport": "local",
                "facts": {**FACTS, "distribution_release": "bookworm"},
            },
            "",
        ),
    ],
)
def test_a_host_is_refused_before_any_change_if_packages_are_missing(
    bundle: Bundle, changed: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {
        "owned": {"packages": [A, B]},
        "facts": FACTS,
        "packages": {},
        "transport": "ssh",
        **changed,
    }
    answer = {"facts": given["facts"], "packages": given["packages"]}
    arguments = (
        {"docker_engine": given["owned"]},
        answer,
        given["transport"],
        ". Nothing was changed.",
    )
    declared.refuse_missing_packages(None, *arguments)
    if not message:
        declared.refuse_missing_packages(bundle, *arguments)
        return
    with pytest.raises(AnsibleActionFail) as caught:
        declared.refuse_missing_packages(bundle, *arguments)
    assert message in str(caught.value)
    assert str(caught.value).endswith(". Nothing was changed.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"packages": [A]}, True),
        ({"packages": [{**A, "state": "absent"}]}, False),
        ({"state": "upgraded", "packages": [A]}, True),
        ({"state": "rolled_back"}, True),
        ({"state": "verified"}, False),
        ({"state": "unrecorded", "role": "x"}, False),
    ],
)
def test_only_tasks_that_may_install_packages_open_the_bundle(
    arguments: dict[str, Any], expected: bool
) -> None:
    assert apt_module.may_install(arguments) is expected


def ask(path: Path, target: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize(
    ("target", "headers", "expected"),
    [
        # As apt escapes names.
        ("pool/a1_1_2.0%2bx%7e1_amd64.deb", {}, (200, b"deb")),
        ("pool/a1_1_2.0+x~1_amd64.deb", {"Range": "bytes=1-"}, (206, b"eb")),
        ("pool/a1_1_2.0+x~1_amd64.deb", {"Range": "bytes=3-"}, (416, b"")),
        ("pool/none.deb", {}, (404, b"{}")),
        ("../../project.tar", {}, (404, b"{}")),
        ("%2e%2e/%2e%2e/project.tar", {}, (404, b"{}")),
        ("", {}, (404, b"{}")),
    ],
)
def test_packages_are_served(
    bundle: Bundle, tmp_path: Path, target: str, headers: Any, expected: tuple[int, bytes]
) -> None:
    with serving.serving(bundle, tmp_path / "s"):
        assert ask(tmp_path / "s", f"/{DATA}", Range="bytes=2-") == (206, b"ta")
        assert ask(tmp_path / "s", f"/packages/{RELEASE}/{target}", **headers) == expected
        assert ask(tmp_path / "s", "/project.tar")[0] == 404


INDEX = b"Package: a1\n"
GOOD = hashlib.sha256(INDEX).hexdigest()


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of an index on loopback; the proxy of the host does not answer."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/r/Packages" else 404)
            self.end_headers()
            self.wfile.write(INDEX)

        def log_message(self, *_words: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/r"
        server.shutdown()


def test_apt_uses_the_packages_of_a_bundle_and_no_other_source(url: str) -> None:
    with bundle_source.use({"url": url, "sha256": GOOD}) as options:
        settings = dict(word.removeprefix("--option=").split("=", 1) for word in options)
        source = Path(settings["Dir::Etc::SourceList"])
        folder = source.parent
        assert folder.stat().st_mode & 0o777 == 0o755
        assert source.read_text() == f"deb [trusted=yes] mirror+file:{folder}/mirrors ./\n"
        assert (folder / "mirrors").read_text().splitlines() == [
            f"file:{folder}/\tpriority:1 type:index",
            f"{url}/\tpriority:2 type:deb",
        ]
        assert (folder / "Packages").read_bytes() == INDEX
        assert settings["Dir::Etc::SourceParts"] == "/dev/null"
        assert settings["Acquire::http::Proxy::127.0.0.1"] == "DIRECT"
        assert settings["APT::Default-Release"] == ""
        # Downloads have the rights of the user _apt, who reads the folder.
        assert "APT::Sandbox::User" not in settings
        assert Path(settings["Dir::State::Lists"]).parent == folder
    assert not folder.exists()
    with bundle_source.use(None) as options:
        assert options == []


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("", "0" * 64, f"SHA-256 {GOOD}; expected 0000.*Find out which program"),
        ("/other", GOOD, "cannot read the packages of the bundle: HTTP status 404; expected"),
    ],
)
def test_a_program_of_the_host_cannot_answer_for_the_bundle(
    url: str, path: str, sha256: str, message: str
) -> None:
    with (
        pytest.raises(AptError, match=message),
        bundle_source.use({"url": url + path, "sha256": sha256}),
    ):
        pass


def test_a_port_without_a_server_is_reported(url: str) -> None:
    free = f"http://127.0.0.1:{urlsplit(url).port}/r"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        free = f"http://127.0.0.1:{unused.getsockname()[1]}/r"
    with (
        pytest.raises(AptError, match="Connection refused; expected an answer of the controller"),
        bundle_source.use({"url": free, "sha256": GOOD}),
    ):
        pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-\x1b[2J\r\n", r"SSH-2.0-\\x1b\[2J"),
        (b"", "Remote end closed connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "IncompleteRead"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n", "HTTP status 302"),
    ],
)
def test_an_answer_that_is_no_index_is_reported(answer: bytes, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _address = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/r"
        message = f"cannot read the packages of the bundle: {reason}.*; expected an answer of "
        with (
            pytest.raises(AptError, match=message),
            bundle_source.use({"url": url, "sha256": GOOD}),
        ):
            pass
        thread.join()


@pytest.mark.parametrize("facts", [{"slipway": FACTS}, {}])
def test_a_host_without_facts_is_asked(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]
) -> None:
    action: Any = SimpleNamespace(_templar=SimpleNamespace(template=lambda value: value))
    asked: list[Any] = []

    def ask(*words: Any) -> dict[str, Any]:
        asked.append(words)
        return {"facts": FACTS}

    monkeypatch.setattr(ask_host, "ask", ask)
    monkeypatch.setattr(delivery, "_served", lambda *_words: contextlib.nullcontext(20001))
    variables = {
        "inventory_hostname": "h",
        "ansible_facts": facts,
        declared.BUNDLE: str(bundle.path),
    }
    with delivery.apt_source(action, variables) as option:
        assert option and option["url"] == f"http://127.0.0.1:20001/packages/{RELEASE}"
    assert asked == ([] if facts else [(action, {})])


@pytest.mark.parametrize(("transport", "named"), [("ssh", True), ("ssh", False), ("local", True)])
def test_archives_of_data_sets_are_served_over_ssh(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, transport: str, named: bool
) -> None:
    action: Any = SimpleNamespace(
        _templar=SimpleNamespace(template=lambda value: value),
        _connection=SimpleNamespace(transport=transport),
    )
    monkeypatch.setattr(delivery, "_served", lambda *_words: contextlib.nullcontext(20001))
    variables = {
        "inventory_hostname": "h",
        declared.BUNDLE: str(bundle.path) if named else "",
    }
    digest = DATA.partition("/")[2]
    trees = [
        {"name": "a", "path": "/d/a", "version": f"sha256:{digest}"},
        {"name": "b", "path": "/d/b", "version": f"sha256:{'0' * 64}"},
        {"name": "gone", "path": "/d/gone"},
    ]
    with delivery.data_source(action, trees, variables) as addresses:
        served = {"a": f"http://127.0.0.1:20001/{DATA}"}
        assert addresses == (served if named and transport == "ssh" else {})


def test_packages_are_downloaded_only_if_all_sources_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module: Any = SimpleNamespace(status=SimpleNamespace(show=lambda _text: None))
    outputs = ["", "W: Failed to fetch http://security.example/x  Connection timed out\n"]
    ran: list[str] = []

    def run(self: Apt, command: Sequence[str], **_options: Any) -> tuple[int, str]:
        ran.append(command[-1])
        return 0, outputs[-1] if command[-1] == "update" else ""

    monkeypatch.setattr(Apt, "run", run)
    with pytest.raises(AptError, match=r"^Cannot find the newest versions\. apt source http://sec"):
        maker.download(Apt(module, 1), tmp_path, ["a1"], [], [])
    assert ran == ["update"]
    outputs.pop()
    with pytest.raises(AptError, match="apt downloaded no file of a1; expected one of each"):
        maker.download(Apt(module, 1), tmp_path, ["a1=1"], [], [])
    ran.clear()
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a1_1_all.deb").touch()
    maker.download(Apt(module, 1), tmp_path, ["a1"], [], [])
    assert ran == ["update", "a1"]


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (held_packages, {"packages": [{"name": "a1"}]}),
        (package_set, {"state": "upgraded", "role": "x", "packages": [{"name": "a1"}]}),
        (package_set, {"state": "rolled_back"}),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_every_command_of_apt_uses_the_bundle(
    run_module: RunModule,
    program: Callable[[str, str], None],
    tmp_path: Path,
    url: str,
    module: Any,
    parameters: dict[str, Any],
    check: bool,
) -> None:
    calls = tmp_path / "calls"
    for name in ("apt-get", "apt-cache", "dpkg", "apt-mark"):
        program(name, f'echo "{name} $*" >>{calls}')
    run_module(module, check=check, **parameters, bundle={"url": url, "sha256": GOOD})
    lines = [line for line in calls.read_text().splitlines() if line.startswith("apt-get")]
    assert any(line.endswith("update") for line in lines)
    assert all("SourceParts=/dev/null" in line for line in lines)


def test_a_wrong_index_changes_nothing(
    run_module: RunModule, program: Callable[[str, str], None], tmp_path: Path, url: str
) -> None:
    program("apt-get", f"echo $* >>{tmp_path}/calls")
    for module, parameters in (
        (held_packages, {"packages": [A]}),
        (package_set, {"state": "upgraded", "role": "x", "packages": [A]}),
    ):
        result = run_module(module, **parameters, bundle={"url": url, "sha256": "0" * 64})
        assert result["failed"] and "No package was installed or removed." in result["msg"]
    assert not (tmp_path / "calls").exists()
