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
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lab.errors import LabError

USER = "operator"
REPOSITORY = "slipway-base"
DEFAULT_BASE = "debian-13"
# A server whose administrator installed Docker Engine: for tests about other things.
ENGINE_BASE = "debian-13-engine"

# The end of the names of bases with arm64 programs, which an x86 machine emulates.
EMULATED = "-arm64"
# The emulator's folder in these bases.
EMULATION_FOLDER = "/usr/libexec/slipway-emulation"
EMULATION_SCRIPT = Path(__file__).with_name("emulate.sh")
# The dpkg names of architectures by the names of the kernel.
ARCHITECTURES: Mapping[str, str] = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINES: Mapping[str, str] = {name: machine for machine, name in ARCHITECTURES.items()}

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


# Services, logins and sudo pass no variables on, hence the settings of each. The emulator does not
# know the system calls for mounts by which systemd gives a service credentials and a sandbox.
# The masked units would undo the emulator's registration, or mount what only the real root may.
EMULATION_SETTINGS = """
set -eu
echo QEMU_CPU=cortex-a72 >> /etc/environment
echo 'Defaults env_keep += QEMU_CPU' > /etc/sudoers.d/emulation
mkdir -p /etc/systemd/system.conf.d /etc/systemd/system/service.d
cat > /etc/systemd/system.conf.d/emulation.conf <<'END'
[Manager]
DefaultEnvironment=QEMU_CPU=cortex-a72
END
cat > /etc/systemd/system/service.d/emulation.conf <<'END'
[Service]
ImportCredential=
LoadCredential=
PrivateDevices=no
PrivateTmp=no
ProtectControlGroups=no
ProtectHome=no
ProtectKernelLogs=no
ProtectKernelModules=no
ProtectKernelTunables=no
ProtectProc=default
ProtectSystem=no
ReadWritePaths=
END
systemctl mask systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \\
    proc-sys-fs-binfmt_misc.mount dev-hugepages.mount sys-fs-fuse-connections.mount \\
    sys-kernel-debug.mount sys-kernel-tracing.mount systemd-tmpfiles-setup-dev.service \\
    systemd-tmpfiles-setup-dev-early.service
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

    @property
    def is_emulated(self) -> bool:
        """Whether the programs of the base are arm64 and this machine emulates them."""
        return self.name.endswith(EMULATED)

    @property
    def architecture(self) -> str:
        """The dpkg architecture of the base."""
        machine = platform.machine()
        return "arm64" if self.is_emulated else ARCHITECTURES.get(machine, machine)


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


def _arm64(base: Base, settings: str = "", parent: str = "") -> Base:
    return replace(base, name=base.name + EMULATED, script=base.script + settings, parent=parent)


# The packages that the role docker_engine installs, and mmdebstrap, which a build without a
# registry would otherwise install and remove. The package index stays, as on any server.
ENGINE_SCRIPT = """
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends docker.io docker-cli docker-buildx docker-compose \\
    iptables mmdebstrap
apt-get clean
"""


BASES: Mapping[str, Base] = {
    base.name: base
    for base in (
        _debian("13", "trixie"),
        Base(ENGINE_BASE, ENGINE_SCRIPT, parent=DEFAULT_BASE),
        _debian("12", "bookworm"),
        _debian_unstable(),
        _ubuntu("22.04"),
        _ubuntu("24.04"),
        _ubuntu("26.04"),
        _ubuntu_like("22.04", "jammy"),
        _ubuntu_like("24.04", "noble"),
        _ubuntu_like("26.04", "resolute"),
        _arm64(_debian("13", "trixie"), EMULATION_SETTINGS),
        _arm64(_ubuntu_like("24.04", "noble"), parent=DEFAULT_BASE + EMULATED),
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
    if base.is_emulated:
        recipe["emulation"] = EMULATION_SCRIPT.read_text(encoding="ascii")
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def image_tag(base: Base) -> str:
    """Return the image tag of the base."""
    return f"{REPOSITORY}:{base.name}-{content_key(base)}"
