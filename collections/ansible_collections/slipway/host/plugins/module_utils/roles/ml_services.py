# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects from the catalogue: what an image says of its services, and what a host adds."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images.declaration import suggest
from ansible_collections.slipway.host.plugins.module_utils.images.index import Planned
from ansible_collections.slipway.host.plugins.module_utils.services import gpus as services_gpus
from ansible_collections.slipway.host.plugins.module_utils.services import ports

FOLDER = "/etc/slipway/services"
COMPOSE_FILE = "compose.yaml"
SECRETS_FOLDER = "secrets"
# Where compose puts secrets in a container.
SECRETS_INSIDE = "/run/secrets"
HEADER = "# Written by Slipway's role ml_services; changes are overwritten.\n"
# What compose takes for a project, and the engine for a volume.
PROJECT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# What docker takes for one.
SIZE = re.compile(r"\d+(\.\d+)?([bkmgt]|[kmgt]i?b)?", re.IGNORECASE)
LIMITS = (
    ("memory", "mem_limit"),
    ("cpus", "cpus"),
    ("pids", "pids_limit"),
    ("shm_size", "shm_size"),
)
TOKEN = "{token}"


class ServiceError(ValueError):
    """A project asks for something that cannot be; the text says what to change."""


@dataclass(frozen=True)
class Host:
    """What a host adds: how others reach it, what ports are bound to by default, its GPUs."""

    name: str = "localhost"
    publish: str = "127.0.0.1"
    gpus: services_gpus.Gpus = field(default_factory=services_gpus.Gpus)


@dataclass(frozen=True)
class Project:
    """An entry of ``ml_services_projects``, with its image as the host should hold it.

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
        """Return the service of the image that runs: the one that is named, or the first."""
        services = self.build.image.get("services") or {}
        if not services:
            raise self.error(f"image {self.build.name} declares no service")
        name = str(self.declared.get("service") or next(iter(services)))
        if name not in services:
            raise self.unknown("service", name, services)
        found: Mapping[str, Any] = services[name]
        return found

    def error(self, words: str) -> ServiceError:
        """Return the error that something of this project cannot be."""
        return ServiceError(f"project {self.name}: {words}")

    def unknown(self, what: str, name: str, known: Iterable[str]) -> ServiceError:
        """Return the error that the image has nothing of that name."""
        names = sorted(known)
        return self.error(
            f"image {self.build.name} has no {what} {name!r}; expected one of: "
            f"{', '.join(names) or 'none'}. {suggest(name, names)}".rstrip()
        )

    @property
    def folder(self) -> str:
        """Return where its files are on the host."""
        return f"{FOLDER}/{self.name}"

    @property
    def user(self) -> tuple[int, int]:
        """Return uid and gid that it runs as: declared, or else the image's own."""
        own = self.build.image["user"]
        # As text where a template made them.
        uid, gid = (
            None if self.declared.get(key) is None else int(self.declared[key])
            for key in ("uid", "gid")
        )
        if uid is None:
            return own["uid"], own["gid"] if gid is None else gid
        return uid, uid if gid is None else gid


@dataclass(frozen=True)
class Published:
    """A port that a project is found at."""

    name: str
    address: str
    port: int
    inside: int

    @property
    def binding(self) -> str:
        """Return it as compose writes it."""
        return f"{self.place}:{self.inside}"

    @property
    def place(self) -> str:
        """Return where it is on the host, see services.ports."""
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Mount:
    """A volume of that name, or a folder of the host where ``source`` is absolute."""

    source: str
    target: str
    read_only: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of the host."""
        return self.source.startswith("/")

    @property
    def compose(self) -> dict[str, Any]:
        """Return it as compose writes it."""
        kind = "bind" if self.is_folder else "volume"
        found = {"type": kind, "source": self.source, "target": self.target}
        return {**found, **({"read_only": True} if self.read_only else {})}


@dataclass(frozen=True)
class Secret:
    """A file that the service alone can read; ``given`` says where its content comes from.

    Without content or source in it, it is made on the host.
    """

    name: str
    path: str
    variable: str
    given: Mapping[str, str]


def _published(project: Project, host: Host) -> list[Published]:
    known, given = project.build.image["ports"], project.declared.get("ports") or {}
    for name in given:
        if name not in known:
            raise project.unknown("port", name, known)
    address = project.declared.get("publish") or host.publish
    try:
        # In brackets, as compose wants those that have colons of their own.
        form = "[{}]" if ipaddress.ip_address(address.strip("[]")).version == 6 else "{}"
    except ValueError:
        raise project.error(
            f"publish is {address!r}, must be an address of the host, such as 127.0.0.1, or 0.0.0.0"
        ) from None
    address = form.format(address.strip("[]"))
    wanted = {**project.service["publish"], **given}
    for name, port in wanted.items():
        if not re.fullmatch(r"\d{1,5}", str(port)) or not 0 < int(port) < 65536:
            raise project.error(f"port {name} is {port!r}, must be a number from 1 to 65535")
    return [Published(name, address, int(wanted[name]), known[name]) for name in sorted(wanted)]


def _mounts(project: Project) -> list[Mount]:
    """Return what is mounted: each volume of the image, and what the host adds."""
    inside = project.build.image["volumes"]
    given = project.declared.get("volumes") or {}
    sources = {**{name: f"{project.name}_{name}" for name in inside}, **given}
    found = []
    for name, spelled in sources.items():
        target = name if name.startswith("/") else inside.get(name)
        if target is None:
            raise project.unknown("volume", name, inside)
        source, colon, option = str(spelled).partition(":")
        if (colon and option != "ro") or not (
            VOLUME_NAME.fullmatch(source) or re.fullmatch(r"/[^\s,'\"$\\]+", source)
        ):
            raise project.error(
                f"volume {name} is {str(spelled)!r}, must be an absolute path or the name of a "
                "volume, with :ro at its end where it is only read"
            )
        found.append(Mount(source, target, bool(colon)))
    return found


def _secrets(project: Project) -> list[Secret]:
    """Return the secrets that the service gets: those that it declares, then what the host adds."""
    declared = project.service["secrets"]
    given = {str(entry["name"]): entry for entry in project.declared.get("secrets") or ()}
    found = []
    for name in dict.fromkeys((*declared, *given)):
        if name not in given and declared[name]["otherwise"] == "refused":
            raise project.error(f"it needs the secret {name}; give its content, or a file with it")
        if name not in given and declared[name]["otherwise"] == "omitted":
            continue
        entry = given.get(name, {})
        variable = entry.get("variable") or declared.get(name, {}).get("variable")
        if not variable:
            raise project.error(
                f"secret {name}: the image does not declare this secret; expected the key variable "
                "for it, the environment variable with the path of the secret's file. "
                + (suggest(name, declared) or "Add the key variable.")
            )
        if not SECRET_NAME.fullmatch(name):
            raise project.error(f"secret {name!r}: a name is small letters, digits, -, _ and .")
        path = f"{project.folder}/{SECRETS_FOLDER}/{name}"
        found.append(Secret(name, path, variable, _given(project, name, entry)))
    return found


def _given(project: Project, name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """Return what a project says of a secret's content, in the words of owned state."""
    found = {
        owned: str(entry[ours])
        for ours, owned in (("content", "content"), ("file", "source"))
        if entry.get(ours) is not None
    }
    if entry and len(found) != 1:
        raise project.error(f"secret {name}: give either its content or a file with it")
    if not all(value.strip() for value in found.values()):
        raise project.error(f"secret {name} is empty")
    return found


def _compose_service(
    project: Project,
    published: Sequence[Published],
    mounts: Sequence[Mount],
    secrets: Sequence[Secret],
) -> dict[str, Any]:
    """Return the compose service, without GPUs and labels."""
    declared, given = project.service, project.declared
    service: dict[str, Any] = {
        "image": project.build.reference,
        # The image was built and proven here; a registry must not replace it.
        "pull_policy": "never",
        "user": ":".join(map(str, project.user)),
        "restart": declared["restart"],
        "init": declared["init"],
        "read_only": declared["read_only"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    environment = {
        **declared["environment"],
        **{secret.variable: f"{SECRETS_INSIDE}/{secret.name}" for secret in secrets},
        **(given.get("environment") or {}),
    }
    optional: dict[str, Any] = {
        "command": declared.get("command"),
        "tmpfs": declared["tmpfs"],
        "ports": [port.binding for port in published],
        "volumes": [mount.compose for mount in mounts],
        "secrets": [secret.name for secret in secrets],
        "environment": {
            key: "" if value is None else str(value) for key, value in sorted(environment.items())
        },
        "healthcheck": _healthcheck(declared.get("healthcheck")),
        **{compose: given.get(ours) or declared.get(ours) for ours, compose in LIMITS},
    }
    return {**service, **{key: value for key, value in optional.items() if value}}


def _healthcheck(declared: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not declared:
        return None
    times = ("interval", "timeout", "start_period", "start_interval")
    return {
        "test": ["CMD", *declared["command"]],
        **{key: f"{declared[key]}s" for key in times},
        "retries": declared["retries"],
    }


def _proof(project: Project, secrets: Sequence[Secret]) -> dict[str, str]:
    """Return the label from which the role host_verify knows how to prove the service."""
    endpoint = project.service.get("endpoint")
    if not endpoint:
        return {}
    proof = {**endpoint, "port": project.build.image["ports"][endpoint["port"]]}
    if "secret" in endpoint:
        proof["secret"] = _path_of(endpoint["secret"], secrets)
    return {labels.PROOF: json.dumps(proof, sort_keys=True)}


def _path_of(name: str, secrets: Iterable[Secret]) -> str:
    return next(secret.path for secret in secrets if secret.name == name)


def _urls(project: Project, published: Sequence[Published], host: Host) -> dict[str, str]:
    """Return where a person finds the service, by name of the port."""
    pages, anywhere = project.service["urls"], ports.ANY_ADDRESS
    return {
        port.name: f"http://{host.name if port.address in anywhere else port.address}"
        f":{port.port}{pages[port.name]}"
        for port in published
        if port.name in pages
    }


def _for_people(
    project: Project, urls: Mapping[str, str], secrets: Sequence[Secret]
) -> dict[str, str]:
    """Return the addresses as a run shows them: with where the token is, never with it."""
    found = {}
    for port, url in urls.items():
        if TOKEN in url:
            url = f"{url.partition('?')[0]} (token: {_path_of(_opens(project), secrets)})"
        found[project.name if len(urls) == 1 else f"{project.name} {port}"] = url
    return found


def _opens(project: Project) -> str:
    """Return the secret that a page asks for."""
    return str(project.service["endpoint"]["secret"])


def _check(project: Project) -> None:
    """Raise ServiceError for what no later step would notice."""
    if not PROJECT_NAME.fullmatch(project.name):
        raise project.error("a name is small letters, digits, - and _, a letter or digit first")
    if project.user[0] == 0:
        raise project.error("uid is 0, but services do not run as root")
    for key in ("memory", "shm_size"):
        size = project.declared.get(key)
        if size is not None and not SIZE.fullmatch(str(size)):
            raise project.error(f"{key} is {size!r}, must be a size such as 8g")
    for name, value in (project.declared.get("environment") or {}).items():
        if not VARIABLE_NAME.fullmatch(str(name)):
            raise project.error(f"environment {name!r}: a name is letters, digits and _")
        if value is not None and not isinstance(value, str | int | float):
            raise project.error(f"environment {name} must be a text or a number")
    for arg in project.service["args"]:
        if arg not in project.args:
            raise project.error(
                f"image {project.build.name} has this service only where it is built with {arg}; "
                "set it in ml_catalogue_args"
            )


def _labels(
    project: Project,
    gpus: Sequence[str],
    urls: Mapping[str, str],
    secrets: Sequence[Secret],
) -> dict[str, str]:
    """Return what the commands of this project read from the container, see ml.labels."""
    found = _proof(project, secrets)
    if gpus:
        found[labels.GPUS] = ",".join(gpus)
    if urls:
        found[labels.URLS] = json.dumps(urls, sort_keys=True)
    if any(TOKEN in url for url in urls.values()):
        found[labels.TOKEN] = _path_of(_opens(project), secrets)
    return found


def _document(
    project: Project,
    service: Mapping[str, Any],
    volumes: Sequence[str],
    secrets: Sequence[Secret],
) -> str:
    """Return the text of the compose file."""
    document: dict[str, Any] = {"services": {project.name: service}}
    if volumes:
        # Made beforehand: they outlive the project, and two projects may share one.
        document["volumes"] = {name: {"external": True} for name in volumes}
    if secrets:
        document["secrets"] = {secret.name: {"file": secret.path} for secret in secrets}
    # By way of JSON, since Ansible's strings are more than strings and YAML refuses them. Compose
    # takes a single dollar for the beginning of a variable.
    plain = json.loads(json.dumps(document).replace("$", "$$"))
    return HEADER + yaml.safe_dump(plain, sort_keys=False)


def _plan(project: Project, gpus: Sequence[str], host: Host) -> dict[str, Any]:
    """Return one project as an entry of the module ``services``."""
    published, mounts, secrets = _published(project, host), _mounts(project), _secrets(project)
    service = {
        **_compose_service(project, published, mounts, secrets),
        **services_gpus.compose(gpus, host.gpus),
    }
    config = hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]
    urls = _urls(project, published, host)
    service["labels"] = {labels.CONFIG: config, **_labels(project, gpus, urls, secrets)}
    volumes = sorted({mount.source for mount in mounts if not mount.is_folder})
    owner = dict(zip(("owner", "group"), map(str, project.user), strict=True))
    inside = f"{project.folder}/{SECRETS_FOLDER}"
    names = [secret.name for secret in secrets]
    return {
        "name": project.name,
        "ports": [port.place for port in published],
        "volumes": volumes,
        "files": [
            *([{"path": inside, "state": "directory", "mode": "0700"}] if secrets else []),
            {
                "path": f"{project.folder}/{COMPOSE_FILE}",
                "content": _document(project, service, volumes, secrets),
                # Variables may hold what is not everybody's.
                "mode": "0600",
            },
        ],
        "folders": [
            {
                "path": project.folder,
                "entries": [COMPOSE_FILE, *([SECRETS_FOLDER] if secrets else [])],
            },
            *([{"path": inside, "entries": names}] if secrets else []),
        ],
        "secrets": [{"path": secret.path, **owner, **secret.given} for secret in secrets],
        "mounts": [
            {"path": mount.source, **owner, "read_only": mount.read_only}
            for mount in mounts
            if mount.is_folder
        ],
        "projects": [
            {
                "name": project.name,
                "services": [
                    {
                        "name": project.name,
                        "config": config,
                        "image": project.build.digest,
                        "reference": project.build.reference,
                    }
                ],
                "since": [secret.path for secret in secrets],
                "urls": _for_people(project, urls, secrets),
            }
        ],
    }


OWNED = ("files", "folders", "secrets", "mounts", "projects")


def plan(projects: Sequence[Project], host: Host) -> dict[str, Any]:
    """Return the ``folder``, the ``projects`` for the module and the ``owned`` state of the role.

    Raise ServiceError or GpuError where a project asks for what it cannot have.
    """
    for project in projects:
        _check(project)
    _refuse_clashes(projects, host)
    wishes = [
        services_gpus.Wish(
            project.name, project.declared.get("gpus"), project.build.variant == "gpu"
        )
        for project in projects
    ]
    gpus = services_gpus.reserve(wishes, host.gpus)
    found = [_plan(project, gpus.get(project.name, ()), host) for project in projects]
    _let_readers_follow(found)
    owned = {kind: [entry for one in found for entry in one[kind]] for kind in OWNED}
    owned["folders"].insert(0, {"path": FOLDER, "entries": [one["name"] for one in found]})
    return {"folder": FOLDER, "projects": found, "owned": owned}


def _let_readers_follow(plans: Sequence[dict[str, Any]]) -> None:
    """Let a folder that one project reads be made for the project that writes to it."""
    writers = {
        mount["path"]: mount for one in plans for mount in one["mounts"] if not mount["read_only"]
    }
    for one in plans:
        one["mounts"] = [
            writers.get(mount["path"], mount) if mount["read_only"] else mount
            for mount in one["mounts"]
        ]


def _refuse_clashes(projects: Sequence[Project], host: Host) -> None:
    """Refuse what only one project of a host can have: a name, and each port of the host."""
    taken: list[tuple[Project, Published]] = []
    names: set[str] = set()
    for project in projects:
        if project.name in names:
            raise project.error("there are two of this name")
        names.add(project.name)
        for port in _published(project, host):
            for other, before in taken:
                if ports.clash(port.place, before.place):
                    raise project.error(
                        f"port {port.port} of {port.address} is published by project {other.name} "
                        f"already; give it another one: ports: {{{port.name}: {port.port + 1}}}"
                    )
            taken.append((project, port))
