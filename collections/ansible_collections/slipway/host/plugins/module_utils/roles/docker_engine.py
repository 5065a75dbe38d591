# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role docker_engine: where the engine comes from, and what that makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json
from ansible_collections.slipway.host.plugins.module_utils.roles import (
    nvidia_container_toolkit as _toolkit,
)

# Packages that give an engine, a BuildKit client and compose v2, by distribution and major version.
# Debian 12 is not among them: it packages neither of the latter two.  Names are those of the
# distributions' own indexes, November 2026; forky is Debian's testing.
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
# Stays where the engine goes: firewalls use it too, and would go with it.
SHARED = frozenset({"iptables"})
# Distributions that Docker's own repository serves.
VENDOR_DISTRIBUTIONS = ("Debian", "Ubuntu")

KEYRING = "/etc/apt/keyrings/docker.asc"
SOURCES = "/etc/apt/sources.list.d/docker.sources"
# The same repository, trusted by another key file, is an error that stops apt altogether: the names
# that Docker's older instructions and Ansible's apt_repository give it.
STALE_LISTS = ("docker.list", "download_docker_com_linux_{distribution}.list")
DAEMON_JSON = "/etc/docker/daemon.json"
# The default of the module daemon_json.
DAEMON_JSON_RECORD = "/var/lib/slipway/daemon_json.json"


def platform(facts: Mapping[str, Any]) -> str:
    """Return a host's release as the tables here spell it, for example ``Ubuntu 24``."""
    return f"{facts['distribution']} {facts['distribution_major_version']}"


def address(template: str, facts: Mapping[str, Any]) -> str:
    """Return a repository's address with ``{distribution}`` filled in, ``debian`` or ``ubuntu``."""
    return template.replace("{distribution}", facts["distribution"].lower())


def choose_source(wanted: str, facts: Mapping[str, Any], key_url: str) -> str:
    """Return ``docker`` or ``distribution`` for what a host WANTED, which may be ``auto``.

    An engine that is there keeps its source; a fresh host takes Docker's repository if it was
    reached (``facts['reachable']``) and the distribution's packages otherwise.
    """
    if wanted != "auto":
        return wanted
    installed = {"docker-ce": "docker", "docker.io": "distribution"}.get(facts["docker_package"])
    if installed:
        return installed
    return "docker" if facts.get("reachable", {}).get(key_url) else "distribution"


def _refusals(facts: Mapping[str, Any], source: str, repository: Mapping[str, Any]) -> list[str]:
    found = []
    if not facts["systemd"]:
        found.append("the host does not run systemd, which Docker's packages need")
    if facts["docker_snap"]:
        found.append(
            "Docker is installed as a snap, which cannot use GPUs and would fight with this role's "
            "engine. Remove it first: snap remove docker"
        )
    known = ", ".join(DISTRIBUTION_PACKAGES)
    if source == "distribution" and platform(facts) not in DISTRIBUTION_PACKAGES:
        what_to_do = (
            "is not used, because docker.io is installed. Set docker_engine_source to docker to "
            "have its engine in the place of that one"
            if facts["docker_package"] == "docker.io"
            else "is not used or not reachable. Make it reachable, or name a mirror in "
            "docker_engine_repository"
        )
        found.append(
            f"{platform(facts)} has no packages of its own with BuildKit and compose v2 (known: "
            f"{known}), and Docker's repository {address(repository['url'], facts)} {what_to_do}"
        )
    if source == "docker" and facts["distribution"] not in VENDOR_DISTRIBUTIONS:
        found.append(f"Docker's repository does not serve {platform(facts)}")
    return found


def _cdi_refusals(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return why SETTINGS keep a host's GPUs from its containers, which get them by CDI."""
    features = settings.get("features")
    switched_off = isinstance(features, Mapping) and features.get("cdi") is False
    if not (switched_off and _toolkit.has_cdi(facts)):
        return []
    return [
        "features.cdi is false in docker_engine_extra_settings or docker_engine_settings, but "
        "containers get the GPUs of this host by CDI. Take that key out, or, where containers are "
        "to have no GPUs, set nvidia_container_toolkit_state: absent"
    ]


def _sources_file(facts: Mapping[str, Any], repository: Mapping[str, Any]) -> str:
    return (
        "# Written by Slipway's role docker_engine.\n"
        "Types: deb\n"
        f"URIs: {address(repository['url'], facts)}\n"
        f"Suites: {facts['distribution_release']}\n"
        f"Components: {repository.get('channel', 'stable')}\n"
        f"Signed-By: {KEYRING}\n"
    )


def _stale(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = (address(name, facts) for name in STALE_LISTS)
    return [{"path": f"/etc/apt/sources.list.d/{name}", "state": "absent"} for name in names]


def _removed(name: str) -> dict[str, Any]:
    """Return a package as it is where the engine was removed."""
    if name in SHARED:
        return {"name": name, "optional": True, "hold": False}
    return {"name": name, "state": "absent"}


# Options of other roles that the plan reads.
SHARED_OPTIONS = ("nvidia_container_toolkit_state",)


def _combined(settings: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return SETTINGS with EXTRA merged in, objects key by key."""
    found = dict(settings)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _combined(found[key], value) if both else value
    return found


def reachable_urls(options: Mapping[str, Any]) -> list[str]:
    """Return the URLs whose reachability is a host fact where no engine is installed yet."""
    return [options["docker_engine_repository"]["key_url"]]


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chosen ``source``, the repository's ``key_url`` and the ``owned`` state.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the role's options. Declared settings take
    precedence over those that GPUs need. Unsupported settings are in ``owned['refused']``.
    """
    repository, hold = options["docker_engine_repository"], options["docker_engine_hold"]
    settings = _combined(options["docker_engine_settings"], options["docker_engine_extra_settings"])
    key_url = address(repository["key_url"], facts)
    chosen = choose_source(options["docker_engine_source"], facts, key_url)
    present = options["docker_engine_state"] == "present"
    use_repository = present and chosen == "docker"
    names = (
        VENDOR_PACKAGES if chosen == "docker" else DISTRIBUTION_PACKAGES.get(platform(facts), ())
    )
    packages = [
        {"name": name, "state": "present", "hold": hold} if present else _removed(name)
        for name in names
    ]
    keyring = {"path": KEYRING, "fingerprint": repository["fingerprint"]}
    toolkit_removed = options["nvidia_container_toolkit_state"] == "absent"
    wants_gpus = options["docker_engine_gpu_access"] and not toolkit_removed
    for_gpus = _toolkit.engine_settings(facts) if wants_gpus else {}
    return {
        "source": chosen,
        "key_url": key_url,
        "owned": {
            "refused": [
                *_refusals(facts, chosen, repository),
                *(_cdi_refusals(facts, settings) if for_gpus else ()),
            ]
            if present
            else [],
            "keyrings": [keyring] if use_repository else [],
            "files": [
                {"path": SOURCES, "content": _sources_file(facts, repository)}
                if use_repository
                else {"path": SOURCES, "state": "absent"},
                *([{"path": KEYRING, "state": "absent"}] if not use_repository else _stale(facts)),
            ],
            "packages": packages,
            "json": [
                {
                    "path": DAEMON_JSON,
                    "record": DAEMON_JSON_RECORD,
                    "settings": daemon_json.merge(for_gpus, settings) if present else {},
                }
            ],
            "units": [
                {"name": "docker.socket", "enabled": present, "active": present},
                {
                    "name": "docker.service",
                    "enabled": present,
                    "active": present,
                    "since": [DAEMON_JSON, *(_toolkit.HOOKS_INSTALLED if for_gpus else ())],
                },
            ],
        },
    }
