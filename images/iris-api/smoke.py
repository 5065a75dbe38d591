# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove that the image does its job: start the real server and ask it, well and badly.

Runs inside the container, needs no network but the loopback, and exits 1 at the first answer
that is not as it must be, after printing the server's log.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Thread
from typing import Any

SERVER = ["gunicorn", "--config", "gunicorn.conf.py"]
PORT = 5000
START_SECONDS = 30.0
STOP_SECONDS = 15.0
JSON = "application/json"
MEGABYTE = 1024 * 1024

# petal length and width in cm, species
PREDICTIONS = [
    (5.1, 2.4, "virginica"),
    (1.4, 0.2, "setosa"),
    (4.0, 1.2, "versicolor"),
    (6, 2.5, "virginica"),
]

# what it is, body, content type, status, field that the error must name
REFUSALS: list[tuple[str, bytes | Iterable[bytes], str, int, str]] = [
    ("a string", b'{"length": "5.1", "width": 2.4}', JSON, 422, "length"),
    ("a boolean", b'{"length": 5.1, "width": true}', JSON, 422, "width"),
    ("null", b'{"length": null, "width": 2.4}', JSON, 422, "length"),
    ("a list", b'{"length": [5.1], "width": 2.4}', JSON, 422, "length"),
    ("a missing key", b'{"length": 5.1}', JSON, 422, "width"),
    ("an unknown key", b'{"length": 5.1, "width": 2.4, "height": 1}', JSON, 422, "height"),
    ("a key given twice", b'{"length": 5.1, "length": 5.2, "width": 1}', JSON, 422, "length"),
    ("NaN", b'{"length": NaN, "width": 2.4}', JSON, 422, "length"),
    ("Infinity", b'{"length": 5.1, "width": Infinity}', JSON, 422, "width"),
    ("a number that overflows", b'{"length": 1e999, "width": 2.4}', JSON, 422, "length"),
    ("a negative length", b'{"length": -5.1, "width": 2.4}', JSON, 422, "length"),
    ("zero", b'{"length": 5.1, "width": 0}', JSON, 422, "width"),
    ("a huge length", b'{"length": 100.1, "width": 2.4}', JSON, 422, "length"),
    ("an empty body", b"", JSON, 400, "body"),
    ("what is not JSON", b"length=5.1&width=2.4", JSON, 400, "body"),
    ("a JSON list", b"[5.1, 2.4]", JSON, 400, "body"),
    ("deep nesting", b"[" * 4000, JSON, 400, "body"),
    ("another content type", b'{"length": 5.1, "width": 2.4}', "text/plain", 415, "Content-Type"),
    ("10 MB", b" " * (10 * MEGABYTE), JSON, 413, "body"),
    ("10 MB in chunks", (b" " * MEGABYTE for _ in range(10)), JSON, 413, "body"),
]

POST = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

# what it is, bytes, status, field that the error must name
INVALID_HTTP = [
    ("an invalid chunk", CHUNKED + b"zz\r\n", 400, "body"),
    ("a chunk that ends early", CHUNKED + b"5\r\n{", 400, "body"),
    ("a body that ends early", POST + b"Content-Length: 40\r\n\r\n{", 400, "body"),
    ("a negative length", POST + b"Content-Length: -1\r\n\r\n", 400, "request"),
    ("no HTTP", b"hello\r\n\r\n", 400, "request"),
    ("HTTP 9.9", b"GET / HTTP/9.9\r\n\r\n", 400, "request"),
    ("a long address", b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", 414, "request"),
    ("a large header", b"GET / HTTP/1.1\r\nX: " + b"a" * MEGABYTE + b"\r\n\r\n", 431, "request"),
    ("endless headers", b"GET / HTTP/1.1\r\n" + b"X-A: a\r\n" * 100_000, 431, "request"),
]

# number of connections, bytes that each sends before it stalls
STALLED = [
    (12, POST + b"Content-Length: 40\r\n\r\n{"),
    (100, CHUNKED + b"5\r\n{"),
    (100, b"GET /healthz HTTP/1.1\r\nHost: "),
    (100, b""),
]
# A server whose threads wait for stalled clients never answers; a busy machine only answers late.
ANSWER_SECONDS = 30.0

# the beginning of requests that continue without an end, as fast as the server reads
ENDLESS = [
    POST + b"Content-Length: 1000000000000\r\n\r\n",
    CHUNKED + b"100000\r\n",
    b"GET / HTTP/1.1\r\nX: ",
]


def ask(
    method: str, path: str, body: bytes | Iterable[bytes] | None = None, kind: str = JSON
) -> tuple[int, str]:
    """Send one request and return the status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, body=body, headers={"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def expect(what: str, found: Any, wanted: Any) -> None:
    """Raise AssertionError when what was found is not what was wanted."""
    if found != wanted:
        raise AssertionError(f"{what}: got {found!r}, wanted {wanted!r}")


def wait_for(server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers its health check; raise AssertionError when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            status, text = ask("GET", "/healthz")
        except OSError:
            time.sleep(0.1)
            continue
        expect("GET /healthz", (status, json.loads(text)["status"]), (200, "ok"))
        return
    if server.poll() is not None:
        raise AssertionError(f"the server ended with exit status {server.returncode}")
    raise AssertionError(f"the server did not answer within {START_SECONDS:.0f} s")


def check() -> None:
    """Ask the running server everything; raise AssertionError at the first wrong answer."""
    for length, width, species in PREDICTIONS:
        body = json.dumps({"length": length, "width": width}).encode()
        status, text = ask("POST", "/predict", body)
        expect(
            f"a petal of {length} x {width} cm",
            (status, json.loads(text)),
            (200, {"prediction": species}),
        )
    for what, refused, kind, wanted, field in REFUSALS:
        status, text = ask("POST", "/predict", refused, kind)
        error = json.loads(text)["error"]
        expect(f"POST /predict with {what}", (status, error["field"]), (wanted, field))
        expect(f"POST /predict with {what} says so", field in error["message"], True)
    for method, path, wanted in [("GET", "/none", 404), ("GET", "/predict", 405)]:
        status, text = ask(method, path)
        expect(f"{method} {path}", (status, list(json.loads(text))), (wanted, ["error"]))
    status, text = ask("GET", "/")
    expect("the page", (status, "<form" in text), (200, True))


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    """Return status and error of the answer to an invalid request."""
    with connection.makefile("rb") as answer:
        head, _separator, body = answer.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def check_invalid_http() -> None:
    """Send bytes that are no valid request; raise AssertionError at the first wrong answer."""
    for what, sent, status, field in INVALID_HTTP:
        with socket.create_connection(("127.0.0.1", PORT), ANSWER_SECONDS) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            found, error = read_answer(connection)
        expect(f"{what}: {error['message']}", (found, error["field"]), (status, field))


@contextmanager
def stalled_clients() -> Iterator[list[socket.socket]]:
    """Hold the connections of STALLED; the server must answer others, and close these."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(hold_connection(sent))
            for number, sent in STALLED
            for _ in range(number)
        ]


def hold_connection(sent: bytes) -> socket.socket:
    """Return a connection that sent these bytes."""
    connection = socket.create_connection(("127.0.0.1", PORT), ANSWER_SECONDS)
    connection.sendall(sent)
    return connection


def send_endlessly(start: bytes) -> None:
    """Send a request without an end until the server closes the connection."""
    with suppress(OSError), hold_connection(start) as connection:
        while True:
            connection.sendall(b"a" * MEGABYTE)


def check_health_beside_endless_requests() -> None:
    """Raise AssertionError if endless requests stop the health check, or do not end."""
    threads = [Thread(target=send_endlessly, args=(start,)) for start in ENDLESS * 2]
    for thread in threads:
        thread.start()
    check_health()
    for thread in threads:
        thread.join(ANSWER_SECONDS)
    expect("endless requests", sum(thread.is_alive() for thread in threads), 0)


def check_health() -> None:
    """Raise AssertionError unless the health check answers."""
    status, _text = ask("GET", "/healthz")
    expect("GET /healthz beside stalled clients", status, 200)


def main() -> int:
    """Start the server, check it, stop it, and return the exit status."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(SERVER, stdout=log, stderr=subprocess.STDOUT)
        try:
            expect("running as root", os.getuid() == 0, False)
            wait_for(server)
            with stalled_clients() as connections:
                check_health()
                check()
                check_invalid_http()
                check_health_beside_endless_requests()
                for connection in connections:
                    expect("status for a stalled client", read_answer(connection)[0], 408)
            check_health()
            server.terminate()
            expect("exit status after SIGTERM", server.wait(STOP_SECONDS), 0)
        except (
            AssertionError,
            OSError,
            ValueError,
            LookupError,
            subprocess.SubprocessError,
        ) as error:
            server.kill()
            server.wait()
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            print(f"smoke: FAILED: {error}", file=sys.stderr)
            return 1
    refused = len(REFUSALS) + len(INVALID_HTTP)
    stalled = sum(number for number, _sent in STALLED)
    print(
        f"smoke: {len(PREDICTIONS)} predictions right, {refused} bad requests refused, {stalled} "
        "stalled clients closed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
