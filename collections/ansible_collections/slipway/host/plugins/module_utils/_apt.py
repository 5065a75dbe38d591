# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages of an owned set must change, and the apt-get commands that change them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What dpkg knows of a package: ``[want, state, version]``, None where it never heard of it.
Known = Sequence[str] | None

# Waits for another apt (first-boot upgrades, cron) instead of failing at once; seconds.
LOCK_TIMEOUT = 300
OPTIONS = [
    "--quiet=2",
    "--assume-yes",
    "--no-install-recommends",
    # The set is held by us, so only we may change it; apt wants to be told so.
    "--allow-change-held-packages",
    f"--option=DPkg::Lock::Timeout={LOCK_TIMEOUT}",
    # Configuration files that somebody edited stay as they are.
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
]


@dataclass
class Plan:
    """What must happen to a set of packages: names, or ``name=version`` in ``install``.

    ``optional`` are missing ones that go in with the others where a source has them; ``forget``
    are removed ones whose settings are left.
    """

    install: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    downgrade: bool = False
    purge: list[str] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    unhold: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """Whether anything must happen."""
        return bool(self.install or self.purge or self.forget or self.hold or self.unhold)


def is_version(found: str, wanted: str) -> bool:
    """Whether a package's version is the WANTED one, which may end with ``*`` as apt takes it."""
    return found.startswith(wanted[:-1]) if wanted.endswith("*") else found == wanted


def plan(wanted: Sequence[Mapping[str, Any]], known: Mapping[str, Known]) -> Plan:
    """Return what must happen so that the WANTED set is there.

    WANTED entries are those of owned state (name, version, hold, state, optional).  A package that
    is installed stays at its version unless another one is asked for: newer ones come with the
    upgrade play, not by the way.
    """
    result = Plan()
    for entry in wanted:
        name = entry["name"]
        want, state, version = known.get(name) or ("unknown", "not-installed", "")
        if entry.get("state", "present") == "absent":
            if state == "config-files":
                result.forget.append(name)
            elif state != "not-installed":
                result.purge.append(name)
            continue
        exact = entry.get("version")
        if state != "installed" and entry.get("optional"):
            result.optional.append(name)
            continue
        comes = state != "installed" or bool(exact and not is_version(version, exact))
        if comes:
            result.install.append(f"{name}={exact}" if exact else name)
            result.downgrade |= bool(exact and state == "installed")
        hold = entry.get("hold")
        # Installing another version takes the hold from a package.
        if hold is not None and hold != (want == "hold" and not comes):
            (result.hold if hold else result.unhold).append(name)
    return result


def commands(actions: Plan) -> list[list[str]]:
    """Return the commands for ACTIONS, in order.

    What is replaced goes in the same transaction as what replaces it: nothing is removed before
    apt has found and fetched all that is to come.
    """
    found = []
    if actions.install:
        options = [*OPTIONS, "--allow-downgrades"] if actions.downgrade else OPTIONS
        removed = [f"{name}-" for name in actions.purge]
        options = [*options, "--purge"] if removed else options
        found.append(["apt-get", *options, "install", "--", *actions.install, *removed])
    gone = [*([] if actions.install else actions.purge), *actions.forget]
    if gone:
        found.append(["apt-get", *OPTIONS, "purge", "--", *gone])
    if actions.hold:
        found.append(["apt-mark", "--quiet=2", "hold", *actions.hold])
    if actions.unhold:
        found.append(["apt-mark", "--quiet=2", "unhold", *actions.unhold])
    return found


def newest(wanted: Sequence[Mapping[str, Any]], known: Mapping[str, Known]) -> list[str]:
    """Return what to install so that the whole WANTED set is as new as the sources have it."""
    return [
        entry["name"]
        for entry in wanted
        if entry.get("state", "present") == "present"
        and (not entry.get("optional") or is_installed(known.get(entry["name"])))
    ]


def is_installed(known: Known) -> bool:
    """Whether dpkg KNOWS a package as installed."""
    return known is not None and known[1] == "installed"


def follower(shown: str, version: str) -> str:
    """Return the version of a package that depends on others being at VERSION or later.

    SHOWN is what `apt-cache show --all-versions` says of it, the newest first. Empty where none
    does.
    """
    for stanza in shown.split("\n\n"):
        fields = dict(re.findall(r"^(Version|Depends): (.*)$", stanza, re.M))
        if f"(>= {version})" in fields.get("Depends", ""):
            return str(fields["Version"])
    return ""


# apt's words for an index that is older than the mirror: worth one `apt-get update`.
STALE = (
    "404  Not Found",
    "Unable to locate package",
    "has no installation candidate",
    "was not found",
)
# A mirror in the middle of its own update: worth a later try.
SYNCING = ("Hash Sum mismatch", "File has unexpected size", "Mirror sync in progress")


def is_stale(output: str) -> bool:
    """Whether apt's OUTPUT says that its package index is missing or too old."""
    return any(words in output for words in STALE)


def gone(output: str) -> list[str]:
    """Return the versions of which apt's OUTPUT says that no source has them."""
    return list(
        dict.fromkeys(re.findall(r"^E: Version '(.*)' for '.*' was not found", output, re.M))
    )


def is_syncing(output: str) -> bool:
    """Whether apt's OUTPUT says that the mirror is half-synchronised."""
    return any(words in output for words in SYNCING)


def errors(output: str) -> str:
    """Return the lines of apt's OUTPUT that tell what failed, or its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("E:", "W:", "dpkg:", "Err:"))]
    return "; ".join((told or lines)[-5:])
