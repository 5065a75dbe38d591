# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines that run as the user whose they are: what they stand on, and how one is set up.

Everything that root owns for them lies in /etc: one unit for all, which starts for whoever has a
configuration in /etc/slipway/rootless. Nothing is written into a home but by its owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import daemon_json

FOLDER = "/etc/slipway/rootless"
UNIT = "/etc/systemd/user/docker.service"
WANTED = "/etc/systemd/user/default.target.d/slipway-docker.conf"
# The folders of CDI specifications are there before the first engine starts, also after a boot.
CDI_FOLDERS = ("/etc/cdi", "/run/cdi")
TMPFILES = "/etc/tmpfiles.d/slipway-cdi.conf"
TMPFILES_TEXT = f"""\
# Written by Slipway's role user_access.
d {CDI_FOLDERS[1]} 0755 root root -
"""
# Found before the engine's own by the script that starts it.
DOCKERD = "/usr/local/libexec/slipway/dockerd"
DOCKERD_TEXT = f"""\
#!/bin/sh
# Written by Slipway's role user_access. Runs as the root of a user's namespace, where RootlessKit
# has put links in the place of all that is in /etc and /run. Engines such as 26.1 look for CDI
# specifications in folders, not behind links.
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

# What newuidmap maps into a user's containers, and where Debian's useradd begins to hand it out.
SUBORDINATE_IDS = 65536
FIRST_SUBORDINATE_ID = 100000

# slirp4netns gives containers a network, dbus-user-session lets systemd manage their cgroups.
PACKAGES = ("uidmap", "slirp4netns", "dbus-user-session")
# What holds dockerd-rootless.sh and RootlessKit, by the package of the engine.
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
# Debian's docker.io keeps dockerd-rootless.sh in contrib, docker-ce in /usr/bin.
Environment=PATH={DOCKERD.rpartition("/")[0]}:/usr/share/docker.io/contrib:/usr/bin:/usr/sbin:/bin:/sbin
# Whoever has a daemon.json of their own goes by that one.
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

# Kernel settings without which no user can have namespaces, and so no engine.
OBSTACLES = (
    {
        "path": "/proc/sys/user/max_user_namespaces",
        "holds": "0",
        "why": "'docker: rootless' needs user namespaces, of which this host allows none; set "
        "sysctl user.max_user_namespaces, or do without 'docker: rootless'",
    },
    {
        "path": "/proc/sys/kernel/unprivileged_userns_clone",
        "holds": "0",
        "why": "'docker: rootless' needs user namespaces, which this host allows to root alone; "
        "set sysctl kernel.unprivileged_userns_clone=1, or do without 'docker: rootless'",
    },
)


@dataclass(frozen=True)
class State:
    """What the probe finds of a user's engine; BEGAN is when it began to answer, 0 for never."""

    lingers: bool
    uids: int
    gids: int
    context: str
    began: float


def config_file(user: str) -> str:
    """Return where the configuration of a user's engine is; its being there makes it start."""
    return f"{FOLDER}/{user}.json"


def socket(uid: int) -> str:
    """Return the address of a user's engine."""
    return f"unix:///run/user/{uid}/docker.sock"


def packages(docker_package: str) -> list[str]:
    """Return what rootless engines need beside the engine of DOCKER_PACKAGE."""
    return [*PACKAGES, *ENGINE_PACKAGES.get(docker_package, ())]


def differences(state: State, uid: int) -> Iterator[tuple[str, str]]:
    """Yield what a user's engine lacks: what was found, and what was expected."""
    for what, count in (("uids", state.uids), ("gids", state.gids)):
        if count < SUBORDINATE_IDS:
            yield f"{count} subordinate {what}", f"{SUBORDINATE_IDS}"
    if not state.lingers:
        yield "ends with the user's last session", "lingering"
    if not state.began:
        yield "no engine answers", "one that answers"
    if state.context != socket(uid):
        yield f"docker context {CONTEXT} is {state.context or 'missing'}", socket(uid)


def free_range(texts: Sequence[str]) -> tuple[int, int]:
    """Return first and last of subordinate ids that nobody has in /etc/subuid and /etc/subgid."""
    taken = [FIRST_SUBORDINATE_ID]
    for line in "\n".join(texts).splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            taken.append(int(fields[1]) + int(fields[2]))
    return max(taken), max(taken) + SUBORDINATE_IDS - 1


def engine_settings(for_rootful: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a user's engine.

    FOR_ROOTFUL is what containers of the host's own engine need to have GPUs. Of that, CDI serves
    here as well; the nvidia runtime would need a setting that breaks it for everybody else.
    """
    cdi = {key: for_rootful[key] for key in ("features",) if key in for_rootful}
    return daemon_json.merge(cdi, settings)


def as_user(name: str, home: str, uid: int, command: Sequence[str]) -> list[str]:
    """Return the command line by which root lets a user run COMMAND in a clean environment."""
    environment = {
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
        "XDG_RUNTIME_DIR": f"/run/user/{uid}",
    }
    words = [f"{key}={value}" for key, value in environment.items()]
    return ["runuser", "-u", name, "--", "env", "-i", *words, *command]
