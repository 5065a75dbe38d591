# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images of throwaway hosts: what is in them, and how they are made.

A base is bootstrapped from Debian's packages, pulled, or made from another base. It is tagged by
a key over its whole recipe: a second host finds it ready, a changed recipe makes a new one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    BaseUnavailableError,
    CommandError,
    Engine,
    ThrowawayError,
    install_commands,
    install_package,
    locked,
)

USER = "operator"
REPOSITORY = "slipway-base"
BASE_LABEL = "slipway.base"
DEFAULT_BASE = "debian-13"

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REGISTRY_ANSWER_SECONDS = 10.0
PULL_SECONDS = 300.0
BAKE_SECONDS = 600.0

# What a freshly installed server has and an image lacks. python3-apt is what Ansible's apt module
# asks for; the rest is systemd, a way in, and what engines and roles call.
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

# Runs as root in the new base. Host keys and machine ids are each host's own, made at its first
# boot. modules-load and sysctl are masked because in a container they would reach for the kernel
# of the machine beneath; apt's timers because they would take the lock in the middle of a test.
# Debian already has a group called like the user, hence --gid.
SERVER_SCRIPT = f"""
set -eu
rm -f /usr/sbin/policy-rc.d /etc/ssh/ssh_host_*
: > /etc/machine-id
useradd --create-home --shell /bin/bash --gid users {USER}
echo '{USER} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}
chmod 0440 /etc/sudoers.d/{USER}
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
    """The recipe of a base image; exactly one of suite, image and parent says what it starts from.

    suite: Debian release that mmdebstrap bootstraps.
    image: image to pull from the registry that the engine knows.
    parent: name of another base.
    apt_options: apt.conf lines for the bootstrap and for the host.
    script: shell script that is run in it as root.
    may_break: whether its failures say something about its makers, not about us.
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
    # A mirror's copy of unstable is often older than its Release file says it may be. The host
    # gets the same apt setting from mmdebstrap's --aptopt.
    option = 'Acquire::Check-Valid-Until "false";'
    keep = f"echo '{option}' > /etc/apt/apt.conf.d/90throwaway\n"
    return Base(
        "debian-sid", SERVER_SCRIPT + keep, suite="unstable", apt_options=(option,), may_break=True
    )


def _ubuntu(version: str) -> Base:
    script = APT_INSTALL_SCRIPT + SERVER_SCRIPT
    return Base(f"ubuntu-{version}", script, image=f"ubuntu:{version}")


def _ubuntu_like(version: str, codename: str) -> Base:
    # Diverted, so that an upgrade of base-files does not bring Debian's back.
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
    """Return the base of this name; raises ThrowawayError that lists them when there is none."""
    if name not in BASES:
        raise ThrowawayError(f"there is no base {name!r}; choose one of {', '.join(BASES)}")
    return BASES[name]


def content_key(base: Base) -> str:
    """Return 12 hexadecimal digits that change with anything the base is made from."""
    recipe = asdict(base) | {
        "packages": PACKAGES,
        "parent": content_key(base_named(base.parent)) if base.parent else "",
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def image_tag(base: Base) -> str:
    """Return the tag under which the engine keeps the base."""
    return f"{REPOSITORY}:{base.name}-{content_key(base)}"


def ensure_base(engine: Engine, base: Base) -> str:
    """Make the base if the engine does not have it; return its tag.

    The caller holds the engine's lock. Raises BaseUnavailableError with the reason when the base
    cannot be had.
    """
    tag = image_tag(base)
    if engine.docker("image", "inspect", tag, check=False).rc == 0:
        return tag
    start, is_step = _start_image(engine, base)
    try:
        _bake(engine, base, start, tag)
    except CommandError as error:
        raise BaseUnavailableError(f"{base.name} could not be set up: {error}") from error
    finally:
        if is_step:
            # Its layers stay for as long as the base that is made from it.
            engine.docker("image", "rm", start, check=False)
    older = set(_base_tags(engine, f"{BASE_LABEL}={base.name}")) - {tag}
    _remove_images(engine, older)
    return tag


def _start_image(engine: Engine, base: Base) -> tuple[str, bool]:
    """Return the image that the base is made from, and whether it is here only for that."""
    if base.parent:
        return ensure_base(engine, base_named(base.parent)), False
    if base.image:
        if engine.docker("image", "inspect", base.image, check=False).rc == 0:
            return base.image, False
        return _pulled(engine, base), True
    return _bootstrapped(engine, base), True


def _pulled(engine: Engine, base: Base) -> str:
    pull = engine.commands.run_if_it_speaks(
        "docker", "pull", base.image, within=REGISTRY_ANSWER_SECONDS, timeout=PULL_SECONDS
    )
    if pull.rc != 0:
        said = pull.err.strip().splitlines() or ["it wrote nothing"]
        raise BaseUnavailableError(
            f"{base.name} needs the image {base.image}, and it could not be pulled: {said[-1]}"
        )
    return base.image


def _bootstrapped(engine: Engine, base: Base) -> str:
    install_commands(engine.commands, "mmdebstrap")
    if not DEBIAN_KEYRING.exists():
        # Ubuntu does not trust Debian's packages unless told to.
        install_package(engine.commands, "debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="slipway-base-") as folder:
        tar = Path(folder) / "base.tar"
        bootstrap = engine.commands.run(
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            *(f"--aptopt={option}" for option in base.apt_options),
            base.suite,
            str(tar),
            timeout=BAKE_SECONDS,
            check=False,
        )
        if bootstrap.rc != 0:
            said = bootstrap.err.strip().splitlines() or ["it wrote nothing"]
            raise BaseUnavailableError(
                f"{base.name} could not be bootstrapped from Debian's packages: "
                + "; ".join(said[-3:])
            )
        return engine.docker("import", str(tar)).out.strip()


def _bake(engine: Engine, base: Base, start: str, tag: str) -> None:
    container = f"slipway-bake-{content_key(base)}"
    # Left there by a run that was interrupted.
    engine.docker("rm", "--force", container, check=False)
    try:
        engine.docker(
            *("run", "--interactive", "--name", container, start, "sh"),
            stdin=base.script.encode(),
            timeout=BAKE_SECONDS,
        )
        engine.docker("commit", "--change", f"LABEL {BASE_LABEL}={base.name}", container, tag)
    finally:
        engine.docker("rm", "--force", container, check=False)


def purge_bases(engine: Engine, dry_run: bool = False) -> bool:
    """Remove all base images that no container uses; return whether there was one.

    A dry run cannot tell whether one is in use and counts it as removed.
    """
    if engine.version() is None:
        return False
    with locked(engine.lock):
        tags = _base_tags(engine, BASE_LABEL)
        if dry_run:
            return bool(tags)
        return _remove_images(engine, tags)


def _base_tags(engine: Engine, label: str) -> list[str]:
    shape = "{{.Repository}}:{{.Tag}}"
    return engine.lines("image", "ls", f"--filter=label={label}", f"--format={shape}")


def _remove_images(engine: Engine, tags: Iterable[str]) -> bool:
    # The engine itself refuses to remove an image that a container uses.
    removed = [tag for tag in tags if engine.docker("image", "rm", tag, check=False).rc == 0]
    return bool(removed)
