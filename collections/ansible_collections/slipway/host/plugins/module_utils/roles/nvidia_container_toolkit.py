# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The owned state of the role nvidia_container_toolkit, and what the engine must know of it.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import asked_again
from ansible_collections.slipway.host.plugins.module_utils.gpu import host

# From 1.18.0 on the four depend on each other by exact versions, and apt does not resolve a pinned
# one by itself (NVIDIA/nvidia-container-toolkit#1091): all four are named, or none.
PACKAGES = (
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container-tools",
    "libnvidia-container1",
)
REVISION = "-1"
# The oldest without CVE-2025-23266 and CVE-2025-23267, by which a container takes over the host.
FLOOR = (1, 17, 8)
# The first whose packages keep the CDI specification current by themselves.
REFRESHES_SINCE = (1, 18, 0)

KEYRING = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
SOURCES = "/etc/apt/sources.list.d/nvidia-container-toolkit.sources"
PREFERENCES = "/etc/apt/preferences.d/slipway-nvidia-container-toolkit.pref"
UNATTENDED = "/etc/apt/apt.conf.d/60slipway-nvidia-container-toolkit"
WRITTEN_BY = "# Written by Slipway's role nvidia_container_toolkit.\n"
# The same repository, trusted by another key file, is an error that stops apt altogether.
STALE_LISTS = (
    "libnvidia-container.list",
    "nvidia-container-runtime.list",
    "nvidia-container-toolkit.list",
    "nvidia-docker.list",
)
# The specification that the package's units write anew at each boot and for each driver, and one
# that somebody wrote by hand once: both are read, and an old one breaks every container.
CDI_SPECIFICATION = "/var/run/cdi/nvidia.yaml"
STALE_SPECIFICATION = "/etc/cdi/nvidia.yaml"
SETTINGS = "/etc/nvidia-container-runtime"

# dpkg writes these whenever it installs the package; files in packages keep the time of their
# build. The engine looks for the hooks of the first two when it starts.
_DPKG_LIST = "/var/lib/dpkg/info/{}.list"
HOOKS_INSTALLED = tuple(_DPKG_LIST.format(name) for name in PACKAGES[:2])
RUNTIME: Mapping[str, Any] = {"nvidia": {"path": "nvidia-container-runtime", "args": []}}


@dataclass(frozen=True)
class EngineRule:
    """How containers keep their GPUs on engines from a version on.

    ``systemctl daemon-reload`` takes the devices from a container that got them behind the
    engine's back (NVIDIA/nvidia-container-toolkit#48). Those that come by CDI are known to the
    engine and stay.
    """

    since: tuple[int, int]
    settings: Mapping[str, Any]
    why: str


CDI_SINCE = (25, 0)

# The newest first. Sources: moby/moby 4cecce03f6 (CDI on by default from 28.2 on), Docker's
# reference of daemon.json (features.cdi), NVIDIA's troubleshooting page (cgroupfs).
ENGINE_RULES = (
    EngineRule(
        CDI_SINCE,
        {"features": {"cdi": True}},
        "CDI has to be switched on, and from 28.2 on somebody may have switched it off",
    ),
    EngineRule(
        (0, 0),
        {"exec-opts": ["native.cgroupdriver=cgroupfs"]},
        "there is no CDI: systemd must not manage the containers' devices",
    ),
)


def parse(version: str) -> tuple[int, ...] | None:
    """Return a toolkit version such as ``1.20.1`` as numbers, None where it is none."""
    # YAML takes 1.20 for a number.
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(version))
    return tuple(int(part) for part in match.groups()) if match else None


def engine_version(facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return major and minor version of the installed engine, None where none is installed."""
    match = re.match(r"(?:\d+:)?(\d+)\.(\d+)", facts.get("docker_version", ""))
    return (int(match[1]), int(match[2])) if match else None


def has_cdi(facts: Mapping[str, Any]) -> bool:
    """Whether containers get GPUs by CDI; so they will where no engine is installed yet."""
    version = engine_version(facts)
    return version is None or version >= CDI_SINCE


def engine_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of daemon.json with which containers get GPUs on this host, and keep them.

    FACTS is ``ansible_facts['slipway']``. Empty where no GPU is there. The nvidia runtime is not
    the default one: any image could then ask for all GPUs by a variable of its own.
    """
    if not host.has_gpu(facts):
        return {}
    version = engine_version(facts)
    rule = next((rule for rule in ENGINE_RULES if version and version >= rule.since), None)
    return {"runtimes": dict(RUNTIME), **(rule.settings if rule else {})}


def plan(
    facts: Mapping[str, Any],
    version: str,
    repository: Mapping[str, str],
    hold: bool,
    state: str,
    upgrade: bool = False,
) -> dict[str, Any]:
    """Return whether the toolkit is ``needed``, the ``key_url`` and the ``owned`` state.

    FACTS is ``ansible_facts['slipway']``; the others are the role's variables of the same names.
    What cannot work stands in ``owned['refused']``.
    """
    if state == "absent":
        return {"needed": False, "key_url": "", "owned": _removal()}
    if not host.has_gpu(facts):
        return {"needed": False, "key_url": "", "owned": {"refused": []}}
    number = parse(version)
    refusal = _refusal(version, number)
    if number is None or refusal:
        return {"needed": True, "key_url": "", "owned": {"refused": [refusal]}}
    refreshes = number >= REFRESHES_SINCE
    packages = [{"name": name, "version": version + REVISION, "hold": hold} for name in PACKAGES]
    variables = "nvidia_container_toolkit_version"
    owned = {
        "refused": [] if upgrade else asked_again(facts, packages, variables),
        "keyrings": [{"path": KEYRING, "fingerprint": repository["fingerprint"]}],
        "files": [
            {"path": SOURCES, "content": _sources(facts, repository)},
            {"path": PREFERENCES, "content": _preferences(version)},
            {"path": UNATTENDED, "content": _unattended()}
            if hold
            else {"path": UNATTENDED, "state": "absent"},
            *_stale(),
        ],
        "packages": packages,
        "units": [
            {"name": f"nvidia-cdi-refresh.{suffix}", "enabled": True, **more}
            for suffix, more in (("path", {"active": True}), ("service", {}))
            if refreshes
        ],
        "derived": [
            {
                "path": CDI_SPECIFICATION,
                "required": True,
                "since": [f"/lib/modules/{facts['kernel']}/modules.dep", HOOKS_INSTALLED[1]],
            }
        ]
        if refreshes and host.loaded(facts)
        else [],
    }
    return {"needed": True, "key_url": repository["key_url"], "owned": owned}


def _refusal(version: str, number: tuple[int, ...] | None) -> str:
    if number is None:
        return f"nvidia_container_toolkit_version is {version!r}, which is no version like 1.20.1"
    if number < FLOOR:
        floor = ".".join(str(part) for part in FLOOR)
        return (
            f"nvidia_container_toolkit_version is {version}, but versions before {floor} let a "
            "container take over the host (CVE-2025-23266, CVE-2025-23267)"
        )
    return ""


def _sources(facts: Mapping[str, Any], repository: Mapping[str, str]) -> str:
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(facts["architecture"], "amd64")
    url = repository["url"].replace("{architecture}", architecture)
    return f"{WRITTEN_BY}Types: deb\nURIs: {url}\nSuites: /\nSigned-By: {KEYRING}\n"


def _preferences(version: str) -> str:
    """Return apt preferences that keep the four at one version, wherever else some of them are.

    Ubuntu 26.04 has two of them as well, of another version.
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
