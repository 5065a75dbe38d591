# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a declared set of packages with dpkg; build apt's commands and read their output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

# State of a package in dpkg: ``[want, state, version]``, None if dpkg does not know the package.
PackageState: TypeAlias = "Sequence[str] | None"

OPTIONS = [
    "--quiet=2",
    "--assume-yes",
    "--no-install-recommends",
    # The set is held, and apt requires this option to change held packages.
    "--allow-change-held-packages",
    # Edited configuration files are kept.
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
]
UPDATE = ["apt-get", "--quiet=2", "update"]
HOLD = ["apt-mark", "--quiet=2", "hold"]
UNHOLD = ["apt-mark", "--quiet=2", "unhold"]
# The command that apt requires after an interruption of dpkg.
FINISH = ["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"]

# States of a package after an interrupted installation or removal; see dpkg(1). The last state is
# set by the survey for a package in an interrupted operation of dpkg.
UNFINISHED = (
    *("half-installed", "unpacked", "half-configured"),
    *("triggers-awaited", "triggers-pending", "interrupted"),
)


@dataclass(frozen=True)
class Move:
    """A package and its versions before and after a transaction; empty if not installed."""

    name: str
    before: str
    after: str


@dataclass
class Changes:
    """The changes of a set of packages: names, or ``name=version`` in ``install``.

    ``optional`` are missing packages that are installed with the others if a source has them.
    ``forget`` are removed packages whose configuration files remain.
    """

    install: list[str] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    downgrade: bool = False
    purge: list[str] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    unhold: list[str] = field(default_factory=list)

    @property
    def needed(self) -> bool:
        """Whether anything must change."""
        return bool(self.install or self.purge or self.forget or self.hold or self.unhold)


def is_version(version: str, declared: str) -> bool:
    """Return whether a version is the DECLARED one, which may end with ``*`` as in apt."""
    return version.startswith(declared[:-1]) if declared.endswith("*") else version == declared


def compare(declared: Sequence[Mapping[str, Any]], states: Mapping[str, PackageState]) -> Changes:
    """Return the changes that install the DECLARED set.

    The entries are those of owned state (name, version, hold, state, optional). An installed
    package without a declared version keeps its version: only the upgrade play installs newer
    versions.
    """
    result = Changes()
    for entry in declared:
        name = entry["name"]
        want, state, version = states.get(name) or ("unknown", "not-installed", "")
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
        must_install = state != "installed" or bool(exact and not is_version(version, exact))
        if must_install:
            result.install.append(f"{name}={exact}" if exact else name)
            result.downgrade |= bool(exact and state == "installed")
        hold = entry.get("hold")
        # The installation of another version removes the hold of a package.
        if hold is not None and hold != (want == "hold" and not must_install):
            (result.hold if hold else result.unhold).append(name)
    return result


def commands(actions: Changes) -> list[list[str]]:
    """Return the commands for ACTIONS, in order.

    Replaced packages are removed in the same transaction that installs their replacements, so that
    apt first finds and downloads all new packages.
    """
    result = []
    if actions.install:
        options = [*OPTIONS, "--allow-downgrades"] if actions.downgrade else OPTIONS
        removals = [f"{name}-" for name in actions.purge]
        options = [*options, "--purge"] if removals else options
        result.append(["apt-get", *options, "install", "--", *actions.install, *removals])
    purge = [*([] if actions.install else actions.purge), *actions.forget]
    if purge:
        result.append(["apt-get", *OPTIONS, "purge", "--", *purge])
    if actions.hold:
        result.append([*HOLD, *actions.hold])
    if actions.unhold:
        result.append([*UNHOLD, *actions.unhold])
    return result


def names_without_versions(
    declared: Sequence[Mapping[str, Any]], states: Mapping[str, PackageState]
) -> list[str]:
    """Return the packages of the DECLARED set to install in their newest versions."""
    return [
        entry["name"]
        for entry in declared
        if entry.get("state", "present") == "present"
        and (not entry.get("optional") or is_installed(states.get(entry["name"])))
    ]


def list_upgrades(
    declared: Sequence[Mapping[str, Any]], states: Mapping[str, PackageState]
) -> list[Changes]:
    """Return the changes that upgrade the DECLARED set to its newest versions, first choice first.

    The second choice removes optional packages: modules of a kernel for which the archive has no
    newer version. They must be named, because apt keeps held packages.
    """
    choice = compare(declared, states)
    choice.downgrade = any(entry.get("version") for entry in declared)
    installed = {name for name, entry in states.items() if is_installed(entry)}
    choice.install = [
        f"{entry['name']}={entry['version']}" if entry.get("version") else entry["name"]
        for entry in declared
        if entry.get("state", "present") == "present"
        and not entry.get("replaced")
        # Missing optional packages and installed packages with "follows" are added by the caller.
        and not entry.get("optional" if entry["name"] not in installed else "follows")
    ]
    removable = [
        entry["name"] for entry in declared if entry.get("optional") and entry["name"] in installed
    ]
    if not removable:
        return [choice]
    install = [word for word in choice.install if word.partition("=")[0] not in removable]
    return [choice, replace(choice, install=install, purge=[*choice.purge, *removable])]


def dry_run(command: Sequence[str], option: str) -> list[str]:
    """Return COMMAND with an OPTION by which apt-get changes no package."""
    return [command[0], option, *command[1:]]


def simulate_removal(purge: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return three commands that show which packages are no longer needed after a purge.

    These are the packages that only the last command would remove. The first one removes packages
    that are already unneeded, the second one packages that depend on the purged packages.
    """
    unneeded = dry_run(["apt-get", *OPTIONS, "autoremove"], "--simulate")
    alone = dry_run(["apt-get", *OPTIONS, "purge", "--", *purge], "--simulate")
    return unneeded, alone, dry_run(alone, "--auto-remove")


def removed_names(simulated: str) -> set[str]:
    """Return the names of the packages that `apt-get --simulate` would remove."""
    return {move.name for move in moves(simulated) if not move.after}


def moves(simulated: str) -> list[Move]:
    """Return the changes of versions in the output of `apt-get --simulate`."""
    result: dict[str, Move] = {}
    pattern = r"^(Inst|Remv|Purg) (\S+)(?: \[(\S+)\])?(?: \((\S+))?"
    for match in re.finditer(pattern, simulated, re.M):
        name, before = match[2], match[3] or ""
        earlier = result.get(name)
        result[name] = Move(name, earlier.before if earlier else before, match[4] or "")
    return [move for _name, move in sorted(result.items()) if move.before != move.after]


def simulation(command: Sequence[str]) -> list[str]:
    """Return the command that simulates a COMMAND of :func:`commands`.

    Unlike the quiet commands, it prints which packages apt would downgrade.
    """
    return ["--quiet=1" if word == "--quiet=2" else word for word in dry_run(command, "--simulate")]


def downgraded(simulated: str) -> set[str]:
    """Return the packages that a :func:`simulation` would downgrade."""
    block = re.search(r"^The following packages will be DOWNGRADED:\n((?: .*\n)+)", simulated, re.M)
    return set(block[1].split()) if block else set()


def describe_moves(moved: Sequence[Move]) -> list[str]:
    """Return a line for each change of versions, with all packages that have it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for move in moved:
        groups.setdefault((move.before or "(new)", move.after or "(removed)"), []).append(move.name)
    return [f"{before} -> {after}: {', '.join(names)}" for (before, after), names in groups.items()]


def installed_bytes(shown: str) -> int:
    """Return the installed size of packages from the output of `apt-cache show`."""
    return sum(int(size) for size in re.findall(r"^Installed-Size: (\d+)$", shown, re.M)) * 1024


def names_in(command: Sequence[str]) -> list[str]:
    """Return the names of the packages in a COMMAND of :func:`commands`."""
    arguments = command[command.index("--") + 1 :]
    return [argument.partition("=")[0].removesuffix("-") for argument in arguments]


def is_installed(state: PackageState) -> bool:
    """Return whether a package is installed."""
    return state is not None and state[1] == "installed"


def unfinished(states: Mapping[str, PackageState]) -> list[str]:
    """Return the packages whose installation or removal was interrupted or failed."""
    return sorted(name for name, entry in states.items() if entry and entry[1] in UNFINISHED)


def version_that_needs(shown: str, version: str) -> str:
    """Return the newest version of a package that depends on VERSION of others, empty if none does.

    SHOWN is the output of `apt-cache show --all-versions` for the package, newest version first.
    """
    for stanza in shown.split("\n\n"):
        fields = dict(re.findall(r"^(Version|Depends): (.*)$", stanza, re.M))
        if f"(>= {version})" in fields.get("Depends", ""):
            return str(fields["Version"])
    return ""


# Messages of apt for an index that is older than the mirror: `apt-get update` may help.
STALE = (
    "404  Not Found",
    "Unable to locate package",
    "has no installation candidate",
    "was not found",
)
# Messages for a mirror during its own update: a later try may help.
SYNCING = ("Hash Sum mismatch", "File has unexpected size", "Mirror sync in progress")
# Messages of apt and dpkg for a lock of another process.
LOCKED = (
    "Could not get lock",
    "Unable to acquire the dpkg frontend lock",
    "dpkg frontend lock was locked",
    "dpkg database is locked",
)
FULL = ("No space left on device", "You don't have enough free space")
# apt before 3.0 uses GnuPG, later versions use Sequoia.
UNTRUSTED = re.compile(r"(?:GPG error|signature verification failed): (\S+) .*?: (.*)")
UNSIGNED = re.compile(r"^E: The repository '(\S+) [^']*' is (?:not signed|no longer signed)")
NO_RELEASE = re.compile(r"^E: The repository '(\S+) [^']*' does not have a Release file")
TWICE = re.compile(r"^E: Conflicting values set for option Signed-By regarding source (\S+) ")
UNFETCHED = re.compile(r"^[EW]: Failed to fetch (\S+) +(.*)")


def is_stale(output: str) -> bool:
    """Return whether apt reports a missing or outdated package index."""
    return any(message in output for message in STALE)


def missing_versions(output: str) -> list[str]:
    """Return the versions that no source has, according to apt's OUTPUT."""
    return list(
        dict.fromkeys(re.findall(r"^E: Version '(.*)' for '.*' was not found", output, re.M))
    )


def candidates(policy: str) -> dict[str, str]:
    """Return the version of each package that apt would install, from `apt-cache policy`."""
    pairs = re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (\S+)$", policy, re.M)
    return {name: version for name, version in pairs if version != "(none)"}


def is_syncing(output: str) -> bool:
    """Return whether apt reports a mirror during its own update."""
    return any(message in output for message in SYNCING)


def is_locked(output: str) -> bool:
    """Return whether apt or dpkg reports a lock of another process."""
    return any(message in output for message in LOCKED)


def is_interrupted(output: str) -> bool:
    """Return whether apt reports that an interrupted dpkg must be finished first."""
    return "dpkg was interrupted" in output


def is_full(output: str) -> bool:
    """Return whether apt reports a full file system."""
    return any(message in output for message in FULL)


def full_path(output: str) -> str:
    """Return the path on a full file system that OUTPUT names, empty if it names none."""
    match = re.search(r" to '(/[^']+)': .*No space left|free space in (/\S*[^\s.])", output)
    return (match[1] or match[2]) if match else ""


def unusable_sources(output: str) -> dict[str, str]:
    """Return an error for each source that apt could not use, by its address.

    `apt-get update` succeeds in spite of such sources and keeps their old index.
    """
    errors: dict[str, str] = {}
    for line in output.splitlines():
        if match := UNTRUSTED.search(line) or UNSIGNED.search(line):
            reason = f" ({match[2].strip()})" if match.lastindex == 2 else ""
            errors.setdefault(
                match[1],
                f"apt source {match[1]}: not signed by the key of its entry in /etc/apt{reason}. "
                "Set Signed-By of the entry to the vendor's key, or remove the entry.",
            )
        elif match := NO_RELEASE.search(line):
            errors.setdefault(
                match[1],
                f"apt source {match[1]}: not a repository. Correct its entry in /etc/apt, or "
                "remove the entry.",
            )
        elif match := TWICE.search(line):
            errors[match[1]] = (
                f"apt source {match[1]}: defined twice in /etc/apt with different Signed-By keys, "
                "so apt reads no source. Remove the entry that Slipway did not write."
            )
        # apt reports a rejected signature a second time, as a failed download.
        elif (match := UNFETCHED.search(line)) and not match[1].startswith(tuple(errors)):
            remedy = (
                "Run again when its mirror has finished its own update, or use another mirror."
                if is_syncing(line)
                else "Make it reachable from the host, use a mirror, or remove its entry in "
                "/etc/apt."
            )
            reason = match[2].strip().rstrip(":.")
            errors[match[1]] = f"apt source {match[1]}: download failed ({reason}). {remedy}"
    return errors


def merge_sources(errors: Mapping[str, str]) -> list[str]:
    """Return the errors of sources by address; sources with the same error share a sentence."""
    addresses: dict[str, list[str]] = {}
    for address, error in errors.items():
        addresses.setdefault(error.removeprefix(f"apt source {address}"), []).append(address)
    return [
        f"apt source{'s' if len(several) > 1 else ''} {', '.join(several)}{text}"
        for text, several in addresses.items()
    ]


def sources(policy: str) -> list[list[str]]:
    """Return the addresses of the sources of each package, from `apt-cache policy`."""
    packages = re.split(r"^\S+:$", policy, flags=re.M)[1:]
    return [re.findall(r"^ +-?\d+ (\w+:\S+) ", package, re.M) for package in packages]


def error_lines(output: str) -> str:
    """Return the error lines of apt's OUTPUT, or its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    messages = [line for line in lines if line.startswith(("E:", "W:", "dpkg:", "Err:"))]
    return "; ".join((messages or lines)[-5:])
