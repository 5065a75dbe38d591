# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the installed NVIDIA kernel module gets into the kernel: load, reload, reboot, or wait.

Pure functions over what was found on the host; the module ``nvidia_module`` finds it and acts.

Private to the collection.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.slipway.host.plugins.module_utils.gpu.detection import (
    Holder,
    KernelModule,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import listed

# The driver's own daemons, by the kernel's name of the process (15 characters), and their units.
# They hold GPUs for nobody, so they may be stopped and started around a reload.
DAEMONS: Mapping[str, str] = {
    "nvidia-persiste": "nvidia-persistenced.service",
    "nv-fabricmanage": "nvidia-fabricmanager.service",
    "nvidia-imex": "nvidia-imex.service",
    "nv-hostengine": "nvidia-dcgm.service",
}
# Modules of the driver, in the order in which they let go of each other. A console may keep the
# first of them: then nothing that computes was unloaded yet.
UNLOADED = (
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia_fs",
    "nvidia_peermem",
    "nvidia_uvm",
    "nvidia",
)
IDLE, NEVER, ALWAYS = "idle", "never", "always"


class Step(enum.Enum):
    """What is to be done."""

    NOTHING = "nothing"
    LOAD = "load"
    RELOAD = "reload"
    REBOOT = "reboot"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Situation:
    """What was found.

    ``installed`` is the module on disk for the running ``kernel``, ``other_kernels`` those that
    have one as well; ``unwanted`` and ``missing`` are names of modules that are loaded and should
    not be, or the other way round; ``holders`` are processes that have a GPU open, ``users`` says
    in words who else is at work on the host; ``same_machine`` is true where Ansible runs on it.
    """

    kernel: str
    installed: KernelModule | None
    loaded: KernelModule | None
    other_kernels: Sequence[str] = ()
    unwanted: Sequence[str] = ()
    missing: Sequence[str] = ()
    holders: Sequence[Holder] = ()
    users: Sequence[str] = ()
    same_machine: bool = False


def next_step(found: Situation, reboot: str) -> tuple[Step, str]:
    """Return what to do and why, in a sentence; REBOOT is ``idle``, ``never`` or ``always``."""
    if found.installed is None:
        return _without_module(found, reboot)
    if found.unwanted:
        names = listed(found.unwanted)
        return _reboot(found, reboot, f"{names} holds the GPUs until the next boot")
    if found.loaded is None:
        return Step.LOAD, f"the driver {found.installed.version} is not loaded yet"
    if _same(found.loaded, found.installed):
        if found.missing:
            return Step.LOAD, f"{listed(found.missing)} is not loaded yet"
        return Step.NOTHING, f"the driver {found.installed.version} is loaded"
    why = f"{_in_words(found.loaded)} is loaded and {_in_words(found.installed)} is installed"
    if strangers(found.holders):
        return _reboot(found, reboot, why)
    return Step.RELOAD, why


def after_failed_unload(found: Situation, reboot: str, module: str) -> tuple[Step, str]:
    """Return what to do where the kernel would not let go of a MODULE."""
    return _reboot(found, reboot, f"the kernel does not let go of {module}")


def strangers(holders: Iterable[Holder]) -> list[Holder]:
    """Return those that hold a GPU for somebody."""
    return [holder for holder in holders if holder.command not in DAEMONS]


def users_of_gpus(holders: Iterable[Holder]) -> list[str]:
    """Return in words who holds a GPU for somebody."""
    return [_at_work(holder) for holder in strangers(holders)]


def terminals(sessions: Iterable[str]) -> list[str]:
    """Return who is logged in at a terminal, from the texts of /run/systemd/sessions/*.

    Ansible's own connection has no terminal.
    """
    found = []
    for text in sessions:
        fields = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
        if fields.get("TTY"):
            found.append(f"{fields.get('USER', 'somebody')} is logged in at {fields['TTY']}")
    return found


def _same(one: KernelModule, other: KernelModule) -> bool:
    flavours = {one.modules, other.modules} - {None}
    return one.version == other.version and len(flavours) < 2


def _in_words(module: KernelModule) -> str:
    return f"{module.version} ({module.modules})" if module.modules else module.version


def _without_module(found: Situation, reboot: str) -> tuple[Step, str]:
    why = f"the running kernel {found.kernel} has no NVIDIA module on disk"
    if found.other_kernels:
        return _reboot(found, reboot, f"{why}, but {listed(found.other_kernels)} has one")
    return Step.FAIL, (
        f"{why}, and no other kernel has one either. Where modules are built on the host, the "
        "log of the build is below /var/lib/dkms/nvidia"
    )


def _reboot(found: Situation, reboot: str, why: str) -> tuple[Step, str]:
    """Return whether the host may be rebooted, and if not, who or what stands in the way."""
    if found.same_machine:
        return Step.WAIT, f"{why}. Ansible runs on this machine: reboot it yourself and run again"
    if reboot == ALWAYS:
        return Step.REBOOT, why
    if reboot == NEVER:
        return Step.WAIT, f"{why}. Reboot the host (nvidia_driver_reboot is {NEVER}) and run again"
    busy = users_of_gpus(found.holders) + list(found.users)
    if busy:
        return Step.WAIT, (
            f"{why}, and the host is busy: {'; '.join(busy)}. Let them end, or set "
            f"nvidia_driver_reboot to {ALWAYS}, and run again"
        )
    return Step.REBOOT, why


def _at_work(holder: Holder) -> str:
    where = f" in container {holder.container[:12]}" if holder.container else ""
    return f"process {holder.pid} ({holder.command}){where} holds {listed(holder.devices)}"
