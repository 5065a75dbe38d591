# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role nvidia_container_toolkit, and the engine's settings for GPU access.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import sources as apt_sources
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import (
    find_declared_again,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import host
from ansible_collections.slipway.host.plugins.module_utils.host.engine_settings import (
    NO_CGROUPS,
    TOOLKIT_CONFIG,
    WITHOUT_CGROUPS,
)

# From 1.18.0 these packages depend on each other by exact versions. apt cannot install one pinned
# package without the others (NVIDIA/nvidia-container-toolkit#1091), so each command names all four.
PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
REVISION = "-1"
# The first version without CVE-2025-23266 and CVE-2025-23267 (a container takes over the host).
MINIMUM_VERSION = (1, 17, 8)
# The first version whose packages update the CDI specification automatically.
FIRST_WITH_CDI_REFRESH = (1, 18, 0)
NO_REFRESH: Mapping[str, list[Any]] = {"units": [], "derived": []}

KEYRING = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
SOURCES = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
PREFERENCES = "/etc/apt/preferences.d/slipway-nvidia-container-toolkit.pref"
UNATTENDED = "/etc/apt/apt.conf.d/60slipway-nvidia-container-toolkit"
WRITTEN_BY = "# Written by Slipway's role nvidia_container_toolkit.\n"
# apt fails on every command if two files declare the same repository with different key files.
STALE_LISTS = (
    "libnvidia-container.list",
    "nvidia-container-runtime.list",
    "nvidia-container-toolkit.list",
    "nvidia-docker.list",
)
# The first file is written by the package's units at each boot and after each driver change, the
# second by hand with nvidia-ctk. The engine reads both; an outdated file breaks every container.
CDI_SPECIFICATION = "/var/run/cdi/nvidia.yaml"
# Every specification of this kind gives containers the GPUs; two of them contradict each other.
CDI_KIND = "nvidia.com/gpu"
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
# The libraries in the specification have the version of the loaded module in their names.
LOADED_VERSION = "/sys/module/nvidia/version"
STALE_SPECIFICATION = "/etc/cdi/nvidia.yaml"
SETTINGS = "/etc/nvidia-container-runtime"

# The modification time of these files is the time of installation; files in packages have the time
# of their build. The engine searches the hooks of the first two packages when it starts.
_DPKG_LIST = "/var/lib/dpkg/info/{}.list"
HOOKS_INSTALLED = tuple(_DPKG_LIST.format(name) for name in PACKAGES[:2])
RUNTIME: Mapping[str, Any] = {"nvidia": {"path": "nvidia-container-runtime", "args": []}}


@dataclass(frozen=True)
class EngineRule:
    """Engine settings with which containers keep their GPUs, from an engine version on.

    ``systemctl daemon-reload`` removes devices that a container got from the nvidia runtime without
    the engine (NVIDIA/nvidia-container-toolkit#48). The engine manages devices that come by CDI, so
    these remain.
    """

    since: tuple[int, int]
    settings: Mapping[str, Any]
    why: str


CDI_SINCE = (25, 0)

# Newest first. Sources: moby/moby 4cecce03f6 (CDI on by default from 28.2 on), Docker's
# reference of daemon.json (features.cdi), NVIDIA's troubleshooting page (cgroupfs).
ENGINE_RULES = (
    EngineRule(
        CDI_SINCE,
        {"features": {"cdi": True}},
        "CDI must be enabled before 28.2, and may have been disabled later",
    ),
    EngineRule(
        (0, 0),
        {"exec-opts": ["native.cgroupdriver=cgroupfs"]},
        "the engine has no CDI, so systemd must not manage the devices of containers",
    ),
)


def parse(version: str) -> tuple[int, ...] | None:
    """Return a toolkit version such as ``1.20.1`` as numbers, None for other text."""
    # YAML reads 1.20 as a number.
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(version))
    return tuple(int(part) for part in match.groups()) if match else None


def engine_version(facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return major and minor version of the installed engine, None without one."""
    match = re.match(r"(?:\d+:)?(\d+)\.(\d+)", facts.get("docker_version", ""))
    return (int(match[1]), int(match[2])) if match else None


def has_cdi(facts: Mapping[str, Any]) -> bool:
    """Return whether containers get GPUs by CDI; true if no engine is installed yet."""
    version = engine_version(facts)
    return version is None or version >= CDI_SINCE


def engine_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of daemon.json for GPU access on this host, none on a host without GPUs.

    FACTS is ``ansible_facts['slipway']``. The nvidia runtime is not the default runtime: with it,
    every image could request all GPUs by an environment variable.
    """
    if not host.has_gpu(facts):
        return {}
    version = engine_version(facts)
    rule = next((rule for rule in ENGINE_RULES if version and version >= rule.since), None)
    return {"runtimes": dict(RUNTIME), **(rule.settings if rule else {})}


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether the toolkit is ``needed``, the ``key_url`` and the ``owned`` state.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the role's options. Unsupported settings are in
    ``owned['refused']``.
    """
    version = options["nvidia_container_toolkit_version"]
    repository = options["nvidia_container_toolkit_repository"]
    hold = options["nvidia_container_toolkit_hold"]
    if options["nvidia_container_toolkit_state"] == "absent":
        return {"needed": False, "key_url": "", "owned": _removal()}
    if not host.has_gpu(facts):
        return {"needed": False, "key_url": "", "owned": {"refused": []}}
    number = parse(version)
    error = _version_error(version, number)
    if number is None or error:
        return {"needed": True, "key_url": "", "owned": {"refused": [error]}}
    packages = [{"name": name, "version": version + REVISION, "hold": hold} for name in PACKAGES]
    variable_name = "nvidia_container_toolkit_version"
    sources_file = _sources(facts, repository)
    owned = {
        "refused": [
            *apt_sources.mixed_files(facts, sources_file),
            *(
                ()
                if options["nvidia_container_toolkit_upgrade"]
                else find_declared_again(facts, packages, variable_name)
            ),
        ],
        "keyrings": [{"path": KEYRING, "fingerprint": repository["fingerprint"]}],
        "files": [
            *apt_sources.replaced_files(facts, sources_file),
            sources_file,
            {"path": PREFERENCES, "content": _preferences(version)},
            {"path": UNATTENDED, "content": _unattended()}
            if hold
            else {"path": UNATTENDED, "state": "absent"},
            *_stale(),
        ],
        "packages": packages,
        "obstacles": [{"path": TOOLKIT_CONFIG, "holds": NO_CGROUPS, "why": WITHOUT_CGROUPS}],
        **(_refresh_state(facts) if number >= FIRST_WITH_CDI_REFRESH else NO_REFRESH),
    }
    return {"needed": True, "key_url": repository["key_url"], "owned": owned}


def _refresh_state(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the units that keep the CDI specification current, and the specification itself."""
    units = [
        {
            "name": f"nvidia-cdi-refresh.{suffix}",
            "enabled": True,
            # The packages of 1.18 and 1.19 install the units there.
            "unit_files": [f"/etc/systemd/system/nvidia-cdi-refresh.{suffix}"],
            **more,
        }
        for suffix, more in (("path", {"active": True}), ("service", {}))
    ]
    specification = {
        "path": CDI_SPECIFICATION,
        "required": True,
        "since": [
            f"/lib/modules/{facts['kernel']}/modules.dep",
            HOOKS_INSTALLED[1],
            LOADED_VERSION,
        ],
        "holds": CDI_KIND,
        "alone_in": list(CDI_FOLDERS),
    }
    return {"units": units, "derived": [specification] if host.loaded(facts) else []}


def _version_error(version: str, number: tuple[int, ...] | None) -> str:
    if number is None:
        return (
            f"nvidia_container_toolkit_version is {version!r}; expected a version such as 1.20.1. "
            "Change the version, in quotes"
        )
    if number < MINIMUM_VERSION:
        minimum = ".".join(str(part) for part in MINIMUM_VERSION)
        return (
            f"nvidia_container_toolkit_version is {version}; expected at least {minimum}: with "
            "older versions a container can take over the host (CVE-2025-23266, CVE-2025-23267). "
            "Change the version"
        )
    return ""


def _sources(facts: Mapping[str, Any], repository: Mapping[str, str]) -> dict[str, str]:
    architecture = apt_sources.ARCHITECTURES.get(facts["architecture"], "amd64")
    url = repository["url"].replace("{architecture}", architecture)
    content = f"{WRITTEN_BY}Types: deb\nURIs: {url}\nSuites: /\nSigned-By: {KEYRING}\n"
    return {"path": SOURCES, "content": content}


def _preferences(version: str) -> str:
    """Return apt preferences that pin all four packages to one version.

    The archive of Ubuntu 26.04 has other versions of two of these packages.
    """
    return (
        f"{WRITTEN_BY}Package: {' '.join(PACKAGES)}\n"
        f"Pin: version {version}{REVISION}\nPin-Priority: 1001\n"
    )


def _unattended() -> str:
    return (
        "// Written by Slipway's role nvidia_container_toolkit.\n"
        "Unattended-Upgrade::Package-Blacklist {\n"
        '    "nvidia-container-";\n    "libnvidia-container";\n};\n'
    )


def _stale() -> list[dict[str, Any]]:
    lists = [f"/etc/apt/sources.list.d/{name}" for name in STALE_LISTS]
    return [{"path": path, "state": "absent"} for path in (*lists, STALE_SPECIFICATION)]


def _removal() -> dict[str, Any]:
    paths = (SOURCES, PREFERENCES, UNATTENDED, KEYRING, CDI_SPECIFICATION, SETTINGS)
    return {
        "refused": [],
        "files": [*({"path": path, "state": "absent"} for path in paths), *_stale()],
        "packages": [{"name": name, "state": "absent"} for name in PACKAGES],
    }
