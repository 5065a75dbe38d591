# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run apt on a host: wait for locks, refresh an outdated index, explain errors.

:mod:`apt.changes` builds the commands.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes, dkms, progress
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import packages, reading

# Seconds to wait before a half-synchronised mirror is tried again.
RETRIES = (5, 20, 60)
ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "NEEDRESTART_MODE": "l"}
# Seconds between two tries to get a lock.
LOCK_PAUSE = 2
LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
# Folders that apt and dpkg write to, for errors of a full disk without a path.
WRITTEN = ("/var/cache/apt/archives", "/var/lib/apt/lists", "/var/lib/dpkg", "/usr", "/boot")


class AptError(Exception):
    """A command of apt failed; ``output`` is its complete output."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def lock_holder(files: tuple[str, ...] = LOCKS) -> str:
    """Return a description of the process that holds one of apt's lock FILES, empty if none."""
    holders = {}
    for line in (reading.read_file("/proc/locks") or b"").decode("ascii").splitlines():
        # An arrow marks a process that waits for a lock.
        fields = line.split()
        if fields[1] != "->":
            holders[fields[5].rsplit(":", 1)[-1]] = fields[4]
    for file in files:
        try:
            pid = holders[str(Path(file).stat().st_ino)]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except (OSError, KeyError):
            continue
        return f"process {pid} ({command.decode('utf-8', 'replace').strip()})"
    return ""


def mount_point(path: str) -> Path:
    """Return the mount point of the file system of PATH, which may not exist yet."""
    return next(folder for folder in (Path(path), *Path(path).parents) if folder.is_mount())


def full_file_system(path: str) -> str:
    """Return a description of the file system of PATH, or else of the fullest one apt writes to."""
    points = {mount_point(folder) for folder in ([path] if path else WRITTEN)}
    point = min(points, key=lambda point: shutil.disk_usage(point).free)
    return f"{point} ({shutil.disk_usage(point).free // 1_000_000} MB free)"


def describe(states: Mapping[str, changes.PackageState]) -> str:
    """Return a set of packages as lines for a diff."""
    lines = []
    for name, entry in sorted(states.items()):
        if entry and entry[1] == "installed":
            lines.append(f"{name} {entry[2]}{' (held)' if entry[0] == 'hold' else ''}\n")
    return "".join(lines)


class Apt:
    """Runs apt; refreshes its index at most once.

    OPTIONS are added to each command of apt-get and apt-cache. NOTES are sentences for a person
    about unusual events; methods add to them.
    """

    def __init__(
        self,
        module: HostModule,
        lock_timeout: int,
        options: Sequence[str] = (),
        notes: list[str] | None = None,
    ) -> None:
        self.module = module
        self.lock_timeout = lock_timeout
        self.options = list(options)
        self.refreshed = False
        self.retries: Sequence[int] = RETRIES
        self.notes = [] if notes is None else notes
        # Errors of sources that apt could not use at the last refresh, by address.
        self.unusable: dict[str, str] = {}

    def error(self, activity: str, output: str) -> AptError:
        """Return the error that ACTIVITY failed, with apt's messages and the solution."""
        message = f"{activity} failed: {changes.error_lines(output).rstrip('.')}."
        return AptError(" ".join([message, *self._remedies(output)]), output)

    def _remedies(self, output: str) -> list[str]:
        """Return sentences with the causes of an error and their solutions."""
        if changes.is_locked(output):
            holder = lock_holder() or "another process"
            return [
                f"After {self.lock_timeout} seconds {holder} still held apt's "
                "lock. Wait for this process or stop it, then run again."
            ]
        if changes.is_full(output):
            point = full_file_system(changes.full_path(output))
            return [
                f"File system {point} is full. Free some space (`apt-get clean` deletes downloaded "
                "packages), then run again to continue."
            ]
        stale = changes.is_stale(output)
        errors = changes.unusable_sources(output) or (self.unusable if stale else {})
        return [*dkms.explain(output, reading.read_file), *changes.merge_sources(errors)]

    def run(
        self, command: Sequence[str], cwd: str | None = None, lock_timeout: int | None = None
    ) -> tuple[int, str]:
        """Run COMMAND as soon as no other process holds a lock; return its status and output."""
        program, *words = command
        if program in ("apt-get", "apt-cache"):
            words = [*self.options, *words]
        # apt's own option waits only for the lock of dpkg, and apt-mark has no such option.
        timeout = self.lock_timeout if lock_timeout is None else lock_timeout
        deadline = time.monotonic() + timeout
        while True:
            status, output = self._run_once(program, words, cwd)
            left = deadline - time.monotonic()
            if status == 0 or left <= 0 or not changes.is_locked(output):
                return status, output
            self._show(f"apt: waits for {lock_holder() or 'another process'}")
            time.sleep(min(LOCK_PAUSE, left))

    def _run_once(self, program: str, words: Sequence[str], cwd: str | None) -> tuple[int, str]:
        """Run a command; show the progress of apt-get."""
        self._show(" ".join([program, *(word for word in words if not word.startswith("-"))]))
        options: dict[str, Any] = {"environ_update": ENVIRONMENT, "cwd": cwd}
        if program != "apt-get":
            status, out, err = self.module.run_command([program, *words], **options)
        else:
            with progress.follow(self._show) as descriptor:
                command = [program, f"--option=APT::Status-Fd={descriptor}", *words]
                status, out, err = self.module.run_command(
                    command, pass_fds=[descriptor], **options
                )
        return int(status), str(out) + str(err)

    def _show(self, text: str) -> None:
        """Show what apt does now."""
        self.module.status.show(text)

    def use_only(self, options: Sequence[str]) -> None:
        """Use the sources of OPTIONS, which do not change meanwhile; no OPTIONS: do nothing."""
        if options:
            self.options += options
            self.retries = ()
            self.refresh()

    def refresh(self) -> None:
        """Refresh the package index; unusable sources are recorded, and do not fail here."""
        self.refreshed = True
        status, output = self.run(changes.UPDATE)
        for wait in self.retries:
            if not changes.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(changes.UPDATE)
        if status != 0:
            raise self.error("refreshing the package index", output)
        self.unusable = changes.unusable_sources(output)

    def unusable_sources_of(self, names: Iterable[str]) -> list[str]:
        """Return the errors of unusable sources that may have the packages NAMES."""
        if not self.unusable:
            return []
        _status, policy = self.run(["apt-cache", "policy", "--", *names])
        sources = changes.sources(policy)
        # A package of a source that apt has never read has no address.
        any_unknown = any(not addresses for addresses in sources)
        known_addresses = tuple(address for addresses in sources for address in addresses)
        errors = {
            address: error
            for address, error in self.unusable.items()
            if any_unknown or address.startswith(known_addresses)
        }
        return changes.merge_sources(errors)

    def refuse_future_versions(self, install: Iterable[str], missing: Sequence[str]) -> None:
        """Raise AptError if a missing version is newer than the newest version of the sources.

        INSTALL are packages as ``name=version``, MISSING the versions that no source has. A newer
        version replaces one that an archive has removed, but not one that is not published yet.
        """
        pairs = (word.partition("=") for word in install)
        declared = {name: version for name, _equals, version in pairs if version in missing}
        _status, policy = self.run(["apt-cache", "policy", "--", *declared])
        newest_of = changes.candidates(policy)
        for name in sorted(declared.keys() & newest_of.keys()):
            newest, version = newest_of[name], declared[name].removesuffix("-*")
            comparable = newest if version == declared[name] else newest.rpartition("-")[0]
            if self.run(["dpkg", "--compare-versions", comparable, "lt", version])[0] == 0:
                raise AptError(
                    f"no source has version {version} yet: the newest {name} is {newest}. Declare "
                    "this version or an older one. No package was installed or removed."
                )

    def available(self, names: list[str]) -> list[str]:
        """Return the packages in NAMES that a source has; refresh the index if one is missing."""

        def ask() -> list[str]:
            return [name for name in names if self.run(["apt-cache", "show", "--", name])[0] == 0]

        if names and len(ask()) < len(names) and not self.refreshed:
            self.refresh()
        return ask()

    def followers(
        self, declared: list[dict[str, Any]], states: Mapping[str, changes.PackageState]
    ) -> list[str]:
        """Return the installed packages that must change together with their dependencies."""
        result = []
        for entry in declared:
            state = states[entry["name"]]
            if entry.get("follows") and state and state[1] == "installed":
                _status, shown = self.run(["apt-cache", "show", "-a", "--", entry["name"]])
                version = changes.version_that_needs(shown, entry["follows"])
                if version and version != state[2]:
                    result.append(f"{entry['name']}={version}")
        return result

    def orphans(self, purge: Sequence[str]) -> list[str]:
        """Return the packages that were installed for PURGE and that no other package needs."""
        unneeded, alone, with_orphans = (
            changes.removed_names(self.run(command)[1])
            for command in changes.simulate_removal(purge)
        )
        return sorted(with_orphans - alone - unneeded)

    def finish_interrupted(self, unfinished: Sequence[str] = ()) -> None:
        """Finish an interrupted installation; UNFINISHED are its known packages.

        If a dependency is missing, the next command of apt finishes the installation.
        """
        self.run(changes.FINISH)
        names = f": {', '.join(unfinished)}" if unfinished else ""
        self.notes.append(f"finished an interrupted installation{names}")

    def run_with_retries(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command as :meth:`run`; try again after a remedy for known errors of apt."""
        status, output = self.run(command)
        if status != 0 and changes.is_interrupted(output):
            self.finish_interrupted()
            status, output = self.run(command)
        if status != 0 and changes.is_stale(output) and not self.refreshed:
            self.refresh()
            status, output = self.run(command)
        for wait in self.retries:
            if status == 0 or not changes.is_syncing(output):
                break
            time.sleep(wait)
            status, output = self.run(command)
        return status, output

    def change(
        self, command: Sequence[str], version_fallback: str = "none", activity: str = ""
    ) -> list[str]:
        """Run a COMMAND that changes packages; raise AptError if it fails.

        ACTIVITY names the command in messages. Return the declared versions that no source has, if
        VERSION_FALLBACK allows newer versions; then nothing was changed.
        """
        status, output = self.run_with_retries(command)
        if status == 0:
            return []
        versions = ", ".join(missing := changes.missing_versions(output))
        if not missing:
            short_command = " ".join(word for word in command if not word.startswith("--"))
            raise self.error(activity or short_command, output)
        if errors := self.unusable_sources_of(changes.names_in(command)):
            # These sources may have the declared versions, or newer ones.
            raise AptError(
                f"no usable source has version {versions}. No package was installed or removed. "
                f"{' '.join(errors)}"
            )
        self.refuse_future_versions(command, missing)
        if version_fallback == "none":
            raise AptError(
                f"no source has version {versions} any more. Declare another version. No package "
                "was installed or removed."
            )
        return missing

    def hold_again(self, names: Iterable[str], wait: bool = True) -> None:
        """Hold those packages in NAMES that dpkg knows, also after a failed command.

        WAIT for a lock of another process; not after a command that has already waited for it.
        """
        states = packages.ask_packages(sorted(names))
        holdable = [name for name, entry in states.items() if entry and entry[1] != "not-installed"]
        if holdable:
            self.run([*changes.HOLD, *holdable], lock_timeout=self.lock_timeout if wait else 0)
