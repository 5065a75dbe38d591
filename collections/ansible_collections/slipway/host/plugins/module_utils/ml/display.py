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
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from .caller import expand_home
from .errors import MlError, reason
from .mounts import Mounted, mount_option

X11_FOLDER = Path("/tmp/.X11-unix")
X11_PORT = 6000
COOKIE = b"MIT-MAGIC-COOKIE-1"
# The family of entries of an Xauthority file that are valid for any address.
ANY_FAMILY = 0xFFFF
INSIDE = PurePosixPath("/run/slipway")
CHUNK = 1 << 16
# The longest time that the end of a relay takes.
POLL_SECONDS = 0.05

X11_WARNING = (
    "warning: X11 does not isolate programs. A program in this container can read every key that "
    "you press, and see every window of this display"
)
WAYLAND_WARNING = (
    "warning: a program in this container can open windows on your display, and read the clipboard "
    "while one of them has the focus"
)


class X11(NamedTuple):
    """The display that DISPLAY names; without a host it is a socket of this machine."""

    host: str
    number: int


def parse_display(value: str) -> X11:
    """Return the display of a DISPLAY variable.  Raise MlError for any other value."""
    match = re.match(r"(?P<host>[^:/]*):(?P<number>\d{1,4})(\.\d+)?\Z", value, re.ASCII)
    if not match:
        raise MlError(f"DISPLAY is {value!r}; expected a display such as :0 or localhost:10.0")
    host = "" if match["host"] == "unix" else match["host"]
    return X11(host, int(match["number"]))


def select_cookie(authority: bytes, number: int, host: str = "") -> bytes:
    """Return an Xauthority file with the cookie of a display, for any address; empty for none.

    A home that several hosts share may have cookies of displays with the same number. The cookie
    of the named HOST is preferred. The format is libXau's: each entry has a family and four texts
    (address, number, name, data), each text after its length; numbers are two bytes, big-endian.
    """
    entry, has_host_entry, position = b"", False, 0
    while position + 2 <= len(authority):
        position += 2
        texts = []
        for _number in range(4):
            (length,) = struct.unpack_from(">H", authority, position)
            texts.append(authority[position + 2 : position + 2 + length])
            position += 2 + length
        address, display, name, data = texts
        is_host_entry = address == host.encode()
        if (
            name == COOKIE
            and display in (b"", str(number).encode())
            and is_host_entry >= has_host_entry
        ):
            has_host_entry = is_host_entry
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

    FOLDER is private to the caller and exists as long as the container runs.  Raise MlError if
    ENVIRONMENT names no display.
    """
    wayland, x11 = environment.get("WAYLAND_DISPLAY"), environment.get("DISPLAY")
    if not wayland and not x11:
        raise MlError(
            "no display for windows: neither WAYLAND_DISPLAY nor DISPLAY is set. Over ssh, connect "
            "with: ssh -X"
        )
    options = []
    if wayland:
        options += _wayland_options(Path(environment.get("XDG_RUNTIME_DIR", "/"), wayland))
    if not x11:
        yield options, WAYLAND_WARNING
        return
    display = parse_display(x11)
    options += _x11_options(display, environment, folder)
    with _x11_socket(display, folder) as server_socket:
        target = PurePosixPath(X11_FOLDER / f"X{display.number}")
        yield [*options, mount_option(Mounted(server_socket, target))], X11_WARNING


@contextmanager
def _x11_socket(display: X11, folder: Path) -> Iterator[Path]:
    """Yield the socket of a display; for a display over TCP, the socket of a relay."""
    if display.host:
        with _relay(display, folder / f"X{display.number}") as relay_socket:
            yield relay_socket
        return
    server_socket = X11_FOLDER / f"X{display.number}"
    if not _is_socket(server_socket):
        raise MlError(f"no X11 server at {server_socket}, the socket that DISPLAY names")
    yield server_socket


def _is_socket(path: Path) -> bool:
    """Return whether a path is a socket; False for a path that the caller may not open."""
    try:
        return path.is_socket()
    except OSError:
        return False


def _wayland_options(server_socket: Path) -> list[str]:
    if not _is_socket(server_socket):
        raise MlError(
            f"no Wayland server at {server_socket}, the socket that WAYLAND_DISPLAY names"
        )
    target = INSIDE / "wayland"
    return [mount_option(Mounted(server_socket, target)), f"--env=WAYLAND_DISPLAY={target}"]


def _x11_options(display: X11, environment: Mapping[str, str], folder: Path) -> list[str]:
    """Return the variables and the mount of the cookie; a server may work without a cookie."""
    # Shared memory does not reach from the container to the server.
    options = [f"--env=DISPLAY=:{display.number}", "--env=QT_X11_NO_MITSHM=1"]
    source = Path(environment.get("XAUTHORITY") or expand_home("~/.Xauthority"))
    try:
        # A pipe or device might never end; /dev/null means no cookie.
        content = source.read_bytes() if source.is_file() else b""
        authority = select_cookie(content, display.number, socket.gethostname())
    except (OSError, ValueError, struct.error) as error:
        raise MlError(f"cannot read {source}: {reason(error, source)}") from error
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
        """Copy until both ends are closed."""
        server = cast("_Relay", self.server)
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
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # The other end is closed; its reader notices that itself.
        return


@contextmanager
def _relay(display: X11, path: Path) -> Iterator[Path]:
    """Yield a socket that forwards to a display over TCP, which containers cannot reach.

    Raise MlError if the socket cannot be created.
    """
    try:
        server = _Relay(path, (display.host, X11_PORT + display.number))
    except OSError as error:
        raise MlError(f"cannot create socket {path}: {reason(error, path)}") from error
    with server as relay:
        path.chmod(0o600)
        threading.Thread(target=relay.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        try:
            yield path
        finally:
            relay.shutdown()


def private_folder() -> str:
    """Return the parent for the folder of one start, in memory if the session has such a folder."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return folder if folder.startswith("/") else "/tmp"
