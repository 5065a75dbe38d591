# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the front door of a host: each service on its hosts, and each site as users open it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import create_connection
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.host.check import Check, run_check

# The certificate of Caddy's own CA.
ROOT = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
TIMEOUT = 20
Site = Mapping[str, Any]


def check_sites(declared: Sequence[Site], services: bool) -> Iterator[Check]:
    """Yield the check of each site; SERVICES: the services must answer, not only the door."""
    check = _check_service if services else _check_door
    for site in declared:
        yield run_check(f"front door {site['url']}", partial(check, site))


def _check_door(site: Site) -> str:
    """Connect to the door as users do; raise OSError if it has no valid certificate."""
    connection = _connect_to_door(site)
    connection.connect()
    connection.close()
    return "accepts connections" if site["url"].startswith("http:") else "has a valid certificate"


def _check_service(site: Site) -> str:
    """Ask the service on each host, then through the door; raise ValueError for an error."""
    down = []
    for upstream in site["upstreams"]:
        host, _colon, port = upstream.rpartition(":")
        if problem := _ask(HTTPConnection(host.strip("[]"), int(port), timeout=TIMEOUT), site):
            down.append(f"{upstream} {problem}")
    if problem := _ask(_connect_to_door(site), site):
        raise ValueError(f"{site['url']}{site['health_path']} {problem}; expected success")
    if down:
        raise ValueError(
            f"service {site['service']}: {', '.join(down)}; expected success on "
            f"{site['health_path']} from each host. Run ./slipway verify for these hosts"
        )
    number = len(site["upstreams"])
    return f"service {site['service']} answers through the front door and on each of {number} hosts"


class _DoorConnection(HTTPSConnection):
    """Connects to this host and checks the certificate by the address that users open."""

    def connect(self) -> None:
        """Connect to the door on this host."""
        context: ssl.SSLContext = self._context  # type: ignore[attr-defined]
        plain = create_connection(("127.0.0.1", self.port), self.timeout)
        self.sock = context.wrap_socket(plain, server_hostname=self.host)


def _connect_to_door(site: Site) -> HTTPConnection:
    port = int(site["port"])
    if site["url"].startswith("http:"):
        return HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    # A certificate of the administrator need not end at a CA that this host trusts.
    context = ssl.create_default_context(cafile=site["certificate"] or ROOT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python 3.13 refuses certificates that browsers accept.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return _DoorConnection(site["address"], port, timeout=TIMEOUT, context=context)


def _ask(connection: HTTPConnection, site: Site) -> str:
    """Return what is wrong with the answer to a request, empty for success."""
    address = site["address"]
    try:
        headers = {"Host": f"[{address}]" if ":" in address else address}
        connection.request("GET", site["health_path"], headers=headers)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"did not answer: {error}"
    finally:
        connection.close()
    return "" if status // 100 == 2 else f"answered {status}"
