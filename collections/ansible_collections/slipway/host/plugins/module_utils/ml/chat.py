# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``ml chat``: talk to a language model that one of the caller's containers or services serves.

The server understands the API of OpenAI. Its address is one with a key, see ``containers.KEY``.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from . import containers
from .errors import MlError, reason

LIST_SECONDS = 10.0
# The first words of a large model on a CPU.
ANSWER_SECONDS = 600.0
LOCAL = "http://127.0.0.1:"
SOCKET_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
# The state of a listening socket in these tables.
LISTENS = "0A"
# A line of a stream has one token.
LONGEST_LINE = 1 << 20


class Server(NamedTuple):
    """A server: the name of its container or service, the base URL of its API, and the key."""

    name: str
    base: str
    key: str


def find_servers(name: str, urls: Iterable[str], service_file: str = "") -> list[Server]:
    """Return the servers among the addresses of a container or service, with their keys.

    The addresses of a container are in its labels, which other people may have written. So without
    a SERVICE_FILE, only addresses of this host count: the caller's token is for them.
    """
    return [
        Server(name, *containers.insert_token(url, service_file).split(containers.KEY, 1))
        for url in urls
        if containers.KEY in url and (service_file or url.startswith(LOCAL))
    ]


def choose_server(servers: Sequence[Server], name: str | None) -> Server:
    """Return the only server, or the named one. Raise MlError for another number of them."""
    if len(servers) == 1:
        return servers[0]
    if not servers:
        of = f"{name} serves no language model" if name else "you have no language model server"
        raise MlError(f"{of}. To start one, run the alias llm, or ask for a service")
    names = ", ".join(server.name for server in servers)
    raise MlError(f"several language model servers: {names}. Run: ml chat --server NAME")


def expect_own_listener(server: Server) -> None:
    """Raise MlError if a program of another user listens on the port of a server on this host.

    Anybody may take the port while the server does not run, and would get the key. Docker listens
    as root, or as the caller without root, or not at all: then the kernel forwards the port.
    """
    port = urlsplit(server.base).port
    for line in (line for table in SOCKET_TABLES for line in _read_table(table)):
        fields = line.split()
        if len(fields) < 8 or fields[3] != LISTENS or int(fields[1].rpartition(":")[2], 16) != port:
            continue
        if int(fields[7]) not in (0, os.getuid()):
            raise MlError(
                f"{server.name} does not run: port {port} belongs to a program of uid {fields[7]}. "
                "Tell your administrator"
            )


def _read_table(table: Path) -> list[str]:
    try:
        return table.read_text(encoding="ascii", errors="replace").splitlines()[1:]
    except OSError:
        return []


def list_models(server: Server) -> list[str]:
    """Return the names of the models of a server."""
    try:
        with _open(server, "/models", None, LIST_SECONDS) as answer:
            return [str(model["id"]) for model in json.loads(answer.read(LONGEST_LINE))["data"]]
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        raise MlError(f"unknown answer of {server.name} at {server.base}/models") from error


def choose_model(server: Server, wanted: str | None) -> str:
    """Return the wanted model, or the first one. Raise MlError for a model that is not served."""
    models = list_models(server)
    if not models:
        raise MlError(f"{server.name} has no model in /models. Add a folder with a model there")
    if wanted and wanted not in models:
        raise MlError(f"{server.name} has no model {wanted}; expected one of: {', '.join(models)}")
    return wanted or models[0]


def talk(server: Server, model: str) -> int:
    """Send each line of the person to the model and print the answer; return the exit status.

    Without a terminal, all of standard input is one message.
    """
    messages: list[dict[str, str]] = []
    is_conversation = sys.stdin.isatty()
    if is_conversation:
        print(f"{model} on {server.name}. Ctrl-D ends.", file=sys.stderr)
    show = _printable if sys.stdout.isatty() else str
    for text in _lines() if is_conversation else [_read_all()]:
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        parts = []
        for part in stream_answer(server, model, messages):
            parts.append(part)
            print(show(part), end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": "".join(parts)})
    return 0


def stream_answer(server: Server, model: str, messages: Sequence[dict[str, str]]) -> Iterator[str]:
    """Yield the parts of the answer to messages, as the server sends them."""
    body = {"model": model, "messages": list(messages), "stream": True}
    is_complete = False
    with _open(server, "/chat/completions", body, ANSWER_SECONDS) as answer:
        for line in _read_lines(server, answer):
            field, _colon, value = line.strip().partition(":")
            if field != "data":
                continue
            if value.strip() == "[DONE]":
                return
            part, ends = _part(server, value)
            # transformers sends this reason, but no [DONE].
            is_complete = is_complete or ends
            if part:
                yield part
    if not is_complete:
        raise MlError(f"{server.name} ended its answer before the end. Ask again")


def _part(server: Server, event: str) -> tuple[str, bool]:
    """Return the text in an event of a stream, and whether the answer ends with the event.

    Raise MlError for an error in place of the text.
    """
    try:
        data = json.loads(event)
        if "error" in data:
            raise MlError(f"{server.name}: {_printable(str(data['error']['message']))}")
        choices = data.get("choices") or [{}]
        part = choices[0].get("delta", {}).get("content")
        ends = bool(choices[0].get("finish_reason"))
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise MlError(f"unknown answer of {server.name}: {event[:80]!r}") from error
    return (part if isinstance(part, str) else ""), ends


def _read_lines(server: Server, answer: Any) -> Iterator[str]:
    try:
        while line := answer.readline(LONGEST_LINE):
            yield line.decode(errors="replace")
    except (OSError, HTTPException) as error:
        raise MlError(f"{server.name} ended its answer: {reason(error)}") from error


def _read_all() -> str:
    return sys.stdin.buffer.read().decode(errors="replace")


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            print(file=sys.stderr)
            return


def _open(server: Server, path: str, body: Any, seconds: float) -> Any:
    """Return the answer of a server. Raise MlError with the server's own words for an error."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.base + path, data, headers)
    # The server is on this host; the key must not reach a proxy or another address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        return opener.open(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        raise MlError(f"{server.name} at {server.base}: {_words(error)}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise MlError(f"{server.name} does not answer at {server.base}: {reason(error)}") from error


def _words(error: urllib.error.HTTPError) -> str:
    """Return what a server says about an error."""
    try:
        return _printable(str(json.loads(error.read(LONGEST_LINE))["error"]["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        return f"status {error.code}"


def _printable(text: str) -> str:
    """Return a text that cannot change the terminal: a model may write any character."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_keywords: Any) -> None:
        """Follow no redirect."""
