# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role docker_engine: the source of the engine and the owned state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import sources as apt_sources
from ansible_collections.slipway.host.plugins.module_utils.docker import (
    daemon_json,
    daemon_json_previous,
)
from ansible_collections.slipway.host.plugins.module_utils.docker.labels import (
    DAEMON_JSON,
    DAEMON_JSON_RECORD,
)
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit as _toolkit,
)

# Packages of the engine, a BuildKit client and compose v2, by distribution and major version.
# Debian 12 has no packages of BuildKit and compose v2. The names are from the indexes of the
# distributions in November 2026; forky is Debian testing.
_DEBIAN = ("docker.io", "docker-cli", "docker-buildx", "docker-compose", "iptables")
_UBUNTU = ("docker.io", "docker-buildx", "docker-compose-v2")
DISTRIBUTION_PACKAGES: Mapping[str, Sequence[str]] = {
    "Debian 13": _DEBIAN,
    "Debian forky": _DEBIAN,
    "Ubuntu 22": _UBUNTU,
    "Ubuntu 24": _UBUNTU,
    "Ubuntu 26": _UBUNTU,
}
VENDOR_PACKAGES = (
    "docker-ce",
    "docker-ce-cli",
    "containerd.io",
    "docker-buildx-plugin",
    "docker-compose-plugin",
)
# Packages to keep when the engine is removed: firewalls use them, and apt would remove those too.
SHARED_PACKAGES = frozenset({"iptables"})
# Distributions with packages in Docker's repository.
VENDOR_DISTRIBUTIONS = ("Debian", "Ubuntu")

KEYRING = "/etc/apt/keyrings/docker.asc"
SOURCES = "/etc/apt/sources.list.d/docker.sources"
# Files of older Docker instructions and of Ansible's apt_repository. apt fails on every command if
# two files declare the same repository with different key files.


def platform(facts: Mapping[str, Any]) -> str:
    """Return the release of a host as a key of DISTRIBUTION_PACKAGES, such as ``Ubuntu 24``."""
    return f"{facts['distribution']} {facts['distribution_major_version']}"


def fill_in_distribution(template: str, facts: Mapping[str, Any]) -> str:
    """Return a URL with ``{distribution}`` replaced by ``debian`` or ``ubuntu``."""
    return template.replace("{distribution}", facts["distribution"].lower())


def choose_source(declared_source: str, facts: Mapping[str, Any], key_url: str) -> str:
    """Return ``docker`` or ``distribution`` for a declared source, which may be ``auto``.

    ``auto`` keeps the source of an installed engine. On a fresh host it selects Docker's repository
    if the host can reach it (``facts['reachable']``), else the packages of the distribution.
    """
    if declared_source != "auto":
        return declared_source
    installed = {"docker-ce": "docker", "docker.io": "distribution"}.get(facts["docker_package"])
    if installed:
        return installed
    return "docker" if facts.get("reachable", {}).get(key_url) else "distribution"


def _errors(facts: Mapping[str, Any], source: str, repository: Mapping[str, Any]) -> list[str]:
    """Return why the role cannot install an engine from this source on the host."""
    errors = []
    if not facts["systemd"]:
        errors.append("init system: not systemd; expected systemd, which Docker's packages need")
    if facts["docker_snap"]:
        errors.append(
            "Docker is installed as a snap, which cannot use GPUs and conflicts with the engine of "
            "this role; expected no snap. Remove it first: snap remove docker"
        )
    known_platforms = ", ".join(DISTRIBUTION_PACKAGES)
    if source == "distribution" and platform(facts) not in DISTRIBUTION_PACKAGES:
        remedy = (
            "is not used, because docker.io is installed. Set docker_engine_source to docker to "
            "replace docker.io"
            if facts["docker_package"] == "docker.io"
            else "is not used or not reachable. Make it reachable, or set a mirror in "
            "docker_engine_repository"
        )
        errors.append(
            f"{platform(facts)} has no packages of BuildKit and compose v2; expected one of: "
            f"{known_platforms}. Docker's repository "
            f"{fill_in_distribution(repository['url'], facts)} {remedy}"
        )
    if source == "docker" and facts["distribution"] not in VENDOR_DISTRIBUTIONS:
        errors.append(
            f"docker_engine_source: docker on {platform(facts)}; expected one of: "
            f"{', '.join(VENDOR_DISTRIBUTIONS)}. Docker's repository has no packages for others"
        )
    return errors


def _cdi_errors(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return why containers cannot get the GPUs of a host by CDI with these SETTINGS."""
    features = settings.get("features")
    is_disabled = isinstance(features, Mapping) and features.get("cdi") is False
    if not (is_disabled and _toolkit.has_cdi(facts)):
        return []
    return [
        "features.cdi is false in docker_engine_extra_settings or docker_engine_settings, but "
        "containers get the GPUs of this host by CDI; expected true or no such key. Remove the "
        "key, or set nvidia_container_toolkit_state: absent if containers need no GPUs"
    ]


def _sources_file(facts: Mapping[str, Any], repository: Mapping[str, Any]) -> dict[str, str]:
    content = (
        "# Written by Slipway's role docker_engine.\n"
        "Types: deb\n"
        f"URIs: {fill_in_distribution(repository['url'], facts)}\n"
        f"Suites: {facts['distribution_release']}\n"
        f"Components: {repository.get('channel', 'stable')}\n"
        f"Signed-By: {KEYRING}\n"
    )
    return {"path": SOURCES, "content": content}


def _removed_package(name: str) -> dict[str, Any]:
    """Return the owned state of a package of a removed engine."""
    if name in SHARED_PACKAGES:
        return {"name": name, "optional": True, "hold": False}
    return {"name": name, "state": "absent"}


def _replaced_packages(facts: Mapping[str, Any], chosen: str) -> list[str]:
    """Return the packages that an engine of the CHOSEN source replaces on the host.

    Only if the engine comes from the other source. Without an engine, containerd and runc may
    belong to another program, such as Kubernetes.
    """
    if choose_source("auto", facts, "") == chosen or not facts["docker_package"]:
        return []
    if chosen == "distribution":
        return [*VENDOR_PACKAGES, "docker-ce-rootless-extras"]
    names = {name for names in DISTRIBUTION_PACKAGES.values() for name in names}
    return [*sorted(names - SHARED_PACKAGES), "containerd", "runc"]


# Options of other roles that the plan reads.
SHARED_OPTIONS = ("nvidia_container_toolkit_state",)


def _combined(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return SETTINGS with EXTRA merged in, objects key by key."""
    combined = dict(settings)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(combined.get(key), Mapping)
        combined[key] = _combined(combined[key], value) if both else value
    return combined


def _default_settings(
    facts: Mapping[str, Any], defaults: Mapping[str, Any], for_gpus: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings for keys of daemon.json that nobody set on the host.

    An engine that is part of a swarm does not start with ``live-restore``.
    """
    without_restore = {key: value for key, value in defaults.items() if key != "live-restore"}
    runtimes = {"runtimes": for_gpus["runtimes"]} if for_gpus else {}
    return _combined(runtimes, without_restore if facts.get("docker_swarm") else defaults)


def _swarm_errors(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return why an engine does not start with these SETTINGS as part of a swarm."""
    if not (facts.get("docker_swarm") and settings.get("live-restore")):
        return []
    return [
        "live-restore is true in docker_engine_extra_settings or docker_engine_settings, but the "
        "engine is part of a swarm and does not start with it; expected false or no such key. "
        "Remove the key"
    ]


def reachable_urls(options: Mapping[str, Any]) -> list[str]:
    """Return the URLs that a host without an engine tries to reach when it gathers facts."""
    return [options["docker_engine_repository"]["key_url"]]


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chosen ``source``, the repository's ``key_url`` and the ``owned`` state.

    ``removable`` are packages that apt may remove although the role does not declare them.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the role's options. Declared settings take
    precedence over those that GPUs need. Unsupported settings are in ``owned['refused']``.
    """
    repository, hold = options["docker_engine_repository"], options["docker_engine_hold"]
    settings = _combined(options["docker_engine_settings"], options["docker_engine_extra_settings"])
    key_url = fill_in_distribution(repository["key_url"], facts)
    chosen = choose_source(options["docker_engine_source"], facts, key_url)
    present = options["docker_engine_state"] == "present"
    sources_file = _sources_file(facts, repository) if present and chosen == "docker" else None
    names = (
        VENDOR_PACKAGES if chosen == "docker" else DISTRIBUTION_PACKAGES.get(platform(facts), ())
    )
    toolkit_removed = options["nvidia_container_toolkit_state"] == "absent"
    wants_gpus = options["docker_engine_gpu_access"] and not toolkit_removed
    for_gpus = _toolkit.engine_settings(facts) if wants_gpus else {}
    return {
        "source": chosen,
        "key_url": key_url,
        "removable": [
            *options["docker_engine_removable_packages"],
            *_replaced_packages(facts, chosen),
        ],
        "owned": {
            "refused": [
                *_errors(facts, chosen, repository),
                *(_cdi_errors(facts, settings) if for_gpus else ()),
                *_swarm_errors(facts, settings),
                *(apt_sources.mixed_files(facts, sources_file) if sources_file else ()),
            ]
            if present
            else [],
            **_repository_state(facts, repository, sources_file),
            "packages": [
                {"name": name, "state": "present", "hold": hold}
                if present
                else _removed_package(name)
                for name in names
            ],
            "json": [_settings_entry(facts, options, settings if present else None, for_gpus)],
            "units": _units(options["docker_engine_restart"], present, bool(for_gpus)),
        },
    }


def _repository_state(
    facts: Mapping[str, Any], repository: Mapping[str, Any], sources_file: dict[str, str] | None
) -> dict[str, Any]:
    """Return key and apt source file of Docker's repository; both are absent without the file."""
    if sources_file is None:
        absent = [{"path": path, "state": "absent"} for path in (SOURCES, KEYRING)]
        return {"keyrings": [], "files": absent}
    return {
        "keyrings": [{"path": KEYRING, "fingerprint": repository["fingerprint"]}],
        "files": [*apt_sources.replaced_files(facts, sources_file), sources_file],
    }


def _settings_entry(
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    settings: Mapping[str, Any] | None,
    for_gpus: Mapping[str, Any],
) -> dict[str, Any]:
    """Return daemon.json with declared SETTINGS, None if the role owns no key of it."""
    required = {key: value for key, value in for_gpus.items() if key != "runtimes"}
    defaults = _default_settings(facts, options["docker_engine_default_settings"], for_gpus)
    return {
        "path": DAEMON_JSON,
        "record": DAEMON_JSON_RECORD,
        "restart": options["docker_engine_restart"],
        "settings": {} if settings is None else daemon_json.merge(required, settings),
        "defaults": {} if settings is None else defaults,
    }


def _units(restart: str, present: bool, has_hooks: bool) -> list[dict[str, Any]]:
    """Return the units of the engine, which does not start with a broken daemon.json."""
    state = {"enabled": present, "active": present, "needs": [["json", DAEMON_JSON]]}
    return [
        {"name": "docker.socket", **state},
        {
            "name": "docker.service",
            "restart": restart,
            "packet_filter": present,
            "previous": daemon_json_previous.PREVIOUS,
            **state,
            "reads": [DAEMON_JSON, *(_toolkit.HOOKS_INSTALLED if has_hooks else ())],
        },
    ]
