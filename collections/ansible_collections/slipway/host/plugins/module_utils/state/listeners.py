# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that listen on TCP ports of the host, except the services of Slipway."""

from __future__ import annotations

import os
import sys

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]
    # Address, port, user ID, inode of the socket.
    Listener = tuple[str, str, int, str]

# Modules that the survey sends along.
NEEDS = (containers.__name__,)
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENING = "0A"
MAPPED = "::ffff:"


def ask_listeners(ports: list[str]) -> Json:
    """Return ``[address, program]`` of each program that listens on a port.

    Without containers of declared or recorded projects. Ask for ``projects`` first.
    """
    found: Json = {port: [] for port in ports}
    if found.keys() <= {port for _address, port in containers.PUBLISHED}:
        # All services run. To read the tables, the kernel walks over all connections.
        return found
    foreign = [
        listener
        for table in TABLES
        for listener in read_listeners(table, found)
        if listener[:2] not in containers.PUBLISHED
    ]
    # All processes and containers are read only where something is in the way.
    programs = _name_programs(foreign) if foreign else {}
    for address, port, _uid, inode in foreign:
        found[port].append([address, programs[inode]])
    return found


def read_listeners(table: str, ports: Json) -> Iterator[Listener]:
    """Yield who listens on PORTS, from one of the TABLES; a kernel may lack one."""
    try:
        # Not ASCII: Python would have to import its codec.
        with open(table, encoding="utf-8") as lines:
            next(lines, None)
            for line in lines:
                fields = line.split()
                # The kernel lists sockets that listen first; connections may be many.
                if fields[3] != LISTENING:
                    return
                address, _separator, number = fields[1].partition(":")
                port = str(int(number, 16))
                if port in ports:
                    yield _read_address(address), port, int(fields[7]), fields[9]
    except OSError:
        return


def _read_address(text: str) -> str:
    """Return an address of the kernel's table: words of 32 bits in the byte order of the host."""
    import _socket

    words = [bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = _socket.inet_ntop(_socket.AF_INET if len(words) == 1 else _socket.AF_INET6, packed)
    return address[len(MAPPED) :] if address.startswith(MAPPED) else address


def _name_programs(listeners: list[Listener]) -> dict[str, str]:
    """Return a container, a process or at least a user for each socket, by its inode."""
    names = {inode: f"a program of {reading.user_name(uid)}" for _a, _p, uid, inode in listeners}
    sockets = {f"socket:[{inode}]": inode for inode in names}
    for pid in filter(str.isdigit, reading.list_names("/proc") or ()):
        for descriptor in reading.list_names(f"/proc/{pid}/fd") or ():
            try:
                inode = sockets.get(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
                if inode is not None:
                    owner = reading.user_name(os.stat(f"/proc/{pid}").st_uid)
                    names[inode] = f"process {pid} ({_command(pid)}) of {owner}"
            except OSError:
                continue
    published = _ask_published()
    for address, port, _uid, inode in listeners:
        if (address, port) in published:
            names[inode] = f"container {published[address, port]}"
    return names


def _command(pid: str) -> str:
    return reading.read_word(f"/proc/{pid}/comm")


def _ask_published() -> dict[tuple[str, str], str]:
    """Return the name of the running container that publishes a port, by address and port."""
    try:
        running = containers.ask_engine("/containers/json")
    except (OSError, ValueError):
        return {}
    return {
        address_and_port: str(listed["Names"][0]).lstrip("/")
        for listed in running
        for address_and_port in containers.published_ports(listed)
    }


ASKS = {"listeners": lambda ports, _reply: ask_listeners(ports)}


# --- Nothing below is sent to hosts with the survey. ---
# It only answers questions of other kinds.
KINDS = ()
