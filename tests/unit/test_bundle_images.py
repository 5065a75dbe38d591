# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images in a bundle: the OCI layout, and the read-only registry that serves it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.action import image_bundle
from ansible_collections.slipway.host.plugins.module_utils.images import delivery
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils import image_source
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    archive,
    images,
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

REFERENCE = "slipway/small:cpu"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


BLOBS = {digest(content): content for content in (b"{}", b"base" * 5000, b"layer" * 30)}
CONFIG, BASE, LAYER = BLOBS
MANIFEST = json.dumps(
    {
        "mediaType": DOCKER,
        "config": {"digest": CONFIG, "size": 2},
        "layers": [{"digest": name, "size": len(BLOBS[name])} for name in (BASE, LAYER)],
    }
).encode()
IMAGE = {
    "manifest": digest(MANIFEST),
    "config": CONFIG,
    "layers": {BASE: 20000, LAYER: 150},
    "size": 99,
}
NOTES = images.make_notes(REFERENCE, "1", "x86_64")


class Source(BaseHTTPRequestHandler):
    """The registry of a host; it may lie."""

    contents: dict[str, bytes] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        content = self.contents.get(name)
        self.send_response(200 if content is not None else 404)
        self.end_headers()
        # The other side ends early if it refuses the content.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content or b"")

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(Source, "contents", {**BLOBS, digest(MANIFEST): MANIFEST})
    monkeypatch.setattr(Source, "asked", [])
    with UnixStreamServer(str(tmp_path / "s"), Source) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield tmp_path / "s"
        server.shutdown()


@pytest.fixture
def layout(tmp_path: Path, source: Path) -> images.Layout:
    made = images.Layout(tmp_path / "layout")
    made.add(source, IMAGE, NOTES)
    return made


def test_a_layout_has_each_layer_once(layout: images.Layout, source: Path, tmp_path: Path) -> None:
    again = images.Layout(layout.folder)
    assert again.has(REFERENCE, "1", "x86_64")
    assert not again.has(REFERENCE, "2", "x86_64") and not again.has(REFERENCE, "1", "aarch64")
    Source.asked.clear()
    other = images.make_notes("slipway/other:cpu", "7", "x86_64")
    assert again.add(source, IMAGE, other) == len(MANIFEST)
    assert Source.asked == [digest(MANIFEST)]
    files = {name: path.read_bytes() for name, path in images.layout_files(layout.folder)}
    assert sorted(files) == sorted(
        ["images/oci-layout", images.INDEX, *map(images.blob_path, [*BLOBS, digest(MANIFEST)])]
    )
    entries = json.loads(files[images.INDEX])["manifests"]
    assert [entry["annotations"][images.REFERENCE] for entry in entries] == [
        *("slipway/other:cpu", REFERENCE)
    ]
    assert {entry["mediaType"] for entry in entries} == {DOCKER}


@pytest.mark.parametrize("name", [digest(MANIFEST), CONFIG, BASE])
@pytest.mark.parametrize("content", [b"other", None])
def test_a_host_that_lies_adds_no_image(
    source: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    Source.contents.pop(name)
    if content is not None:
        Source.contents[name] = content
    layout = images.Layout(tmp_path / "layout")
    with pytest.raises(BundleError, match=r"other content|another content|answers 404"):
        layout.add(source, IMAGE, NOTES)
    assert not images.Layout(tmp_path / "layout").has(REFERENCE, "1", "x86_64")
    assert not (tmp_path / "layout/blobs/sha256" / name.partition(":")[2]).exists()


def change_manifest(**changes: Any) -> dict[str, Any]:
    """Let the host offer another manifest with its true digest; return its offer."""
    content = json.dumps({**json.loads(MANIFEST), **changes}).encode()
    Source.contents[digest(content)] = content
    return {**IMAGE, "manifest": digest(content)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"config": {"digest": "sha256:../../x", "size": 2}},
            "ValueError: digest 'sha256:../../x'",
        ),
        ({"config": {"digest": f"{CONFIG}/../x", "size": 2}}, "ValueError: digest "),
        ({"config": {"digest": None, "size": 2}}, "TypeError: "),
        ({"config": {"digest": CONFIG, "size": "2"}}, "ValueError: size '2'"),
        ({"config": {"digest": CONFIG, "size": -1}}, "ValueError: size -1"),
        ({"config": {"digest": CONFIG, "size": True}}, "ValueError: size True"),
        ({"config": {"digest": CONFIG}}, "KeyError: 'size'"),
        ({"config": {"digest": CONFIG, "size": 1 << 49}}, "does not fit into .* bytes are free"),
        ({"layers": 1}, "TypeError: "),
        ({"layers": [[]]}, "TypeError: "),
        ({"mediaType": "text/html"}, "ValueError: media type 'text/html'"),
    ],
)
def test_a_manifest_of_another_form_adds_no_image(
    source: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    layout = images.Layout(tmp_path / "layout")
    with pytest.raises(BundleError, match=rf"slipway/small:cpu.*{reason}.*; expected .*\. [A-Z]"):
        layout.add(source, change_manifest(**changes), NOTES)
    assert not layout.entries and Source.asked[1:] == []


@pytest.mark.parametrize(
    "image", [None, {}, {**IMAGE, "size": "1"}, {**IMAGE, "manifest": "latest"}, [], "x"]
)
def test_an_offer_of_another_form_adds_no_image(source: Path, tmp_path: Path, image: Any) -> None:
    with pytest.raises(BundleError, match="cannot copy slipway/small:cpu from the host: "):
        images.Layout(tmp_path / "layout").add(source, image, NOTES)
    assert Source.asked == []


def test_a_layer_without_end_is_not_written(source: Path, tmp_path: Path) -> None:
    Source.contents[BASE] = BLOBS[BASE] * 1000
    layout = images.Layout(tmp_path / "layout")
    with pytest.raises(BundleError, match="other content"):
        layout.add(source, IMAGE, NOTES)
    assert (layout.folder / "partial").stat().st_size == len(BLOBS[BASE]) + 1


def test_a_host_that_speaks_no_http_has_no_image(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"no HTTP\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(BundleError, match=r"from the host: BadStatusLine: .*; expected "):
            images.Layout(tmp_path / "layout").add(tmp_path / "s", IMAGE, NOTES)
    with pytest.raises(BundleError, match=r"from the host: FileNotFoundError: .*; expected "):
        images.Layout(tmp_path / "layout").add(tmp_path / "none", IMAGE, NOTES)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ({"failed": {}, "unavailable": "no port"}, "no port"),
        ({"failed": {REFERENCE: "no space"}, "socket": "s"}, f"{REFERENCE}: no space"),
        ({"failed": {}}, "no registry started"),
    ],
)
def test_a_host_that_offers_no_images_is_named(outcome: dict[str, Any], reason: str) -> None:
    form = rf"^gpu01 cannot offer the images: {reason}; expected images .*\. Correct .*\.$"
    with pytest.raises(AnsibleActionFail, match=form):
        image_bundle._refuse_failed("gpu01", outcome)
    image_bundle._refuse_failed("gpu01", {"failed": {}, "socket": "s"})


@pytest.fixture
def bundle(layout: images.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    files = {path: file.read_bytes() for path, file in images.layout_files(layout.folder)}
    entries = tuple(
        Entry(path, len(files[path]), hashlib.sha256(files[path]).hexdigest(), "image")
        for path in sorted(files)
    )
    content = Manifest(requested={}, project={}, controller={}, files=entries).as_json()
    signed = signature.sign(content, signature.make_own_key())
    start: list[tuple[str, bytes | Path]] = [
        (archive.MANIFEST, content),
        (archive.SIGNATURE, signed),
    ]
    archive.write(tmp_path / "b.tar", [*start, *sorted(files.items())])
    return open_bundle(tmp_path / "b.tar")


def test_a_bundle_offers_its_images_to_hosts_with_the_same_content(bundle: Bundle) -> None:
    assert images.check_offer(bundle, {REFERENCE: "1"}, "x86_64") == {REFERENCE: IMAGE}


@pytest.mark.parametrize(
    ("wanted", "architecture"),
    [
        ({REFERENCE: "2"}, "x86_64"),
        ({REFERENCE: "1"}, "aarch64"),
        ({"slipway/a:cpu": "1"}, "x86_64"),
    ],
)
def test_an_image_that_the_bundle_lacks_is_named(
    bundle: Bundle, wanted: dict[str, str], architecture: str
) -> None:
    (name,) = wanted
    with pytest.raises(BundleError, match=rf"b\.tar has no image {name} of this catalogue for"):
        images.check_offer(bundle, wanted, architecture)


def read_builder(path: Path | str, drift: list[str], context: str, checked: str = "") -> list[str]:
    """Run the check of a survey for a host with one declared image."""
    return image_source.read_builder(
        {"ml_images": {"images": [{"reference": REFERENCE, "digest": context}]}},
        {"ml_images": [Difference("images", name, "a", "b") for name in drift]},
        {
            "ml_images_bundle": str(path),
            "ml_images_builder": ["build01"],
            "__ml_images_bundle_manifest": checked,
        },
        {"facts": {"architecture": "x86_64"}},
        lambda value: value,
    )


@pytest.mark.parametrize(
    ("known", "size"),
    [({}, " (20.1 kB)"), ({"x:1": ["i", {"id": "i"}]}, " (20.1 kB)"), ("all", " (0 B)")],
)
def test_a_plan_names_the_bundle_and_the_bytes_that_a_host_lacks(
    bundle: Bundle, known: Any, size: str
) -> None:
    layers = delivery.short_names({BASE: 20000, LAYER: 150})
    record = {"id": "i", "digest": "0", "layers": layers}
    found = [
        Difference("images", REFERENCE, "missing", "built"),
        Difference("files", "f", "a", "b"),
    ]
    drift = {"ml_images": list(found)}
    image_source.read_builder(
        {"ml_images": {"images": [{"reference": REFERENCE, "digest": "1"}]}},
        drift,
        {"ml_images_bundle": str(bundle.path)},
        {
            "facts": {"architecture": "x86_64"},
            "images": {"other:1": ["i", record]} if known == "all" else known,
        },
        lambda value: value,
    )
    assert [one.expected for one in drift["ml_images"]] == [f"pull from bundle b.tar{size}", "b"]


def test_a_missing_image_is_refused_before_any_change(bundle: Bundle) -> None:
    assert read_builder(bundle.path, [REFERENCE], "1") == []
    # The host has the image already, or no bundle is set.
    assert read_builder(bundle.path, [], "2") == []
    assert read_builder("", [REFERENCE], "2") == ["build01"]
    with pytest.raises(AnsibleActionFail, match=r"has no image .* Nothing was changed\."):
        read_builder(bundle.path, [REFERENCE], "2")
    with pytest.raises(AnsibleActionFail, match=r"cannot open none.tar: .* Nothing was changed\."):
        read_builder("none.tar", [REFERENCE], "2")


def test_a_bundle_that_was_replaced_after_its_check_is_refused(bundle: Bundle) -> None:
    assert read_builder(bundle.path, [REFERENCE], "1", bundle.digest) == []
    with pytest.raises(AnsibleActionFail, match=r"b\.tar: replaced during the run: .*; expected 0"):
        read_builder(bundle.path, [REFERENCE], "1", "0" * 64)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error")])
def test_an_error_of_the_disk_stops_the_host_in_the_usual_form(
    bundle: Bundle, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: object) -> bytes:
        raise error

    monkeypatch.setattr(Bundle, "read", fail)
    form = r"b\.tar: Input/output error; expected .*\. Check .* Nothing was changed\."
    with pytest.raises(AnsibleActionFail, match=form):
        read_builder(bundle.path, [REFERENCE], "1")


@pytest.mark.parametrize(
    "index", [b"", b"[]", b"{}", b'{"manifests": [1]}', b'{"manifests": [{"annotations": {}}]}']
)
def test_a_signed_layout_of_another_form_is_refused(
    bundle: Bundle, index: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "read", lambda *_words: index)
    with pytest.raises(BundleError, match=r"b\.tar: invalid layout of images: .*; expected .*\. M"):
        images.check_offer(bundle, {REFERENCE: "1"}, "x86_64")


@pytest.fixture
def served(bundle: Bundle, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "registry"
    with serving.serving(bundle, path):
        assert path.stat().st_mode & 0o777 == 0o600
        yield path
    assert not path.exists()


def ask(path: Path, target: str, method: str = "GET", **headers: str) -> tuple[Any, bytes]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_manifests_and_blobs_are_served_by_digest(served: Path) -> None:
    assert ask(served, "/v2/")[0].status == 200
    answer, content = ask(served, f"/v2/slipway/small/manifests/{digest(MANIFEST)}")
    assert content == MANIFEST
    assert answer.headers["Content-Type"] == DOCKER
    assert answer.headers["Docker-Content-Digest"] == digest(MANIFEST)
    for name, blob in BLOBS.items():
        assert ask(served, f"/v2/slipway/small/blobs/{name}")[1] == blob
        answer, content = ask(served, f"/v2/slipway/small/blobs/{name}", "HEAD")
        assert (answer.headers["Content-Length"], content) == (str(len(blob)), b"")


def test_a_cut_download_goes_on_where_it_was(served: Path) -> None:
    answer, content = ask(served, f"/v2/a/blobs/{BASE}", Range="bytes=19990-")
    assert (answer.status, content) == (206, BLOBS[BASE][19990:])
    assert answer.headers["Content-Range"] == "bytes 19990-19999/20000"
    answer, content = ask(served, f"/v2/a/blobs/{BASE}", Range="bytes=20000-")
    assert (answer.status, content) == (416, b"")
    assert ask(served, f"/v2/a/blobs/{BASE}", Range="bytes=x")[1] == BLOBS[BASE]


def test_hosts_pull_at_the_same_time(served: Path) -> None:
    received: list[bytes] = []

    def pull() -> None:
        received.extend(ask(served, f"/v2/a/blobs/{BASE}")[1] for _ in range(20))

    threads = [threading.Thread(target=pull) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert received == [BLOBS[BASE]] * 120


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/a/blobs/sha256:" + "0" * 64, 404),
        ("GET", "/v2/a/manifests/latest", 404),
        ("GET", "/v2/a/blobs/../../../etc/passwd", 404),
        ("GET", f"/v2/a/blobs/{BASE}/../x", 404),
        ("GET", "/project.tar", 404),
        ("PUT", "/v2/a/manifests/x", 501),
        ("POST", "/v2/a/blobs/uploads/", 501),
        ("DELETE", f"/v2/a/blobs/{BASE}", 501),
    ],
)
def test_nothing_else_is_served_and_nothing_is_written(
    served: Path, bundle: Bundle, method: str, target: str, status: int
) -> None:
    before = bundle.path.read_bytes()
    assert ask(served, target, method)[0].status == status
    assert bundle.path.read_bytes() == before


def test_a_client_that_ends_early_disturbs_nobody(
    served: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(served))
        client.sendall(f"GET /v2/a/blobs/{BASE} HTTP/1.1\r\n\r\n".encode())
    assert ask(served, f"/v2/a/blobs/{BASE}")[1] == BLOBS[BASE]
    assert capfd.readouterr().err == ""


def test_an_error_of_the_bundle_is_no_empty_answer(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_bundle: Bundle, _entry: Entry) -> Any:
        raise BundleError("damaged")

    monkeypatch.setattr(Bundle, "find", fail)
    for target in (f"blobs/{BASE}", f"manifests/{digest(MANIFEST)}"):
        for method in ("GET", "HEAD"):
            answer, content = ask(served, f"/v2/a/{target}", method)
            assert (answer.status, content) == (500, b"")


class SlowSemaphore(threading.BoundedSemaphore):
    """As on a busy machine: a place is free some time after it was given back."""

    def release(self, n: int = 1) -> None:
        time.sleep(0.3)
        super().release(n)


def test_idle_connections_do_not_hold_the_server(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(serving, "IDLE_SECONDS", 1)
    monkeypatch.setattr(threading, "BoundedSemaphore", SlowSemaphore)
    path = tmp_path / "registry"
    with serving.serving(bundle, path):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in clients:
            client.connect(str(path))
        # The third is closed at once, the idle ones by the limit.
        assert [client.recv(1) for client in reversed(clients)] == [b"", b"", b""]
        for client in clients:
            client.close()
        assert ask(path, f"/v2/a/blobs/{BASE}")[1] == BLOBS[BASE]
