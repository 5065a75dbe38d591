# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows a container's windows on the caller's display: X11, also over ssh -X, or Wayland."""

from __future__ import annotations

import os
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import MlError
from .launch import Mounted, mount_option

X11_FOLDER = Path("/tmp/.X11-unix")
X11_PORT = 6000
COOKIE = b"MIT-MAGIC-COOKIE-1"
# Of the families of an Xauthority file, the one that fits any address.
ANY_FAMILY = 0xFFFF
INSIDE = PurePosixPath("/run/slipway")
CHUNK = 1 << 16
# How long the end of a relay may take.
POLL_SECONDS = 0.05

X11_COST = (
    "warning: X11 does not isolate programs. A program in this container can read every key that "
    "you press, and see every window of this display"
)
WAYLAND_COST = (
    "warning: a program in this container can open windows on your display, and read the clipboard "
    "while one of them has the focus"
)


@dataclass(frozen=True)
class X11:
    """The display that DISPLAY names; without a host it is a socket on this one."""

    host: str
    number: int


def parse_display(value: str) -> X11:
    """Return the display of a DISPLAY variable.  Raise MlError where it names none."""
    match = re.match(r"(?P<host>[^:/]*):(?P<number>\d+)(\.\d+)?\Z", value)
    if not match:
        raise MlError(f"DISPLAY is {value!r}; expected a display such as :0 or localhost:10.0")
    host = "" if match["host"] == "unix" else match["host"]
    return X11(host, int(match["number"]))


def select_cookie(authority: bytes, number: int, host: str = "") -> bytes:
    """Return an Xauthority file with the cookie of a display, for any address; empty for none.

    A home that several hosts share may have cookies of displays of the same number on each: those
    of the HOST that is named go first.
    The form is that of libXau: entries of a family and four texts with their lengths before them,
    address, number, name and data, all numbers in two bytes, the higher first.
    """
    entry, certain, position = b"", False, 0
    while position + 2 <= len(authority):
        position += 2
        texts = []
        for _ in range(4):
            (length,) = struct.unpack_from(">H", authority, position)
            texts.append(authority[position + 2 : position + 2 + length])
            position += 2 + length
        address, display, name, data = texts
        here = address == host.encode()
        if name == COOKIE and display in (b"", str(number).encode()) and here >= certain:
            certain = here
            fields = (b"", str(number).encode(), name, data)
            entry = struct.pack(">H", ANY_FAMILY) + b"".join(
                struct.pack(">H", len(text)) + text for text in fields
            )
    return entry


@contextmanager
def forward_display(
    environment: Mapping[str, str], folder: Path
) -> Iterator[tuple[list[str], str]]:
    """Yield the options of docker run that show windows, and the security warning for the user.

    FOLDER is private to the caller and exists as long as the container runs.  Raise MlError where
    ENVIRONMENT names no display.
    """
    wayland, x = environment.get("WAYLAND_DISPLAY"), environment.get("DISPLAY")
    if not wayland and not x:
        raise MlError(
            "no display for windows: neither WAYLAND_DISPLAY nor DISPLAY is set. Over ssh, connect "
            "with: ssh -X"
        )
    options = []
    if wayland:
        options += _wayland_options(Path(environment.get("XDG_RUNTIME_DIR", "/"), wayland))
    if not x:
        yield options, WAYLAND_COST
        return
    display = parse_display(x)
    options += _x11_options(display, environment, folder)
    with _x11_socket(display, folder) as server_socket:
        target = PurePosixPath(X11_FOLDER / f"X{display.number}")
        yield [*options, mount_option(Mounted(server_socket, target))], X11_COST


@contextmanager
def _x11_socket(display: X11, folder: Path) -> Iterator[Path]:
    """Yield the socket of a display; for a display over TCP, the socket of a relay."""
    if display.host:
        with _relay(display, folder / f"X{display.number}") as relayed:
            yield relayed
        return
    server_socket = X11_FOLDER / f"X{display.number}"
    if not server_socket.is_socket():
        raise MlError(f"no X11 server at {server_socket}, the socket that DISPLAY names")
    yield server_socket


def _wayland_options(server_socket: Path) -> list[str]:
    if not server_socket.is_socket():
        raise MlError(
            f"no Wayland server at {server_socket}, the socket that WAYLAND_DISPLAY names"
        )
    target = INSIDE / "wayland"
    return [mount_option(Mounted(server_socket, target)), f"--env=WAYLAND_DISPLAY={target}"]


def _x11_options(display: X11, environment: Mapping[str, str], folder: Path) -> list[str]:
    """Return the variables and the mount of the cookie; a server may work without a cookie."""
    # Shared memory does not reach from the container to the server.
    options = [f"--env=DISPLAY=:{display.number}", "--env=QT_X11_NO_MITSHM=1"]
    source = Path(environment.get("XAUTHORITY") or Path("~/.Xauthority").expanduser())
    try:
        authority = select_cookie(source.read_bytes(), display.number, socket.gethostname())
    except FileNotFoundError:
        authority = b""
    except (OSError, struct.error) as error:
        raise MlError(f"cannot read {source}: {error}") from error
    if authority:
        file = folder / "xauthority"
        file.touch(mode=0o600)
        file.write_bytes(authority)
        target = INSIDE / "xauthority"
        options += [mount_option(Mounted(file, target, read_only=True))]
        options += [f"--env=XAUTHORITY={target}"]
    return options


class _Connection(socketserver.BaseRequestHandler):
    """One connection to a display, copied in both directions."""

    def handle(self) -> None:
        """Copy until both ends have closed."""
        server = self.server
        assert isinstance(server, _Relay)
        with socket.create_connection(server.target) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
            back.join()


class _Relay(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A socket in the file system that forwards to a display over TCP."""

    daemon_threads = True

    def __init__(self, path: Path, target: tuple[str, int]) -> None:
        self.target = target
        super().__init__(str(path), _Connection)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(CHUNK):
            # A program that closes its window must not end this process by SIGPIPE, see main.
            target.sendall(chunk, socket.MSG_NOSIGNAL)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # The other end has closed; its reader notices that by itself.
        return


@contextmanager
def _relay(display: X11, path: Path) -> Iterator[Path]:
    """Yield a socket that forwards to a display over TCP, which containers cannot reach."""
    with _Relay(path, (display.host, X11_PORT + display.number)) as relay:
        path.chmod(0o600)
        threading.Thread(target=relay.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        try:
            yield path
        finally:
            relay.shutdown()


def private_folder() -> str:
    """Return the parent for the folder of one start: in memory, if the session has one."""
    return os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
