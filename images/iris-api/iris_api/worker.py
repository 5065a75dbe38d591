# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker of gunicorn that serves the API: slow clients hold no thread, each error is JSON.

Each connection has a greenlet, which costs some kilobytes, and carries one request.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import gevent
from gunicorn.http import errors
from gunicorn.workers.ggevent import GeventWorker

REQUEST_SECONDS = 10.0
"""Seconds in which a client must send its request and receive the response."""

LINGER_SECONDS = 1.0
"""Seconds in which the rest of a refused request is read, so that its client gets the response."""

INVALID_HTTP = (
    (errors.LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (errors.LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (errors.ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (errors.UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (errors.ParseException, HTTPStatus.BAD_REQUEST),
)


class Worker(GeventWorker):
    """Serves one request for each connection, at most REQUEST_SECONDS long."""

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the connection of a client, then close it."""
        with gevent.Timeout(REQUEST_SECONDS):
            super().handle(listener, client, addr)

    def handle_error(self, _req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that did not reach the application, or that it did not finish."""
        status, message = describe_error(exc)
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log.exception("Error handling request")
        else:
            self.log.warning("Invalid request from %s: %s", addr[0], message)
        body = json.dumps({"error": {"field": "request", "message": message}}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\r\n"
        )
        with gevent.Timeout(LINGER_SECONDS, False):
            send_last(client, head.encode() + body)


def describe_error(error: BaseException) -> tuple[HTTPStatus, str]:
    """Return the status and the message for an error of the server itself."""
    if isinstance(error, gevent.Timeout):
        message = f"request is incomplete after {REQUEST_SECONDS:g} s; send it faster"
        return HTTPStatus.REQUEST_TIMEOUT, message
    for kind, status in INVALID_HTTP:
        if isinstance(error, kind):
            return status, f"request is not valid HTTP: {error}"
    return HTTPStatus.INTERNAL_SERVER_ERROR, "request failed in the server; see its log"


def send_last(client: Any, response: bytes) -> None:
    """Send a response, and read what the client still sends: an early close would lose it."""
    try:
        client.sendall(response)
        client.shutdown(gevent.socket.SHUT_WR)
        while client.recv(65536):
            # A client that sends without a pause would keep the worker from all others.
            gevent.sleep(0)
    except OSError:
        pass
