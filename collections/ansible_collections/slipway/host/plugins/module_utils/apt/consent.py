# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether packages may change now: what would be removed, and who would be disturbed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.gpu.kernel_module import DAEMONS
from ansible_collections.slipway.host.plugins.module_utils.state import disturbance
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control


class WaitingError(Exception):
    """The change must wait; the message has the reason and the solution."""


@dataclass(frozen=True)
class Consent:
    """Changes that the administrator allows.

    ``restart`` is the value of docker_engine_restart. ``removable`` are names of packages, with
    wildcards, that may be removed and downgraded although no role declares them. ``role`` is the
    role whose option lists them, empty without one. ``gpus_free`` is whether installed packages of
    the role change only while no process uses a GPU.
    """

    restart: str
    removable: Sequence[str] = ()
    role: str = ""
    gpus_free: bool = False


def check(simulated: str, own: Collection[str], consent: Consent) -> None:
    """Raise WaitingError if the changes that apt SIMULATED are not allowed now.

    OWN are the names of the packages that the role declares.
    """
    moves = changes.moves(simulated)
    _check_foreign(moves, changes.downgraded(simulated), own, consent)
    check_restart(moves, consent.restart)
    if consent.gpus_free and any(move.before and move.name in own for move in moves):
        _check_gpus()


def gpu_users() -> list[str]:
    """Return a description of each process that uses a GPU, without the driver's own daemons."""
    return [
        f"process {process['pid']} ({escape_control(process['command'])}) of {process['user']}"
        for process in disturbance.ask_gpu_processes()
        if process["command"] not in DAEMONS
    ]


def _check_gpus() -> None:
    if users := gpu_users():
        raise WaitingError(
            f"change of driver packages waits: the GPUs are in use by {', '.join(users)}. Run "
            "again when this work has ended, or set nvidia_driver_reboot to always."
        )


def check_restart(moves: Sequence[changes.Move], policy: str) -> None:
    """Raise WaitingError if MOVES would restart or stop Docker while this is not allowed."""
    engine = [
        move for move in moves if move.name in restart_consent.ENGINE_PACKAGES and move.before
    ]
    if not engine:
        return
    keeps_running = all(series(move.before) == series(move.after) for move in engine)
    if obstacle := restart_consent.ask_obstacle(policy, keeps_running):
        names = ", ".join(move.name for move in engine)
        raise WaitingError(f"change of {names} (restarts Docker) waits: {obstacle}.")


def series(version: str) -> str:
    """Return the release series of an engine's version, within which live-restore works."""
    match = re.match(r"(?:\d+:)?(\d+\.\d+)", version)
    return match[1] if match else ""


def _check_foreign(
    moves: Sequence[changes.Move],
    downgraded: Collection[str],
    own: Collection[str],
    consent: Consent,
) -> None:
    foreign = [
        f"{move.name} {move.before}"
        for move in moves
        if (not move.after or move.name in downgraded)
        and move.name not in own
        and not any(fnmatchcase(move.name, pattern) for pattern in consent.removable)
    ]
    if foreign:
        allow = f", or add the name to {consent.role}_removable_packages" if consent.role else ""
        raise WaitingError(
            f"change of packages waits: apt would remove or downgrade {', '.join(foreign)}; "
            f"expected only packages of the set. Remove these yourself{allow}, then run again."
        )
