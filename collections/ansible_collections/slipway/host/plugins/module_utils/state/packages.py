# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of dpkg.

Keys of an entry of packages (``?``: optional): name, version? (may end with ``*``), hold?, state?
(``present`` or ``absent``), optional? (it may be missing), follows? (the version of other packages
that it depends on, and with which it changes).
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


STATUS = "/var/lib/dpkg/status"


def read_status(path: str = STATUS) -> str:
    """Return the text of dpkg's own database."""
    return (reading.read_file(path) or b"").decode("utf-8", "replace")


def _parse_state(text: str, start: int) -> list[str]:
    """Return ``[want, state, version]`` of the stanza of dpkg's database that begins at START."""
    end = text.find("\n\n", start + 1)
    stanza = text[start : end if end > 0 else len(text)]
    field = dict(
        line.split(": ", 1)
        for line in stanza.splitlines()
        if line.startswith(("Status: ", "Version: "))
    )
    want, _flag, state = field.get("Status", "unknown ok not-installed").split(" ", 2)
    return [want, state, field.get("Version", "")]


def _read_journal() -> str:
    """Return what dpkg did since it last wrote its database; empty unless it was interrupted."""
    folder = "/var/lib/dpkg/updates"
    return "".join(
        reading.read_word(f"{folder}/{name}") + "\n" for name in reading.list_names(folder) or []
    )


def ask_packages(names: list[str]) -> Json:
    """Return ``[want, state, version]`` of each package from dpkg's own database.

    ``interrupted`` is the state of those that dpkg was at work on when it was interrupted: what
    the database says of them is no longer true.
    """
    found: Json = dict.fromkeys(names)
    text, journal = f"\n{read_status()}", f"\n{_read_journal()}"
    for name in names:
        # A stanza begins with its package; searching beats parsing three thousand of them.
        stanza = f"\nPackage: {name}\n"
        start = text.find(stanza)
        if start >= 0:
            found[name] = _parse_state(text, start)
        if stanza in journal:
            want, _state, version = found[name] or ["unknown", "", ""]
            found[name] = [want, "interrupted", version]
    return found


def installed_packages(prefixes: tuple[str, ...], status: str = STATUS) -> Json:
    """Return the version of each installed package whose name begins with one of PREFIXES."""
    found: Json = {}
    key, text = "\nPackage: ", f"\n{read_status(status)}"
    for prefix in prefixes:
        start = text.find(key + prefix)
        while start >= 0:
            name = text[start + len(key) : text.index("\n", start + 1)]
            _want, state, version = _parse_state(text, start)
            if state == "installed":
                found[name] = version
            start = text.find(key + prefix, start + 1)
    return found


ASKS = {"packages": lambda names, _reply: ask_packages(names)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind


def compare_packages(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a package."""
    found = answer["packages"][entry["name"]]
    want, state, version = found or ("unknown", "not-installed", "")
    if entry.get("state", "present") == "absent":
        if state != "not-installed":
            yield f"{version} {state}".strip(), "absent"
        return
    if state != "installed":
        if entry.get("optional"):
            return
        # "config-files" is what dpkg calls a package that was removed but not purged.
        yield (MISSING if state in ("not-installed", "config-files") else state), "installed"
        return
    wanted_version = entry.get("version") or version
    if not changes.is_version(version, wanted_version):
        yield f"version {version}", wanted_version
    hold = entry.get("hold")
    if hold is not None and hold != (want == "hold"):
        yield ("not held", "held") if hold else ("held", "not held")


KINDS = (Kind("packages", "name", "packages", compare_packages),)
