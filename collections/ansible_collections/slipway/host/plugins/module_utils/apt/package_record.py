# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of the packages before the last upgrade of a host, for a rollback.

The record is a file on the host. The old packages are stored beside it, because an archive removes
a version when it publishes the next one. A record is open from the first change of an upgrade until
the upgrade is verified. A repeated upgrade after a failure adds to the open record, so that a
rollback always restores the last verified packages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes

FOLDER = "/var/lib/slipway/upgrade"
# state/facts.py has the same path: it is sent to hosts without this file.
FILE = f"{FOLDER}/record.json"

UPGRADING, PROVEN = "upgrading", "proven"
# state/facts.py has RETURNING too.
RETURNING, RETURNED = "rolling back", "rolled back"


class RecordError(ValueError):
    """The record cannot be read; the message has its path and the solution."""


@dataclass
class Before:
    """A package before the upgrade; ``version`` is empty if it was not installed.

    ``role``: the role whose upgrade changed it. ``file``: name of the stored package file, empty if
    there is none. ``came``: name of the file of the new version; it is stored for the next upgrade,
    because apt's cache may be empty then.
    """

    role: str
    version: str = ""
    hold: bool = False
    file: str = ""
    came: str = ""


@dataclass
class Record:
    """The last upgrade of a host.

    ``left``: for each package that a rollback changed, the version before and after the rollback;
    the latter is empty if the package was removed.
    """

    state: str = PROVEN
    began: str = ""
    packages: dict[str, Before] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether the upgrade or its rollback is unfinished or not verified."""
        return self.state in (UPGRADING, RETURNING)

    @property
    def files(self) -> set[str]:
        """Names of the package files that the record needs."""
        entries = self.packages.values()
        return {file for entry in entries for file in (entry.file, entry.came) if file}

    def add(self, moves: Mapping[str, Before]) -> None:
        """Record packages before they change; entries of an earlier try are kept."""
        for name, entry in moves.items():
            self.packages.setdefault(name, entry).came = entry.came

    def leave(self, moves: Sequence[changes.Move]) -> None:
        """Record the MOVES of a rollback; entries of an earlier try are kept."""
        self.state = RETURNING
        for move in moves:
            if move.before not in ("", move.after):
                self.left.setdefault(move.name, (move.before, move.after))

    def drop_role(self, role: str) -> bool:
        """Remove the entries of a ROLE; return whether there were any."""
        dropped = {name for name, entry in self.packages.items() if entry.role == role}
        self.packages = {k: v for k, v in self.packages.items() if k not in dropped}
        self.left = {k: v for k, v in self.left.items() if k not in dropped}
        return bool(dropped)

    def to_json(self) -> str:
        """Return the record as the text of its file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def parse(text: str) -> Record:
    """Return the record in TEXT, an empty record for an empty text."""
    if not text:
        return Record()
    try:
        data = json.loads(text)
        return Record(
            data["state"],
            data["began"],
            {name: Before(**entry) for name, entry in data["packages"].items()},
            {name: (left, now) for name, (left, now) in data["left"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"Cannot read {FILE}: {error}; expected the record of an upgrade. Remove the file to "
            "continue; then a rollback is no longer possible."
        ) from None


def file_name(name: str, version: str, architecture: str) -> str:
    """Return the name of a package file in apt's cache."""
    for character, code in ((":", "%3a"), ("_", "%5f")):
        version = version.replace(character, code)
    return f"{name.partition(':')[0]}_{version}_{architecture}.deb"


@dataclass
class Rollback:
    """The changes of a rollback: packages to install, as ``name=version`` or path, and to remove.

    ``moves``: the same as versions. ``hold``: packages that are held afterwards. ``unkept``:
    packages without a stored file, which only the archive has. ``stays``: packages of the upgrade
    that cannot be removed.
    """

    moves: list[changes.Move] = field(default_factory=list)
    install: list[str] = field(default_factory=list)
    purge: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    unkept: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def _carries_kernel(name: str, kernel: str) -> bool:
    """Return whether a package is a part of KERNEL itself, not of a driver for it."""
    return name.startswith("linux-") and name.endswith(f"-{kernel}") and "nvidia" not in name


def plan_rollback(
    record: Record, states: Mapping[str, changes.PackageState], kernel: str
) -> Rollback:
    """Return the changes that restore the packages of RECORD.

    STATES are the states of these packages in dpkg. The running KERNEL is not removed.
    """
    result = Rollback()
    if record.state == RETURNED:
        return result
    for name, entry in sorted(record.packages.items()):
        want, state, version = states.get(name) or ("unknown", "not-installed", "")
        if state in ("not-installed", "config-files"):
            version = ""
        if not entry.version and version and _carries_kernel(name, kernel):
            result.stays.append(name)
            continue
        if version == entry.version and state not in changes.UNFINISHED:
            if entry.hold and want != "hold":
                result.hold.append(name)
            continue
        result.moves.append(changes.Move(name, version, entry.version))
        if not entry.version:
            result.purge.append(name)
            continue
        result.install.append(f"{FOLDER}/{entry.file}" if entry.file else f"{name}={entry.version}")
        if not entry.file:
            result.unkept.append(f"{name} {entry.version}")
        if entry.hold:
            result.hold.append(name)
    return result


def find_declared_again(
    facts: Mapping[str, Any], packages: Sequence[Mapping[str, Any]], variables: str
) -> list[str]:
    """Return an error if the inventory declares versions that were rolled back.

    FACTS is ``ansible_facts['slipway']``, PACKAGES are the owned packages of the role, VARIABLES
    the names of the variables that declare the version.
    """
    left: Mapping[str, tuple[str, str]] = facts.get("rolled_back") or {}
    declared_again = {}
    for entry in packages:
        was, now = left.get(entry["name"], ("", ""))
        if not was or entry.get("state") == "absent":
            continue
        version = entry.get("version")
        removed = not now and not entry.get("optional")
        if removed or (version and now and changes.is_version(was, version)):
            declared_again[entry["name"]] = (was, now)
    if not declared_again:
        return []
    name, (was, now) = next(iter(declared_again.items()))
    others = len(declared_again) - 1
    more = f" and {others} more" if others else ""
    if facts.get("rollback_interrupted"):
        return [
            f"{name} {was}{more}: its rollback was interrupted; expected a finished "
            "one. Finish it with ./slipway rollback"
        ]
    # The variables of roles have versions without the revision of the package.
    remedy = f"Declare {now.partition('-')[0]}" if now else "Declare the previous version"
    return [
        f"{name} {was}{more}: installed by an upgrade that was rolled back, but declared again. "
        f"{remedy} ({variables}), or try the upgrade again with ./slipway upgrade"
    ]
