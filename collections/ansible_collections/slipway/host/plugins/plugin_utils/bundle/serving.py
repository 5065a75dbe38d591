# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A read-only server on a Unix socket of the controller: images, packages and data of a bundle.

For images, it has only the requests of the OCI distribution specification that a pull by digest
needs. Packages and data sets are files.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import MANIFESTS
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import data, packages
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.images import blob_path
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import Bundle

REQUEST = re.compile(r"/v2/[a-z0-9][a-z0-9._/-]*/(manifests|blobs)/(sha256:[0-9a-f]{64})")
# Docker uses fewer connections. One that is idle for so long is closed.
MAX_CONNECTIONS, IDLE_SECONDS = 32, 600
# Whose files are served as they are.
FOLDERS = (f"{packages.FOLDER}/", f"{data.FOLDER}/")
RANGE = re.compile(r"bytes=([0-9]{1,18})-")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves the contents of a bundle for hosts."""

    daemon_threads = True

    def __init__(self, path: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        self.free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.entries = {entry.path: entry for entry in bundle.manifest.files}
        super().__init__(str(path), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread, or close it if there are too many."""
        # The kernel's limits: a timeout of Python's socket would make it non-blocking, and
        # os.sendfile would fail.
        limit = struct.pack("@ll", IDLE_SECONDS, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            request.setsockopt(socket.SOL_SOCKET, option, limit)
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection, then let the next one in, before the client sees the end."""
        try:
            super().finish_request(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the client ends early."""


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(with_content=False)

    def do_GET(self) -> None:
        """Answer with a manifest, a blob or a file of packages or data."""
        self._answer(with_content=True)

    def _answer(self, with_content: bool) -> None:
        match = REQUEST.fullmatch(self.path)
        path = blob_path(match[2]) if match else unquote(self.path).removeprefix("/")
        entry = self.server.entries.get(path)
        if entry is None or not (match or path.startswith(FOLDERS)):
            status = HTTPStatus.OK if self.path == "/v2/" else HTTPStatus.NOT_FOUND
            self._start(status, 2, "application/json")
            if with_content:
                self.wfile.write(b"{}")
            return
        kind, start = "application/octet-stream", 0
        extra = {"Docker-Content-Digest": match[2]} if match else {}
        try:
            source, position = self.server.bundle.find(entry)
            if match and match[1] == "manifests":
                kind = self._media_type(entry)
        except (BundleError, OSError):
            self._start(HTTPStatus.INTERNAL_SERVER_ERROR, 0, kind)
            return
        part = RANGE.fullmatch(self.headers.get("Range", ""))
        if part and not (match and match[1] == "manifests"):
            start = int(part[1])
        status = HTTPStatus.OK
        if start >= entry.size > 0:
            status, start = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, entry.size
            extra["Content-Range"] = f"bytes */{entry.size}"
        elif start:
            status = HTTPStatus.PARTIAL_CONTENT
            extra["Content-Range"] = f"bytes {start}-{entry.size - 1}/{entry.size}"
        self._start(status, entry.size - start, kind, **extra)
        if with_content:
            self._send(source, position, start, entry.size)

    def _media_type(self, entry: Any) -> str:
        """Return the media type that a manifest says."""
        content = self.server.bundle.read(entry)
        found = re.search(
            rb'"mediaType": ?"(application/vnd\.[a-z0-9.+-]*manifest[a-z0-9.+-]*)"', content
        )
        return found[1].decode() if found else MANIFESTS[1]

    def _start(self, status: HTTPStatus, size: int, kind: str, **extra: str) -> None:
        self.send_response(status)
        for name, value in {
            "Docker-Distribution-API-Version": "registry/2.0",
            "Content-Type": kind,
            "Content-Length": str(size),
            **extra,
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, source: Any, position: int, start: int, size: int) -> None:
        """Send a content from START; threads share the file, so its position is not used."""
        while start < size:
            sent = os.sendfile(
                self.connection.fileno(), source.fileno(), position + start, size - start
            )
            if not sent:
                self.close_connection = True
                return
            start += sent


@contextmanager
def serving(bundle: Bundle, path: Path) -> Iterator[None]:
    """Serve images and packages of a bundle on a socket that only this user can open."""
    path.unlink(missing_ok=True)
    former = os.umask(0o177)
    try:
        server = Server(path, bundle)
    finally:
        os.umask(former)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        with contextlib.suppress(OSError):
            path.unlink()
