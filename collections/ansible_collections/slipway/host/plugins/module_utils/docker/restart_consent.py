# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether Docker may be restarted now, see the option ``docker_engine_restart``.

A restart stops containers, unless ``live-restore`` is on in the running engine. Containers with a
restart policy start again, but what they computed on a GPU is lost. So a container blocks a restart
if it would not come back, or if it uses a GPU.

Standard library only, for hosts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ansible_collections.slipway.host.plugins.module_utils.state import disturbance
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

IDLE, ALWAYS, NEVER = "idle", "always", "never"
POLICIES = (IDLE, ALWAYS, NEVER)
OPTION = "docker_engine_restart"
# Packages whose installation scripts restart or stop the engine that runs.
ENGINE_PACKAGES = frozenset({"containerd", "containerd.io", "docker-ce", "docker.io"})

Container = Mapping[str, Any]


class Warner(Protocol):
    """A module of Ansible, which displays warnings."""

    def warn(self, warning: str) -> None:
        """Display a warning."""


def stopped_containers(
    answer: Mapping[str, Any] | None,
    gpu_processes: Sequence[Mapping[str, Any]],
    keeps_running: bool = True,
) -> list[dict[str, Any]]:
    """Return the containers that stop while Docker restarts.

    ANSWER is what :func:`disturbance.ask_containers` returns, GPU_PROCESSES what
    :func:`disturbance.ask_gpu_processes` returns. KEEPS_RUNNING is whether ``live-restore`` works
    across the change that needs the restart. ``blocks`` of a container says whether it must not be
    stopped; ``gpu`` is also true if only a process of the container shows that it uses a GPU.
    """
    if not answer or (answer.get("live_restore") and keeps_running):
        return []
    on_gpu = {process["container"] for process in gpu_processes}
    stopped = []
    for container in answer.get("containers", ()):
        gpu = container["gpu"] or container["id"] in on_gpu
        blocks = gpu or not container["comes_back"]
        stopped.append({**container, "gpu": gpu, "blocks": blocks})
    return stopped


def describe_container(container: Container) -> str:
    """Return name, owner and image of a container, with control characters escaped."""
    owner = f" of {container['owner']}" if container["owner"] else ""
    # Anybody who starts a container chooses the label with its owner.
    return escape_control(f"container {container['name']}{owner} (image {container['image']})")


def _describe_blocking(container: Container) -> str:
    reason = "uses a GPU" if container["gpu"] else "would not start again"
    return f"{describe_container(container)} {reason}"


def find_obstacle(
    policy: str,
    answer: Mapping[str, Any] | None,
    gpu_processes: Sequence[Mapping[str, Any]],
    keeps_running: bool = True,
) -> str:
    """Return why Docker must not be restarted now and what to do, empty if it may be.

    POLICY is the value of the option; the other arguments are those of :func:`stopped_containers`.
    """
    if policy == ALWAYS:
        return ""
    if policy == NEVER:
        return f"{OPTION} is {NEVER}. Set it to {IDLE} or {ALWAYS}, then run again"
    if answer and answer.get("error"):
        return (
            f"Docker does not answer ({answer['error']}), so its containers are unknown. Repair "
            f"Docker, or set {OPTION} to {ALWAYS}, then run again"
        )
    stopped = stopped_containers(answer, gpu_processes, keeps_running)
    blocking = [_describe_blocking(container) for container in stopped if container["blocks"]]
    if not blocking:
        return ""
    return f"{'; '.join(blocking)}. Run again when this work has ended, or set {OPTION} to {ALWAYS}"


def ask_obstacle(policy: str, keeps_running: bool = True) -> str:
    """Return the result of :func:`find_obstacle` for this host."""
    if policy != IDLE:
        return find_obstacle(policy, None, (), keeps_running)
    answer = disturbance.ask_containers()
    return find_obstacle(policy, answer, disturbance.ask_gpu_processes(), keeps_running)


def waiting_result(module: Warner, waiting: Sequence[str]) -> dict[str, list[str]]:
    """Return what the result of a module says of changes that wait; warn of each one."""
    for sentence in waiting:
        module.warn(sentence)
    return {"slipway_waiting": list(waiting)} if waiting else {}
