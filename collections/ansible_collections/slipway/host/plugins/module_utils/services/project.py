# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A project of ``ml_services_instances`` with its image, and the checks of its declaration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.declaration import suggest
from ansible_collections.slipway.host.plugins.module_utils.images.index import Planned
from ansible_collections.slipway.host.plugins.module_utils.services import gpus as services_gpus
from ansible_collections.slipway.host.plugins.module_utils.services.expected import size_in_bytes

FOLDER = "/etc/slipway/services"
COMPOSE_FILE = "compose.yaml"
SECRETS_FOLDER = "secrets"
# For `ml url` of the user of a service; ml.own_services reads it.
ADDRESS_FILE = "address.json"
# For `ml url` of a service behind a front door; ml.own_services reads it.
DOOR_FILE = "front_door.json"
# What compose accepts as the name of a project.
PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Files have the name of the service with a suffix, and a file name has at most 255 bytes.
LONGEST_NAME = 200
# The highest user and group ID that Docker accepts.
LAST_ID = 2**31 - 1
# The least memory that Docker accepts as a limit; 0 is no limit.
LEAST_MEMORY = "6m"
LEAST_CPUS = 0.01
# What docker accepts as a size.
SIZE = re.compile(r"\d+(\.\d+)?([bkmgt]|[kmgt]i?b)?", re.IGNORECASE)


class ServiceError(ValueError):
    """A service is declared in a way that cannot work; the text says what to change."""


@dataclass(frozen=True)
class Host:
    """The host's part: its name for others, the address that ports are bound to, its GPUs.

    sites: sites of the front door for services of this host, see :func:`services.door.door_files`.
    """

    name: str = "localhost"
    bind_address: str = "127.0.0.1"
    gpus: services_gpus.Gpus = field(default_factory=services_gpus.Gpus)
    sites: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Project:
    """An entry of ``ml_services_instances``, with its image as the host should hold it.

    args: the names of the build arguments that this host sets for any image.
    """

    declared: Mapping[str, Any]
    build: Planned
    args: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Return the name of the project."""
        return str(self.declared["name"])

    @property
    def service(self) -> Mapping[str, Any]:
        """Return the image's service that the project runs: the named one, or the first."""
        services = self.build.image.get("services") or {}
        if not services:
            raise self.error(
                f"image {self.build.name} declares no service; expected one under services in its "
                "image.yml. Choose another image, or declare a service."
            )
        name = str(self.declared.get("service") or next(iter(services)))
        if name not in services:
            raise self.unknown("service", name, services)
        service: Mapping[str, Any] = services[name]
        return service

    def error(self, text: str) -> ServiceError:
        """Return an error of this service."""
        return ServiceError(f"service {self.name}: {text}")

    def unknown(self, what: str, name: str, known_names: Iterable[str]) -> ServiceError:
        """Return the error that the image declares nothing of that name."""
        names = sorted(known_names)
        return self.error(
            f"image {self.build.name} has no {what} {name!r}; expected one of: "
            f"{', '.join(names) or 'none'}. {suggest(name, names) or 'Correct the name.'}"
        )

    @property
    def folder(self) -> str:
        """Return the folder of the project's files on the host."""
        return f"{FOLDER}/{self.name}"

    @property
    def user(self) -> tuple[int, int]:
        """Return uid and gid of the service: those of the project, or else the image's own."""
        own = self.build.image["user"]
        # Templates make text of numbers.
        uid, gid = (
            None if self.declared.get(key) is None else int(self.declared[key])
            for key in ("uid", "gid")
        )
        if uid is None:
            return own["uid"], own["gid"] if gid is None else gid
        return uid, uid if gid is None else gid


def check_projects(projects: Iterable[Project]) -> None:
    """Raise ServiceError with the first mistake of each project, a line for each project."""
    mistakes = []
    for project in projects:
        try:
            check_project(project)
        except ServiceError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ServiceError("\n".join(mistakes))


def check_project(project: Project) -> None:
    """Raise ServiceError for mistakes that no later step would notice."""
    if not PROJECT_NAME.fullmatch(project.name):
        raise project.error(
            "invalid name; expected lower-case letters, digits, - and _, a letter or digit first. "
            "Rename the service."
        )
    if len(project.name) > LONGEST_NAME:
        raise project.error(
            f"a name of {len(project.name)} characters; expected at most {LONGEST_NAME}. Rename "
            "the service."
        )
    _check_user(project)
    _check_limits(project)
    _check_environment(project)
    for arg in project.service["args"]:
        if arg not in project.args:
            raise project.error(
                f"the service of image {project.build.name} needs build argument {arg}; expected a "
                "value in ml_catalogue_build_args. Set it there."
            )


def _check_user(project: Project) -> None:
    uid, gid = project.user
    if uid == 0:
        raise project.error("uid: 0; expected another uid than root's. Change uid.")
    for key, number in (("uid", uid), ("gid", gid)):
        if not 0 <= number <= LAST_ID:
            raise project.error(
                f"{key}: {number}; expected at most {LAST_ID}, the highest number that Docker "
                f"accepts. Change {key}."
            )


def _check_limits(project: Project) -> None:
    for key in ("memory", "shm_size"):
        size = project.declared.get(key)
        if size is not None and not SIZE.fullmatch(str(size)):
            raise project.error(f"{key}: {size!r}; expected a size such as 8g. Change the value.")
    memory, cpus = project.declared.get("memory"), project.declared.get("cpus")
    if memory and 0 < size_in_bytes(memory) < size_in_bytes(LEAST_MEMORY):
        raise project.error(
            f"memory: {memory!r}; expected at least {LEAST_MEMORY}, the least that Docker accepts. "
            "Raise the limit, or remove the key memory."
        )
    if cpus is not None and float(cpus) < LEAST_CPUS:
        raise project.error(
            f"cpus: {cpus}; expected at least {LEAST_CPUS}, the least that Docker accepts. Raise "
            "the limit, or remove the key cpus."
        )


def _check_environment(project: Project) -> None:
    for name, value in (project.declared.get("environment") or {}).items():
        if not VARIABLE_NAME.fullmatch(str(name)):
            raise project.error(
                f"environment: name {name!r}; expected letters, digits and _. Rename the variable."
            )
        # The value may be a secret, so it is not shown.
        if value is not None and not isinstance(value, str | int | float):
            raise project.error(
                f"environment.{name}: not text and not a number; expected one of the two. "
                "Change the value."
            )
        if "\0" in str(value):
            raise project.error(
                f"environment.{name}: contains the character NUL; expected text without it. Remove "
                "the character."
            )
