# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports of the host that a project publishes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.services import ports
from ansible_collections.slipway.host.plugins.module_utils.services.project import Host, Project


@dataclass(frozen=True)
class PublishedPort:
    """A port of the image, the address and the port of the host that lead there."""

    name: str
    address: str
    port: int
    inside: int

    @property
    def binding(self) -> str:
        """Return the port as compose writes it."""
        return f"{self.address_and_port}:{self.inside}"

    @property
    def address_and_port(self) -> str:
        """Return address and port of the host, as services.ports compares them."""
        return f"{self.address}:{self.port}"


def published_ports(project: Project, host: Host) -> list[PublishedPort]:
    """Return the ports of a project by name; raise ServiceError for ports that cannot be."""
    known, declared = project.build.image["ports"], project.declared.get("ports") or {}
    for name in declared:
        if name not in known:
            raise project.unknown("port", name, known)
    address = _bind_address(project, host)
    numbers = {**project.service["publish"], **declared}
    for name, port in numbers.items():
        if not re.fullmatch(r"\d{1,5}", str(port)) or not 0 < int(port) < 65536:
            raise project.error(
                f"ports.{name}: {port!r}; expected a number from 1 to 65535. Change the port."
            )
    return [
        PublishedPort(name, address, int(numbers[name]), known[name]) for name in sorted(numbers)
    ]


def _bind_address(project: Project, host: Host) -> str:
    address = project.declared.get("bind_address") or host.bind_address
    try:
        # In brackets, as compose wants addresses with colons of their own.
        form = "[{}]" if ipaddress.ip_address(address.strip("[]")).version == 6 else "{}"
    except ValueError:
        raise project.error(
            f"bind_address: {address!r}; expected an address of the host, such as 127.0.0.1, or "
            "0.0.0.0. Change the address."
        ) from None
    return form.format(address.strip("[]"))


def service_urls(
    project: Project, published: Sequence[PublishedPort], host: Host
) -> dict[str, str]:
    """Return the address of each page of a service, by name of the port."""
    pages: Mapping[str, str] = project.service["urls"]
    return {
        port.name: f"http://{host.name if port.address in ports.ANY_ADDRESS else port.address}"
        f":{port.port}{pages[port.name]}"
        for port in published
        if port.name in pages
    }


def refuse_clashes(projects: Sequence[Project], host: Host) -> None:
    """Raise ServiceError for two projects with the same name or the same port of the host."""
    taken: list[tuple[Project, PublishedPort]] = []
    names: set[str] = set()
    for project in projects:
        if project.name in names:
            raise project.error("duplicate name; expected one service of each name. Rename one.")
        names.add(project.name)
        for port in published_ports(project, host):
            for other, other_port in taken:
                if ports.clash(port.address_and_port, other_port.address_and_port):
                    raise project.error(
                        f"port {port.port} of {port.address} is also published by service "
                        f"{other.name}; expected a free port. Choose another one: "
                        f"ports: {{{port.name}: {port.port + 1}}}"
                    )
            taken.append((project, port))
