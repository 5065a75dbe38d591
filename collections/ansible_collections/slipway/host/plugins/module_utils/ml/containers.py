# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers of the catalogue's images: their owners, addresses and ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import api, labels, token
from .engine import CDI_KIND, MISSING, Docker, parse_ids
from .errors import MlError, suggest

if TYPE_CHECKING:
    from datetime import datetime

TOKEN = "{token}"
# Before the token in the address of an API: clients of APIs get the key apart from the address.
KEY = "#key="
# As state.containers.SERVICE_RECORDS.
SERVICE_RECORDS = Path("/var/lib/slipway/services")
# The name of addresses at the front door of a service.
DOOR = "front door"
ANY_ADDRESS = ("", "0.0.0.0", "::")
# Ended detached containers keep their logs until the user removes them, within these limits.
KEEP_ENDED = 20
KEEP_DAYS = 14


class Container(NamedTuple):
    """A container, running or ended.

    uid: of the user who started the container by an alias; None for other containers.
    project: name of the compose project of a service; empty for other containers.
    gpus: IDs, as of :class:`gpus.Gpu`.
    urls: addresses by name of the port.  ``{token}`` stands for the token of the user, or of the
    service; the service's is in the file ``token``, which only root can read.
    id: of the engine, in full.
    job: number of its Slurm job; empty outside of Slurm.
    started, ended: time stamps of docker; ``ended`` is empty while the container runs.
    status: the exit status, None while the container runs.
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
    ended: str = ""
    status: int | None = None
    id: str = ""
    job: str = ""

    @property
    def mine(self) -> bool:
        """Whether the caller started the container."""
        return self.uid == os.getuid()

    @property
    def is_recorded(self) -> bool:
        """Whether Slipway started the container as a service; only root can read the record.

        A user who starts a container chooses its labels, also the file that ``token`` names.
        """
        if not self.project or "/" in self.project:
            return False
        try:
            record = json.loads((SERVICE_RECORDS / f"{self.project}.json").read_text("utf-8"))
            return self.id in record["containers"]
        except (OSError, ValueError, TypeError, KeyError):
            return False


def parse_container(inspected: Mapping[str, Any]) -> Container:
    """Return a container from docker's description of it."""
    container_labels = inspected["Config"].get("Labels") or {}
    uid = container_labels.get(labels.UID, "")
    project = container_labels.get(labels.COMPOSE_PROJECT, "")
    state = inspected["State"]
    never_ran = state.get("Status") == "created" and state.get("ExitCode")
    ended = never_ran or state.get("Status") in ("exited", "dead")
    return Container(
        name=str(inspected["Name"]).lstrip("/"),
        image=str(inspected["Config"]["Image"]),
        alias=container_labels.get(labels.ALIAS, ""),
        user=container_labels.get(labels.USER, "") or ("service" if project else ""),
        uid=int(uid) if uid.isdecimal() else None,
        project=project,
        gpus=tuple(filter(None, container_labels.get(labels.GPUS, "").split(",")))
        or tuple(_requested_gpus(inspected.get("HostConfig") or {})),
        urls=_urls(container_labels, inspected["NetworkSettings"].get("Ports") or {}),
        token=container_labels.get(labels.TOKEN, ""),
        started=str(state["StartedAt"]),
        ended=str(inspected["Created"] if never_ran else state["FinishedAt"]) if ended else "",
        status=int(state["ExitCode"]) if ended else None,
        id=str(inspected.get("Id", "")),
        job=container_labels.get(labels.JOB, ""),
    )


def _requested_gpus(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the GPUs that somebody gave to a container with docker run."""
    for request in settings.get("DeviceRequests") or ():
        for device in request.get("DeviceIDs") or ():
            kind, _equals, gpu = str(device).rpartition("=")
            if kind in ("", CDI_KIND):
                yield gpu


def _urls(container_labels: Mapping[str, str], ports: Mapping[str, Any]) -> dict[str, str]:
    """Return the addresses in the container's label, else those that docker publishes."""
    try:
        labelled = json.loads(container_labels.get(labels.URLS, ""))
        return {str(name): str(url) for name, url in labelled.items()}
    except (ValueError, AttributeError):
        pass
    urls: dict[str, str] = {}
    for container_port, bindings in sorted(ports.items()):
        for binding in bindings or ():
            # A port may be bound for IPv4 and for IPv6; one address is enough to find it.
            address = "*" if binding["HostIp"] in ANY_ADDRESS else binding["HostIp"]
            urls.setdefault(container_port.partition("/")[0], f"{address}:{binding['HostPort']}")
    return urls


def list_running(docker: Docker) -> list[Container]:
    """Return the running containers of the catalogue's images, by name."""
    return _list(docker, {"label": [labels.IMAGE]})


def list_all_running(docker: Docker) -> list[Container]:
    """Return the running containers of all images, by name."""
    return _list(docker, {"status": ["running"]})


def list_ended(docker: Docker) -> list[Container]:
    """Return the ended containers that aliases started, the last one first.

    A detached container whose program does not exist stays as "created", with an exit code.
    """
    filters = {"label": [labels.IMAGE, labels.UID], "status": ["exited", "dead", "created"]}
    containers = [container for container in _list(docker, filters) if container.ended]
    return sorted(containers, key=lambda container: container.ended, reverse=True)


def _list(docker: Docker, filters: Mapping[str, Sequence[str]]) -> list[Container]:
    path = f"/containers/json?filters={api.escape(json.dumps(filters))}"
    (ids,) = docker.get(parse_ids, path)
    answers = docker.send(*(api.Request(f"/containers/{api.escape(name)}/json") for name in ids))
    # A container may be removed between the two requests.
    present = [answer for answer in answers if answer.status != MISSING]
    containers = [docker.parse(answer, parse_container) for answer in present]
    return sorted(containers, key=lambda container: container.name)


def gpus_by_container(containers: Iterable[Container]) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each container, by its name."""
    return {container.name: container.gpus for container in containers if container.gpus}


def gpu_users_in_cluster(containers: Iterable[Container]) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each container of a host of a Slurm cluster, by a phrase about it."""

    def describe(container: Container) -> str:
        if container.job:
            return f"{container.name} (job {container.job})"
        kind = "service" if container.project else "outside of Slurm"
        return f"{container.name} ({kind})"

    return {describe(container): container.gpus for container in containers if container.gpus}


def select_container(
    running: Sequence[Container],
    name: str | None,
    action: str,
    ended: Sequence[Container] | None = None,
) -> Container:
    """Return the caller's container with a NAME or of an alias; without NAME, the only one.

    Running containers precede ENDED ones of the same alias.  ACTION ends the error "you cannot
    ...".  Raise MlError for no container, for several, and for the container of another user.
    """
    selected = _matching(running, name, action) or _matching(ended or (), name, action)
    if len(selected) == 1:
        return selected[0]
    kind = "running containers" if ended is None else "containers"
    if selected:
        names = ", ".join(container.name for container in selected)
        raise MlError(f"you have {len(selected)} {kind}. Name one of: {names}")
    names_of_caller = [container.name for container in (*running, *(ended or ())) if container.mine]
    if name is None or not names_of_caller:
        raise MlError(f"you have no {kind.removesuffix('s')}")
    raise MlError(f"you have no {kind.removesuffix('s')} {name}. {suggest(name, names_of_caller)}")


def _matching(containers: Sequence[Container], name: str | None, action: str) -> list[Container]:
    """Return the caller's containers with a NAME or of an alias; without NAME, all of them."""
    mine = [container for container in containers if container.mine]
    if name is None:
        return mine
    exact = [container for container in containers if name in (container.name, container.project)]
    if exact and not exact[0].mine and os.getuid() != 0:
        owner = exact[0].user or "another user"
        raise MlError(f"container {name} belongs to {owner}; you cannot {action}")
    return exact or [container for container in mine if container.alias == name]


def expired(ended: Sequence[Container], now: datetime) -> list[Container]:
    """Return the caller's ENDED containers beyond the limits of number and age."""
    from datetime import timedelta

    mine = [container for container in ended if container.mine]
    oldest = now - timedelta(days=KEEP_DAYS)
    return [
        container
        for position, container in enumerate(mine)
        if position >= KEEP_ENDED or (parse_time(container.ended) or now) < oldest
    ]


def remove_containers(docker: Docker, containers: Iterable[Container]) -> None:
    """Remove ended containers with their logs."""
    docker.send(*(api.Request(f"/containers/{one.name}?v=1", "DELETE") for one in containers))


def parse_time(stamp: str) -> datetime | None:
    """Return the time in a time stamp of docker, None for a stamp without a time."""
    from datetime import datetime

    # Docker writes nanoseconds, which Python 3.10 does not read.
    match = re.match(r"([0-9]{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", stamp, re.ASCII)
    if not match or stamp.startswith("0001"):
        return None
    offset = re.search(r"[+-]\d\d:\d\d\Z", stamp, re.ASCII)
    try:
        return datetime.fromisoformat(match[1] + (offset[0] if offset else "+00:00"))
    except ValueError:
        return None


def hide_token(url: str) -> str:
    """Return an address without its token."""
    return re.split("[?#]", url)[0] if TOKEN in url else url


def show_url(url: str) -> str:
    """Return an address with its token as a person needs it: the key of an API apart."""
    return url.replace(KEY, "  key ")


def insert_token(url: str, service_file: str = "") -> str:
    """Return an address with the token of a service from its file, or else with the caller's."""
    if TOKEN not in url:
        return url
    return url.replace(TOKEN, token.read_token(Path(service_file) if service_file else None))


def find_token_file(container: Container) -> str | None:
    """Return the file of the token for a container, None if the caller must not know the token.

    It is empty for the caller's own containers, which have the caller's token. Root may know the
    tokens of recorded services.
    """
    if container.token and os.getuid() == 0 and container.is_recorded:
        return container.token
    return "" if container.mine else None


def format_urls(container: Container, door_urls: Iterable[str] = ()) -> list[str]:
    """Return the addresses of a container, one a line, with the token if the caller may know it.

    DOOR_URLS are those at the front door.
    """
    urls = [*((DOOR, url) for url in door_urls), *container.urls.items()]
    if not urls:
        raise MlError(f"container {container.name} publishes no port, so it has no address")
    width = max(len(name) for name, _url in urls)
    file = find_token_file(container)
    return [
        f"{name:{width}}  {hide_token(url) if file is None else show_url(insert_token(url, file))}"
        for name, url in urls
    ]
