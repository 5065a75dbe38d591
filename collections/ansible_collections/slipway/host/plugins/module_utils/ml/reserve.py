# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names, ports and GPUs that two people must not take at the same moment.

Between the look whether a port is free and the moment when docker has it, somebody else may take
it.  So it is reserved by a socket's name in the kernel's abstract namespace: the kernel gives each
name once, it needs no file and no rights, and it is gone with the last process that holds it.  The
socket is handed on to the docker command, and so kept as long as the container is attached.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection

from .errors import MlError

PORTS_TRIED = 100
LOCALHOST = "127.0.0.1"

_held: list[socket.socket] = []


def take(what: str) -> bool:
    """Reserve WHAT on this host until this process and its successor end; False: it is taken."""
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
    """Whether something on this host already has a local TCP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that only just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except PermissionError:
            # Below 1024 only the engine may; whether it can is its business.
            return False
        except OSError:
            return True
    return False


def take_port(port: int) -> bool:
    """Reserve a local TCP port; False: somebody has it."""
    return not is_listening(port) and take(f"port/{port}")


def next_port(wanted: int, take_one: Callable[[int], bool] = take_port) -> int:
    """Reserve the first free port from WANTED on.  Raise MlError where there is none near."""
    last = min(wanted + PORTS_TRIED, 65536)
    for port in range(wanted, last):
        if take_one(port):
            return port
    raise MlError(f"none of the ports {wanted} to {last - 1} is free; ml list shows who has them")


def next_name(wanted: str, used: Collection[str], take_one: Callable[[str], bool]) -> str:
    """Reserve WANTED, or WANTED-2 and so on: the first container name that is not USED."""
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}-{number}"
        if name not in used and take_one(f"name/{name}"):
            return name
        number += 1
