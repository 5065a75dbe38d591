# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host had before its last upgrade, and what returns it there.

The record is a file on the host, and beside it lie the packages themselves: an archive drops a
version on the day when it gets the next one.  A record is open from the first change of an upgrade
until that upgrade is proven: one that failed and is run again adds to it, so the way back leads to
the last set that was proven to work.

Private to the collection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes

FOLDER = "/var/lib/slipway/upgrade"
# Read by the probe as well, which is sent to hosts by itself.
FILE = f"{FOLDER}/record.json"

UPGRADING, PROVEN = "upgrading", "proven"
RETURNING, RETURNED = "rolling back", "rolled back"


class RecordError(ValueError):
    """The record cannot be read; the message says where it is and what to do."""


@dataclass
class Before:
    """A package before the upgrade; ``version`` is empty where it was not there.

    ``role`` is the one whose upgrade moved it, ``file`` the name of the kept package beside the
    record, empty where there is none.  ``came`` is that of the one that replaced it, which the next
    upgrade has to keep, by when apt's cache may be empty.
    """

    role: str
    version: str = ""
    hold: bool = False
    file: str = ""
    came: str = ""


@dataclass
class Record:
    """The last upgrade of a host.

    ``left`` is what a rollback left behind: for each package the version that it left and the one
    that it went back to, empty where it was removed.
    """

    state: str = PROVEN
    began: str = ""
    packages: dict[str, Before] = field(default_factory=dict)
    left: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether the upgrade, or the way back from it, has not come to its end."""
        return self.state in (UPGRADING, RETURNING)

    @property
    def files(self) -> set[str]:
        """The packages that are kept for it."""
        entries = self.packages.values()
        return {file for entry in entries for file in (entry.file, entry.came) if file}

    def add(self, moves: Mapping[str, Before]) -> None:
        """Note packages that are about to move; what is noted already is older, and stays."""
        for name, entry in moves.items():
            self.packages.setdefault(name, entry).came = entry.came

    def leave(self, moves: Sequence[changes.Move]) -> None:
        """Note that a rollback makes these MOVES; one that goes on has its first versions noted."""
        self.state = RETURNING
        for move in moves:
            if move.before not in ("", move.after):
                self.left.setdefault(move.name, (move.before, move.after))

    def forget(self, role: str) -> bool:
        """Drop what the upgrade of a ROLE noted; return whether that was anything."""
        gone = {name for name, entry in self.packages.items() if entry.role == role}
        self.packages = {k: v for k, v in self.packages.items() if k not in gone}
        self.left = {k: v for k, v in self.left.items() if k not in gone}
        return bool(gone)

    def to_json(self) -> str:
        """Return the record as the text of its file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def parse(text: str) -> Record:
    """Return the record in TEXT, an empty one where there is none."""
    if not text:
        return Record()
    try:
        found = json.loads(text)
        return Record(
            found["state"],
            found["began"],
            {name: Before(**entry) for name, entry in found["packages"].items()},
            {name: (left, now) for name, (left, now) in found["left"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{FILE} cannot be read ({error}): without it there is no way back. Remove it to go on."
        ) from None


def file_name(name: str, version: str, architecture: str) -> str:
    """Return how apt names the file of a package that it fetched."""
    for character, code in ((":", "%3a"), ("_", "%5f")):
        version = version.replace(character, code)
    return f"{name.partition(':')[0]}_{version}_{architecture}.deb"


@dataclass
class Return:
    """How a host gets back: what to install, ``name=version`` or a path, and what to remove.

    ``moves`` says the same in versions, ``hold`` which are held afterwards; ``unkept`` are those
    that only the archive can give back; ``stays`` is what came with the upgrade and cannot go.
    """

    moves: list[changes.Move] = field(default_factory=list)
    install: list[str] = field(default_factory=list)
    purge: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    unkept: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def _carries_kernel(name: str, kernel: str) -> bool:
    """Whether a package is part of a KERNEL itself, not of a driver for it."""
    return name.startswith("linux-") and name.endswith(f"-{kernel}") and "nvidia" not in name


def way_back(record: Record, known: Mapping[str, changes.Known], kernel: str) -> Return:
    """Return what brings a host back to what RECORD says it had.

    KNOWN is what dpkg knows of the record's packages.  The running KERNEL is not removed from under
    itself.
    """
    result = Return()
    if record.state == RETURNED:
        return result
    for name, entry in sorted(record.packages.items()):
        want, state, version = known.get(name) or ("unknown", "not-installed", "")
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


def asked_again(
    facts: Mapping[str, Any], packages: Sequence[Mapping[str, Any]], variables: str
) -> list[str]:
    """Return why a role must not act: the inventory asks for what was rolled back.

    FACTS is ``ansible_facts['slipway']``, PACKAGES the role's owned ones; VARIABLES names those
    that say which version it is to be.
    """
    left: Mapping[str, tuple[str, str]] = facts.get("rolled_back") or {}
    found = {}
    for entry in packages:
        was, now = left.get(entry["name"], ("", ""))
        if not was or entry.get("state") == "absent":
            continue
        version = entry.get("version")
        removed = not now and not entry.get("optional")
        if removed or (version and now and changes.is_version(was, version)):
            found[entry["name"]] = (was, now)
    if not found:
        return []
    name, (was, now) = next(iter(found.items()))
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    # The roles' variables name versions without the packages' revision.
    there = f"declare {now.split('-')[0]}" if now else "declare what was there before"
    return [
        f"{name} {was}{more} came with an upgrade that was rolled back, and the inventory asks for "
        f"it again: {there} ({variables}), or try it once more with ./slipway upgrade"
    ]
