# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run apt on a host: wait for locks, refresh the index where it helps, explain its errors.

What is to be run is ``apt.changes``'s business.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.apt import changes
from ansible_collections.slipway.host.plugins.module_utils.state import packages, reading

# Seconds to wait before a half-synchronised mirror is tried again.
RETRIES = (5, 20, 60)
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_MODE": "l"}
# Seconds between two looks at a lock.
LOCK_PAUSE = 2
LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
# Where apt and dpkg write, for a full disk that they do not name.
WRITTEN = ("/var/cache/apt/archives", "/var/lib/apt/lists", "/var/lib/dpkg", "/usr", "/boot")


class AptError(Exception):
    """Apt did not do what it was told; ``output`` is all that it said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def lock_holder(files: tuple[str, ...] = LOCKS) -> str:
    """Return in words which process holds one of apt's lock FILES, empty where none does."""
    holders = {}
    for line in (reading.read_file("/proc/locks") or b"").decode("ascii").splitlines():
        # A process that waits for a lock stands there too, behind an arrow.
        words = line.split()
        if words[1] != "->":
            holders[words[5].rsplit(":", 1)[-1]] = words[4]
    for file in files:
        try:
            pid = holders[str(Path(file).stat().st_ino)]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except (OSError, KeyError):
            continue
        return f"process {pid} ({command.decode('utf-8', 'replace').strip()})"
    return ""


def mount_point(path: str) -> Path:
    """Return where the file system that PATH is in, or would be, is mounted."""
    return next(folder for folder in (Path(path), *Path(path).parents) if folder.is_mount())


def full_file_system(path: str) -> str:
    """Return in words the file system of PATH; without one, the fullest of those apt writes to."""
    points = {mount_point(folder) for folder in ([path] if path else WRITTEN)}
    point = min(points, key=lambda point: shutil.disk_usage(point).free)
    return f"{point} ({shutil.disk_usage(point).free // 1_000_000} MB free)"


def describe(known: Mapping[str, changes.Known]) -> str:
    """Return a set of packages as lines for a diff."""
    lines = []
    for name, entry in sorted(known.items()):
        if entry and entry[1] == "installed":
            lines.append(f"{name} {entry[2]}{' (held)' if entry[0] == 'hold' else ''}\n")
    return "".join(lines)


class Apt:
    """Runs apt; refreshes its index at most once by itself.

    OPTIONS go with each call of apt-get and apt-cache; NOTES is what a person should know of what
    was done, to be added to.
    """

    def __init__(
        self,
        module: AnsibleModule,
        lock_timeout: int,
        options: Sequence[str] = (),
        notes: list[str] | None = None,
    ) -> None:
        self.module = module
        self.lock_timeout = lock_timeout
        self.options = list(options)
        self.refreshed = False
        self.notes = [] if notes is None else notes
        # What the refresh said of sources that it could not use, by their address.
        self.unread: dict[str, str] = {}

    def error(self, doing: str, output: str) -> AptError:
        """Return what to raise where DOING failed: apt's own words, and what to do."""
        said = f"{doing} failed: {changes.errors(output).rstrip('.')}."
        return AptError(" ".join([said, *self._remedies(output)]), output)

    def _remedies(self, output: str) -> list[str]:
        """Return sentences that say what stands behind OUTPUT, and what to do."""
        if changes.is_locked(output):
            holder = lock_holder() or "another process"
            return [
                f"After {self.lock_timeout} seconds {holder} still held apt's "
                "lock: wait for it or stop it, and run again."
            ]
        if changes.is_full(output):
            point = full_file_system(changes.unwritten(output))
            return [
                f"The file system {point} is too full: make room there (`apt-get clean` gives "
                "back what apt fetched), and run again, which goes on from here."
            ]
        stale = changes.is_stale(output)
        return list((changes.unread(output) or (self.unread if stale else {})).values())

    def run(
        self, command: Sequence[str], cwd: str | None = None, lock_timeout: int | None = None
    ) -> tuple[int, str]:
        """Run COMMAND, as soon as nobody else holds a lock; return its status and all it said."""
        program, *words = command
        if program in ("apt-get", "apt-cache"):
            words = [*self.options, *words]
        # Not by apt's own option: that one is for dpkg's lock alone, and apt-mark knows none.
        patience = self.lock_timeout if lock_timeout is None else lock_timeout
        deadline = time.monotonic() + patience
        while True:
            status, out, err = self.module.run_command(
                [program, *words], environ_update=ENVIRONMENT, cwd=cwd
            )
            output: str = out + err
            left = deadline - time.monotonic()
            if status == 0 or left <= 0 or not changes.is_locked(output):
                return status, output
            time.sleep(min(LOCK_PAUSE, left))

    def refresh(self) -> None:
        """Refresh the package index; sources that cannot be used are no failure yet."""
        self.refreshed = True
        status, output = self.run(changes.UPDATE)
        for wait in RETRIES:
            if not changes.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(changes.UPDATE)
        if status != 0:
            raise self.error("refreshing the package index", output)
        self.unread = changes.unread(output)

    def unread_of(self, names: Iterable[str]) -> list[str]:
        """Return why sources from which the packages NAMES come could not be used."""
        if not self.unread:
            return []
        _status, policy = self.run(["apt-cache", "policy", "--", *names])
        sources = changes.sources(policy)
        # One that was never read is known by no package.
        unknown = any(not of_one for of_one in sources)
        known = tuple(address for of_one in sources for address in of_one)
        return [why for one, why in self.unread.items() if unknown or one.startswith(known)]

    def refuse_unborn(self, install: Iterable[str], gone: Sequence[str]) -> None:
        """Raise AptError where a version that no source has is newer than all that they have.

        INSTALL are packages as ``name=version``, GONE the versions of which apt said that.  What is
        taken instead of one that an archive has lost would not do instead of one that is to come.
        """
        spelled = (word.partition("=") for word in install)
        wanted = {name: version for name, _equals, version in spelled if version in gone}
        _status, policy = self.run(["apt-cache", "policy", "--", *wanted])
        newest_of = changes.candidates(policy)
        for name in sorted(wanted.keys() & newest_of.keys()):
            newest, version = newest_of[name], wanted[name].removesuffix("-*")
            known = newest if version == wanted[name] else newest.rpartition("-")[0]
            if self.run(["dpkg", "--compare-versions", known, "lt", version])[0] == 0:
                raise AptError(
                    f"no source has version {version} yet: the newest {name} is {newest}; nothing "
                    "was changed. Name that one, or another that is there."
                )

    def known(self, names: list[str]) -> list[str]:
        """Return which of NAMES a source has, by a fresh index where one seems not to be there."""

        def found() -> list[str]:
            return [name for name in names if self.run(["apt-cache", "show", "--", name])[0] == 0]

        if names and len(found()) < len(names) and not self.refreshed:
            self.refresh()
        return found()

    def followers(
        self, wanted: list[dict[str, Any]], known: Mapping[str, changes.Known]
    ) -> list[str]:
        """Return the installed packages that have to change with those that they depend on."""
        found = []
        for entry in wanted:
            state = known[entry["name"]]
            if entry.get("follows") and state and state[1] == "installed":
                _status, shown = self.run(["apt-cache", "show", "-a", "--", entry["name"]])
                fitting = changes.follower(shown, entry["follows"])
                if fitting and fitting != state[2]:
                    found.append(f"{entry['name']}={fitting}")
        return found

    def orphans(self, purge: Sequence[str]) -> list[str]:
        """Return the packages that came for those of PURGE, and that nothing else needs."""
        unneeded, alone, all_of_them = (
            changes.removed(self.run(command)[1]) for command in changes.removal(purge)
        )
        return sorted(all_of_them - alone - unneeded)

    def finish(self, left: Sequence[str] = ()) -> None:
        """Finish what an interrupted dpkg left; LEFT are the packages of which that is known.

        Where this does not suffice, because a dependency is still to come, apt goes on.
        """
        self.run(changes.FINISH)
        what = f": {', '.join(left)}" if left else ""
        self.notes.append(f"finished what an interrupted installation had left{what}")

    def attempt(self, command: Sequence[str]) -> tuple[int, str]:
        """Return as :meth:`run`, after a second try by a fresh index where that may help."""
        status, output = self.run(command)
        if status != 0 and changes.is_interrupted(output):
            self.finish()
            status, output = self.run(command)
        if status != 0 and changes.is_stale(output) and not self.refreshed:
            self.refresh()
            status, output = self.run(command)
        for wait in RETRIES:
            if status == 0 or not changes.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(command)
        return status, output

    def change(
        self, command: Sequence[str], version_fallback: str = "none", doing: str = ""
    ) -> list[str]:
        """Run a changing COMMAND, as :meth:`attempt` does; raise AptError where it fails.

        DOING is what it does, in words; without them, the command's own are told.  Return the
        wanted versions that no source has, where VERSION_FALLBACK says that this is no failure.
        """
        status, output = self.attempt(command)
        if status == 0:
            return []
        versions = ", ".join(gone := changes.gone(output))
        if not gone:
            words = " ".join(word for word in command if not word.startswith("--"))
            raise self.error(doing or words, output)
        if unread := self.unread_of(changes.named(command)):
            # Such a source may well have them, or newer ones.
            raise AptError(
                f"no source that could be read has version {versions}; nothing was changed. "
                + " ".join(unread)
            )
        self.refuse_unborn(command, gone)
        if version_fallback == "none":
            raise AptError(
                f"no source has version {versions} any more; nothing was changed. Name another one."
            )
        return gone

    def hold_again(self, names: Iterable[str], wait: bool = True) -> None:
        """Hold those of the packages NAMES that dpkg knows, whatever became of them.

        Without WAIT, somebody's lock is no reason to stay: apt has waited for it before.
        """
        known = packages.ask_packages(sorted(names))
        there = [name for name, entry in known.items() if entry and entry[1] != "not-installed"]
        if there:
            self.run([*changes.HOLD, *there], lock_timeout=self.lock_timeout if wait else 0)
