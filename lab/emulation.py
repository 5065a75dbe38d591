# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with arm64 programs on an x86 machine: qemu-user emulates every process.

The emulator is registered in a user namespace of each host, never on this machine. It is always
that of Debian 13, because older ones cannot start the services of systemd.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from lab.bases import ARCHITECTURES, BASES, EMULATED, EMULATION_FOLDER, EMULATION_SCRIPT
from lab.engine import Engine
from lab.errors import LabError

# binfmt_misc belongs to a user namespace since this kernel.
OLDEST_KERNEL = (6, 7)
# How much longer a host may take to boot.
SLOWNESS = 5
FETCH_SECONDS = 300.0
FETCH_SCRIPT = """\
set -eu
cd "$(mktemp -d)"
apt-get update -qq
apt-get download -qq -o APT::Sandbox::User=root busybox-static qemu-user
for package in *.deb; do dpkg-deb --extract "$package" .; done
cp usr/bin/busybox usr/bin/qemu-aarch64 /emulation/
"""
# Role variables of an emulated host, on which runc starts no container and the kernel lets nobody
# change the network.
VARIABLES: dict[str, Any] = {
    "docker_engine_settings": {"iptables": False, "bridge": "none"},
    "host_verify_containers": False,
    "ml_catalogue_images": [],
}


def base_for(base: str, architecture: str | None, machine: str = platform.machine()) -> str:
    """Return the name of the base that has this dpkg architecture on this machine.

    Raises LabError for an architecture that this machine neither has nor emulates.
    """
    own = ARCHITECTURES.get(machine, machine)
    if architecture in (None, own):
        return base
    if (own, architecture) != ("amd64", "arm64"):
        raise LabError(
            f"--architecture {architecture}: this machine is {own}; expected amd64, because only"
            " arm64 is emulated, and only on amd64. Leave --architecture out, or use another"
            " machine."
        )
    if base + EMULATED not in BASES:
        names = [name.removesuffix(EMULATED) for name in BASES if name.endswith(EMULATED)]
        raise LabError(
            f"--architecture arm64: no arm64 base of {base}; expected {' or '.join(names)}. Choose"
            " another --base."
        )
    return base + EMULATED


def check_machine(proc: Path = Path("/proc"), machine: str = platform.machine()) -> None:
    """Raise LabError if this machine cannot emulate arm64 hosts."""
    release = (proc / "sys/kernel/osrelease").read_text(encoding="ascii").strip()
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    found = ""
    if machine != "x86_64":
        found = f"this machine is {machine}; expected x86_64. Leave --architecture out"
    elif version < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        found = f"kernel {release}; expected {oldest} or later. Use another machine"
    elif "binfmt_misc" not in (proc / "filesystems").read_text(encoding="ascii").split():
        found = "no binfmt_misc in the kernel. Run: modprobe binfmt_misc"
    elif (proc / "sys/user/max_user_namespaces").read_text(encoding="ascii").strip() == "0":
        found = "user.max_user_namespaces is 0. Run: sysctl user.max_user_namespaces=1000"
    if found:
        raise LabError(f"cannot emulate arm64: {found}.")


def start(folder: str | Path, *command: str) -> tuple[str, ...]:
    """Return the command that runs `command` with the emulator in `folder`."""
    return (f"{folder}/busybox", "sh", f"{folder}/{EMULATION_SCRIPT.name}", "start", *command)


def join(*command: str) -> tuple[str, ...]:
    """Return the command that runs `command` in an emulated host."""
    folder = EMULATION_FOLDER
    return (f"{folder}/busybox", "sh", f"{folder}/{EMULATION_SCRIPT.name}", "join", *command)


def fetch(engine: Engine, image: str, folder: Path) -> None:
    """Write the emulator to `folder`, with programs of the Debian 13 in `image`."""
    folder.mkdir()
    (folder / EMULATION_SCRIPT.name).write_text(EMULATION_SCRIPT.read_text(encoding="ascii"))
    engine.docker(
        *("run", "--rm", "--interactive", f"--volume={folder}:/emulation", image, "sh"),
        stdin=FETCH_SCRIPT.encode(),
        timeout=FETCH_SECONDS,
    )
