# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run disturbs on a host: restarts, stopped containers, removed packages, reboots.

Pure functions on the controller. :func:`find_triggers` finds which drift leads to such changes.
Only then the survey puts :func:`question` to the host, and :func:`describe` turns the answer into
consequences: mappings with ``kind`` (``restart``, ``stop``, ``container``, ``driver``,
``package``, ``gpu_process`` or ``session``), ``name`` and ``effect``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.module_utils.docker import restart_consent
from ansible_collections.slipway.host.plugins.module_utils.state import (
    engine,
    json_settings,
    units,
)
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    Answer,
    Difference,
    Entry,
)
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

Statements: TypeAlias = Mapping[str, engine.Owned]
Drift: TypeAlias = Mapping[str, Sequence[Difference]]
Consequence: TypeAlias = dict[str, str]

DOCKER = "docker.service"
HOOK_PACKAGES = frozenset({"nvidia-container-toolkit", "nvidia-container-toolkit-base"})


@dataclass
class Triggers:
    """Changes that disturb a host.

    ``docker``: policy of each restart of Docker, and whether ``live-restore`` works across it.
    ``units``: verb by unit. ``driver``: whether the NVIDIA driver in the kernel changes.
    ``simulations``: apt-get commands that simulate changes of packages. ``own``: names of the
    packages that roles declare.
    """

    docker: list[tuple[str, bool]] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    driver: bool = False
    simulations: list[list[str]] = field(default_factory=list)
    own: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        """Whether anything disturbs the host."""
        return bool(self.docker or self.units or self.driver or self.simulations)


def find_triggers(owned: Statements, drift: Drift, answer: Answer) -> Triggers:
    """Return the changes for the drift of each role that disturb a host."""
    triggers = Triggers()
    for role, statement in owned.items():
        drifted = {(one.kind, one.name) for one in drift.get(role, ())}
        for kind, entries in engine.entries_of(statement):
            differing = [
                entry
                for entry in entries
                if (kind, str(entry.get("name", entry.get("path")))) in drifted
            ]
            if kind == "json":
                triggers.docker += _restarts_by_settings(differing, answer)
            elif kind == "units":
                _add_units(triggers, differing, answer)
            elif kind == "modules":
                triggers.driver |= bool(differing)
            elif kind == "packages" and differing:
                _add_packages(triggers, entries, answer, _policy(owned))
    return triggers


def question(triggers: Triggers) -> dict[str, list[Any]]:
    """Return the question about those whom the changes disturb."""
    users = ["containers", "gpu_processes", "sessions"]
    return {"users_of_host": users, "apt_simulations": triggers.simulations}


def describe(triggers: Triggers, answer: Answer) -> list[Consequence]:
    """Return the consequences of changes on a host that gave this ANSWER to the question."""
    users = answer["users_of_host"]
    found = [
        *_describe_docker(triggers, users),
        *_describe_units(triggers),
        *_describe_packages(triggers, answer["apt_simulations"]),
        *_describe_driver(triggers),
    ]
    if found:
        found += _describe_users(users)
    # A host may answer with anything; a terminal must only show it.
    return [
        {"kind": kind, "name": escape_control(name), "effect": escape_control(effect)}
        for kind, name, effect in found
    ]


def _policy(owned: Statements) -> str:
    """Return the value of the option docker_engine_restart."""
    for entry in owned.get("docker_engine", {}).get("units", ()):
        if entry["name"] == DOCKER:
            return str(entry.get("restart", restart_consent.IDLE))
    return restart_consent.IDLE


def _restarts_by_settings(entries: Sequence[Entry], answer: Answer) -> Iterator[tuple[str, bool]]:
    for entry in entries:
        if not entry.get("restart"):
            continue
        merge = json_settings.plan_entry(entry, answer)
        if merge.restart_required:
            yield entry["restart"], merge.keeps_containers


def _add_units(triggers: Triggers, entries: Sequence[Entry], answer: Answer) -> None:
    for entry in entries:
        verb = units.disturbing_verb(entry, answer)
        if verb and entry.get("restart"):
            triggers.docker.append((entry["restart"], verb == "restart"))
        elif verb:
            triggers.units[entry["name"]] = verb


def _add_packages(
    triggers: Triggers, entries: Sequence[Entry], answer: Answer, policy: str
) -> None:
    actions = changes.compare(entries, answer["packages"])
    triggers.own |= {entry["name"] for entry in entries}
    changing = {spelled.partition("=")[0] for spelled in actions.install} | set(actions.purge)
    if not changing:
        return
    triggers.simulations.append(changes.simulation(changes.commands(actions)[0]))
    replaced = {name for name in changing if changes.is_installed(answer["packages"].get(name))}
    if replaced & restart_consent.ENGINE_PACKAGES:
        triggers.docker.append((policy, False))
    elif changing & HOOK_PACKAGES:
        # Docker reads the hooks of these packages when it starts.
        triggers.docker.append((policy, True))


def _describe_docker(
    triggers: Triggers, users: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield whether Docker restarts, and the containers that stop."""
    containers, processes = users["containers"], users["gpu_processes"]
    if not triggers.docker or containers is None:
        return
    keeps_running = all(keeps for _policy, keeps in triggers.docker)
    obstacles = [
        restart_consent.find_obstacle(policy, containers, processes, keeps)
        for policy, keeps in triggers.docker
    ]
    obstacle = next(filter(None, obstacles), "")
    stopped = restart_consent.stopped_containers(containers, processes, keeps_running)
    kept = "" if stopped or not containers.get("containers") else "; containers keep running"
    yield "restart", DOCKER, f"restart waits: {obstacle}" if obstacle else f"would restart{kept}"
    for container in stopped:
        owner = container["owner"] or "unknown"
        gpu = ", uses a GPU" if container["gpu"] else ""
        again = ", starts again" if container["comes_back"] else ""
        would = "would stop if Docker restarted" if obstacle else "would stop"
        effect = f"{would} (owner {owner}, image {container['image']}{gpu}{again})"
        yield "container", container["name"], effect


def _describe_units(triggers: Triggers) -> Iterator[tuple[str, str, str]]:
    for name, verb in sorted(triggers.units.items()):
        yield verb, name, f"would {verb}"


def _describe_packages(
    triggers: Triggers, simulated: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the packages that apt would remove or downgrade."""
    for command in triggers.simulations:
        output = simulated.get(" ".join(command), "")
        downgraded = changes.downgraded(output)
        for move in changes.moves(output):
            if move.after and move.name not in downgraded:
                continue
            foreign = "" if move.name in triggers.own else "; no role declares this package"
            what = f"downgraded to {move.after}" if move.after else "removed"
            yield "package", move.name, f"would be {what} (is {move.before}{foreign})"


def _describe_driver(triggers: Triggers) -> Iterator[tuple[str, str, str]]:
    if triggers.driver:
        yield (
            "driver",
            "nvidia",
            "would be loaded again; if that fails, the host would reboot where "
            "nvidia_driver_reboot allows it",
        )


def _describe_users(users: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the processes that use GPUs, and the people who are logged in."""
    names = {
        container["id"]: container["name"]
        for container in (users["containers"] or {}).get("containers", ())
    }
    for process in users["gpu_processes"]:
        where = names.get(process["container"], "")
        inside = f" in container {where}" if where else ""
        effect = f"{process['command']} of {process['user']}{inside} uses "
        yield "gpu_process", str(process["pid"]), effect + ", ".join(process["devices"])
    for session in users["sessions"]:
        terminal = f" at {session['terminal']}" if session["terminal"] else ""
        origin = f" from {session['from']}" if session["from"] else ""
        yield "session", session["user"], f"is logged in{terminal}{origin}"
