# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of the catalogue's images: their owners and addresses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import labels, token
from .engine import Docker
from .errors import MlError
from .settings import suggest

TOKEN = "{token}"
ANY_ADDRESS = ("", "0.0.0.0", "::")


@dataclass(frozen=True)
class Container:
    """A running container.

    uid: of the user who started the container by an alias; None for other containers.
    project: name of the compose project of a service; empty for other containers.
    gpus: IDs, as of :class:`gpus.Gpu`.
    urls: addresses by name of the port.  ``{token}`` stands for the token of the user, or of the
    service; the service's is in the file ``token``, which only root can read.
    """

    name: str
    image: str
    alias: str
    user: str
    uid: int | None
    project: str
    gpus: tuple[str, ...]
    urls: Mapping[str, str]
    token: str
    started: str

    @property
    def mine(self) -> bool:
        """Whether the caller started it."""
        return self.uid == os.getuid()


def parse_container(inspected: Mapping[str, Any]) -> Container:
    """Return a container from docker's description of it."""
    found_labels = inspected["Config"].get("Labels") or {}
    uid = found_labels.get(labels.UID, "")
    project = found_labels.get(labels.COMPOSE_PROJECT, "")
    return Container(
        name=inspected["Name"].lstrip("/"),
        image=inspected["Config"]["Image"],
        alias=found_labels.get(labels.ALIAS, ""),
        user=found_labels.get(labels.USER, "") or ("service" if project else ""),
        uid=int(uid) if uid.isdigit() else None,
        project=project,
        gpus=tuple(filter(None, found_labels.get(labels.GPUS, "").split(","))),
        urls=_urls(found_labels, inspected["NetworkSettings"].get("Ports") or {}),
        token=found_labels.get(labels.TOKEN, ""),
        started=inspected["State"]["StartedAt"],
    )


def _urls(found_labels: Mapping[str, str], ports: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses in the container's label, else those that docker publishes."""
    try:
        noted = json.loads(found_labels.get(labels.URLS, ""))
        return {str(name): str(url) for name, url in noted.items()}
    except (ValueError, AttributeError):
        pass
    urls: dict[str, str] = {}
    for inside, bindings in sorted(ports.items()):
        for binding in bindings or ():
            # A port may be bound for IPv4 and for IPv6; one address is enough to find it.
            address = "*" if binding["HostIp"] in ANY_ADDRESS else binding["HostIp"]
            urls.setdefault(inside.partition("/")[0], f"{address}:{binding['HostPort']}")
    return urls


def list_running(docker: Docker) -> list[Container]:
    """Return the running containers of the catalogue's images, by name."""
    label = f"label={labels.IMAGE}"
    listed = docker.run("ps", "--quiet", "--no-trunc", "--filter", label)
    containers = map(parse_container, docker.inspect("container", listed.split()))
    return sorted(containers, key=lambda container: container.name)


def gpus_by_container(containers: Iterable[Container]) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each container, by its name."""
    return {container.name: container.gpus for container in containers if container.gpus}


def select_container(containers: Sequence[Container], name: str | None, doing: str) -> Container:
    """Return the caller's container with a NAME or of an alias; without NAME, the only one.

    DOING ends the error "you cannot ...".  Raise MlError for no container, for several, and for
    the container of another user.
    """
    mine = [container for container in containers if container.mine]
    if name is not None:
        exact = [
            container for container in containers if name in (container.name, container.project)
        ]
        if exact and not exact[0].mine and os.getuid() != 0:
            owner = exact[0].user or "another user"
            raise MlError(f"container {name} belongs to {owner}; you cannot {doing}")
        matching = exact or [container for container in mine if container.alias == name]
    else:
        matching = mine
    names = [container.name for container in matching or mine]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise MlError(f"you have {len(names)} running containers. Name one of: {', '.join(names)}")
    if name is None or not names:
        raise MlError("you have no running container")
    raise MlError(f"you have no running container {name}. {suggest(name, names)}")


def hide_token(url: str) -> str:
    """Return an address without its token."""
    return url.partition("?")[0] if TOKEN in url else url


def insert_token(url: str, file: str = "") -> str:
    """Return an address with the token in a FILE, or else with the caller's."""
    if TOKEN not in url:
        return url
    return url.replace(TOKEN, token.read_token(Path(file) if file else None))


def format_urls(container: Container) -> list[str]:
    """Return the addresses of a container, one a line.

    The token is in them for the caller's own containers, and for services if the caller is root.
    """
    if not container.urls:
        raise MlError(f"container {container.name} publishes no port, so it has no address")
    width = max(map(len, container.urls))
    opened = container.mine or (container.token and os.getuid() == 0)
    return [
        f"{name:{width}}  {insert_token(url, container.token) if opened else hide_token(url)}"
        for name, url in container.urls.items()
    ]
