# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upgrade a set of packages, record the old versions, and roll back; see ``apt.package_record``.

Private to the collection.
"""

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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slipway.host.plugins.module_utils.apt import changes, package_record
from ansible_collections.slipway.host.plugins.module_utils.apt.consent import check_restart
from ansible_collections.slipway.host.plugins.module_utils.apt.package_record import Before, Record
from ansible_collections.slipway.host.plugins.module_utils.apt.run import (
    Apt,
    AptError,
    mount_point,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu.kernel_module import (
    describe_gpu_users,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    facts,
    files,
    packages,
)

PROC = Path("/proc")
ARCHIVES = Path("/var/cache/apt/archives")
# What unpacked packages fill; files on other file systems are few.
UNPACKED = "/usr"

Moves = Sequence[changes.Move]


@dataclass
class Result:
    """What was done, or would be in check mode."""

    changed: bool = False
    moves: Moves = ()
    told: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Put the moves in words."""
        self.told = changes.told(self.moves)

    @property
    def before(self) -> str:
        """The moved packages as lines of a diff, before."""
        return "".join(f"{move.name} {move.before}\n" for move in self.moves if move.before)

    @property
    def after(self) -> str:
        """The same afterwards."""
        return "".join(f"{move.name} {move.after}\n" for move in self.moves if move.after)


def combined(results: Sequence[Result]) -> Result:
    """Return several results as one."""
    changed = any(result.changed for result in results)
    return Result(changed, [move for result in results for move in result.moves])


def now() -> str:
    """Return the time as the record has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Kept:
    """The record of a host and the packages that lie beside it."""

    def __init__(self) -> None:
        self.folder = Path(package_record.FOLDER)
        self.record = package_record.parse(files.ask_text(package_record.FILE) or "")
        for entry in self.record.packages.values():
            # Somebody may have made room.
            entry.file = entry.file if (self.folder / entry.file).is_file() else ""

    def write(self) -> None:
        """Write the record."""
        if not self.record.packages:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        content = self.record.to_json()
        apply_files.settle({"path": package_record.FILE, "content": content})

    def tidy(self) -> None:
        """Remove kept packages that the record does not need any more."""
        for file in self.folder.glob("*.deb"):
            if file.name not in self.record.files:
                file.unlink()

    def take(self, name: str) -> bool:
        """Keep the package file of this NAME from apt's cache; return whether it is kept."""
        own, cached = self.folder / name, ARCHIVES / name
        if own.exists():
            return True
        if not cached.is_file():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            os.link(cached, own)
        except OSError:
            # On another file system. A copy that was cut short must not be taken for a whole one.
            part = own.with_suffix(".part")
            shutil.copy(cached, part)
            part.rename(own)
        return True


class PackageSet:
    """Does what the module ``package_set`` is told."""

    def __init__(self, module: AnsibleModule, lock_timeout: int, gpus_free: bool) -> None:
        self.module = module
        self.gpus_free = gpus_free
        self.lock_timeout = lock_timeout
        self.apt = Apt(module, lock_timeout)
        # Whether dpkg had left something to finish.
        self.finished = False
        self.kept = Kept()

    def upgrade(self, role: str, wanted: list[dict[str, Any]], gone: str) -> Result:
        """Bring the WANTED set of a ROLE to the newest versions that its sources have."""
        names = [entry["name"] for entry in wanted]
        with self._index():
            known = self._settled(names)
            self.apt.refresh()
            if unread := self.apt.unread_of(names):
                raise AptError(f"what is newest cannot be told. {' '.join(unread)}")
            plan, moves = self._simulated(wanted, known, gone)
        if not moves:
            return Result(self.finished)
        self._wait_for_gpus()
        check_restart(moves, self.module.params["restart"])
        if self.module.check_mode:
            return Result(True, moves)
        command = changes.commands(plan)[0]
        self._fetch(command, moves)
        self._keep(role, [*moves, *self._replaced(wanted, known)])
        self._make("the upgrade", command, [entry["name"] for entry in wanted if entry["hold"]])
        return Result(True, moves)

    def go_back(self, role: str | None) -> Result:
        """Return to the recorded set; packages of ROLE wait for the GPUs where that is asked."""
        record = self.kept.record
        kernel = facts.ask_host()["kernel"]
        known = self._settled(list(record.packages))
        back = package_record.way_back(record, known, kernel)
        if back.stays:
            self.apt.notes.append(
                f"{', '.join(back.stays)} came with the upgrade and stays, because that kernel "
                "runs: boot the one of before and run again"
            )
        if not back.moves:
            return self._settle_way_back(back)
        if role in {record.packages[move.name].role for move in back.moves}:
            self._wait_for_gpus()
        check_restart(back.moves, self.module.params["restart"])
        plan = changes.Plan(install=back.install, purge=back.purge, downgrade=True)
        command = changes.commands(plan)[0]
        self._try_way_back(command, back)
        if self.module.check_mode:
            return Result(True, back.moves)
        self._fetch(command, back.moves)
        record.leave(back.moves)
        self.kept.write()
        self._make("the way back", command, back.hold)
        self._settle_way_back(back)
        return Result(True, back.moves)

    def _try_way_back(self, command: Sequence[str], back: package_record.Return) -> None:
        """Raise AptError where the way BACK by COMMAND does not lead there."""
        status, output = self.apt.attempt(changes.dry(command, "--simulate"))
        if status != 0:
            lost = ", ".join(back.unkept)
            needs = f" The archive must still have {lost}." if lost else ""
            why = changes.errors(output).rstrip(".")
            raise AptError(f"there is no way back: {why}.{needs} Nothing was changed.", output)
        self._refuse_removal(changes.moves(output), set(back.purge))

    def _settle_way_back(self, back: package_record.Return) -> Result:
        """Come to the end of a way BACK on which no package has to move any more."""
        record = self.kept.record
        if not record.packages:
            self.apt.notes.append("there is nothing to go back to: no upgrade is recorded here")
        ends = record.state == package_record.RETURNING and not back.stays
        if not self.module.check_mode:
            self.apt.hold_again(back.hold)
            if ends:
                record.state = package_record.RETURNED
                self.kept.write()
        return Result(bool(back.hold or ends or self.finished))

    def prove(self) -> Result:
        """Close the record: the next upgrade begins a new one."""
        record = self.kept.record
        if record.state != package_record.UPGRADING:
            return Result()
        if not self.module.check_mode:
            record.state = package_record.PROVEN
            self.kept.write()
        return Result(True)

    def forget(self, role: str) -> Result:
        """Drop what the record has of a ROLE."""
        if not self.kept.record.forget(role):
            return Result()
        if not self.module.check_mode:
            self.kept.write()
            self.kept.tidy()
        return Result(True)

    def _wait_for_gpus(self) -> None:
        """Fail, or in check mode note, where somebody holds a GPU who is not to be disturbed."""
        users = describe_gpu_users(detect.holders(PROC).processes) if self.gpus_free else []
        if not users:
            return
        why = f"The GPUs are in use: {'; '.join(users)}. Let them end, and run again."
        if not self.module.check_mode:
            raise AptError(f"{why} Nothing was changed.")
        self.apt.notes.append(why)

    @contextmanager
    def _index(self) -> Iterator[None]:
        """Lend check mode an index of its own: a fresh one, while the host's stays as it is."""
        if not self.module.check_mode:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
            # apt's own user fetches into it.
            Path(folder).chmod(0o755)
            own = [
                f"Dir::State::Lists={folder}",
                "Dir::Cache::pkgcache=",
                "Dir::Cache::srcpkgcache=",
            ]
            options = [f"--option={setting}" for setting in own]
            self.apt = Apt(self.module, self.lock_timeout, options, self.apt.notes)
            yield

    def _settled(self, names: list[str]) -> dict[str, changes.Known]:
        """Return what dpkg knows of the packages, after finishing what it had left."""
        known: dict[str, changes.Known] = packages.ask_packages(names)
        left = changes.unfinished(known)
        self.finished = self.finished or bool(left)
        if left and not self.module.check_mode:
            self.apt.finish(left)
            known = packages.ask_packages(names)
        return known

    def _simulated(
        self, wanted: list[dict[str, Any]], known: Mapping[str, changes.Known], gone: str
    ) -> tuple[changes.Plan, Moves]:
        """Return how the set gets to its newest versions, and what that moves."""
        failures: list[str] = []
        for plan in changes.upgrades(wanted, known):
            follow = [entry for entry in wanted if entry["name"] not in plan.purge]
            plan.install += self.apt.known(plan.optional)
            plan.install += self.apt.followers(follow, known)
            status, output = self.apt.attempt(changes.dry(changes.commands(plan)[0], "--simulate"))
            moves = changes.moves(output)
            # To let go of something is no choice of its own, without anything newer to come.
            if status == 0 and (not failures or any(move.after for move in moves)):
                self._refuse_removal(moves, {entry["name"] for entry in wanted})
                return plan, moves
            failures.append(output)
        versions = ", ".join(lost := changes.gone(failures[0]))
        if lost:
            named = [
                f"{entry['name']}={entry['version']}" for entry in wanted if entry.get("version")
            ]
            self.apt.refuse_unborn(named, lost)
        if lost and gone == "newest":
            self.apt.notes.append(f"no source has version {versions}: the newest comes instead")
            free = [{**entry, "version": None, "follows": None} for entry in wanted]
            return self._simulated(free, known, "fail")
        if lost:
            raise AptError(
                f"no source has version {versions} any more; nothing was changed. Name another one."
            )
        raise self.apt.error("finding out what an upgrade would do", failures[0])

    def _replaced(
        self, wanted: list[dict[str, Any]], known: Mapping[str, changes.Known]
    ) -> Iterator[changes.Move]:
        """Yield the packages that stay for now, and go when others have come in their place."""
        for entry in wanted:
            state = known[entry["name"]]
            if entry.get("replaced") and state and state[1] == "installed":
                yield changes.Move(entry["name"], state[2], state[2])

    def _refuse_removal(self, moves: Moves, own: set[str]) -> None:
        """Fail where packages would be removed that are nobody's to remove."""
        others = [move.name for move in moves if not move.after and move.name not in own]
        if others:
            raise AptError(
                f"apt would have to remove {', '.join(others)}, which is not of the set. Remove it "
                "yourself if it can go. Nothing was changed."
            )

    def _fetch(self, command: Sequence[str], moves: Moves) -> None:
        """Fetch all that is to come, and make sure that there is room to unpack it."""
        fetch = changes.dry(command, "--download-only")
        self.apt.change(fetch, doing="fetching the packages")
        coming = [f"{move.name}={move.after}" for move in moves if move.after]
        _status, shown = self.apt.run(["apt-cache", "show", "--", *coming]) if coming else (0, "")
        point = mount_point(UNPACKED)
        need, free = changes.room(shown), shutil.disk_usage(point).free
        if need > free:
            raise AptError(
                f"the packages need {need // 1_000_000} MB and the file system {point} has "
                f"{free // 1_000_000} MB free: make room there. Nothing was changed."
            )

    def _keep(self, role: str, moves: Moves) -> None:
        """Record the way back from MOVES, and keep the packages that it needs."""
        if not self.kept.record.open:
            self.kept.record = Record(began=now())
        record = self.kept.record
        record.state, record.left = package_record.UPGRADING, {}
        known = packages.ask_packages([move.name for move in moves])
        before = {}
        for move in moves:
            held = (known[move.name] or ("",))[0] == "hold"
            file, came = self._file(move.name, move.before), self._cached(move.name, move.after)
            before[move.name] = Before(role, move.before, held, file, came)
        record.add(before)
        lost = [
            f"{name} {entry.version}"
            for name in before
            if (entry := record.packages[name]).version and not entry.file
        ]
        if lost:
            names = ", ".join(lost)
            self.apt.notes.append(
                f"neither apt's cache nor an archive has these: a rollback will need them: {names}"
            )
        self.kept.write()
        self.kept.tidy()

    def _file(self, name: str, version: str) -> str:
        """Keep a package as it is now; return the name of its file, empty where it is lost."""
        file = self._cached(name, version)
        if file or not version:
            return file
        self.kept.folder.mkdir(parents=True, exist_ok=True)
        fetch = ["apt-get", "--quiet=2", "download", "--", f"{name}={version}"]
        self.apt.run(fetch, cwd=str(self.kept.folder))
        return self._cached(name, version)

    def _cached(self, name: str, version: str) -> str:
        """Keep a package whose file is on this host; return its name, empty where it is not."""
        for architecture in (name.partition(":")[2] or self._architecture, "all"):
            file = package_record.file_name(name, version, architecture)
            if version and self.kept.take(file):
                return file
        return ""

    @cached_property
    def _architecture(self) -> str:
        return self.apt.run(["dpkg", "--print-architecture"])[1].strip()

    def _make(self, doing: str, command: Sequence[str], hold: Sequence[str]) -> None:
        """Run the changing COMMAND; the set is held afterwards, whatever comes of it."""
        try:
            self.apt.change(command, doing=doing)
        except AptError:
            self.apt.hold_again(hold, wait=False)
            raise
        self.apt.hold_again(hold)
