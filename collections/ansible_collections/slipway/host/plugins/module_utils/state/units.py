# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units of systemd.

Keys of an entry of units (``?``: optional): name, enabled?, active?, unit_files? (unit files and
drop-ins of the unit itself outside the folders of packages), reads?: files that a running service
has read, beside its unit file and drop-ins, packet_filter?: true for the engine, whose running
service needs its rules there, restart?: when the unit may be restarted or stopped (``idle``,
``always``, ``never``), previous?: file with its previous configuration.

Drop-ins of others are information: they stay, because an administrator sets a proxy by one.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import reading, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# Modules that the survey sends along.
NEEDS = (started.__name__,)
_PROPERTIES = (
    *("LoadState", "UnitFileState", "ActiveState", "NeedDaemonReload", "InvocationID"),
    *("FragmentPath", "DropInPaths", "ExecMainStartTimestampMonotonic", "SubState"),
)
RESTARTS = "auto-restart"
# Where packages install unit files and drop-ins.
PACKAGE_FOLDERS = ("/usr/lib/systemd/", "/lib/systemd/")
# Beginnings of the settings that change what a unit runs, as whom, and who reaches its socket.
_SETTINGS = (
    *("Accept", "Ambient", "BindPaths", "BindReadOnly", "CapabilityBounding", "Condition"),
    *("Delegate", "DynamicUser", "Environment", "Exec", "FileDescriptorName", "Group"),
    *("LoadCredential", "Listen", "PassEnvironment", "Root", "Service", "SetCredential", "Socket"),
    *("Sockets", "SupplementaryGroups", "UnsetEnvironment", "User"),
)


def ask_units(names: list[str]) -> Json:
    """Return the state of each unit, by one systemctl; None without a systemctl.

    ``began``: start of the service's main process, in seconds since 1970, 0 without one; ``start``
    identifies that start. ``files``: unit file and drop-ins, see :func:`started.ask_read`.
    ``drop_ins``: path of each drop-in outside the folders of packages, to the names of settings in
    it that change what the unit runs. ``active``: ActiveState, or ``auto-restart`` for a service
    that systemd starts again after a crash: its ActiveState is that of a service that starts.
    """
    import time

    found: Json = dict.fromkeys(names)
    try:
        shown = reading.run_command(
            ["systemctl", "show", "--property=" + ",".join(_PROPERTIES), "--", *names]
        )
    except OSError:
        return found
    booted = time.time() - time.monotonic()
    for name, block in zip(names, shown.split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        load, file, active, reload, start, fragment, drop_ins, began, sub = (
            values.get(key, "") for key in _PROPERTIES
        )
        sources = [path for path in (fragment, *drop_ins.split()) if path]
        found[name] = {
            "load": load,
            "file": file,
            "active": RESTARTS if RESTARTS in sub else active,
            "reload": reload == "yes",
            "start": start,
            "began": booted + int(began) / 1e6 if began.isdigit() and began != "0" else 0.0,
            "fragment": fragment,
            "files": {path: started.ask_read(path) for path in sources},
            "drop_ins": {
                path: ask_settings(path)
                for path in sources[1 if fragment else 0 :]
                if not path.startswith(PACKAGE_FOLDERS)
            },
        }
    return found


def ask_settings(path: str) -> list[str]:
    """Return the names of the settings in a drop-in that change what a unit runs.

    The values stay on the host: an environment may hold a password.
    """
    lines = reading.read_word(path).splitlines()
    names = (line.partition("=")[0].strip() for line in lines if "=" in line)
    return sorted({name for name in names if name.startswith(_SETTINGS)})


ASKS = {"units": lambda names, _reply: ask_units(names)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind

# A unit that systemd does not know.
NO_UNIT: Json = {
    "load": "not-found",
    "file": "",
    "active": "",
    "reload": False,
    "start": "",
    "began": 0.0,
    "fragment": "",
    "files": {},
    "drop_ins": {},
}
DISABLED = (
    *("disabled", "generated", "indirect", "linked", "linked-runtime", "masked"),
    *("masked-runtime", "static"),
)


def state_of(entry: Entry, answer: Answer) -> Json:
    """Return the state of the unit of an entry, that of an unknown unit where there is none."""
    return answer["units"][entry["name"]] or NO_UNIT


def is_active(state: Json) -> bool:
    """Return whether a unit runs or starts."""
    return state["active"] in ("active", "activating", "reloading")


def has_declared_activity(entry: Entry, state: Json) -> bool:
    """Return whether a unit is active or inactive as declared."""
    active = entry.get("active")
    # A crashed service that systemd starts again is neither.
    return active is None or (active == is_active(state) and state["active"] != RESTARTS)


def is_enabled(state: Json) -> bool:
    """Return whether a unit starts at each boot.

    ``enabled-runtime`` lasts until the next boot, and a ``static`` unit waits for another one.
    """
    return bool(state["file"] == "enabled")


def is_disabled(state: Json) -> bool:
    """Return whether a unit is not started at boot by itself."""
    return state["file"] in DISABLED or not state["file"]


def files_read(entry: Entry, answer: Answer) -> dict[str, Any]:
    """Return the files that the unit's running service has read, see started.changed_files."""
    state = state_of(entry, answer)
    if not (state["began"] and is_active(state) and entry.get("active")):
        return {}
    return {**state["files"], **{path: answer["reads"][path] for path in entry.get("reads") or ()}}


def unread_files(entry: Entry, answer: Answer) -> list[str]:
    """Return the files that changed after the unit's running service read them."""
    state, record = state_of(entry, answer), answer["starts"][entry["name"]]
    return started.changed_files(files_read(entry, answer), state["began"], state["start"], record)


def networks_without_rules(entry: Entry, answer: Answer) -> list[str]:
    """Return the container networks of the running engine without rules in the packet filter."""
    if not (entry.get("packet_filter") and entry.get("active")):
        return []
    found = answer["packet_filter"][entry["name"]]
    return list(found["missing"]) if found else []


def compare_units(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a unit."""
    state = state_of(entry, answer)
    if state["load"] == "not-found":
        if entry.get("enabled") or entry.get("active"):
            yield MISSING, "a unit"
        return
    if state["reload"]:
        yield "its files changed since systemd read them", "read again"
    enabled = entry.get("enabled")
    if enabled and not is_enabled(state):
        yield state["file"] or "disabled", "enabled"
    elif enabled is False and not is_disabled(state):
        yield state["file"], "disabled"
    if not has_declared_activity(entry, state):
        yield state["active"], "active" if entry.get("active") else "inactive"
        return
    for path in unread_files(entry, answer):
        yield f"started before {path} changed", "started after it"
    if names := networks_without_rules(entry, answer):
        found = f"the packet filter has no rules for the networks {', '.join(names)}"
        yield found, "the rules that the engine writes when it starts"


def needs_restart(entry: Entry, answer: Answer) -> bool:
    """Return whether the running service must be restarted."""
    return bool(unread_files(entry, answer) or networks_without_rules(entry, answer))


def disturbing_verb(entry: Entry, answer: Answer) -> str:
    """Return ``restart`` or ``stop`` if the running unit must be, else an empty text."""
    if not is_active(state_of(entry, answer)):
        return ""
    if entry.get("active") is False:
        return "stop"
    return "restart" if needs_restart(entry, answer) else ""


def inform_units(entry: Entry, answer: Answer) -> Iterator[str]:
    """Yield what others configured for a unit; Slipway leaves it in place."""
    state = state_of(entry, answer)
    own = (*PACKAGE_FOLDERS, *entry.get("unit_files", ()))
    masked = state["file"].startswith("masked")
    if state["fragment"] and not masked and not state["fragment"].startswith(own):
        yield f"{entry['name']} is defined by {state['fragment']}, not by its package"
    for path, settings in state["drop_ins"].items():
        if settings and not path.startswith(own):
            yield f"{entry['name']}: drop-in {path} sets {', '.join(settings)}"


def _ask_further(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "starts", [entry["name"]]
    yield "reads", entry.get("reads") or ()
    yield "packet_filter", [entry["name"]] if entry.get("packet_filter") else []


KINDS = (Kind("units", "name", "units", compare_units, _ask_further, inform_units),)
