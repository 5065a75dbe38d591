# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserves names, ports and GPUs, so that two people do not get the same one at the same time.

Somebody may use a free port before docker binds it.  So a port is reserved by the name of a socket
in the kernel's abstract namespace: the kernel gives each name only once, without files and rights,
and frees the name when the last process that holds the socket ends.  The docker command inherits
the socket, and holds it as long as the container is attached.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from collections.abc import Callable, Collection

from .errors import MlError, reason

PORTS_TRIED = 100
LOCALHOST = "127.0.0.1"
# The kernel's limit for the name of a socket is 107 bytes.
LONGEST_NAME = 90

_held: list[socket.socket] = []


def reserve(name: str) -> bool:
    """Reserve a name until this process and its successor end; False if the name is reserved.

    Raise MlError if the kernel cannot reserve it.
    """
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) > LONGEST_NAME:
        encoded = hashlib.sha256(encoded).hexdigest().encode()
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(b"\0slipway/" + encoded)
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            return False
        raise MlError(f"cannot reserve {name}: {reason(error)}") from error
    holder.set_inheritable(True)
    _held.append(holder)
    return True


def release_copies() -> None:
    """Close the reservations in a forked process; the first process keeps them."""
    while _held:
        _held.pop().close()


def is_listening(port: int) -> bool:
    """Return whether a program on this host listens on a local TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that have just closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except PermissionError:
            # Only root can bind ports below 1024; the engine runs as root.
            return False
        except OSError:
            return True
    return False


def reserve_port(port: int) -> bool:
    """Reserve a local TCP port; False if the port is in use."""
    return not is_listening(port) and reserve(f"port/{port}")


def reserve_next_port(first: int, reserve_one: Callable[[int], bool] = reserve_port) -> int:
    """Reserve the first free port from FIRST on.  Raise MlError if PORTS_TRIED are in use."""
    last = min(first + PORTS_TRIED, 65536)
    for port in range(first, last):
        if reserve_one(port):
            return port
    raise MlError(f"no free port from {first} to {last - 1}. To see who uses them, run: ml list")


def reserve_next_name(first: str, used: Collection[str], reserve_one: Callable[[str], bool]) -> str:
    """Reserve the first container name of FIRST, FIRST-2, FIRST-3 and so on that is not USED."""
    number = 1
    while True:
        name = first if number == 1 else f"{first}-{number}"
        if name not in used and reserve_one(f"name/{name}"):
            return name
        number += 1
