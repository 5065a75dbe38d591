# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounds the build cache of the engine. Runs on hosts, as part of the builder: Python 3.10."""

from __future__ import annotations

import http.client
import json
import re
import socket

from ansible_collections.slipway.host.plugins.module_utils.state import containers

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(UNITS)})", re.ASCII)
# Removing many files takes a while.
TIMEOUT = 900


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``50GB``, 0 for an empty text; raise ValueError."""
    match = SIZE.fullmatch(text)
    if text and not match:
        raise ValueError(f"found {text!r}; expected a number with a unit: {', '.join(UNITS)}")
    return int(float(match[1]) * UNITS[match[2]]) if match else 0


class _Engine(http.client.HTTPConnection):
    """A connection to the engine over its socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(containers.DOCKER_SOCKET)


def shrink(size: int) -> int:
    """Remove the build cache beyond SIZE bytes, the oldest first; return the bytes removed.

    Raise OSError or ValueError if the engine cannot. Layers of images do not count.
    """
    connection = _Engine("docker")
    try:
        # Engines before 28 know the first name, later ones the second.
        connection.request("POST", f"/build/prune?keep-storage={size}&max-used-space={size}")
        answer = connection.getresponse()
        content = answer.read()
    except http.client.HTTPException as error:
        raise ValueError(f"no answer of Docker: {type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"Docker answered {answer.status}")
    return int(json.loads(content).get("SpaceReclaimed") or 0)
