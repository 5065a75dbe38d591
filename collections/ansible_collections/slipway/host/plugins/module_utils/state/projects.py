# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects and their containers.

Keys of an entry (``?``: optional):

projects: name, services: list of {name, config, image?, reference?, container?}. ``image`` is the
context digest of the image with the tag ``reference``. ``container`` is what the engine must report
of the container, see :mod:`services.expected`. since?: files that the containers have read, so the
containers must be newer; urls?: addresses by name, for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.services import expected, ports
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    Conflict,
    ConflictError,
    Entry,
    Kind,
)

ASKS = containers.ASKS


def compare_projects(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of the containers of a compose project."""
    if answer["engine"]:
        yield "Docker does not answer", "running"
        return
    foreign = foreign_containers(entry, answer)
    if foreign:
        raise ConflictError(_describe_foreign(entry["name"], foreign))
    for address in _addresses_of(entry):
        if not answer["addresses"][address]:
            raise ConflictError(
                f"service {entry['name']}: bind_address {address} is not an address of this host; "
                "expected one of its addresses, or 0.0.0.0 for all of them. Change bind_address, "
                "or ml_services_bind_address"
            )
    for conflict in _find_taken_ports(entry, answer):
        raise conflict
    wanted = {service["name"]: service for service in entry["services"]}
    for found in answer["projects"][entry["name"]]["containers"]:
        declared = wanted.pop(found["service"], None)
        if declared is None:
            yield f"{found['service']} is there", "removed"
        else:
            yield from _compare_container(entry, declared, found, answer)
    for service in wanted:
        yield f"{service} is {MISSING}", "running"


def _compare_container(
    entry: Entry, declared: Entry, found: Mapping[str, Any], answer: Answer
) -> Iterator[Change]:
    """Yield the first reason why a container must be replaced, or all settings that differ."""
    name = declared["name"]
    if found["state"] != "running":
        yield f"{name} is {found['state']}", "running"
        return
    if found["health"] == "unhealthy":
        yield f"{name} is unhealthy", "healthy"
        return
    changes = list(expected.compare_container(entry["name"], declared, found, answer))
    if found["labels"].get(docker_labels.CONFIG) != declared["config"]:
        changes.insert(0, (f"{name} runs an older configuration", "the declared one"))
    yield from changes
    # The engine counts whole seconds.
    since = entry.get("since", ())
    if not changes and any(int(answer["ctimes"][path] or 0) > found["created"] for path in since):
        yield f"{name} was made before a secret changed", "made after it"


def _addresses_of(entry: Entry) -> list[str]:
    """Return the addresses of the host that a project binds ports to."""
    return sorted({_address_of(port)[0] for port in _ports_of(entry)})


def _find_taken_ports(entry: Entry, answer: Answer) -> Iterator[ConflictError]:
    """Yield a conflict for each port to publish that a program of others listens on."""
    found = answer["projects"][entry["name"]]["containers"]
    published = {port for one in found if one["state"] == "running" for port in one["ports"]}
    for port in _ports_of(entry):
        if port in published:
            continue
        address, number = _address_of(port)
        for other, program in answer["listeners"][number] or ():
            if ports.clash(f"{address}:{number}", f"{other}:{number}"):
                yield ConflictError(
                    f"service {entry['name']}: found {program} on port {number} of {other}; "
                    "expected a free port. Stop the program, or choose another port with the key "
                    "ports in ml_services_instances"
                )


def _ports_of(entry: Entry) -> Iterator[str]:
    """Yield the ports that a project publishes, such as ``127.0.0.1:8888:8888/tcp``."""
    for service in entry["services"]:
        yield from service.get("container", {}).get("ports", ())


def _address_of(published: str) -> tuple[str, str]:
    """Return address and port of the host of a published port."""
    address, _separator, number = published.rpartition(":")[0].rpartition(":")
    return address, number


def _describe_foreign(name: str, foreign: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{found['name']} ({containers.short_id(found['id'])})" for found in foreign]
    commands = " ".join(containers.short_id(found["id"]) for found in foreign)
    return (
        f"service {name}: container {', '.join(names)} has its labels but was not started by "
        "Slipway; expected no such container. Stop using it, then run: docker rm --force "
        f"{commands}"
    )


def foreign_containers(entry: Entry, answer: Answer) -> list[Mapping[str, Any]]:
    """Return the containers with the labels of a project that Slipway did not start.

    A container is Slipway's if the record has its ID. Without a complete record it also counts as
    Slipway's if it has no right that Slipway never gives. A container that is exactly as declared
    may be anybody's, but only one.
    """
    project = answer["projects"][entry["name"]]
    record = project["record"]
    known = record["containers"] if record else []
    open_record = record is None or record["starting"]
    services = {service["name"]: service for service in entry["services"]}
    served = {found["service"] for found in project["containers"] if found["id"] in known}
    foreign = []
    for found in project["containers"]:
        declared = services.get(found["service"])
        if found["id"] in known or (open_record and expected.has_ordinary_rights(found)):
            continue
        if declared and found["service"] not in served:
            same_config = found["labels"].get(docker_labels.CONFIG) == declared["config"]
            compared = expected.compare_container(entry["name"], declared, found, answer)
            if same_config and not any(compared):
                served.add(found["service"])
                continue
        foreign.append(found)
    return foreign


def without_image(
    statements: Sequence[Mapping[str, Sequence[Entry]]], answer: Answer
) -> list[Conflict]:
    """Return a conflict for each project to start whose image nobody builds and the host lacks.

    On a host that builds none they are loaded, and that takes the engine first.
    """
    built = {image["reference"] for owned in statements for image in owned.get("images", ())}
    if answer["engine"] and not built:
        return []
    return [
        Conflict(
            "projects",
            project["name"],
            f"ml_services_instances: service {project['name']} needs image {reference}: found no "
            "such image, or one that is outdated or not recorded on this host; expected the image "
            "of the catalogue. Add it to ml_images_present, load or accept it (see ./slipway "
            "images --help), or remove the service.",
        )
        for owned in statements
        for project in owned.get("projects", ())
        for service in project["services"]
        if (reference := service.get("reference"))
        and reference not in built
        and _differs(project, answer)
        and any(
            containers.compare_images({"reference": reference, "digest": service["image"]}, answer)
        )
    ]


def _differs(project: Entry, answer: Answer) -> bool:
    """Return whether a project differs and nothing is in its way."""
    try:
        return any(compare_projects(project, answer))
    except ConflictError:
        return False


def _needs_of(entry: Entry, answer: Answer) -> Iterator[tuple[str, str]]:
    yield from containers.needs_of_engine(entry, answer)
    for service in entry["services"]:
        if service.get("reference"):
            yield "images", service["reference"]


def _further_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    services = entry["services"]
    yield "images", [service["reference"] for service in services if service.get("reference")]
    yield (
        "environments",
        [expected.environment_question(entry["name"], s) for s in services if "container" in s],
    )
    yield "addresses", _addresses_of(entry)
    yield "listeners", [_address_of(port)[1] for port in _ports_of(entry)]


def _record_of(entry: Entry) -> list[str]:
    return [containers.service_record_path(entry["name"])]


KINDS = (
    Kind(
        *("projects", "name", "projects", compare_projects, _further_of),
        guarded=_record_of,
        needs=_needs_of,
    ),
)
