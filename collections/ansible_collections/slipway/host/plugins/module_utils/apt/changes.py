# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages of an owned set must change, and the apt-get commands that change them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# What dpkg knows of a package: ``[want, state, version]``, None where it never heard of it.
Known = Sequence[str] | None

OPTIONS = [
    "--quiet=2",
    "--assume-yes",
    "--no-install-recommends",
    # The set is held by us, so only we may change it; apt wants to be told so.
    "--allow-change-held-packages",
    # Configuration files that somebody edited stay as they are.
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
]
UPDATE = ["apt-get", "--quiet=2", "update"]
HOLD = ["apt-mark", "--quiet=2", "hold"]
UNHOLD = ["apt-mark", "--quiet=2", "unhold"]
# What apt asks for where dpkg was interrupted.
FINISH = ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"]

# The states of a package whose installation or removal began and did not end; see dpkg(1). The last
# one is the probe's own, for what dpkg was doing when it was interrupted.
UNFINISHED = (
    *("half-installed", "unpacked", "half-configured"),
    *("triggers-awaited", "triggers-pending", "interrupted"),
)


@dataclass(frozen=True)
class Move:
    """A package and its versions before and after a transaction; empty where it is not there."""

    name: str
    before: str
    after: str


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
        found.append([*HOLD, *actions.hold])
    if actions.unhold:
        found.append([*UNHOLD, *actions.unhold])
    return found


def newest(wanted: Sequence[Mapping[str, Any]], known: Mapping[str, Known]) -> list[str]:
    """Return what to install so that the whole WANTED set is as new as the sources have it."""
    return [
        entry["name"]
        for entry in wanted
        if entry.get("state", "present") == "present"
        and (not entry.get("optional") or is_installed(known.get(entry["name"])))
    ]


def upgrades(wanted: Sequence[Mapping[str, Any]], known: Mapping[str, Known]) -> list[Plan]:
    """Return what makes the WANTED set as new as the sources have it, the first choice first.

    The second one lets go of those that are optional: modules of a kernel for which the archive has
    no newer ones.  They have to be named: apt keeps what is held.
    """
    choice = plan(wanted, known)
    choice.downgrade = any(entry.get("version") for entry in wanted)
    there = {name for name, entry in known.items() if is_installed(entry)}
    choice.install = [
        f"{entry['name']}={entry['version']}" if entry.get("version") else entry["name"]
        for entry in wanted
        if entry.get("state", "present") == "present"
        and not entry.get("replaced")
        # A missing one that is optional, and an installed one that follows, is asked for apart.
        and not entry.get("optional" if entry["name"] not in there else "follows")
    ]
    free = [entry["name"] for entry in wanted if entry.get("optional") and entry["name"] in there]
    if not free:
        return [choice]
    install = [spelled for spelled in choice.install if spelled.partition("=")[0] not in free]
    return [choice, replace(choice, install=install, purge=[*choice.purge, *free])]


def dry(command: Sequence[str], option: str) -> list[str]:
    """Return COMMAND with an OPTION by which apt-get stops short of changing anything."""
    return [command[0], option, *command[1:]]


def removal(purge: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return commands that tell what becomes unneeded when packages are purged.

    What the last of them would remove and the other two would not: the first tells what nothing
    needs already, the second what cannot be without the packages.
    """
    unneeded = dry(["apt-get", *OPTIONS, "autoremove"], "--simulate")
    alone = dry(["apt-get", *OPTIONS, "purge", "--", *purge], "--simulate")
    return unneeded, alone, dry(alone, "--auto-remove")


def removed(simulated: str) -> set[str]:
    """Return the names of the packages that `apt-get --simulate` would remove."""
    return {move.name for move in moves(simulated) if not move.after}


def moves(simulated: str) -> list[Move]:
    """Return what `apt-get --simulate` would do."""
    found: dict[str, Move] = {}
    pattern = r"^(Inst|Remv|Purg) (\S+)(?: \[(\S+)\])?(?: \((\S+))?"
    for match in re.finditer(pattern, simulated, re.M):
        name, before = match[2], match[3] or ""
        earlier = found.get(name)
        found[name] = Move(name, earlier.before if earlier else before, match[4] or "")
    return [move for _name, move in sorted(found.items()) if move.before != move.after]


def simulation(command: Sequence[str]) -> list[str]:
    """Return the command that simulates a COMMAND of :func:`commands`.

    It prints which packages apt would downgrade, which the quiet commands do not.
    """
    return ["--quiet=1" if word == "--quiet=2" else word for word in dry(command, "--simulate")]


def downgraded(simulated: str) -> set[str]:
    """Return the packages that a :func:`simulation` would downgrade."""
    block = re.search(r"^The following packages will be DOWNGRADED:\n((?: .*\n)+)", simulated, re.M)
    return set(block[1].split()) if block else set()


def told(moved: Sequence[Move]) -> list[str]:
    """Return MOVED as lines for a person, those of the same versions together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for move in moved:
        groups.setdefault((move.before or "(new)", move.after or "(removed)"), []).append(move.name)
    return [f"{before} -> {after}: {', '.join(names)}" for (before, after), names in groups.items()]


def room(shown: str) -> int:
    """Return the bytes that packages take when installed, from what `apt-cache show` says."""
    return sum(int(size) for size in re.findall(r"^Installed-Size: (\d+)$", shown, re.M)) * 1024


def named(command: Sequence[str]) -> list[str]:
    """Return the names of the packages that a COMMAND of :func:`commands` is about."""
    words = command[command.index("--") + 1 :]
    return [word.partition("=")[0].removesuffix("-") for word in words]


def is_installed(known: Known) -> bool:
    """Whether dpkg KNOWS a package as installed."""
    return known is not None and known[1] == "installed"


def unfinished(known: Mapping[str, Known]) -> list[str]:
    """Return the packages that an interrupted or failed run left half done."""
    return sorted(name for name, entry in known.items() if entry and entry[1] in UNFINISHED)


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
# Somebody else's lock, in the words of apt (of its lists, its archives, dpkg) and of dpkg.
LOCKED = (
    "Could not get lock",
    "Unable to acquire the dpkg frontend lock",
    "dpkg frontend lock was locked",
    "dpkg database is locked",
)
FULL = ("No space left on device", "You don't have enough free space")
# apt before 3.0 asks GnuPG, later ones ask Sequoia.
UNTRUSTED = re.compile(r"(?:GPG error|signature verification failed): (\S+) .*?: (.*)")
UNSIGNED = re.compile(r"^E: The repository '(\S+) [^']*' is (?:not signed|no longer signed)")
NO_RELEASE = re.compile(r"^E: The repository '(\S+) [^']*' does not have a Release file")
TWICE = re.compile(r"^E: Conflicting values set for option Signed-By regarding source (\S+) ")
UNFETCHED = re.compile(r"^[EW]: Failed to fetch (\S+) +(.*)")


def is_stale(output: str) -> bool:
    """Whether apt's OUTPUT says that its package index is missing or too old."""
    return any(words in output for words in STALE)


def gone(output: str) -> list[str]:
    """Return the versions of which apt's OUTPUT says that no source has them."""
    return list(
        dict.fromkeys(re.findall(r"^E: Version '(.*)' for '.*' was not found", output, re.M))
    )


def candidates(policy: str) -> dict[str, str]:
    """Return the version of each package that apt would take, as `apt-cache policy` tells it."""
    found = re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)$", policy, re.M)
    return {name: version for name, version in found if version != "(none)"}


def is_syncing(output: str) -> bool:
    """Whether apt's OUTPUT says that the mirror is half-synchronised."""
    return any(words in output for words in SYNCING)


def is_locked(output: str) -> bool:
    """Whether apt's or dpkg's OUTPUT says that somebody else holds a lock."""
    return any(words in output for words in LOCKED)


def is_interrupted(output: str) -> bool:
    """Whether apt's OUTPUT says that dpkg was interrupted and has to be finished first."""
    return "dpkg was interrupted" in output


def is_full(output: str) -> bool:
    """Whether apt's OUTPUT says that a file system is full."""
    return any(words in output for words in FULL)


def unwritten(output: str) -> str:
    """Return the path that a full file system could not take, empty where OUTPUT names none."""
    named = re.search(r" to '(/[^']+)': .*No space left|free space in (/\S*[^\s.])", output)
    return (named[1] or named[2]) if named else ""


def unread(output: str) -> dict[str, str]:
    """Return a sentence for each source that apt's OUTPUT could not use: which, why, what to do.

    They stand under the address that apt names.

    An update succeeds in spite of them, and goes on with what apt knew before.
    """
    found: dict[str, str] = {}
    for line in output.splitlines():
        if match := UNTRUSTED.search(line) or UNSIGNED.search(line):
            reason = f" ({match[2].strip()})" if match.lastindex == 2 else ""
            found.setdefault(
                match[1],
                f"The source {match[1]} is not signed by a key that its entry in "
                f"/etc/apt names{reason}: give the entry its vendor's key, or remove it.",
            )
        elif match := NO_RELEASE.search(line):
            found.setdefault(
                match[1],
                f"The source {match[1]} holds no repository: correct its entry in /etc/apt, "
                "or remove it.",
            )
        elif match := TWICE.search(line):
            found[match[1]] = (
                f"The source {match[1]} stands below /etc/apt twice, with different keys, by which "
                "apt reads none at all: remove the entry that Slipway did not write."
            )
        # That a signature was refused is told a second time, as a fetch that failed.
        elif (match := UNFETCHED.search(line)) and not match[1].startswith(tuple(found)):
            what = (
                "run again when its mirror has finished its own update, or name another mirror."
                if is_syncing(line)
                else "make it reachable from the host, name a mirror, or remove its entry in "
                "/etc/apt."
            )
            reason = match[2].strip().rstrip(":.")
            found[match[1]] = f"The source {match[1]} could not be fetched ({reason}): {what}"
    return found


def sources(policy: str) -> list[list[str]]:
    """Return the addresses from which each package comes, as `apt-cache policy` tells them."""
    packages = re.split(r"^\S+:$", policy, flags=re.M)[1:]
    return [re.findall(r"^ +-?\d+ (\w+:\S+) ", package, re.M) for package in packages]


def errors(output: str) -> str:
    """Return the lines of apt's OUTPUT that tell what failed, or its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("E:", "W:", "dpkg:", "Err:"))]
    return "; ".join((told or lines)[-5:])
