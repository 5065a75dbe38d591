# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipes of the base images that throwaway hosts run.

A base is bootstrapped from Debian's packages, pulled from a registry, or built on another base. The
image tag contains a key of the whole recipe: hosts of one recipe share one image, a changed recipe
gets a new image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lab.errors import LabError

USER = "operator"
REPOSITORY = "slipway-base"
DEFAULT_BASE = "debian-13"

# Packages that a freshly installed server has and an image lacks: systemd, the SSH server,
# Ansible's requirements (python3-apt for its apt module), and tools that engines and roles call.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-apt",
    "sudo",
    "openssh-server",
    "ca-certificates",
    "iproute2",
    "kmod",
    "procps",
)

# Runs as root in the new base. Each host creates its own host keys and machine ID at its first
# boot. modules-load and sysctl are masked because in a container they would change the kernel of
# this machine; apt's timers are disabled because they would take apt's lock during a test. dpkg
# does not wait for the disk: no host survives a power failure, and an installation takes a third
# less.
# Debian already has a group with the user's name, hence --gid.
SERVER_SCRIPT = f"""
set -eu
rm -f /usr/sbin/policy-rc.d /etc/ssh/ssh_host_*
: > /etc/machine-id
useradd --create-home --shell /bin/bash --gid users {USER}
echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}
chmod 0440 /etc/sudoers.d/{USER}
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/throwaway
mkdir -p /etc/ssh/sshd_config.d
cat > /etc/ssh/sshd_config.d/10-throwaway.conf <<'END'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
UseDNS no
END
cat > /etc/systemd/system/throwaway-host-keys.service <<'END'
[Unit]
Description=Make this host's SSH keys at its first boot
Before=ssh.service ssh.socket

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
END
systemctl enable throwaway-host-keys.service
systemctl mask systemd-modules-load.service systemd-sysctl.service console-getty.service
systemctl disable apt-daily.timer apt-daily-upgrade.timer
apt-get clean
"""

APT_INSTALL_SCRIPT = f"""
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends {" ".join(PACKAGES)}
rm -rf /var/lib/apt/lists/*
"""


@dataclass(frozen=True)
class Base:
    """The recipe of a base image; exactly one of suite, image and parent is set.

    suite: Debian release that mmdebstrap bootstraps.
    image: image that the engine pulls.
    parent: name of another base.
    apt_options: apt.conf lines for the bootstrap and for the host.
    script: shell script that runs as root in the new base.
    may_break: whether the distribution itself may be broken, as Debian unstable may be.
    """

    name: str
    script: str
    suite: str = ""
    image: str = ""
    parent: str = ""
    apt_options: tuple[str, ...] = ()
    may_break: bool = False


def _debian(version: str, suite: str) -> Base:
    return Base(f"debian-{version}", SERVER_SCRIPT, suite=suite)


def _debian_unstable() -> Base:
    # A mirror's copy of unstable is often past the expiry date in its Release file. The bootstrap
    # gets the same apt setting by mmdebstrap's --aptopt.
    option = 'Acquire::Check-Valid-Until "false";'
    keep = f"echo '{option}' > /etc/apt/apt.conf.d/90throwaway\n"
    return Base(
        "debian-sid", SERVER_SCRIPT + keep, suite="unstable", apt_options=(option,), may_break=True
    )


def _ubuntu(version: str) -> Base:
    script = APT_INSTALL_SCRIPT + SERVER_SCRIPT
    return Base(f"ubuntu-{version}", script, image=f"ubuntu:{version}")


def _ubuntu_like(version: str, codename: str) -> Base:
    # Diverted, so that an upgrade of base-files does not restore Debian's file.
    script = f"""
set -eu
dpkg-divert --local --rename --add /usr/lib/os-release
cat > /usr/lib/os-release <<'END'
PRETTY_NAME="Ubuntu {version} LTS"
NAME="Ubuntu"
VERSION_ID="{version}"
VERSION="{version} LTS ({codename.capitalize()})"
VERSION_CODENAME={codename}
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME={codename}
END
cat > /etc/lsb-release <<'END'
DISTRIB_ID=Ubuntu
DISTRIB_RELEASE={version}
DISTRIB_CODENAME={codename}
DISTRIB_DESCRIPTION="Ubuntu {version} LTS"
END
"""
    return Base(f"ubuntu-like-{version}", script, parent=DEFAULT_BASE)


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        _debian("13", "trixie"),
        _debian("12", "bookworm"),
        _debian_unstable(),
        _ubuntu("22.04"),
        _ubuntu("24.04"),
        _ubuntu("26.04"),
        _ubuntu_like("22.04", "jammy"),
        _ubuntu_like("24.04", "noble"),
        _ubuntu_like("26.04", "resolute"),
    )
}


def base_named(name: str) -> Base:
    """Return the base with this name; raises LabError for an unknown name."""
    if name not in BASES:
        raise LabError(f"unknown base {name!r}; expected one of {', '.join(BASES)}")
    return BASES[name]


def content_key(base: Base) -> str:
    """Return 12 hexadecimal digits that change with every part of the recipe."""
    recipe = asdict(base) | {
        "packages": PACKAGES,
        "parent": content_key(base_named(base.parent)) if base.parent else "",
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def image_tag(base: Base) -> str:
    """Return the image tag of the base."""
    return f"{REPOSITORY}:{base.name}-{content_key(base)}"
