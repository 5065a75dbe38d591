# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_front_door: Caddy in front of services on several hosts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.front_door import caddy
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue, ml_services
from ansible_collections.slipway.host.plugins.module_utils.services import ports
from ansible_collections.slipway.host.plugins.module_utils.services.project import (
    Host,
    Project,
    ServiceError,
)
from ansible_collections.slipway.host.plugins.module_utils.services.published import (
    PublishedPort,
    published_ports,
)
from ansible_collections.slipway.host.plugins.module_utils.state import facts as state_facts

# The plan gets the options of this role on all hosts: see role_plans.
OPTIONS_OF_HOSTS = ml_services.ROLE
# Options of each host that the plan reads beside those.
OWN_ADDRESS = "ml_front_door_address"
PACKAGE, UNIT = "caddy", "caddy.service"
DROP_IN = state_facts.DOOR_DROP_IN
# Releases without the package.
OLD_RELEASES = ("jammy",)
# What the package leaves when it is purged.
LEFT = ("/etc/caddy", "/var/lib/caddy", "/var/log/caddy")
LAST_PORT = 65535
_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
# systemd replaces other characters of a path, or splits it.
_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_HEALTH = re.compile(r"/[!-~]*")


class FrontDoorError(ValueError):
    """The declaration of a front door cannot be applied."""


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role, and whether to ``remove`` the front door.

    FACTS is ``ansible_facts['slipway']`` with ``inventory_name``, ``hosts``, ``address`` and
    ``options_of_hosts``. Raise FrontDoorError for a declaration that cannot be applied.
    """
    door, name = options["ml_front_door_host"], facts["inventory_name"]
    if options["ml_front_door_state"] == "absent" or name != door:
        _check_door(door, facts)
        managed = facts.get("front_door") == "managed"
        return {"owned": {"refused": [], **(_removal() if managed else {})}, "remove": managed}
    if refused := _refused(facts):
        return {"owned": {"refused": refused}, "remove": False}
    if facts.get("front_door") == "foreign":
        return {"owned": {"refused": [], "obstacles": [_foreign()]}, "remove": False}
    if not options["ml_front_door_sites"]:
        raise FrontDoorError(
            "ml_front_door_sites: found an empty list; expected the services behind the front "
            "door. Add a site, or remove ml_front_door_host"
        )
    sites = [_site(entry, facts) for entry in options["ml_front_door_sites"]]
    _check_sites(sites)
    _check_own_ports(sites, facts)
    return {"owned": {"refused": [], **_owned(sites)}, "remove": False}


def _check_door(door: str, facts: Mapping[str, Any]) -> None:
    if door and facts["hosts"] and door not in facts["hosts"]:
        raise FrontDoorError(
            f"ml_front_door_host: {door} is not in the inventory; expected the name of one of its "
            "hosts. Correct the name"
        )


def _refused(facts: Mapping[str, Any]) -> list[str]:
    refused = []
    if facts.get("distribution_release") in OLD_RELEASES:
        system = f"{facts['distribution']} {facts['distribution_version']}"
        refused.append(
            f"ml_front_door_host: {system} has no package {PACKAGE}; expected Ubuntu 24.04, Debian "
            "12, or newer. Choose another host"
        )
    if not facts["systemd"]:
        refused.append("the host does not run systemd, which the front door needs")
    return refused


def _foreign() -> dict[str, Any]:
    path = state_facts.CADDYFILE
    return {
        "path": path,
        "holds": r"\A",
        "why": f"{path}: found the configuration of a Caddy that Slipway did not install; expected "
        "none. Remove that Caddy from the host, or choose another host in ml_front_door_host",
    }


def _removal() -> dict[str, Any]:
    files = (caddy.CONFIG, DROP_IN, *LEFT)
    return {
        "packages": [{"name": PACKAGE, "state": "absent"}],
        "files": [{"path": path, "state": "absent"} for path in files],
    }


def _site(entry: Mapping[str, Any], facts: Mapping[str, Any]) -> caddy.Site:
    """Return a site with the services of its hosts; raise FrontDoorError for a mistake."""
    service = entry["service"]
    found = _services(entry, facts)
    upstreams, healths, sticky = [], set(), False
    for host, project in found.items():
        upstreams.append(_upstream(entry, host, project, facts))
        declared = project.service
        healths.add(entry.get("health_path") or declared.get("health_path") or "")
        sticky = sticky or declared["sticky"]
    if len(set(upstreams)) < len(upstreams):
        raise _error(
            service,
            f"its hosts have the addresses {', '.join(upstreams)}; expected another address for "
            "each host. Set ml_front_door_address of these hosts",
        )
    health = min(healths)
    if len(healths) > 1 or not _HEALTH.fullmatch(health):
        raise _error(
            service,
            f"health_path is {', '.join(sorted(map(repr, healths)))}; expected one path that "
            "answers with success while the service works. Set health_path",
        )
    plain = entry.get("plain_http", False)
    return caddy.Site(
        service=service,
        address=entry.get("address") or facts["address"],
        port=entry.get("port") or caddy.usual_port(plain),
        upstreams=upstreams,
        health=health,
        sticky=entry.get("sticky", sticky),
        certificate=entry.get("certificate", ""),
        key=entry.get("key", ""),
        plain=plain,
    )


def _error(service: str, text: str) -> FrontDoorError:
    return FrontDoorError(f"ml_front_door_sites: service {service}: {text}")


def _services(entry: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Project]:
    """Return the service on each of its hosts."""
    service, hosts = entry["service"], entry.get("hosts")
    found = {}
    for host in hosts or facts["hosts"]:
        options = facts["options_of_hosts"].get(host)
        if options is not None and (project := _project(service, host, options, facts)):
            found[host] = project
        elif hosts:
            raise _error(
                service,
                f"host {host} has no such service; expected it in ml_services_instances of each "
                "host. Add the service there, or remove the host from hosts",
            )
    if not found:
        raise _error(
            service,
            "no host has such a service; expected it in ml_services_instances of a host. Correct "
            "the name, or add the service",
        )
    return found


def _project(
    service: str, host: str, options: Mapping[str, Any], facts: Mapping[str, Any]
) -> Project | None:
    """Return a declared service of a host, None if the host does not have it."""
    # Both variants have the same services. FACTS are those of the door, which may have no GPU.
    options = {**options, "ml_catalogue_variant": "gpu"}
    for declared in ml_services.declared_services(options):
        if declared.get("name") == service:
            build = ml_catalogue.choose_build(facts, options)
            try:
                return Project(declared, build.images([declared.get("image") or service])[-1])
            except ValueError as error:
                raise _error(service, f"host {host}: {error}") from None
    return None


def _upstream(
    entry: Mapping[str, Any], host: str, project: Project, facts: Mapping[str, Any]
) -> str:
    """Return address and port by which the door reaches a service."""
    service = entry["service"]
    options = facts["options_of_hosts"].get(host)
    try:
        published = published_ports(project, Host(host, options["ml_services_bind_address"]))
        port = _choose_port(entry, project, published)
    except ServiceError as error:
        raise _error(service, f"host {host}: {error}".rstrip(".")) from None
    bound, is_door = port.address.strip("[]"), host == facts["inventory_name"]
    if port.address in ports.ANY_ADDRESS:
        address = "127.0.0.1" if is_door else options[OWN_ADDRESS]
    else:
        address = bound
    if not is_door and _is_loopback(address):
        raise _error(
            service,
            f"host {host} has address {address} for it; expected an address that the front door "
            f"reaches. Set bind_address of the service on {host}, or ml_front_door_address",
        )
    if not caddy.is_address(address) and not _NAME.fullmatch(address):
        raise _error(
            service,
            f"host {host}: address {address!r}; expected an IP address or a name. Set "
            "ml_front_door_address",
        )
    return f"{caddy.in_brackets(address)}:{port.port}"


def _choose_port(
    entry: Mapping[str, Any], project: Project, published: Sequence[PublishedPort]
) -> PublishedPort:
    """Return the named port of a service, by default that of its endpoint, or the only one."""
    name = entry.get("service_port") or (project.service.get("endpoint") or {}).get("port")
    for port in published:
        if name == port.name or (not name and len(published) == 1):
            return port
    raise project.unknown("port", name or "", [port.name for port in published])


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _check_sites(sites: Iterable[caddy.Site]) -> None:
    """Raise FrontDoorError for sites that Caddy cannot serve, alone or together."""
    names: set[str] = set()
    plain: dict[int, bool] = {}
    for site in sites:
        _check_site(site)
        if site.name.lower() in names:
            raise _error(
                site.service,
                f"another site has address {site.name} too; expected one service for each. Set "
                "another address or port",
            )
        names.add(site.name.lower())
        if plain.setdefault(site.port, site.plain) != site.plain:
            raise _error(
                site.service,
                f"port {site.port} has sites with and without plain_http; expected one kind. Set "
                "another port",
            )


def _check_site(site: caddy.Site) -> None:
    if not caddy.is_address(site.address) and not _NAME.fullmatch(site.address):
        raise _error(
            site.service,
            f"address is {site.address!r}; expected a host name or an IP address. Change it",
        )
    if not 0 < site.port <= LAST_PORT:
        raise _error(
            site.service, f"port is {site.port}; expected 1 to {LAST_PORT}. Change the port"
        )
    files = [site.certificate, site.key]
    if any(files) and (site.plain or not all(files)):
        raise _error(
            site.service,
            "found only a part of certificate and key, or plain_http beside them; expected both "
            "files, or none. Correct the keys",
        )
    for path in filter(None, files):
        if not _PATH.fullmatch(path) or {".", ".."} & {*path.split("/")}:
            raise _error(
                site.service,
                f"found path {path!r}; expected an absolute path of letters, digits and ._-/. "
                "Move the file",
            )


def _check_own_ports(sites: Iterable[caddy.Site], facts: Mapping[str, Any]) -> None:
    """Raise FrontDoorError if a service of this host publishes the port of a site."""
    options = facts["options_of_hosts"].get(facts["inventory_name"])
    for declared in ml_services.declared_services(options):
        name = declared.get("name", "")
        project = _project(name, facts["inventory_name"], options, facts)
        if project is None:
            continue
        used = {port.port for port in published_ports(project, Host())}
        for site in sites:
            if site.port in used:
                raise _error(
                    site.service,
                    f"port {site.port} is that of service {name} on this host; expected a free "
                    "port. Set another port of the site or of the service",
                )


def _owned(sites: Sequence[caddy.Site]) -> dict[str, Any]:
    """Return what the door owns; nothing is changed while something is in the way."""
    door_ports = [
        _port(port, [site for site in sites if site.port == port])
        for port in sorted({site.port for site in sites})
    ]
    needs = {"needs": [["door_ports", entry["port"]] for entry in door_ports]}
    files = sorted({path for entry in door_ports for path in entry["files"]})
    drop_in, config = caddy.drop_in_text(sites), caddy.config_text(sites)
    unit = {"name": UNIT, "enabled": True, "active": True, "unit_files": [DROP_IN]}
    return {
        "door_ports": door_ports,
        # The drop-in comes first: with it, the package does not start with its own page.
        "files": [
            {"path": DROP_IN, "content": drop_in, **needs},
            {"path": caddy.CONFIG, "content": config, **needs},
        ],
        "packages": [{"name": PACKAGE, **needs}],
        "units": [{**unit, "reads": [caddy.CONFIG, *files], **needs}],
    }


def _port(port: int, sites: Sequence[caddy.Site]) -> dict[str, Any]:
    """Return a port with its sites, for the acceptance checks too."""
    pairs = caddy.certificate_files(sites)
    return {
        "port": str(port),
        "files": sorted({path for pair in pairs for path in pair}),
        "sites": [
            {
                "service": site.service,
                "address": site.address,
                "port": site.port,
                "url": site.url,
                "certificate": site.certificate,
                "upstreams": list(site.upstreams),
                "health_path": site.health,
            }
            for site in sites
        ],
    }
