# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rootless engines: Docker Engines that run with the rights of one user.

All files of root for these engines are in /etc. One unit for all users starts the engine of each
user with a configuration in /etc/slipway/rootless. Only the user writes into the home folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json

FOLDER = "/etc/slipway/rootless"
UNIT = "/etc/systemd/user/docker.service"
WANTED = "/etc/systemd/user/default.target.d/slipway-docker.conf"
# The folders of CDI specifications must exist before the first engine starts, also after a boot.
CDI_FOLDERS = ("/etc/cdi", "/run/cdi")
TMPFILES = "/etc/tmpfiles.d/slipway-cdi.conf"
TMPFILES_TEXT = f"""\
# Written by Slipway's role user_access.
d {CDI_FOLDERS[1]} 0755 root root -
"""
# PATH of the unit finds this script before the dockerd program.
DOCKERD = "/usr/local/libexec/slipway/dockerd"
DOCKERD_TEXT = f"""\
#!/bin/sh
# Written by Slipway's role user_access. Runs as root of a user namespace, in which RootlessKit has
# replaced the entries of /etc and /run by links. Engines such as 26.1 do not follow links to find
# CDI specifications.
set -eu
PATH=/usr/bin:/usr/sbin:/bin:/sbin
for folder in {" ".join(CDI_FOLDERS)}; do
    test -L "$folder" || continue
    real=$(readlink --canonicalize "$folder")
    rm "$folder"
    mkdir "$folder"
    mount --rbind "$real" "$folder"
done
exec dockerd "$@"
"""
CONTEXT = "rootless"

# Number of IDs that newuidmap maps into a user's containers, and the first ID that Debian's useradd
# assigns.
SUBORDINATE_IDS = 65536
FIRST_SUBORDINATE_ID = 100000

# slirp4netns gives containers a network, dbus-user-session lets systemd manage their cgroups.
PACKAGES = ("uidmap", "slirp4netns", "dbus-user-session")
# Packages with dockerd-rootless.sh and RootlessKit, by the package of the engine.
ENGINE_PACKAGES = {"docker-ce": ("docker-ce-rootless-extras",), "docker.io": ("rootlesskit",)}

UNIT_TEXT = f"""\
# Written by Slipway's role user_access.
[Unit]
Description=Docker Engine of %u (rootless)
Documentation=https://docs.docker.com/go/rootless/
ConditionPathExists={FOLDER}/%u.json
StartLimitBurst=3
StartLimitIntervalSec=60s

[Service]
# dockerd-rootless.sh is in contrib with Debian's docker.io, in /usr/bin with docker-ce.
Environment=PATH={DOCKERD.rpartition("/")[0]}:/usr/share/docker.io/contrib:/usr/bin:/usr/sbin:/bin:/sbin
# A daemon.json of the user has priority.
ExecStart=/bin/sh -c 'own="$${{HOME}}/.config/docker/daemon.json"; \\
  test -e "$$own" || own={FOLDER}/%u.json; exec dockerd-rootless.sh --config-file="$$own"'
ExecReload=/bin/kill -s HUP $MAINPID
TimeoutStartSec=180
RestartSec=2
Restart=always
LimitNOFILE=infinity
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
Delegate=yes
Type=notify
NotifyAccess=all
KillMode=mixed

[Install]
WantedBy=default.target
"""
WANTED_TEXT = f"""\
# Written by Slipway's role user_access.
[Unit]
Wants={UNIT.rpartition("/")[2]}
"""

FILES: Mapping[str, Mapping[str, str]] = {
    UNIT: {"content": UNIT_TEXT},
    WANTED: {"content": WANTED_TEXT},
    TMPFILES: {"content": TMPFILES_TEXT},
    DOCKERD: {"content": DOCKERD_TEXT, "mode": "0755"},
}

# Kernel settings that forbid user namespaces, which a rootless engine needs.
OBSTACLES = (
    {
        "path": "/proc/sys/user/max_user_namespaces",
        "holds": r"\A0\s*\Z",
        "why": "'docker: rootless' needs user namespaces; this host allows none. Set sysctl "
        "user.max_user_namespaces, or remove 'docker: rootless'",
    },
    {
        "path": "/proc/sys/kernel/unprivileged_userns_clone",
        "holds": r"\A0\s*\Z",
        "why": "'docker: rootless' needs user namespaces; this host allows them only for root. Set "
        "sysctl kernel.unprivileged_userns_clone=1, or remove 'docker: rootless'",
    },
)


@dataclass(frozen=True)
class State:
    """State of a user's engine; ``began`` is the time when it began to answer, 0 if it does not."""

    lingers: bool
    uids: int
    gids: int
    context: str
    began: float


def config_file(user: str) -> str:
    """Return the path of the configuration of a user's engine; the engine starts if it exists."""
    return f"{FOLDER}/{user}.json"


def socket(uid: int) -> str:
    """Return the address of a user's engine."""
    return f"unix:///run/user/{uid}/docker.sock"


def packages(docker_package: str) -> list[str]:
    """Return the packages that rootless engines need in addition to DOCKER_PACKAGE."""
    return [*PACKAGES, *ENGINE_PACKAGES.get(docker_package, ())]


def differences(state: State, uid: int) -> Iterator[tuple[str, str]]:
    """Yield the found and the expected value of each difference of a user's engine."""
    for kind, count in (("uids", state.uids), ("gids", state.gids)):
        if count < SUBORDINATE_IDS:
            yield f"{count} subordinate {kind}", f"{SUBORDINATE_IDS}"
    if not state.lingers:
        yield "ends with the user's last session", "lingering"
    if not state.began:
        yield "the engine does not answer", "an engine that answers"
    if state.context != socket(uid):
        yield f"docker context {CONTEXT} is {state.context or 'missing'}", socket(uid)


def free_range(texts: Sequence[str]) -> tuple[int, int]:
    """Return the first and the last ID of a range that is unused in /etc/subuid and /etc/subgid."""
    ends = [FIRST_SUBORDINATE_ID]
    for line in "\n".join(texts).splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ends.append(int(fields[1]) + int(fields[2]))
    return max(ends), max(ends) + SUBORDINATE_IDS - 1


def engine_settings(for_rootful: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a user's engine.

    FOR_ROOTFUL are the settings by which containers of the host's engine use GPUs. Of these, only
    CDI works here too: the nvidia runtime would need a setting that breaks it for the host's
    engine.
    """
    cdi = {key: for_rootful[key] for key in ("features",) if key in for_rootful}
    return daemon_json.merge(cdi, settings)


def as_user(name: str, home: str, uid: int, command: Sequence[str]) -> list[str]:
    """Return the command line by which root runs COMMAND as a user, in a clean environment."""
    environment = {
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "XDG_RUNTIME_DIR": f"/run/user/{uid}",
    }
    assignments = [f"{key}={value}" for key, value in environment.items()]
    return ["runuser", "-u", name, "--", "env", "-i", *assignments, *command]
