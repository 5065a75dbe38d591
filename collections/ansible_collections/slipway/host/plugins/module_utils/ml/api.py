# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to the Docker Engine, without a docker command for each of them.

A docker command takes 30 ms and more, a request over the engine's socket a few.  If the engine is
not on a socket of this host, ``docker system dial-stdio`` carries the request.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from .caller import home_folder
from .errors import reason

if TYPE_CHECKING:
    import subprocess

DEFAULT_SOCKET = "/var/run/docker.sock"
UNIX = "unix://"
# Longer than any answer takes that an alias waits for.
TIMEOUT_SECONDS = 60.0
# Characters of a URL path that need no escape.
PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:@")
DIAL = ("docker", "system", "dial-stdio")


class ApiError(Exception):
    """The engine did not answer; the message is docker's or the system's."""


class Request(NamedTuple):
    """A request to the engine; BODY is sent as JSON."""

    path: str
    method: str = "GET"
    body: Any = None

    def encode(self) -> bytes:
        """Return the request in HTTP 1.0, whose answers end with the connection."""
        body = b"" if self.body is None else json.dumps(self.body).encode()
        head = (
            f"{self.method} {self.path} HTTP/1.0\r\nHost: docker\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class Answer(NamedTuple):
    """The status and the content of an answer."""

    status: int
    content: bytes

    def json(self) -> Any:
        """Return the decoded content.  Raise ApiError for content that is not JSON."""
        try:
            return json.loads(self.content.decode("utf-8"))
        except ValueError as error:
            raise ApiError(f"unexpected answer from Docker: {error}") from error


def escape(text: str) -> str:
    """Return TEXT for the path of a URL."""
    encoded = text.encode(errors="surrogateescape")
    return "".join(chr(byte) if chr(byte) in PLAIN else f"%{byte:02X}" for byte in encoded)


def find_socket() -> str:
    """Return the path of the engine's socket; empty if only the docker command can reach it.

    The rules are those of the docker command: DOCKER_HOST, DOCKER_CONTEXT, then the context in the
    user's config.json.
    """
    address = os.environ.get("DOCKER_HOST", "")
    if not address:
        folder = Path(os.environ.get("DOCKER_CONFIG") or home_folder() / ".docker")
        try:
            address = _context_address(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # The docker command explains the problem.
            return ""
    path = address.removeprefix(UNIX)
    return path if address.startswith(UNIX) and path.startswith("/") else ""


def _context_address(folder: Path) -> str:
    """Return the engine's address from the user's configuration in a folder."""
    context = os.environ.get("DOCKER_CONTEXT", "")
    file = folder / "config.json"
    if not context and file.exists():
        context = json.loads(_read_regular(file)).get("currentContext") or ""
    if context in ("", "default"):
        return UNIX + DEFAULT_SOCKET
    import hashlib

    name = hashlib.sha256(context.encode(errors="surrogateescape")).hexdigest()
    described = json.loads(_read_regular(folder / "contexts" / "meta" / name / "meta.json"))
    address = described["Endpoints"]["docker"]["Host"]
    return address if isinstance(address, str) else ""


def _read_regular(file: Path) -> str:
    """Return the text of a file; raise OSError for a pipe or device, which might never end."""
    if not file.is_file():
        raise OSError(f"{file} is not a file")
    return file.read_text(encoding="utf-8")


def fetch(*requests: Request) -> list[Answer]:
    """Send all requests at once; return the answers.  Raise ApiError if the engine fails."""
    path = find_socket()
    if path:
        return _fetch_by_socket(path, requests)
    return _fetch_by_command(requests)


def _fetch_by_socket(path: str, requests: Sequence[Request]) -> list[Answer]:
    connections: list[socket.socket] = []
    try:
        for request in requests:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connections.append(connection)
            _send(connection, path, request)
        return [parse_answer(b"".join(_chunks(connection))) for connection in connections]
    except PermissionError as error:
        raise ApiError(f"permission denied while trying to connect to {path}") from error
    except OSError as error:
        raise ApiError(
            f"Cannot connect to the Docker daemon at {path}: {reason(error, path)}"
        ) from error
    finally:
        for connection in connections:
            connection.close()


def _send(connection: socket.socket, path: str, request: Request) -> None:
    connection.settimeout(TIMEOUT_SECONDS)
    connection.connect(path)
    connection.sendall(request.encode())


def open_stream(request: Request) -> socket.socket | None:
    """Return a connection for a request whose answer does not end.

    Return None if the engine does not answer, or is not on a socket of this host.
    """
    path = find_socket()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _send(connection, path, request)
    except OSError:
        connection.close()
        return None
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Return whether the engine closed a connection; discard what it sent."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 16):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _chunks(connection: socket.socket) -> Iterator[bytes]:
    while chunk := connection.recv(1 << 16):
        yield chunk


def _fetch_by_command(requests: Sequence[Request]) -> list[Answer]:
    with _dialled(len(requests)) as processes:
        for process, request in zip(processes, requests, strict=True):
            try:
                _pipe(process.stdin).write(request.encode())
                _pipe(process.stdin).flush()
            except BrokenPipeError:
                # The reason is in the error output.
                continue
        return [_read_process(process) for process in processes]


@contextmanager
def _dialled(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield COUNT connections to the engine through the docker command."""
    import subprocess

    pipe = subprocess.PIPE
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _number in range(count):
            processes.append(subprocess.Popen(DIAL, stdin=pipe, stdout=pipe, stderr=pipe))
        yield processes
    except OSError as error:
        raise ApiError(f"cannot run docker: {reason(error, 'docker')}") from error
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    # Every stream of the process is a pipe.
    return cast("IO[bytes]", stream)


def _read_process(process: subprocess.Popen[bytes]) -> Answer:
    content = _pipe(process.stdout).read()
    if not content:
        raise ApiError(_pipe(process.stderr).read().decode("utf-8", "replace"))
    return parse_answer(content)


def parse_answer(received: bytes) -> Answer:
    """Return the answer in what was received.  Raise ApiError for anything but HTTP."""
    head, separator, content = received.partition(b"\r\n\r\n")
    fields = head.split(None, 2)
    if not separator or len(fields) < 2 or not fields[1].isdigit():
        raise ApiError(f"unexpected answer from Docker: {received[:80]!r}")
    return Answer(int(fields[1]), content)
