# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Units of systemd.

Keys of an entry of units (``?``: optional): name, enabled?, active?, since?: files that a running
unit has read; it must have been started or reloaded after they changed, restart?: when the unit may
be restarted or stopped (``idle``, ``always``, ``never``), previous?: file with its previous
configuration.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]


def ask_units(names: list[str]) -> Json:
    """Return the state of each unit, by one systemctl; times are seconds since 1970."""
    import time

    properties = ["LoadState", "UnitFileState", "ActiveState", "NeedDaemonReload"]
    changed = "StateChangeTimestampMonotonic"
    found: Json = dict.fromkeys(names)
    try:
        shown = reading.run_command(
            ["systemctl", "show", "--property=" + ",".join([*properties, changed]), "--", *names]
        )
    except OSError:
        return found
    booted = time.time() - time.monotonic()
    for name, block in zip(names, shown.split("\n\n")):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        state: list[Any] = [values.get(key, "") for key in properties]
        state[3] = state[3] == "yes"
        found[name] = [*state, booted + int(values.get(changed) or 0) / 1e6]
    return found


ASKS = {"units": lambda names, _reply: ask_units(names)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind


def compare_units(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a unit."""
    found = answer["units"][entry["name"]] or ("not-found", "", "", False, 0.0)
    load, unit_file, active, needs_reload, changed = found
    if load == "not-found":
        if entry.get("enabled") or entry.get("active"):
            yield MISSING, "a unit"
        return
    if needs_reload:
        yield "its files changed since systemd read them", "read again"
    enabled = entry.get("enabled")
    # Static and generated units cannot be enabled; systemd starts them when they are needed.
    if enabled is not None and enabled != (unit_file not in ("disabled", "masked", "")):
        yield (unit_file or "disabled"), "enabled" if enabled else "disabled"
    wanted = entry.get("active")
    running = active in ("active", "activating", "reloading")
    if wanted is not None and wanted != running:
        yield active, "active" if wanted else "inactive"
        return
    for path in entry.get("since", ()) if running else ():
        if (answer["mtimes"][path] or 0) > changed:
            yield f"started before {path} changed", "started after it"


def disturbing_verb(entry: Entry, answer: Answer) -> str:
    """Return ``restart`` or ``stop`` if the running unit must be, else an empty text."""
    found = answer["units"][entry["name"]]
    if not found or found[2] not in ("active", "activating", "reloading"):
        return ""
    if entry.get("active") is False:
        return "stop"
    changed = found[-1]
    is_stale = any((answer["mtimes"][path] or 0) > changed for path in entry.get("since", ()))
    return "restart" if is_stale else ""


KINDS = (Kind("units", "name", "units", compare_units),)
