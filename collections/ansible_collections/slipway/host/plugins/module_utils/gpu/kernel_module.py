# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the installed NVIDIA kernel module gets into the kernel: load, reload, reboot, or wait.

Pure functions: the module ``nvidia_module`` reads the host and carries the step out.

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
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import join_words
from ansible_collections.slipway.host.plugins.module_utils.host import reboot_record

# Daemons of the driver, by the kernel's name of the process (15 characters), and their units.
# They use GPUs for no user, so they may be stopped during a reload.
DAEMONS: Mapping[str, str] = {
    "nvidia-persiste": "nvidia-persistenced.service",
    "nv-fabricmanage": "nvidia-fabricmanager.service",
    "nvidia-imex": "nvidia-imex.service",
    "nv-hostengine": "nvidia-dcgm.service",
}
# Modules of the driver, in the order of unloading. A console may use the first of them: then no
# module that computes was unloaded yet.
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
    """The next action of the module nvidia_module."""

    NOTHING = "nothing"
    LOAD = "load"
    RELOAD = "reload"
    REBOOT = "reboot"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True)
class Situation:
    """The state of the driver and its users on a host.

    ``installed`` is the module on disk for the running ``kernel``; ``other_kernels`` have one too.
    ``unwanted`` are loaded modules that must not be loaded, ``missing`` the modules to load.
    ``holders`` are processes that have a GPU open, ``users`` describes other users of the host.
    ``same_machine`` means that Ansible runs on this host. ``rebooted_for`` is the reason of the
    last reboot that the module requested, empty without one.
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
    rebooted_for: str = ""


def next_step(situation: Situation, reboot: str) -> tuple[Step, str]:
    """Return the next step and a sentence why; REBOOT is ``idle``, ``never`` or ``always``."""
    if situation.installed is None:
        return _without_module(situation, reboot)
    if situation.unwanted:
        names = join_words(situation.unwanted)
        return _request_reboot(situation, reboot, f"{names} uses the GPUs until the next boot")
    if situation.loaded is None:
        return Step.LOAD, f"the driver {situation.installed.version} is not loaded yet"
    if _is_same(situation.loaded, situation.installed):
        if situation.missing:
            return Step.LOAD, f"{join_words(situation.missing)} is not loaded yet"
        return Step.NOTHING, f"the driver {situation.installed.version} is loaded"
    why = (
        f"{_describe(situation.loaded)} is loaded and {_describe(situation.installed)} is installed"
    )
    if user_processes(situation.holders):
        return _request_reboot(situation, reboot, why)
    return Step.RELOAD, why


def after_failed_unload(situation: Situation, reboot: str, module: str) -> tuple[Step, str]:
    """Return the next step if the kernel cannot unload MODULE."""
    return _request_reboot(situation, reboot, f"cannot unload kernel module {module}: it is in use")


def user_processes(holders: Iterable[Holder]) -> list[Holder]:
    """Return the processes that use a GPU, without the driver's own daemons."""
    return [holder for holder in holders if holder.command not in DAEMONS]


def describe_gpu_users(holders: Iterable[Holder]) -> list[str]:
    """Return a description of each process that uses a GPU."""
    return [_describe_holder(holder) for holder in user_processes(holders)]


def terminals(sessions: Iterable[str]) -> list[str]:
    """Return who is logged in at a terminal, from the texts of /run/systemd/sessions/*.

    Ansible's own connection has no terminal.
    """
    logins = []
    for text in sessions:
        fields = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
        if fields.get("TTY"):
            logins.append(f"{fields.get('USER', 'somebody')} is logged in at {fields['TTY']}")
    return logins


def _is_same(left: KernelModule, right: KernelModule) -> bool:
    flavours = {left.modules, right.modules} - {None}
    return left.version == right.version and len(flavours) < 2


def _describe(module: KernelModule) -> str:
    return f"{module.version} ({module.modules})" if module.modules else module.version


def _without_module(situation: Situation, reboot: str) -> tuple[Step, str]:
    why = f"the running kernel {situation.kernel} has no NVIDIA module on disk"
    if situation.other_kernels:
        return _request_reboot(
            situation, reboot, f"{why}, but {join_words(situation.other_kernels)} has one"
        )
    return Step.FAIL, (
        f"{why}, and no other kernel has one. If modules are built on the host, see the build log "
        "below /var/lib/dkms/nvidia"
    )


def _request_reboot(situation: Situation, reboot: str, why: str) -> tuple[Step, str]:
    """Return whether the host may be rebooted, and if not, what prevents it."""
    if situation.same_machine:
        return Step.WAIT, f"{why}. Ansible runs on this machine: reboot it yourself, then run again"
    if situation.rebooted_for == why:
        return Step.WAIT, (
            f"{why}. The host was rebooted for this reason before, and nothing changed. Find the "
            f"cause (journalctl --boot), then delete {reboot_record.RECORD} and run again"
        )
    if reboot == ALWAYS:
        return Step.REBOOT, why
    if reboot == NEVER:
        return (
            Step.WAIT,
            f"{why}. Reboot the host (nvidia_driver_reboot is {NEVER}), then run again",
        )
    busy = describe_gpu_users(situation.holders) + list(situation.users)
    if busy:
        return Step.WAIT, (
            f"{why}, and the host is in use: {'; '.join(busy)}. Wait until this work ends, or set "
            f"nvidia_driver_reboot to {ALWAYS}, then run again"
        )
    return Step.REBOOT, why


def _describe_holder(holder: Holder) -> str:
    where = f" in container {holder.container[:12]}" if holder.container else ""
    return f"process {holder.pid} ({holder.command}){where} uses {join_words(holder.devices)}"
