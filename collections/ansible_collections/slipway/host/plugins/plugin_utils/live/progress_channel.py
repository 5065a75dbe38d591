# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of running tasks, from their processes to the callback slipway.host.live.

The callback opens a socket and puts its path into the environment. Each process that it starts,
such as a worker of Ansible, can send to the socket. A message is JSON with the keys of Message.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

VARIABLE = "SLIPWAY_PROGRESS_SOCKET"
# Bytes; a longer message is not read completely.
MAX_MESSAGE = 65536
MAX_TEXT = 2000


@dataclass(frozen=True)
class Message:
    """Progress of a host.

    ``kind``: ``now`` replaces the last text, ``line`` is an event that a log keeps, ``job`` names
    the work that goes on if the controller stops.
    """

    host: str
    kind: str
    text: str


def is_open() -> bool:
    """Return whether a callback shows progress."""
    return VARIABLE in os.environ


def send(message: Message) -> bool:
    """Send a message to the callback; return whether the callback shows it."""
    path = os.environ.get(VARIABLE)
    if not path:
        return False
    content = asdict(message) | {"text": message.text[:MAX_TEXT]}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1)
            sender.sendto(json.dumps(content).encode(), path)
    except OSError:
        # The callback ended before its processes.
        return False
    return True


def parse(content: bytes) -> Message | None:
    """Return a message, None if something else was sent."""
    try:
        values = json.loads(content)
        return Message(*(str(values[field.name]) for field in fields(Message)))
    except (ValueError, KeyError, TypeError):
        return None


class Channel:
    """The receiving end; only its user can send to it."""

    def __init__(self) -> None:
        # The path of a socket has at most 107 bytes, so it is not below the checkout.
        self._folder = tempfile.TemporaryDirectory(prefix="slipway-", ignore_cleanup_errors=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = str(Path(self._folder.name) / "progress")
        self.socket.bind(path)
        self.socket.setblocking(False)
        os.environ[VARIABLE] = path

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived."""
        while True:
            try:
                content = self.socket.recv(MAX_MESSAGE)
            except OSError:
                return
            message = parse(content)
            if message is not None:
                yield message

    def close(self) -> None:
        """Remove the socket; later messages are not sent."""
        os.environ.pop(VARIABLE, None)
        self.socket.close()
        self._folder.cleanup()
