# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of an export: one function for each tool, from hosts to text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from ansible_collections.slipway.host.plugins.plugin_utils.export.hosts import (
    ExportError,
    Host,
    Selection,
)

SSH_PORT = 22
# dstack has the narrowest rule for the name of a group of hosts.
GROUP_NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")
# Docker Compose accepts these names of services.
SERVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LIMIT = "Change the inventory, or limit the export with --limit."
GPUSTACK_WORKER = "gpustack-worker"


@dataclass(frozen=True)
class Options:
    """``name``: of the pool, fleet or cluster. ``port``: of node_exporter."""

    name: str = "slipway"
    port: int = 9100


def _comment(target: str, notes: Iterable[str]) -> str:
    first = f"Made by ./slipway export {target}. After a change of the inventory, run it again."
    return "".join(f"# {line}\n" for line in (first, *notes))


def _yaml(target: str, notes: Iterable[str], data: Mapping[str, Any]) -> str:
    # A low width would break long paths into several lines.
    text = yaml.safe_dump(data, sort_keys=False, width=4096, allow_unicode=True)
    return _comment(target, notes) + text


def _present(**values: Any) -> dict[str, Any]:
    """Return the values that are not empty."""
    return {key: value for key, value in values.items() if value}


def ssh_config(selection: Selection, _options: Options) -> str:
    """Return a configuration of OpenSSH."""
    blocks = [_comment("ssh-config", selection.notes)]
    for host in selection.hosts:
        lines = [f"Host {host.name}"]
        lines += [f"# {host.gpus.text}"] if host.gpus else []
        lines += [f"# unreachable in the run of {host.unreachable}"] if host.unreachable else []
        lines += [f"HostName {host.address}"]
        lines += [f"Port {host.port}"] if host.port else []
        lines += [f"User {host.user}"] if host.user else []
        lines += [f'IdentityFile "{host.key}"'] if host.key else []
        lines += [f"{name} {value}" for name, value in host.options]
        if any(jump.key for jump in host.jumps):
            lines += [f"ProxyCommand {host.jumps[0].command}"]
        elif host.jumps:
            lines += [f"ProxyJump {','.join(jump.target for jump in host.jumps)}"]
        blocks.append("\n    ".join(lines) + "\n")
    return "\n".join(blocks)


def skypilot(selection: Selection, options: Options) -> str:
    """Return ``~/.sky/ssh_node_pools.yaml``; the first host becomes the head of the pool."""
    notes, errors = list(selection.notes), []
    entries: list[dict[str, Any] | str] = []
    for host in selection.hosts:
        if host.jumps or host.port not in (0, SSH_PORT):
            entries.append(host.name)
            notes.append(
                f"SkyPilot reads port, key and jump host of {host.name} from ~/.ssh/config: add "
                "the output of ./slipway export ssh-config there"
            )
        elif host.user:
            entries.append(_present(ip=host.address, user=host.user, identity_file=host.key))
        else:
            errors.append(f"{host.name}: ansible_user: not set; expected a user. {LIMIT}")
    if errors:
        raise ExportError(*errors)
    return _yaml("skypilot", notes, {options.name: {"hosts": entries}})


def _single_jump(host: Host, tool: str) -> None:
    if len(host.jumps) > 1:
        raise ExportError(
            f"{host.name}: {len(host.jumps)} jump hosts; expected at most one for {tool}. {LIMIT}"
        )


def _collect(hosts: Sequence[Host], read: Callable[[Host], Any]) -> list[Any]:
    """Return the result for each host; raise ExportError with the sentences of all hosts."""
    found: list[Any] = []
    errors: list[str] = []
    for host in hosts:
        try:
            found.append(read(host))
        except ExportError as error:
            errors += error.sentences
    if errors:
        raise ExportError(*errors)
    return found


def dstack(selection: Selection, options: Options) -> str:
    """Return the configuration of an SSH fleet of dstack."""
    hosts = _collect(selection.hosts, _dstack_host)
    data = {"type": "fleet", "name": options.name, "ssh_config": {"hosts": hosts}}
    return _yaml("dstack", selection.notes, data)


def _dstack_host(host: Host) -> dict[str, Any]:
    _single_jump(host, "dstack")
    for variable, value in (("user", host.user), ("ssh_private_key_file", host.key)):
        if not value:
            raise ExportError(
                f"{host.name}: ansible_{variable}: not set; expected a value for dstack. {LIMIT}"
            )
    proxy = {}
    for jump in host.jumps:
        if not jump.user:
            raise ExportError(
                f"{host.name}: jump host {jump.host} without a user; expected USER@HOST for "
                f"dstack. {LIMIT}"
            )
        proxy = _present(
            hostname=jump.host, port=jump.port, user=jump.user, identity_file=jump.key or host.key
        )
    return _present(
        hostname=host.address,
        port=host.port,
        user=host.user,
        identity_file=host.key,
        proxy_jump=proxy,
    )


def ray(selection: Selection, options: Options) -> str:
    """Return a file of the Ray cluster launcher; the first host becomes the head."""
    head, *workers = selection.hosts
    auth = _ray_auth(head)

    def address(host: Host) -> str:
        other = _ray_auth(host)
        if other != auth:
            different = ", ".join(
                key for key in {**auth, **other} if auth.get(key) != other.get(key)
            )
            raise ExportError(
                f"{host.name}: {different} differs from {head.name}; expected the same user, key "
                f"and jump host for all hosts of Ray. {LIMIT}"
            )
        return host.address

    addresses = _collect(workers, address)
    has_gpus = any(host.gpus is None or host.gpus.models for host in selection.hosts)
    data = {
        "cluster_name": options.name,
        "max_workers": len(workers),
        "provider": {"type": "local", "head_ip": head.address, "worker_ips": addresses},
        "auth": auth,
        "docker": {
            "image": f"rayproject/ray:latest{'-gpu' * has_gpus}",
            "container_name": "ray_container",
            "pull_before_run": True,
        },
    }
    return _yaml("ray", selection.notes, data)


def _ray_auth(host: Host) -> dict[str, str]:
    _single_jump(host, "Ray")
    if not host.user or host.port not in (0, SSH_PORT):
        found = f"ansible_port: {host.port}" if host.user else "ansible_user: not set"
        raise ExportError(f"{host.name}: {found}; expected a user and port 22 for Ray. {LIMIT}")
    proxy = host.jumps[0].command if host.jumps else ""
    return _present(ssh_user=host.user, ssh_private_key=host.key, ssh_proxy_command=proxy)


def gpustack(selection: Selection, _options: Options) -> str:
    """Return a file of Docker Compose with a GPUStack worker for each host."""
    services = dict(_collect(selection.hosts, _gpustack_service))
    volumes = {"gpustack-data": {"name": "gpustack-data"}}
    notes = [
        *selection.notes,
        "Start one service on each host, the one with its name.",
        "GPUSTACK_TOKEN, GPUSTACK_SERVER_URL and GPUSTACK_VERSION are from the GPUStack server.",
    ]
    data = {"name": "gpustack", "services": services, "volumes": volumes}
    return _yaml("gpustack", notes, data)


def _gpustack_service(host: Host) -> tuple[str, dict[str, Any]]:
    if not SERVICE_NAME.fullmatch(host.name):
        raise ExportError(
            f"{host.name}: name of the host; expected a name of a service of Docker Compose: "
            "letters, digits and the characters . _ -. Rename the host, or leave it out with "
            "--limit."
        )
    variable = "${%s:?expected the value of the GPUStack server}"
    has_gpus = host.gpus is None or host.gpus.models
    return host.name, {
        "image": f"gpustack/gpustack:{variable % 'GPUSTACK_VERSION'}",
        "container_name": GPUSTACK_WORKER,
        # Without its name, no command starts a service: each one is for another host.
        "profiles": ["worker"],
        "restart": "unless-stopped",
        "privileged": True,
        "network_mode": "host",
        **({"runtime": "nvidia"} if has_gpus else {}),
        "environment": {
            "GPUSTACK_RUNTIME_DEPLOY_MIRRORED_NAME": GPUSTACK_WORKER,
            "GPUSTACK_TOKEN": variable % "GPUSTACK_TOKEN",
            "GPUSTACK_SERVER_URL": variable % "GPUSTACK_SERVER_URL",
            "GPUSTACK_WORKER_NAME": host.name,
        },
        "volumes": [
            "/var/run/docker.sock:/var/run/docker.sock",
            "gpustack-data:/var/lib/gpustack",
        ],
    }


def prometheus(selection: Selection, options: Options) -> str:
    """Return targets of node_exporter for the ``file_sd_configs`` of Prometheus."""
    groups = []
    for host in selection.hosts:
        address = f"[{host.address}]" if ":" in host.address else host.address
        labels = {"instance": host.name}
        if host.gpus:
            labels["gpus"] = str(len(host.gpus.models))
            labels |= _present(gpu_model=", ".join(dict.fromkeys(host.gpus.models)))
        groups.append({"targets": [f"{address}:{options.port}"], "labels": labels})
    return json.dumps(groups, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Target:
    """A tool: its file, and whether hosts that the last run did not reach are in it."""

    render: Callable[[Selection, Options], str]
    with_unreachable: bool = False


TARGETS: dict[str, Target] = {
    "ssh-config": Target(ssh_config, with_unreachable=True),
    "skypilot": Target(skypilot),
    "dstack": Target(dstack),
    "ray": Target(ray),
    "gpustack": Target(gpustack),
    "prometheus": Target(prometheus, with_unreachable=True),
}
