# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_services: one compose project for each declared service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue
from ansible_collections.slipway.host.plugins.module_utils.services import gpus as services_gpus
from ansible_collections.slipway.host.plugins.module_utils.services import users as service_users
from ansible_collections.slipway.host.plugins.module_utils.services.compose import (
    SECRETS_INSIDE,
    compose_service,
    compose_text,
    displayed_urls,
    service_labels,
)
from ansible_collections.slipway.host.plugins.module_utils.services.door import door_files
from ansible_collections.slipway.host.plugins.module_utils.services.expected import (
    expected_container,
)
from ansible_collections.slipway.host.plugins.module_utils.services.mounts import (
    Mount,
    project_mounts,
    share_writers_mounts,
)
from ansible_collections.slipway.host.plugins.module_utils.services.project import (
    ADDRESS_FILE,
    COMPOSE_FILE,
    DOOR_FILE,
    FOLDER,
    SECRETS_FOLDER,
    Host,
    Project,
    ServiceError,
    check_projects,
)
from ansible_collections.slipway.host.plugins.module_utils.services.published import (
    published_ports,
    refuse_clashes,
    service_urls,
)
from ansible_collections.slipway.host.plugins.module_utils.services.secrets import (
    Secret,
    project_secrets,
)

__all__ = ["Host", "Project", "ServiceError", "plan"]

ROLE = "ml_services"
# The plan gets the options of this role on all hosts: see role_plans.
OPTIONS_OF_HOSTS = "ml_front_door"
DOOR_ADDRESS = f"{ROLE}_address"
# The image that runs as a service if ml_services_instances is not set.
DEFAULT_IMAGE = "iris-api"
# Options of other roles that the plan reads.
SHARED_OPTIONS = (
    *("ml_images_present", "user_access_users"),
    *("ml_front_door_host", "ml_front_door_sites", "ml_front_door_state"),
)
OWNED = ("files", "folders", "secrets", "mounts", "projects")


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``folder``, the ``projects`` for the module and the ``owned`` state of the role.

    ``reserved_gpus`` are the GPUs, or parts of them, that services reserve. ``behind_door`` says
    whether a front door has a service of this host. FACTS is ``ansible_facts['slipway']`` with the
    ``address`` of the host, OPTIONS the options of the role and of ml_catalogue. Raise
    ServiceError, GpuError or DeclarationError for a project that cannot run.
    """
    build = ml_catalogue.choose_build(facts, options)
    arguments = frozenset(name for values in build.args.values() for name in values)
    projects = []
    for entry in declared_services(options):
        declared = service_users.with_user_id(entry, options.get("user_access_users") or ())
        image = declared.get("image") or declared["name"]
        # The image itself comes last, after those it is built on.
        projects.append(Project(declared, build.images([image])[-1], arguments))
    reserves = any(project.declared.get("gpus") for project in projects)
    gpus = _gpus(facts, options["ml_services_share_gpus"]) if reserves else services_gpus.Gpus()
    names = {project.name for project in projects}
    sites = [site for site in _declared_sites(options) if site.get("service") in names]
    host = Host(
        facts.get("address", "localhost"),
        options["ml_services_bind_address"],
        gpus,
        _sites_of_host(sites, facts, options),
    )
    return {**assemble_projects(projects, host), "behind_door": bool(sites)}


def _declared_sites(options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the sites of the front door, none without a front door."""
    if not options.get("ml_front_door_host") or options["ml_front_door_state"] == "absent":
        return []
    return options.get("ml_front_door_sites") or []


def _sites_of_host(
    sites: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the sites of the front door that lead to this host, each with its address."""
    found = []
    for site in sites:
        hosts = site.get("hosts") or [facts["inventory_name"]]
        address = site.get("address")
        if not address:
            of_door = facts["options_of_hosts"].get(options["ml_front_door_host"])
            # The plan of the front door reports a host that is not in the inventory.
            address = of_door and of_door[DOOR_ADDRESS]
        if address and facts["inventory_name"] in hosts:
            found.append({**site, "address": address})
    return found


def declared_services(options: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the declared projects; by default iris-api, if the host has that image."""
    if options["ml_services_state"] == "absent":
        return []
    projects: Sequence[Mapping[str, Any]] | None = options["ml_services_instances"]
    if projects is not None:
        return projects
    return [
        {"name": DEFAULT_IMAGE}
        for name in ml_catalogue.image_names(options)
        if name == DEFAULT_IMAGE
    ]


def _gpus(facts: Mapping[str, Any], shared: bool) -> services_gpus.Gpus:
    """Return the GPUs of the host and whether its engine supports CDI."""
    # Imported late: needed only if a project reserves GPUs.
    from ansible_collections.slipway.host.plugins.module_utils.gpu import host
    from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_container_toolkit

    return services_gpus.Gpus(host.count(facts), shared, nvidia_container_toolkit.has_cdi(facts))


def assemble_projects(projects: Sequence[Project], host: Host) -> dict[str, Any]:
    """Return the ``folder``, the ``projects`` for the module and the ``owned`` state of the role.

    Raise ServiceError or GpuError for a declaration that cannot work.
    """
    check_projects(projects)
    refuse_clashes(projects, host)
    requests = [
        services_gpus.GpuRequest(
            project.name, project.declared.get("gpus"), project.build.variant == "gpu"
        )
        for project in projects
    ]
    gpus = services_gpus.reserve_gpus(requests, host.gpus)
    entries = [_project_entry(project, gpus.get(project.name, ()), host) for project in projects]
    share_writers_mounts(entries)
    for entry in entries:
        entry["projects"][0]["together"] = _parts(entry)
    owned = {kind: [item for entry in entries for item in entry[kind]] for kind in OWNED}
    owned["folders"].insert(0, {"path": FOLDER, "entries": [entry["name"] for entry in entries]})
    reserved = sorted({gpu for ids in gpus.values() for gpu in ids})
    return {"folder": FOLDER, "projects": entries, "owned": owned, "reserved_gpus": reserved}


def _project_entry(project: Project, gpus: Sequence[str], host: Host) -> dict[str, Any]:
    """Return one project as an entry of the module ``services``."""
    published = published_ports(project, host)
    mounts, secrets = project_mounts(project), project_secrets(project)
    service = {
        **compose_service(project, published, mounts, secrets),
        **services_gpus.compose_reservation(gpus, host.gpus),
    }
    config = hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]
    urls = service_urls(project, published, host)
    service["labels"] = {labels.CONFIG: config, **service_labels(project, gpus, urls, secrets)}
    volumes = sorted({mount.source for mount in mounts if not mount.is_folder})
    owner = dict(zip(("owner", "group"), map(str, project.user), strict=True))
    folder = f"{project.folder}/{SECRETS_FOLDER}"
    names = [secret.name for secret in secrets]
    address = service_users.address_file(project, urls, secrets)
    at_door = door_files(project, host.sites)
    return {
        "name": project.name,
        "ports": [port.address_and_port for port in published],
        "volumes": volumes,
        "files": [*_files(project, service, volumes, secrets, address), *at_door],
        "folders": [
            {
                "path": project.folder,
                "entries": [
                    COMPOSE_FILE,
                    *([ADDRESS_FILE] if address else []),
                    *([DOOR_FILE] if at_door else []),
                    *([SECRETS_FOLDER] if secrets else []),
                ],
            },
            *([{"path": folder, "entries": names}] if secrets else []),
        ],
        "secrets": [{"path": secret.path, **owner, **secret.origin} for secret in secrets],
        "mounts": [_mount_entry(mount, owner) for mount in mounts if mount.is_folder],
        "projects": [
            {
                "name": project.name,
                "services": [_running_service(project, service, secrets)],
                "since": [secret.path for secret in secrets],
                "urls": displayed_urls(project, urls, secrets),
            }
        ],
    }


def _files(
    project: Project,
    service: Mapping[str, Any],
    volumes: Sequence[str],
    secrets: Sequence[Secret],
    address: Mapping[str, Any] | None,
) -> list[Mapping[str, Any]]:
    """Return the files and folders of a project; ADDRESS is the file for its user."""
    # The user can enter the folder of secrets; only the owner can read a file in it.
    mode = "0711" if address else "0700"
    folder = {"path": f"{project.folder}/{SECRETS_FOLDER}", "state": "directory", "mode": mode}
    compose = {
        "path": f"{project.folder}/{COMPOSE_FILE}",
        "content": compose_text(project, service, volumes, secrets),
        # Variables may contain secrets.
        "mode": "0600",
    }
    return [*([folder] if secrets else []), compose, *([address] if address else [])]


def _mount_entry(mount: Mount, owner: Mapping[str, str]) -> dict[str, Any]:
    """Return a folder of the host that a project mounts."""
    return {
        "path": mount.source,
        **owner,
        "read_only": mount.read_only,
        "is_volume": mount.is_volume,
    }


def _parts(entry: Mapping[str, Any]) -> list[list[str]]:
    """Return kind and name of what a project is made of: it is made whole or not at all."""
    return [
        [kind, item["path"]]
        for kind in ("files", "folders", "secrets", "mounts")
        for item in entry[kind]
    ]


def _running_service(
    project: Project, service: Mapping[str, Any], secrets: Sequence[Secret]
) -> dict[str, Any]:
    """Return the container that must run, as owned state compares it."""
    mounted = {f"{SECRETS_INSIDE}/{secret.name}": secret.path for secret in secrets}
    return {
        "name": project.name,
        "config": service["labels"][labels.CONFIG],
        "image": project.build.digest,
        "reference": project.build.reference,
        "container": expected_container(project.name, service, mounted),
    }
