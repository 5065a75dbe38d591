# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a host right now: running containers, GPU processes, people who are logged in.

A change of the host may disturb them. The survey asks for it only where something is to change,
because reading all processes costs more than the rest of a survey. The modules ask again right
before they disturb somebody.
"""

from __future__ import annotations

import json
import os
import re

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

# Modules that the survey sends along.
NEEDS = (containers.__name__,)
# Restart policies with which the engine starts a container again after its own restart.
RESTARTED = ("always", "unless-stopped")
DAEMON_JSON = "/etc/docker/daemon.json"
SESSIONS = "/run/systemd/sessions"
LOGIN_PROGRAMS = ("agetty", "getty", "login", "systemd-logind")
# Major numbers of virtual consoles and of pseudo-terminals.
TTY, PTS = 4, 136
# The first ID that distributions give to people.
FIRST_USER = 1000


def ask_containers() -> Json | None:
    """Return the running containers, None where no engine runs.

    ``live_restore``: whether it is on in the running engine and in daemon.json. ``containers``: a
    list of mappings with id, name, image, owner (empty if unknown), comes_back (after a restart of
    the engine), gpu (whether the engine gave it a GPU) and job (number of its Slurm job).
    ``error`` is set where an engine runs that does not answer.
    """
    try:
        info = containers.ask_engine("/info")
        running = [
            _describe_container(details)
            for entry in containers.ask_engine("/containers/json")
            if (details := _inspect(entry["Id"]))
        ]
    except ValueError as error:
        return {"error": str(error)}
    except OSError as error:
        # A timeout; every other error means that nothing listens on the socket.
        return {"error": "timed out"} if "timed out" in str(error) else None
    return {
        "live_restore": bool(info.get("LiveRestoreEnabled")) and _keeps_live_restore(),
        "containers": sorted(running, key=lambda container: str(container["name"])),
    }


def _keeps_live_restore() -> bool:
    """Return whether the next engine has live-restore too; without it, it stops all containers."""
    try:
        settings = json.loads(reading.read_file(DAEMON_JSON) or b"{}")
    except ValueError:
        return False
    return isinstance(settings, dict) and settings.get("live-restore") is True


def _inspect(identifier: str) -> Json | None:
    """Return the details of a running container, None if it ended in the meantime."""
    try:
        details: Json = containers.ask_engine(f"/containers/{identifier}/json")
    except ValueError:
        return None
    return details


def _describe_container(details: Json) -> Json:
    host = details.get("HostConfig") or {}
    config = details.get("Config") or {}
    return {
        "id": details["Id"],
        "name": str(details.get("Name", "")).lstrip("/"),
        "image": str(config.get("Image", "")),
        "owner": _owner_of(details, config.get("Labels") or {}),
        "comes_back": (host.get("RestartPolicy") or {}).get("Name") in RESTARTED,
        "gpu": _has_gpu(host, config.get("Env") or []),
        "job": str((config.get("Labels") or {}).get("io.slipway.job", "")),
    }


def _has_gpu(host: Json, environment: list[str]) -> bool:
    """Return whether the engine gave GPUs to a container: by request, CDI, device or runtime."""
    if host.get("DeviceRequests"):
        return True
    devices = [str(device.get("PathOnHost", "")) for device in host.get("Devices") or []]
    if any(path.startswith("/dev/nvidia") or "=" in path for path in devices):
        return True
    values = dict(word.partition("=")[::2] for word in environment)
    shown = values.get("NVIDIA_VISIBLE_DEVICES", "void")
    return host.get("Runtime") == "nvidia" and shown not in ("", "void", "none")


def _owner_of(details: Json, labels: Json) -> str:
    """Return whose container it is: by label, a mounted home, its process, its compose project."""
    if labels.get("io.slipway.user"):
        return str(labels["io.slipway.user"])
    mounts = [str(mount.get("Source", "")) for mount in details.get("Mounts") or []]
    pid = (details.get("State") or {}).get("Pid") or 0
    homes = [path for path in mounts if path.startswith(("/home/", "/root"))]
    for path in [*homes, f"/proc/{pid}"]:
        try:
            number = os.stat(path).st_uid
        except OSError:
            continue
        if number >= FIRST_USER:
            return reading.user_name(number)
    project = labels.get("com.docker.compose.project")
    return f"compose project {project}" if project else ""


def ask_gpu_processes(root: str = "/proc") -> list[Json]:
    """Return the processes that have an NVIDIA device open.

    Each has pid, command, user, devices and container (its ID, empty outside containers). Command
    lines may contain secrets, so the command is the kernel's short name of the process.
    """
    found = []
    for pid in sorted((name for name in reading.list_names(root) or [] if name.isdigit()), key=int):
        folder = f"{root}/{pid}"
        try:
            devices = _open_devices(f"{folder}/fd")
            if devices:
                found.append(
                    {
                        "pid": int(pid),
                        "command": reading.read_word(f"{folder}/comm"),
                        "user": reading.user_name(os.stat(folder).st_uid),
                        "devices": devices,
                        "container": _container_of(reading.read_word(f"{folder}/cgroup")),
                    }
                )
        except OSError:
            continue  # The process ended in the meantime.
    return found


def _open_devices(folder: str) -> list[str]:
    devices = set()
    for number in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{number}")
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            devices.add(target)
    return sorted(devices)


def _container_of(cgroup: str) -> str:
    """Return the ID of the innermost container: a host may be a container itself."""
    found = re.findall(r"[0-9a-f]{64}", cgroup)
    return str(found[-1]) if found else ""


def ask_sessions(
    root: str = SESSIONS, own_cgroup: str = "/proc/self/cgroup", proc: str = "/proc"
) -> list[Json]:
    """Return who is logged in: user, terminal (empty without one) and remote host of each session.

    The session that asks, and others of its user without a terminal, are Ansible's. Terminals that
    logind does not know, such as those of tmux, are found by their processes.
    """
    sessions: Json = {}
    for name in reading.list_names(root) or []:
        if not name.endswith(".ref"):
            text = reading.read_word(f"{root}/{name}")
            sessions[name] = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    match = re.search(r"/session-(\w+)\.scope", reading.read_word(own_cgroup))
    own = sessions.pop(match[1], {}) if match else {}
    found = [
        {
            "user": fields.get("USER", ""),
            "terminal": fields.get("TTY", ""),
            "from": fields.get("REMOTE_HOST", ""),
        }
        for _name, fields in sorted(sessions.items())
        if fields.get("CLASS", "user").startswith("user")
        and fields.get("CLASS") != "user-incomplete"
        and (fields.get("TTY") or fields.get("USER") != own.get("USER"))
    ]
    known = {session["terminal"] for session in found} | {own.get("TTY")}
    return found + [one for one in _ask_terminals(proc) if one["terminal"] not in known]


def _ask_terminals(root: str) -> list[Json]:
    """Return the user of each terminal, by the first process on it; not those of containers."""
    own, own_container = _terminal_of(f"{root}/self"), _container_of_process(f"{root}/self")
    found = []
    for pid in reading.list_names(root) or []:
        folder = f"{root}/{pid}"
        terminal = _terminal_of(folder) if pid.isdigit() else ""
        if not terminal or terminal == own or _container_of_process(folder) != own_container:
            continue
        try:
            user = reading.user_name(os.stat(folder).st_uid)
        except OSError:
            continue  # The process ended in the meantime.
        found.append({"user": user, "terminal": terminal, "from": ""})
    return sorted(found, key=lambda session: str(session["terminal"]))


def _container_of_process(folder: str) -> str:
    return _container_of(reading.read_word(f"{folder}/cgroup"))


def _terminal_of(folder: str) -> str:
    """Return the terminal of a process that leads a session, such as pts/0; see proc_pid_stat(5).

    A program that waits for a login has a terminal, and is no login.
    """
    text = reading.read_word(f"{folder}/stat")
    name, _separator, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) < 5 or name in LOGIN_PROGRAMS or fields[3] != text.partition(" ")[0]:
        return ""
    number = int(fields[4])
    major, minor = (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
    if PTS <= major < PTS + 8:
        return f"pts/{minor + (major - PTS) * 256}"
    return f"tty{minor}" if major == TTY and minor else ""


def ask_users(names: list[str]) -> Json:
    """Return the answers named ``containers``, ``gpu_processes`` and ``sessions``."""
    asks: Json = {
        "containers": ask_containers,
        "gpu_processes": ask_gpu_processes,
        "sessions": ask_sessions,
    }
    return {name: asks[name]() for name in names}


def simulate_apt(commands: list[list[str]]) -> Json:
    """Return what each apt-get command printed; the commands only simulate."""
    return {
        " ".join(command): reading.run_command(["env", "LC_ALL=C", *command])
        for command in commands
        if "--simulate" in command
    }


ASKS = {
    "users_of_host": lambda names, _reply: ask_users(names),
    "apt_simulations": lambda commands, _reply: simulate_apt(commands),
}


# --- Nothing below is sent to hosts with the survey. ---
KINDS = ()
