# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find keys of daemon.json that the command line of dockerd in its systemd unit also sets.

Standard library only, for hosts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from ansible_collections.slipway.host.plugins.module_utils.docker.json_tree import Json

# Command line flags of dockerd whose key in daemon.json has another name (moby:
# daemon/command/config.go, config_unix.go and options.go).  --add-runtime is not among them:
# dockerd adds up the flags and the key "runtimes".
KEY_OF_FLAG: Mapping[str, str] = {
    "-D": "debug",
    "-G": "group",
    "-H": "hosts",
    "-b": "bridge",
    "-l": "log-level",
    "-p": "pidfile",
    "--authorization-plugin": "authorization-plugins",
    "--cdi-spec-dir": "cdi-spec-dirs",
    "--default-address-pool": "default-address-pools",
    "--default-network-opt": "default-network-opts",
    "--default-ulimit": "default-ulimits",
    "--dns-opt": "dns-opts",
    "--exec-opt": "exec-opts",
    "--feature": "features",
    "--host": "hosts",
    "--host-gateway-ip": "host-gateway-ips",
    "--insecure-registry": "insecure-registries",
    "--label": "labels",
    "--log-opt": "log-opts",
    "--node-generic-resource": "node-generic-resources",
    "--registry-mirror": "registry-mirrors",
    "--storage-opt": "storage-opts",
}


def list_environment_files(unit: str) -> list[str]:
    """Return the paths of the environment files that ``systemctl show`` printed."""
    return re.findall(r"(/\S+) \(ignore_errors=(?:yes|no)\)", unit)


def read_unit_flags(unit: str, environments: Sequence[str] = ()) -> dict[str, str]:
    """Return the daemon.json keys that a unit sets, each with its flag.

    ``unit`` is the output of ``systemctl show --property=ExecStart,Environment`` for
    docker.service, ``environments`` the texts of its environment files, which define variables such
    as ``$DOCKER_OPTS``.
    """
    command = re.search(r"argv\[\]=(.*?) ; ", unit)
    if command is None:
        return {}
    inline = re.search(r"^Environment=(.*)$", unit, re.MULTILINE)
    assignments = _split_words(inline[1]) if inline else []
    for environment in environments:
        assignments += (line.strip() for line in environment.splitlines())
    variables = {
        name: " ".join(_split_words(value))
        for name, equals, value in (line.partition("=") for line in assignments)
        if equals and not name.startswith(("#", ";"))
    }
    arguments: list[str] = []
    for word in _split_words(command[1]):
        variable = re.fullmatch(r"\$\{?(\w+)\}?", word)
        arguments += _split_words(variables.get(variable[1], "")) if variable else [word]
    flags = [_flag_name(word) for word in arguments if word.startswith("-")]
    return {KEY_OF_FLAG.get(flag, flag.lstrip("-")): flag for flag in flags}


def find_conflicts(data: Json, flags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the keys that both a file and a unit set, each with its flag.

    dockerd does not start with such a key; its ``--validate`` does not read the unit.
    """
    proxies = data.get("proxies")
    # dockerd looks into this object because its members are flags (moby: configValuesSet).
    names = {*data, *(proxies if isinstance(proxies, dict) else ())}
    return [(key, flag) for key, flag in flags.items() if key in names]


def _split_words(text: str) -> list[str]:
    """Return the words of a shell command; split at blanks if a quote is not closed."""
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _flag_name(word: str) -> str:
    """Return the flag in ``--label=a=b`` or ``-Hunix:///run/docker.sock``."""
    return word.partition("=")[0] if word.startswith("--") else word[:2]
