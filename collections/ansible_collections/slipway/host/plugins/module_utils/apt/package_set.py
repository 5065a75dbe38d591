# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrade a set of packages, record the old versions, and roll back; see ``apt.package_record``."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.apt import changes, package_record
from ansible_collections.slipway.host.plugins.module_utils.apt.consent import (
    check_restart,
    gpu_users,
)
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import Before, Record
from ansible_collections.slipway.host.plugins.module_utils.apt.run import (
    Apt,
    AptError,
    mount_point,
)
from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    facts,
    files,
    packages,
)

ARCHIVES = Path("/var/cache/apt/archives")
# Folder whose file system most files of packages are on.
UNPACKED = "/usr"

Moves = Sequence[changes.Move]


@dataclass
class Result:
    """The changes that were made, or would be made in check mode."""

    changed: bool = False
    moves: Moves = ()
    descriptions: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Describe the moves."""
        self.descriptions = changes.describe_moves(self.moves)

    @property
    def before(self) -> str:
        """The lines of the diff before the change."""
        return "".join(f"{move.name} {move.before}\n" for move in self.moves if move.before)

    @property
    def after(self) -> str:
        """The lines of the diff after the change."""
        return "".join(f"{move.name} {move.after}\n" for move in self.moves if move.after)


def combine(results: Sequence[Result]) -> Result:
    """Return one result for several results."""
    changed = any(result.changed for result in results)
    return Result(changed, [move for result in results for move in result.moves])


def now() -> str:
    """Return the present time in the format of the record."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Storage:
    """The record of a host and the package files that are stored beside it."""

    def __init__(self) -> None:
        self.folder = Path(package_record.FOLDER)
        self.record = package_record.parse(files.ask_text(package_record.FILE) or "")
        for entry in self.record.packages.values():
            # Somebody may have deleted files to free space.
            entry.file = entry.file if (self.folder / entry.file).is_file() else ""

    def write(self) -> None:
        """Write the record."""
        if not self.record.packages:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        content = self.record.to_json()
        apply_files.settle({"path": package_record.FILE, "content": content})

    def delete_unneeded(self) -> None:
        """Delete package files that the record no longer needs."""
        for file in self.folder.glob("*.deb"):
            if file.name not in self.record.files:
                file.unlink()

    def store(self, name: str) -> bool:
        """Store the package file NAME from apt's cache; return whether it is stored."""
        stored, cached = self.folder / name, ARCHIVES / name
        if stored.exists():
            return True
        if not cached.is_file():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(cached, stored)
        except OSError:
            # On another file system: copy, and rename so that an interrupted copy is not used.
            part = stored.with_suffix(".part")
            shutil.copy(cached, part)
            part.rename(stored)
        return True


class PackageSet:
    """Upgrades and rolls back packages, for the module ``package_set``."""

    def __init__(self, module: HostModule, lock_timeout: int, gpus_free: bool) -> None:
        self.module = module
        self.gpus_free = gpus_free
        self.lock_timeout = lock_timeout
        self.apt = Apt(module, lock_timeout)
        # Whether an interrupted installation was finished.
        self.finished = False
        self.storage = Storage()

    def upgrade(self, role: str, declared: list[dict[str, Any]], fallback: str) -> Result:
        """Upgrade the DECLARED set of a ROLE to the newest versions; FALLBACK: version_fallback."""
        names = [entry["name"] for entry in declared]
        with self._index():
            states = self._finish_interrupted(names)
            self.apt.refresh()
            if errors := self.apt.unusable_sources_of(names):
                raise AptError(f"Cannot find the newest versions. {' '.join(errors)}")
            actions, moves = self._simulate(declared, states, fallback)
        if not moves:
            return Result(self.finished)
        self._check_gpus_free()
        check_restart(moves, self.module.params["restart"])
        if self.module.check_mode:
            return Result(True, moves)
        command = changes.commands(actions)[0]
        self._download(command, moves)
        self._record(role, [*moves, *self._replaced(declared, states)])
        held = [entry["name"] for entry in declared if entry["hold"]]
        self._change("the upgrade", command, held)
        return Result(True, moves)

    def roll_back(self, role: str | None) -> Result:
        """Restore the recorded packages; with gpus_free, packages of ROLE wait for the GPUs."""
        record = self.storage.record
        kernel = facts.ask_host()["kernel"]
        states = self._finish_interrupted(list(record.packages))
        back = package_record.plan_rollback(record, states, kernel)
        if back.stays:
            self.apt.notes.append(
                f"kept {', '.join(back.stays)} of the upgrade, because this kernel runs. Boot the "
                "previous kernel, then run again"
            )
        if not back.moves:
            return self._finish_rollback(back)
        if role in {record.packages[move.name].role for move in back.moves}:
            self._check_gpus_free()
        check_restart(back.moves, self.module.params["restart"])
        actions = changes.Changes(install=back.install, purge=back.purge, downgrade=True)
        command = changes.commands(actions)[0]
        self._check_rollback(command, back)
        if self.module.check_mode:
            return Result(True, back.moves)
        self._download(command, back.moves)
        record.leave(back.moves)
        self.storage.write()
        self._change("the rollback", command, back.hold)
        self._finish_rollback(back)
        return Result(True, back.moves)

    def _check_rollback(self, command: Sequence[str], back: package_record.Rollback) -> None:
        """Raise AptError if apt cannot roll back by COMMAND."""
        status, output = self.apt.run_with_retries(changes.dry_run(command, "--simulate"))
        if status != 0:
            unkept = ", ".join(back.unkept)
            needs = f" An apt source must have {unkept}." if unkept else ""
            reason = changes.error_lines(output).rstrip(".")
            raise AptError(
                f"Cannot roll back: {reason}.{needs} No package was installed or removed.", output
            )
        self._refuse_removal(changes.moves(output), set(back.purge))

    def _finish_rollback(self, back: package_record.Rollback) -> Result:
        """Restore holds and close the record, after all packages have their recorded versions."""
        record = self.storage.record
        if not record.packages:
            self.apt.notes.append("no upgrade is recorded, so there is nothing to roll back")
        is_complete = record.state == package_record.RETURNING and not back.stays
        if not self.module.check_mode:
            self.apt.hold_again(back.hold)
            if is_complete:
                record.state = package_record.RETURNED
                self.storage.write()
        return Result(bool(back.hold or is_complete or self.finished))

    def mark_verified(self) -> Result:
        """Close the record, so that the next upgrade starts a new one."""
        record = self.storage.record
        if record.state != package_record.UPGRADING:
            return Result()
        if not self.module.check_mode:
            record.state = package_record.PROVEN
            self.storage.write()
        return Result(True)

    def drop_role(self, role: str) -> Result:
        """Remove the entries of a ROLE from the record."""
        if not self.storage.record.drop_role(role):
            return Result()
        if not self.module.check_mode:
            self.storage.write()
            self.storage.delete_unneeded()
        return Result(True)

    def _check_gpus_free(self) -> None:
        """Fail if processes use a GPU; in check mode only add a note."""
        users = gpu_users() if self.gpus_free else []
        if not users:
            return
        message = f"The GPUs are in use: {'; '.join(users)}. Wait until they end, then run again."
        if not self.module.check_mode:
            raise AptError(f"{message} No package was installed or removed.")
        self.apt.notes.append(message)

    @contextmanager
    def _index(self) -> Iterator[None]:
        """In check mode, use a package index in a temporary folder instead of the host's."""
        if not self.module.check_mode:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
            # The user _apt downloads into the folder.
            Path(folder).chmod(0o755)
            own = [
                f"Dir::State::Lists={folder}",
                "Dir::Cache::pkgcache=",
                "Dir::Cache::srcpkgcache=",
            ]
            options = [*self.apt.options, *(f"--option={setting}" for setting in own)]
            self.apt = Apt(self.module, self.lock_timeout, options, self.apt.notes)
            yield

    def _finish_interrupted(self, names: list[str]) -> dict[str, changes.PackageState]:
        """Finish an interrupted installation; return the states of the packages."""
        states: dict[str, changes.PackageState] = packages.ask_packages(names)
        unfinished = changes.unfinished(states)
        self.finished = self.finished or bool(unfinished)
        if unfinished and not self.module.check_mode:
            self.apt.finish_interrupted(unfinished)
            states = packages.ask_packages(names)
        return states

    def _simulate(
        self,
        declared: list[dict[str, Any]],
        states: Mapping[str, changes.PackageState],
        fallback: str,
    ) -> tuple[changes.Changes, Moves]:
        """Return the changes that upgrade the set, and the versions that they move."""
        failures: list[str] = []
        for actions in changes.list_upgrades(declared, states):
            kept = [entry for entry in declared if entry["name"] not in actions.purge]
            actions.install += self.apt.available(actions.optional)
            actions.install += self.apt.followers(kept, states)
            status, output = self.apt.run_with_retries(
                changes.dry_run(changes.commands(actions)[0], "--simulate")
            )
            moves = changes.moves(output)
            # The removal of optional packages is accepted only if it allows newer versions.
            if status == 0 and (not failures or any(move.after for move in moves)):
                self._refuse_removal(moves, {entry["name"] for entry in declared})
                return actions, moves
            failures.append(output)
        versions = ", ".join(missing := changes.missing_versions(failures[0]))
        if missing:
            install = [
                f"{entry['name']}={entry['version']}" for entry in declared if entry.get("version")
            ]
            self.apt.refuse_future_versions(install, missing)
        if missing and fallback == "newest":
            self.apt.notes.append(f"no source has version {versions}: installed the newest instead")
            any_version = [{**entry, "version": None, "follows": None} for entry in declared]
            return self._simulate(any_version, states, "none")
        if missing:
            raise AptError(
                f"no source has version {versions} any more. Declare another version. No package "
                "was installed or removed."
            )
        raise self.apt.error("the simulation of the upgrade", failures[0])

    def _replaced(
        self, declared: list[dict[str, Any]], states: Mapping[str, changes.PackageState]
    ) -> Iterator[changes.Move]:
        """Yield the packages that are removed after the installation of their replacements."""
        for entry in declared:
            state = states[entry["name"]]
            if entry.get("replaced") and state and state[1] == "installed":
                yield changes.Move(entry["name"], state[2], state[2])

    def _refuse_removal(self, moves: Moves, own: set[str]) -> None:
        """Fail if apt would remove packages that are not in the set."""
        others = [move.name for move in moves if not move.after and move.name not in own]
        if others:
            raise AptError(
                f"apt would remove {', '.join(others)}; expected only packages of the set. Remove "
                "these packages yourself if you do not need them. No package was installed or "
                "removed."
            )

    def _download(self, command: Sequence[str], moves: Moves) -> None:
        """Download all new packages, and fail if there is not enough space to unpack them."""
        download = changes.dry_run(command, "--download-only")
        self.apt.change(download, activity="the download of the packages")
        new = [f"{move.name}={move.after}" for move in moves if move.after]
        _status, shown = self.apt.run(["apt-cache", "show", "--", *new]) if new else (0, "")
        point = mount_point(UNPACKED)
        need, free = changes.installed_bytes(shown), shutil.disk_usage(point).free
        if need > free:
            raise AptError(
                f"not enough disk space for the packages: {point} has {free // 1_000_000} MB free; "
                f"expected {need // 1_000_000} MB. Free some space. No package was installed or "
                "removed."
            )

    def _record(self, role: str, moves: Moves) -> None:
        """Record the versions before MOVES, and store the package files for a rollback."""
        if not self.storage.record.open:
            self.storage.record = Record(began=now())
        record = self.storage.record
        record.state, record.left = package_record.UPGRADING, {}
        states = packages.ask_packages([move.name for move in moves])
        before = {}
        for move in moves:
            held = (states[move.name] or ("",))[0] == "hold"
            file = self._store(move.name, move.before)
            new_file = self._store_cached(move.name, move.after)
            before[move.name] = Before(role, move.before, held, file, new_file)
        record.add(before)
        unkept = [
            f"{name} {entry.version}"
            for name in before
            if (entry := record.packages[name]).version and not entry.file
        ]
        if unkept:
            self.apt.notes.append(
                "neither apt's cache nor an apt source has these packages, which a rollback needs: "
                f"{', '.join(unkept)}"
            )
        self.storage.write()
        self.storage.delete_unneeded()

    def _store(self, name: str, version: str) -> str:
        """Store the file of an installed package; return its name, empty if no source has it."""
        file = self._store_cached(name, version)
        if file or not version:
            return file
        self.storage.folder.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "--quiet=2", "download", "--", f"{name}={version}"]
        self.apt.run(command, cwd=str(self.storage.folder))
        return self._store_cached(name, version)

    def _store_cached(self, name: str, version: str) -> str:
        """Store a package file that is on this host; return its name, empty if there is none."""
        for architecture in (name.partition(":")[2] or self._architecture, "all"):
            file = package_record.file_name(name, version, architecture)
            if version and self.storage.store(file):
                return file
        return ""

    @cached_property
    def _architecture(self) -> str:
        return self.apt.run(["dpkg", "--print-architecture"])[1].strip()

    def _change(self, activity: str, command: Sequence[str], hold: Sequence[str]) -> None:
        """Run a COMMAND that changes packages, and hold the set again, also after a failure."""
        try:
            self.apt.change(command, activity=activity)
        except AptError:
            self.apt.hold_again(hold, wait=False)
            raise
        self.apt.hold_again(hold)
