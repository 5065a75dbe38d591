# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the API of the Docker Engine, on a socket."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Content = Any
# An answer that does not end before the engine.
ENDLESS = object()


class FakeEngine:
    """Answers requests from a table of patterns.

    A pattern is a regular expression for ``METHOD PATH``; the first one that matches decides. The
    content is sent as JSON, bytes are sent as they are; a tuple is a status and the content.
    """

    def __init__(self, file: Path, answers: Mapping[str, Content]) -> None:
        self.answers = dict(answers)
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(file))
        self._server.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening.

        The thread ends first: it could accept on the next socket that gets the same descriptor.
        """
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        # A client may end before it reads the answer.
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    return
                received += chunk
            head, _, body = received.partition(b"\r\n\r\n")
            length = int((re.findall(rb"Content-Length: (\d+)", head) or [b"0"])[0])
            while len(body) < length:
                body += connection.recv(1 << 16)
            method, path = head.split(b" ")[:2]
            request = f"{method.decode()} {unquote(path.decode())}"
            self.requests.append(request)
            self.bodies.append(body)
            content = self.answer(request)
            if content is ENDLESS:
                connection.recv(1)
            else:
                connection.sendall(encode(content))

    def answer(self, request: str) -> Content:
        """Return the content for a request."""
        for pattern, content in self.answers.items():
            if re.match(pattern, request):
                return content
        return 404, {"message": f"No such object: {request}"}


def encode(content: Content) -> bytes:
    """Return an HTTP answer."""
    status, content = content if isinstance(content, tuple) else (200, content)
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.0 {status} Text\r\nServer: stand-in\r\n\r\n".encode() + body


@contextlib.contextmanager
def running(file: Path, answers: Mapping[str, Content]) -> Iterator[FakeEngine]:
    """Yield an engine that listens on the socket FILE."""
    engine = FakeEngine(file, answers)
    try:
        yield engine
    finally:
        engine.close()


Start = Callable[[Mapping[str, Content]], FakeEngine]
