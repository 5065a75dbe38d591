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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
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


def ask(
    method: str, path: str, body: bytes | Iterable[bytes] | None = None, kind: str = JSON
) -> tuple[int, str]:
    """Send one request and return the status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
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


def main() -> int:
    """Start the server, check it, stop it, and return the exit status."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(SERVER, stdout=log, stderr=subprocess.STDOUT)
        try:
            expect("running as root", os.getuid() == 0, False)
            wait_for(server)
            check()
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
    print(f"smoke: {len(PREDICTIONS)} predictions right, {len(REFUSALS)} bad requests refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
