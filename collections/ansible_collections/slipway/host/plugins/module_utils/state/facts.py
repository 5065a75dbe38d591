# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of a host that owned state depends on."""

from __future__ import annotations

import json
import os

from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apt_sources,
    packages,
    reading,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

UPGRADE_RECORD = "/var/lib/slipway/upgrade/record.json"
METRICS_RECORD = "/var/lib/slipway/metrics.json"
SLURM_RECORD = "/var/lib/slipway/slurm"
SLURMDBD_RECORD, SLURMDBD_CONFIG = "/var/lib/slipway/slurmdbd", "/etc/slurm/slurmdbd.conf"
DOOR_DROP_IN = "/etc/systemd/system/caddy.service.d/slipway.conf"
CADDYFILE = "/etc/caddy/Caddyfile"
CERTIFICATES = "/etc/docker/certs.d"
# The settings in the file of the package.
PACKAGED_CADDYFILE = ("", ":80 {", "root * /usr/share/caddy", "file_server", "}")


def _read_rollback() -> tuple[Json, bool]:
    """Return what the last rollback changed, and whether it was interrupted.

    See apt.package_record; a broken record counts as none.
    """
    try:
        record = json.loads(reading.read_file(UPGRADE_RECORD) or b"{}")
        left = record.get("left", {})
    except (ValueError, AttributeError):
        return {}, False
    return (left if isinstance(left, dict) else {}), record.get("state") == "rolling back"


def read_metrics_record(path: str = METRICS_RECORD) -> list[str]:
    """Return the files of metrics that the host has; a broken record counts as none."""
    try:
        paths = json.loads(reading.read_file(path) or b"[]")
    except ValueError:
        return []
    known = isinstance(paths, list) and all(isinstance(one, str) for one in paths)
    return sorted(set(paths)) if known else []


def read_front_door(drop_in: str = DOOR_DROP_IN, caddyfile: str = CADDYFILE) -> str:
    """Return who configures Caddy: ``managed`` by Slipway, ``foreign``, or empty for nobody."""
    if os.path.exists(drop_in):
        return "managed"
    lines = (reading.read_file(caddyfile) or b"").decode("utf-8", "replace").splitlines()
    settings = (line.strip() for line in lines if not line.lstrip().startswith("#"))
    return "" if all(line in PACKAGED_CADDYFILE for line in settings) else "foreign"


def read_slurmdbd(record: str = SLURMDBD_RECORD, config: str = SLURMDBD_CONFIG) -> str:
    """Return who configures slurmdbd: ``managed`` if Slipway does, ``foreign``, or empty."""
    if os.path.isdir(record):
        return "managed"
    return "foreign" if os.path.lexists(config) else ""


def read_registry_certificates(folder: str = CERTIFICATES) -> list[str]:
    """Return the servers for which the host has a file of certificates of the role ml_images."""
    try:
        servers = sorted(os.listdir(folder))
    except OSError:
        return []
    return [server for server in servers if os.path.lexists(f"{folder}/{server}/slipway.crt")]


def ask_facts(reach: list[str], timeout: float = 5) -> Json:
    """Return the facts of the host.

    If no engine is installed, ``reachable`` says for each URL of REACH whether a server answers
    within TIMEOUT seconds; ``{distribution}`` in a URL stands for ``debian`` or ``ubuntu``.
    """
    facts = ask_host()
    if not facts["docker_package"]:
        distribution = facts["distribution"].lower()
        urls = [url.replace("{distribution}", distribution) for url in reach]
        facts["reachable"] = ask_reachable(urls, timeout)
    return facts


def read_swarm() -> bool:
    """Return whether the engine of the host is part of a swarm."""
    try:
        root = json.loads(reading.read_file("/etc/docker/daemon.json") or b"{}").get("data-root")
    except (ValueError, AttributeError):
        root = None
    folder = root if isinstance(root, str) else "/var/lib/docker"
    return os.path.exists(f"{folder}/swarm/docker-state.json")


def ask_system(os_release: str = "/etc/os-release", proc: str = "/proc") -> Json:
    """Return distribution, architecture and running kernel, as Ansible's own facts name them.

    The arguments are paths: a simulated host and a copy of a host have the files elsewhere.
    """
    release: dict[str, str] = {}
    for line in (reading.read_file(os_release) or b"").decode("utf-8", "replace").splitlines():
        key, _separator, value = line.partition("=")
        release[key] = value.strip().strip("\"'")
    system = os.uname()
    version = release.get("VERSION_ID", "")
    # Debian's testing and unstable have no VERSION_ID; their base-files says trixie/sid or so.
    codename = release.get("VERSION_CODENAME", "")
    return {
        "distribution": {"debian": "Debian", "ubuntu": "Ubuntu"}.get(
            release.get("ID", ""), release.get("ID", "")
        ),
        "distribution_version": version or codename,
        "distribution_major_version": version.split(".")[0] or codename,
        "distribution_release": codename,
        "architecture": system.machine,
        "kernel": reading.read_word(f"{proc}/sys/kernel/osrelease") or system.release,
    }


def ask_host() -> Json:
    """Return the facts that need no network.

    The first ones are those of :func:`ask_system`. ``docker_package`` is the installed package of
    the engine (``docker-ce``, ``docker.io``) or empty, ``docker_version`` its version,
    ``docker_swarm`` whether the engine is part of a swarm, ``apt_sources`` what
    :func:`apt_sources.ask_sources` returns, ``gpu`` what :func:`gpu_facts.ask_gpus` returns,
    ``rolled_back`` the packages that the last rollback changed, ``rollback_interrupted`` whether
    it did not finish, ``metrics_files`` the paths of the files of metrics that roles wrote,
    ``slurm`` whether the role slurm manages the host, ``slurmdbd`` and ``front_door`` what
    :func:`read_slurmdbd` and :func:`read_front_door` return, ``registry_certificates`` what
    :func:`read_registry_certificates` returns.
    """
    installed = packages.ask_packages(["docker-ce", "docker.io"])
    rolled_back, interrupted = _read_rollback()
    docker_package = next(
        (
            name
            for name in ("docker-ce", "docker.io")
            if installed[name] and installed[name][1] == "installed"
        ),
        "",
    )
    return {
        **ask_system(),
        "docker_package": docker_package,
        "docker_version": installed[docker_package][2] if docker_package else "",
        "docker_swarm": bool(docker_package) and read_swarm(),
        "docker_snap": os.path.isdir("/snap/docker/current"),
        "systemd": os.path.isdir("/run/systemd/system"),
        "root": os.geteuid() == 0,
        "apt_sources": apt_sources.ask_sources(),
        "gpu": gpu_facts.ask_gpus(),
        "rolled_back": rolled_back,
        "rollback_interrupted": interrupted,
        "metrics_files": read_metrics_record(),
        "slurm": os.path.isdir(SLURM_RECORD),
        "slurmdbd": read_slurmdbd(),
        "front_door": read_front_door(),
        "registry_certificates": read_registry_certificates(),
    }


def ask_reachable(urls: list[str], timeout: float) -> Json:
    """Return for each URL whether a server answers at all within TIMEOUT seconds."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    found: Json = {}
    for url in urls:
        try:
            urlopen(url, timeout=timeout).close()
            found[url] = True
        except HTTPError as error:
            # A proxy that refuses answers 403 in the name of the server.
            found[url] = error.code not in (403, 407, 502, 503, 504)
        except (OSError, ValueError, HTTPException):
            found[url] = False
    return found
