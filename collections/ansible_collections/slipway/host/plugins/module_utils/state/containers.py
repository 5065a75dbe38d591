# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images; and how the engine is asked about images and containers.

images: reference, digest: the context digest. The tag must refer to the content that the host's
record names: the record of a build, of a loaded archive or of an accepted image.

Records of what Slipway started are in SERVICE_RECORDS: ``containers`` are the IDs of its containers
for a project, ``starting`` is true while containers are replaced.
"""

from __future__ import annotations

import json

from ansible_collections.slipway.host.plugins.module_utils.state import (
    container_description,
    reading,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# Is sent to hosts with this file.
NEEDS = (container_description.__name__,)
DOCKER_SOCKET = "/run/docker.sock"
# A file for each image; only root can write it.
IMAGE_RECORDS = "/var/lib/slipway/images"
# A file for each compose project; only root can write it.
SERVICE_RECORDS = "/var/lib/slipway/services"
# What Python says of a socket without an answer.
TIMED_OUT = "timed out"
COMPOSE_PROJECT = "com.docker.compose.project"
ONE_OFF = "com.docker.compose.oneoff"
CGROUPS = "/sys/fs/cgroup"
# Variables of each container that was described last, by project; they may be secret.
ENVIRONMENTS: dict[str, dict[str, dict[str, str]]] = {}
# Address and port of each TCP port that containers of Slipway's services publish.
PUBLISHED: set[tuple[str, str]] = set()


def ask_engine(path: str) -> Any:
    """GET from the engine over its socket; raise OSError or ValueError when it cannot."""
    # The C module below socket, whose own imports cost more than the question.
    import _socket

    # HTTP/1.0 closes after the answer, which spares an HTTP client.
    request = f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n"
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(20)
        connection.connect(DOCKER_SOCKET)
        connection.sendall(request.encode("ascii"))
        chunks = []
        while True:
            chunk = connection.recv(1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    finally:
        connection.close()
    head, _separator, body = b"".join(chunks).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise ValueError(f"Docker answered {status.decode('ascii', 'replace')}")
    return json.loads(body.decode("utf-8"))


def image_record_path(reference: str, suffix: str = ".json") -> str:
    """Return the path of a file about an image: its record, or another one by SUFFIX."""
    return f"{IMAGE_RECORDS}/{reference.replace('/', '-').replace(':', '-')}{suffix}"


def read_image_record(reference: str) -> Json:
    """Return the record of an image on this host, empty if there is none.

    reference; digest: context digest; id: content ID; origin: built, loaded, accepted or delivered;
    time: seconds since 1970; layers: compressed bytes by the beginning of the digest, of an image
    that was pushed or pulled here. Records of old versions have only the digest.
    """
    try:
        record = json.loads(reading.read_record(image_record_path(reference)) or b"{}")
        keys = [key for key in ("digest", "id", "origin") if key in record]
        known: Json = {key: str(record[key]) for key in keys}
        if record.get("reference", reference) != reference:
            return {}
        if isinstance(record.get("layers"), dict):
            sizes = record["layers"].items()
            known["layers"] = {layer.rpartition(":")[2][:12]: int(size) for layer, size in sizes}
        return {**known, "time": int(record.get("time", 0))}
    except (AttributeError, TypeError, ValueError):
        return {}


def ask_images(references: list[str]) -> Json:
    """Return ``[content ID, record]`` of each image reference.

    The ID that the engine reports is a digest of the content: of the image's configuration in the
    classic store, of its manifest in the store of containerd. Both include the layers. The engine
    also reports the size, ``bytes``.
    """
    records = {reference: read_image_record(reference) for reference in references}
    # Without a tag the record still names the content that containers run.
    found: Json = {
        tag: ["", record] if record.get("id") else None for tag, record in records.items()
    }
    for image in ask_engine("/images/json"):
        for tag in image.get("RepoTags") or []:
            if tag in found:
                found[tag] = [image["Id"], {**records[tag], "bytes": image.get("Size", 0)}]
    return found


def service_record_path(project: str) -> str:
    """Return the path of the record of a compose project."""
    return f"{SERVICE_RECORDS}/{project}.json"


def read_service_record(project: str) -> Json | None:
    """Return ``{containers, starting}`` of a compose project, None if there is no record."""
    content = reading.read_record(service_record_path(project))
    if content is None:
        return None
    try:
        record = json.loads(content)
        containers = [str(identity) for identity in record["containers"]]
        return {"containers": containers, "starting": bool(record.get("starting"))}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {"containers": [], "starting": False}


def ask_projects(names: list[str]) -> Json:
    """Return ``{containers, record, limits}`` of each compose project.

    containers: see :func:`container_description.describe`; record: see
    :func:`read_service_record`; limits: resources that this kernel can limit.
    """
    ENVIRONMENTS.clear()
    PUBLISHED.clear()
    limits = [name for name in ("cpu", "memory", "pids") if _has_limit(name)]
    found: Json = {
        name: {"containers": [], "record": read_service_record(name), "limits": limits}
        for name in names
    }
    images: Json = {}
    # Labels are ANDed by the engine, so all compose containers are asked for at once; quoted by
    # hand, since urllib costs more than the question.
    filters = "%7B%22label%22%3A%5B%22com.docker.compose.project%22%5D%7D"
    for listed in ask_engine("/containers/json?all=1&filters=" + filters):
        labels = listed.get("Labels") or {}
        project = labels.get(COMPOSE_PROJECT)
        published = published_ports(listed)
        if published and (project in found or _is_recorded(str(project), listed["Id"])):
            PUBLISHED.update(published)
        # A container of `docker compose run` is no service, and compose leaves it.
        if project not in found or labels.get(ONE_OFF) == "True":
            continue
        inspected = _ask_object(f"/containers/{listed['Id']}/json")
        if inspected is not None:
            identity = inspected["Image"]
            if identity not in images:
                images[identity] = (_ask_object(f"/images/{identity}/json") or {}).get("Config")
            described = container_description.describe(listed, inspected, images[identity] or {})
            found[project]["containers"].append(described)
            variables = dict(container_description.variables(inspected["Config"]))
            ENVIRONMENTS.setdefault(project, {})[inspected["Id"]] = variables
    return found


def _is_recorded(project: str, identity: str) -> bool:
    """Return whether Slipway started a container of a project that is not asked for."""
    if "/" in project:
        return False
    record = read_service_record(project)
    return record is not None and identity in record["containers"]


def published_ports(listed: Json) -> set[tuple[str, str]]:
    """Return address and port of each TCP port that a running container publishes."""
    return {
        (port.get("IP", ""), str(port["PublicPort"]))
        for port in listed.get("Ports") or ()
        if port.get("PublicPort") and port.get("Type") == "tcp"
    }


def ask_environments(declared: list[str]) -> Json:
    """Return the IDs of the containers whose variables have the declared values, by project.

    Each of DECLARED is a JSON list: project, names of variables, digest of names and values. The
    answer has no value and no digest: output of the host may be logged. Ask for ``projects`` first.
    """
    found: Json = {}
    for text in declared:
        project, names, digest = json.loads(text)
        found[project] = [
            identity
            for identity, variables in ENVIRONMENTS.get(project, {}).items()
            if digest == container_description.digest_of([[n, variables.get(n)] for n in names])
        ]
    return found


def _has_limit(resource: str) -> bool:
    """Whether the kernel can limit a resource; if not, the engine drops the limit."""
    unified = reading.read_word(f"{CGROUPS}/cgroup.controllers")
    return resource in unified.split() or resource in (reading.list_names(CGROUPS) or ())


def _ask_object(path: str) -> Json | None:
    """Return what the engine knows of one object, None if it has gone."""
    try:
        found: Json = ask_engine(path)
    except ValueError as error:
        if "404" in str(error):
            return None
        raise
    return found


def try_engine(ask: Callable[..., Json], reply: Json, *names: list[str]) -> Json | None:
    """Return the answer of Docker; if it does not answer, say why in ``engine``.

    An engine that let one question wait until its timeout is not asked again.
    """
    if reply["engine"] == TIMED_OUT:
        return None
    try:
        return ask(*names)
    except (OSError, ValueError) as error:
        reply["engine"] = str(error)
        return None


ASKS = {
    "images": lambda names, reply: try_engine(ask_images, reply, names),
    "projects": lambda names, reply: try_engine(ask_projects, reply, names),
    "environments": lambda names, _reply: ask_environments(names),
}


# --- Nothing below is sent to hosts with the survey. ---
import time

from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind


def short_id(identity: str) -> str:
    """Return the part of a content ID or digest that people read."""
    return identity.rpartition(":")[2][:12]


def compare_images(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of an image."""
    found = (answer.get("images") or {}).get(entry["reference"])
    if found is None or not found[0]:
        yield ("Docker does not answer" if answer["engine"] else MISSING), "built"
        return
    identity, record = found
    if not record.get("id"):
        yield (
            f"content {short_id(identity)} is not recorded on this host",
            "an image that was built or loaded, and tested, on this host",
        )
    elif record["id"] != identity:
        date = time.strftime("%Y-%m-%d", time.gmtime(record["time"]))
        yield (
            f"other content than the image {record['origin']} here on {date}: {short_id(identity)}",
            short_id(record["id"]),
        )
    elif record["digest"] != entry["digest"]:
        yield f"context digest {short_id(record['digest'])}", short_id(entry["digest"])


def needs_of_engine(_entry: Entry, answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield the settings that an engine which does not answer cannot be started without."""
    if answer["engine"]:
        yield "json", docker_labels.DAEMON_JSON


def _record_of(entry: Entry) -> list[str]:
    return [image_record_path(entry["reference"])]


KINDS = (
    Kind(
        *("images", "reference", "images", compare_images),
        guarded=_record_of,
        needs=needs_of_engine,
    ),
)
