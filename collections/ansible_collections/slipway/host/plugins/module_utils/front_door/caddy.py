# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of Caddy as a front door, and the drop-in of its service."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

CONFIG = "/etc/caddy/slipway.json"
# Only the user of Caddy can enter this folder.
RUN_FOLDER = "/run/caddy"
# Root alone writes here, so that no link of Caddy can wait for a copy.
KEYS_FOLDER = "/run/caddy-keys"
ADMIN = f"unix/{RUN_FOLDER}/admin.sock"
CERTIFICATE, KEY = "certificate", "key"
# A request waits so long for a healthy host: longer than the health check needs to find one.
TRY_SECONDS = 15
CHECK_SECONDS, DIAL_SECONDS = 2, 2
# Requests with less than 1 MB are read before they are sent. Otherwise, Caddy loses the body at the
# first host that refuses the connection, and no other host can get the request.
READ_FIRST = {
    "match": [{"header_regexp": {"Content-Length": {"pattern": "^[0-9]{1,6}$"}}}],
    "handle": [{"handler": "vars", "body": "{http.request.body}"}],
}
NO_SITE = "This address has no service.\n"


@dataclass(frozen=True)
class Site:
    """One service behind the door.

    address and port: what users open. upstreams: address and port of the service on its hosts.
    certificate, key: paths of files on the host; empty with Caddy's own CA. plain: without TLS.
    """

    service: str
    address: str
    port: int
    upstreams: Sequence[str]
    health: str
    sticky: bool = False
    certificate: str = ""
    key: str = ""
    plain: bool = False

    @property
    def name(self) -> str:
        """Return address and port, the name of the site."""
        return f"{in_brackets(self.address)}:{self.port}"

    @property
    def url(self) -> str:
        """Return what users open."""
        return site_url(self.address, self.port, self.plain)


def usual_port(plain: bool) -> int:
    """Return the port that a URL does not name."""
    return 80 if plain else 443


def site_url(address: str, port: int | str, plain: bool) -> str:
    """Return the URL of a site."""
    shown = "" if str(port) == str(usual_port(plain)) else f":{port}"
    return f"{'http' if plain else 'https'}://{in_brackets(address)}{shown}"


def in_brackets(address: str) -> str:
    """Return an address as URLs and Caddy write it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def config_text(sites: Sequence[Site]) -> str:
    """Return the configuration of Caddy as JSON; nothing in it is secret."""
    ports = sorted({site.port for site in sites})
    servers = {
        str(port): _server(port, [site for site in sites if site.port == port]) for port in ports
    }
    # Users of the host reach neither the socket nor anything else of the interface.
    admin = {"listen": ADMIN, "config": {"persist": False}}
    apps: dict[str, Any] = {"http": {"servers": servers}}
    if encrypted := [site for site in sites if not site.plain]:
        apps["tls"] = _tls(encrypted)
        # The CA of Caddy stays out of the certificates that the host trusts.
        apps["pki"] = {"certificate_authorities": {"local": {"install_trust": False}}}
    return json.dumps({"admin": admin, "apps": apps}, indent=1, sort_keys=True) + "\n"


def _server(port: int, sites: Sequence[Site]) -> dict[str, Any]:
    """Return the server of a port; an address that no site has is an error, not an empty page."""
    missing = {
        "handle": [{"handler": "static_response", "status_code": 404, "body": NO_SITE}],
    }
    server: dict[str, Any] = {
        "listen": [f":{port}"],
        # Without HTTP/3, which would listen on UDP.
        "protocols": ["h1", "h2"],
        # No redirects on port 80, and no certificates from the internet.
        "automatic_https": {"disable": True},
        "routes": [*map(_route, sites), missing],
    }
    if not sites[0].plain:
        # Clients send no name if they open an IP address.
        server["tls_connection_policies"] = [{"default_sni": sites[0].address}]
    return server


def _route(site: Site) -> dict[str, Any]:
    policy: dict[str, Any] = {"policy": "least_conn"}
    if site.sticky:
        policy = {"policy": "cookie", "name": f"slipway_{site.service}"}
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": upstream} for upstream in site.upstreams],
        "load_balancing": {
            "selection_policy": policy,
            "try_duration": f"{TRY_SECONDS}s",
            "try_interval": "250ms",
            # Other requests are tried again only while no host has got them: a host may have
            # done what a POST asks for.
            "retry_match": [
                {"method": ["GET", "HEAD"]},
                {"vars": {"{http.reverse_proxy.upstream.hostport}": ["", "<nil>"]}},
            ],
        },
        # Without passive checks, which count what clients break as failures of the host.
        "health_checks": {
            "active": {
                "uri": site.health,
                "interval": f"{CHECK_SECONDS}s",
                "timeout": f"{CHECK_SECONDS}s",
                "expect_status": 2,
            },
        },
        "transport": {"protocol": "http", "dial_timeout": f"{DIAL_SECONDS}s"},
    }
    # Caddy compares IPv6 addresses without brackets.
    handle = [{"handler": "subroute", "routes": [READ_FIRST]}, proxy]
    return {"match": [{"host": [site.address]}], "handle": handle, "terminal": True}


def _tls(sites: Sequence[Site]) -> dict[str, Any]:
    """Return certificates: files, or those that the CA of Caddy makes and renews."""
    own = sorted({site.address for site in sites if not site.certificate})
    tls: dict[str, Any] = {}
    if own:
        tls["certificates"] = {"automate": own}
        tls["automation"] = {"policies": [{"subjects": own, "issuers": [{"module": "internal"}]}]}
    files = [
        {CERTIFICATE: _copy(number, CERTIFICATE), KEY: _copy(number, KEY)}
        for number, _pair in enumerate(certificate_files(sites))
    ]
    if files:
        tls.setdefault("certificates", {})["load_files"] = files
    return tls


def certificate_files(sites: Iterable[Site]) -> list[tuple[str, str]]:
    """Return each pair of certificate and key once, in order."""
    return sorted({(site.certificate, site.key) for site in sites if site.certificate})


def _copy(number: int, part: str) -> str:
    """Return the path of a copy that lives as long as the service, readable by Caddy alone."""
    return f"{KEYS_FOLDER}/{number}.{part}"


def drop_in_text(sites: Sequence[Site]) -> str:
    """Return the drop-in of caddy.service.

    Keys of certificates stay where their owner put them, readable by root. Root copies them for
    the running service, also on a reload.
    """
    copies = [
        f"+/usr/bin/install -T -m 0440 -o root -g caddy {source} {_copy(number, part)}"
        for number, pair in enumerate(certificate_files(sites))
        for part, source in zip((CERTIFICATE, KEY), pair, strict=True)
    ]
    if copies:
        copies.insert(0, f"+/usr/bin/install -d -m 0750 -o root -g caddy {KEYS_FOLDER}")
    reload = f"/usr/bin/caddy reload --force --config {CONFIG} --address {ADMIN}"
    lines = [
        "# Written by Slipway's role ml_front_door; changes are overwritten.",
        "[Unit]",
        "# The package starts its service, which would serve a page of its own on port 80.",
        f"ConditionPathExists={CONFIG}",
        "",
        "[Service]",
        "RuntimeDirectory=caddy",
        "RuntimeDirectoryMode=0700",
        *(f"ExecStartPre={copy}" for copy in copies),
        "ExecStart=",
        f"ExecStart=/usr/bin/caddy run --config {CONFIG}",
        "ExecReload=",
        *(f"ExecReload={copy}" for copy in copies),
        f"ExecReload={reload}",
        f"ExecStopPost=+/usr/bin/rm -rf {KEYS_FOLDER}",
    ]
    return "\n".join(lines) + "\n"
