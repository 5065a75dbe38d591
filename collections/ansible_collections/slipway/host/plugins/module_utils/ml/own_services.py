# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The services that run as the caller. The caller needs no permission to use Docker for them.

The role ml_services writes a file for each service with a user. Only root can write it, so its
addresses and the path of its token are not those of somebody's container.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from . import containers, start
from .errors import MlError, reason

# As FOLDER, ADDRESS_FILE and DOOR_FILE of services.project.
FOLDER = Path("/etc/slipway/services")
FILE = "address.json"
DOOR_FILE = "front_door.json"
LOOPBACK = ("127.0.0.1", "::1")
TIMEOUT = 2.0


class Service(NamedTuple):
    """A service of the caller.

    urls: addresses by name of the port; ``{token}`` stands for the content of ``token_file``.
    """

    name: str
    urls: Mapping[str, str]
    token_file: str


def find() -> list[Service]:
    """Return the services of the caller, by name."""
    services = []
    for file in sorted(FOLDER.glob(f"*/{FILE}")):
        try:
            declared = json.loads(file.read_text(encoding="utf-8"))
            if declared["uid"] == os.getuid():
                services.append(
                    Service(file.parent.name, dict(declared["urls"]), declared["token_file"])
                )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return services


def find_door_urls(service: str) -> list[str]:
    """Return the addresses of a service at the front door; ``{token}`` stands for its token."""
    try:
        urls = json.loads((FOLDER / service / DOOR_FILE).read_text(encoding="utf-8"))
        return [str(url) for url in urls]
    except (OSError, ValueError, TypeError):
        return []


def show(services: Iterable[Service], contact: str) -> int:
    """Print the addresses of services with their tokens; return the exit status.

    CONTACT helps with a service that does not answer. Raise MlError if a token cannot be read.
    """
    status = 0
    for service in services:
        at_door = [(containers.DOOR, url) for url in find_door_urls(service.name)]
        for port, url in (*at_door, *service.urls.items()):
            shown = containers.show_url(containers.insert_token(url, service.token_file))
            print(f"{service.name} {port}  {shown}")
            # This host need not know the name of the front door.
            if port != containers.DOOR and not answers(url):
                status = 1
                problem = f"service {service.name} does not answer at {containers.hide_token(url)}"
                help_text = f"ask {contact}" if contact else "ask your administrator"
                start.print_messages("ml", [f"{problem}; {help_text}"])
        local = {port: url for port, url in service.urls.items() if _host(url) in LOOPBACK}
        if local and "SSH_CONNECTION" in os.environ:
            sys.stdout.flush()
            tunnel = start.tunnel_command(local)
            start.print_messages("ml", [f"to open it on your own machine, run there: {tunnel}"])
    return status


def answers(url: str) -> bool:
    """Return whether a program accepts connections at an address."""
    try:
        parts = urlsplit(url)
        socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError as error:
        raise MlError(f"invalid address {url}: {reason(error)}") from error
