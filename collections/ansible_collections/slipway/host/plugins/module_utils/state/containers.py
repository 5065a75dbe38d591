# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images, and the containers of compose projects.

Keys of an entry (``?``: optional):

images: reference, digest: the context digest. The tag must refer to the content that the host's
record names: the record of a build, of a loaded archive or of an accepted image.

projects: name, services: list of {name, config, image?, reference?}: containers by their label
``io.slipway.config`` and their context digest; since?: files that the containers have read, so the
containers must be newer; urls?: addresses by name, for people.
"""

from __future__ import annotations

import json

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# Labels other than these may hold anything at all; they are neither needed nor sent.
LABELS = ("io.slipway.", "com.docker.compose.service", "com.docker.compose.oneoff")
DOCKER_SOCKET = "/run/docker.sock"
# A file for each image; only root can write it.
IMAGE_RECORDS = "/var/lib/slipway/images"


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
    head, _, body = b"".join(chunks).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if status != b"200":
        raise ValueError(f"Docker answered {status.decode('ascii', 'replace')}")
    return json.loads(body.decode("utf-8"))


def _own_labels(labels: Json | None) -> Json:
    """Return the labels that the survey compares."""
    return {key: value for key, value in (labels or {}).items() if key.startswith(LABELS)}


def image_record_path(reference: str, suffix: str = ".json") -> str:
    """Return the path of a file about an image: its record, or another one by SUFFIX."""
    return f"{IMAGE_RECORDS}/{reference.replace('/', '-').replace(':', '-')}{suffix}"


def read_image_record(reference: str) -> Json:
    """Return the record of an image on this host, empty if there is none.

    reference; digest: context digest; id: content ID; origin: built, loaded or accepted; time:
    seconds since 1970. Records of old versions have only the digest.
    """
    try:
        record = json.loads(reading.read_file(image_record_path(reference)) or b"{}")
        known = {key: str(record[key]) for key in ("digest", "id", "origin") if key in record}
        if record.get("reference", reference) != reference:
            return {}
        return {**known, "time": int(record.get("time", 0))}
    except (AttributeError, TypeError, ValueError):
        return {}


def ask_images(references: list[str]) -> Json:
    """Return ``[content ID, record]`` of each image reference.

    The ID that the engine reports is a digest of the content: of the image's configuration in the
    classic store, of its manifest in the store of containerd. Both include the layers.
    """
    found: Json = dict.fromkeys(references)
    for image in ask_engine("/images/json"):
        for tag in image.get("RepoTags") or []:
            if tag in found:
                found[tag] = [image["Id"], read_image_record(tag)]
    return found


def ask_projects(names: list[str]) -> Json:
    """Return ``[[service, state, health, {labels}, created]]`` of each compose project."""
    found: Json = {name: [] for name in names}
    # Labels are ANDed by the engine, so all compose containers are asked for at once; quoted by
    # hand, since urllib costs more than the question.
    filters = "%7B%22label%22%3A%5B%22com.docker.compose.project%22%5D%7D"
    for container in ask_engine("/containers/json?all=1&filters=" + filters):
        labels = container.get("Labels") or {}
        project = labels.get("com.docker.compose.project")
        if project not in found:
            continue
        status = container.get("Status", "")
        health = next(
            (word for word in ("unhealthy", "health: starting", "healthy") if word in status), ""
        )
        found[project].append(
            [
                labels.get("com.docker.compose.service", ""),
                container.get("State", ""),
                health.replace("health: ", ""),
                _own_labels(labels),
                container.get("Created", 0),
            ]
        )
    return found


def _try(ask: Callable[[list[str]], Json], names: list[str], reply: Json) -> Json | None:
    """Return the answer of Docker; if it does not answer, say why in ``engine``."""
    try:
        return ask(names)
    except (OSError, ValueError) as error:
        reply["engine"] = str(error)
        return None


ASKS = {
    "images": lambda names, reply: _try(ask_images, names, reply),
    "projects": lambda names, reply: _try(ask_projects, names, reply),
}


# --- Nothing below is sent to hosts with the survey. ---
import time

from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind

ONE_OFF = "com.docker.compose.oneoff"


def short_id(identity: str) -> str:
    """Return the part of a content ID or digest that people read."""
    return identity.rpartition(":")[2][:12]


def compare_images(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of an image."""
    found = (answer.get("images") or {}).get(entry["reference"])
    if found is None:
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


def compare_projects(  # noqa: C901 - a table of cases, one branch for each
    entry: Entry, answer: Answer
) -> Iterator[Change]:
    """Yield the differences of the containers of a compose project."""
    if answer["engine"]:
        yield "Docker does not answer", "running"
        return
    containers = answer["projects"][entry["name"]]
    wanted = {service["name"]: service for service in entry["services"]}
    for service, state, health, labels, created in containers:
        # What somebody did once by `docker compose run` is no service, and compose leaves it.
        if labels.get(ONE_OFF) == "True":
            continue
        if service not in wanted:
            yield f"{service} is there", "removed"
            continue
        declared = wanted.pop(service)
        if state != "running":
            yield f"{service} is {state}", "running"
        elif health == "unhealthy":
            yield f"{service} is unhealthy", "healthy"
        elif labels.get(docker_labels.CONFIG) != declared["config"]:
            yield f"{service} runs an older configuration", "the declared one"
        elif declared.get("image") and labels.get(docker_labels.DIGEST) != declared["image"]:
            yield f"{service} runs an older image", declared["image"][:12]
        # The engine counts whole seconds.
        elif any(int(answer["mtimes"][path] or 0) > created for path in entry.get("since", ())):
            yield f"{service} was made before a secret changed", "made after it"
    for service in wanted:
        yield f"{service} is {MISSING}", "running"


def without_image(statements: Sequence[Mapping[str, Sequence[Entry]]], answer: Answer) -> list[str]:
    """Return a sentence for each project to start whose image nobody builds and the host lacks.

    On a host that builds none they are loaded, and that takes the engine first.
    """
    built = {image["reference"] for owned in statements for image in owned.get("images", ())}
    if answer["engine"] and not built:
        return []
    return [
        f"ml_services_instances: service {project['name']} needs image {reference}, which is "
        "missing or outdated on this host. Add it to ml_images_present, load it, or remove the "
        "service"
        for owned in statements
        for project in owned.get("projects", ())
        for service in project["services"]
        if (reference := service.get("reference"))
        and reference not in built
        and any(compare_projects(project, answer))
        and any(compare_images({"reference": reference, "digest": service["image"]}, answer))
    ]


def _images_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "images", [one["reference"] for one in entry["services"] if one.get("reference")]


KINDS = (
    Kind("images", "reference", "images", compare_images),
    Kind("projects", "name", "projects", compare_projects, _images_of),
)
