# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reserves names, ports and GPUs, so that two people do not take the same one at the same time.

Somebody may take a free port before docker has it.  So a port is reserved by the name of a socket
in the kernel's abstract namespace: the kernel gives each name only once, without files and rights,
and frees it with the last process that holds it.  The docker command inherits the socket, and holds
it as long as the container is attached.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from .errors import MlError

PORTS_TRIED = 100
LOCALHOST = "127.0.0.1"

_held: list[socket.socket] = []


def take(what: str) -> bool:
    """Reserve WHAT on this host until this process and its successor end; False if it is taken."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0slipway/{what}")
    except OSError:
        holder.close()
        return False
    holder.set_inheritable(True)
    _held.append(holder)
    return True


def is_listening(port: int) -> bool:
    """Whether a program on this host listens on a local TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that have just closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except PermissionError:
            # Ports below 1024 need root, as which the engine runs.
            return False
        except OSError:
            return True
    return False


def take_port(port: int) -> bool:
    """Reserve a local TCP port; False if it is in use."""
    return not is_listening(port) and take(f"port/{port}")


def next_port(wanted: int, take_one: Callable[[int], bool] = take_port) -> int:
    """Reserve the first free port from WANTED on.  Raise MlError if PORTS_TRIED are in use."""
    last = min(wanted + PORTS_TRIED, 65536)
    for port in range(wanted, last):
        if take_one(port):
            return port
    raise MlError(f"no free port from {wanted} to {last - 1}. To see who uses them, run: ml list")


def next_name(wanted: str, used: Collection[str], take_one: Callable[[str], bool]) -> str:
    """Reserve WANTED, or WANTED-2 and so on: the first container name that is not USED."""
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}-{number}"
        if name not in used and take_one(f"name/{name}"):
            return name
        number += 1
