# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ml chat` with a server of the test that answers as the API of OpenAI does."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import chat, containers, token
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError

KEY = "s3cret"
PARTS = ["A slip", "way is", " a ramp."]


class Api(ThreadingHTTPServer):
    """A server of the API: the answers that a test sets, and the requests that it got."""

    models: Any = {"data": [{"id": "tiny"}, {"id": "large"}]}
    stream: bytes | None = None
    requests: list[Any]


class Handler(BaseHTTPRequestHandler):
    """Answers like a server that requires a key."""

    server: Api

    def do_GET(self) -> None:
        """List the models."""
        self._answer(json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        """Stream an answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(json.loads(body))
        parts = [{"choices": [{"delta": {"content": part}}]} for part in PARTS]
        events = [{"choices": [{"delta": {"role": "assistant"}}]}, *parts, {"choices": []}]
        lines = [f"data: {json.dumps(event)}" for event in events]
        stream = "\n\n".join([": comment", *lines, "data: [DONE]", ""]).encode()
        self._answer(stream if self.server.stream is None else self.server.stream)

    def _answer(self, content: bytes) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/v1")
            self.end_headers()
            return
        known = self.headers["Authorization"] == f"Bearer {KEY}"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(content if known else b'{"error": {"message": "wrong \\u001b[31mkey"}}')

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A running server."""
    # The key must not reach a proxy.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Api(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def server_of(api: Api, path: str = "/v1", key: str = KEY) -> chat.Server:
    return chat.Server("me-llm", f"http://127.0.0.1:{api.server_port}{path}", key)


def test_a_server_is_an_address_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(token, "token_file", lambda: own)
    of_service = tmp_path / "service"
    of_service.write_text("theirs\n", encoding="utf-8")
    url = "http://127.0.0.1:8000/v1#key={token}"
    urls = ["http://127.0.0.1:8888/lab?token={token}", url, "http://127.0.0.1:5000/predict"]
    found = chat.Server("me-llm", "http://127.0.0.1:8000/v1", "mine")
    assert chat.find_servers("me-llm", urls) == [found]
    (service,) = chat.find_servers("llm", ["http://gpu1:8000/v1#key={token}"], str(of_service))
    assert service == chat.Server("llm", "http://gpu1:8000/v1", "theirs")


@pytest.mark.parametrize(
    "url", ["http://evil/v1#key={token}", "http://127.0.0.1.evil:80/v1#key={token}"]
)
def test_the_token_of_a_person_is_for_this_host_alone(url: str) -> None:
    assert chat.find_servers("me-llm", [url]) == []


def test_an_address_with_a_key_is_shown_in_two_parts() -> None:
    url = "http://127.0.0.1:8000/v1#key={token}"
    assert containers.hide_token(url) == "http://127.0.0.1:8000/v1"
    shown = containers.show_url(url.replace("{token}", KEY))
    assert shown == f"http://127.0.0.1:8000/v1  key {KEY}"


def test_one_server_is_chosen() -> None:
    one, two = chat.Server("a", "", ""), chat.Server("b", "", "")
    assert chat.choose_server([one], None) == one
    with pytest.raises(MlError, match="several language model servers: a, b"):
        chat.choose_server([one, two], None)
    with pytest.raises(MlError, match="you have no language model server"):
        chat.choose_server([], None)
    with pytest.raises(MlError, match="jupyter serves no language model"):
        chat.choose_server([], "jupyter")


def test_a_model_is_chosen(api: Api) -> None:
    server = server_of(api)
    assert chat.choose_model(server, None) == "tiny"
    assert chat.choose_model(server, "large") == "large"
    with pytest.raises(MlError, match="no model other; expected one of: tiny, large"):
        chat.choose_model(server, "other")
    api.models = {"data": []}
    with pytest.raises(MlError, match="no model in /models"):
        chat.choose_model(server, None)


@pytest.mark.parametrize("models", [[], {}, {"data": 1}, {"data": [{}]}, "x"])
def test_an_unknown_list_of_models_is_an_error(api: Api, models: Any) -> None:
    api.models = models
    with pytest.raises(MlError, match="unknown answer of me-llm"):
        chat.list_models(server_of(api))


def test_a_wrong_key_is_an_error_in_the_words_of_the_server(api: Api) -> None:
    with pytest.raises(MlError) as error:
        chat.list_models(server_of(api, key="other"))
    assert str(error.value).endswith("/v1: wrong \N{REPLACEMENT CHARACTER}[31mkey")


def test_the_key_follows_no_redirect(api: Api) -> None:
    with pytest.raises(MlError, match="status 302"):
        chat.list_models(server_of(api, "/moved"))


def test_a_server_that_is_gone_is_an_error() -> None:
    with pytest.raises(MlError, match=r"me-llm does not answer at http://127\.0\.0\.1:9/v1"):
        chat.list_models(chat.Server("me-llm", "http://127.0.0.1:9/v1", KEY))


def test_a_message_from_a_pipe_is_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", pipe(b"What is a slipway?\nShort.\n"))
    assert chat.talk(server_of(api), "tiny") == 0
    assert capsys.readouterr().out == "".join(PARTS) + "\n"
    (request,) = api.requests
    assert request["model"] == "tiny"
    assert request["messages"] == [{"role": "user", "content": "What is a slipway?\nShort.\n"}]


def pipe(content: bytes) -> io.TextIOWrapper:
    """Return a standard input that is no terminal."""
    return io.TextIOWrapper(io.BytesIO(content))


def test_a_message_may_have_any_bytes(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", pipe(b"caf\xe9"))
    assert chat.talk(server_of(api), "tiny") == 0
    assert api.requests[0]["messages"][0]["content"] == "caf\N{REPLACEMENT CHARACTER}"


class Terminal(io.StringIO):
    """Standard input or output of a person."""

    def isatty(self) -> bool:
        """Return true."""
        return True


def test_a_conversation_keeps_what_was_said(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("one\n\ntwo\n"))
    assert chat.talk(server_of(api), "tiny") == 0
    said = [(message["role"], message["content"]) for message in api.requests[1]["messages"]]
    assert said == [("user", "one"), ("assistant", "".join(PARTS)), ("user", "two")]
    assert capsys.readouterr().out.count("".join(PARTS)) == 2


def test_a_model_cannot_change_the_terminal(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"choices": [{"delta": {"content": "\x1b]0;title\x07\u202e\nend"}}]}
    api.stream = f"data: {json.dumps(event)}\n\ndata: [DONE]\n".encode()
    monkeypatch.setattr("sys.stdin", pipe(b"one\n"))
    screen = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", screen)
        assert chat.talk(server_of(api), "tiny") == 0
    out = screen.getvalue()
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    assert "\nend" in out


@pytest.mark.parametrize(
    "stream", [b"data: {", b"data: []\n", b'data: {"choices": 1}\n', b'data: {"choices": [1]}\n']
)
def test_an_unknown_stream_is_an_error(api: Api, stream: bytes) -> None:
    api.stream = stream
    with pytest.raises(MlError, match="unknown answer of me-llm"):
        list(chat.stream_answer(server_of(api), "tiny", []))


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b'data: {"error": {"message": "CUDA out of memory"}}\n', "me-llm: CUDA out of memory"),
        (b'data: {"error": 1}\n', "unknown answer of me-llm"),
        (b'data: {"choices": [{"delta": {"content": "half"}}]}\n', "ended its answer before"),
        (b"", "ended its answer before"),
    ],
)
def test_an_answer_that_is_cut_is_an_error(api: Api, stream: bytes, words: str) -> None:
    api.stream = stream
    with pytest.raises(MlError, match=words):
        list(chat.stream_answer(server_of(api), "tiny", []))


def test_an_answer_without_a_last_line_ends_with_its_reason(api: Api) -> None:
    """The server of transformers sends no [DONE]."""
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": "all"}, "finish_reason": None}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {}},
    ]
    api.stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    assert list(chat.stream_answer(server_of(api), "tiny", [])) == ["all"]


LISTENER = "0: 0100007F:1F40 00000000:0000 {} 00000000:00000000 00:00000000 00000000 {} 0 1 1\n"


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        ([LISTENER.format("0A", 0)], False),
        ([LISTENER.format("0A", 1000)], False),
        ([LISTENER.format("0A", 1001)], True),
        ([LISTENER.format("01", 1001)], False),
        ([LISTENER.format("0A", 0), LISTENER.format("0A", 1001)], True),
        ([LISTENER.replace("1F40", "1F41").format("0A", 1001)], False),
        ([], False),
    ],
)
def test_the_key_is_not_for_a_program_of_another_user(
    lines: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "tcp"
    table.write_text("  sl  local_address rem_address   st\n" + "".join(lines), encoding="utf-8")
    monkeypatch.setattr(chat, "SOCKET_TABLES", (table, tmp_path / "missing"))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    server = chat.Server("llm", "http://127.0.0.1:8000/v1", KEY)
    if refused:
        with pytest.raises(MlError, match="port 8000 belongs to a program of uid 1001"):
            chat.expect_own_listener(server)
    else:
        chat.expect_own_listener(server)
