# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings data sets and repositories to the host that it runs on.

How it is started and followed is described in :mod:`host.job`.  Only the standard library of Python
3.10 is used.
"""

from __future__ import annotations

import grp
import json
import os
import posixpath
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils import _probe
from ansible_collections.slipway.host.plugins.module_utils.data import (
    checkout,
    download,
    place,
    record,
    standing,
    unpack,
)
from ansible_collections.slipway.host.plugins.module_utils.data.progress import WorkError, amount
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress

LOCK = Path("/var/lib/slipway/data.lock")
Tree = Mapping[str, Any]


def look_of(tree: Tree) -> place.Look:
    """Return how a tree is to look, in numbers."""
    try:
        owner = pwd.getpwnam(tree["owner"]).pw_uid
        group = grp.getgrnam(tree["group"]).gr_gid
    except KeyError as error:
        raise WorkError(
            f"{error.args[0]}; declare it in user_access_users or user_access_groups"
        ) from None
    return place.Look(owner, group, int(tree["mode"], 8))


def places(tree: Tree) -> list[str]:
    """Return where a tree can be: at its path, or on one of the disks that are there."""
    disks = [disk for disk in tree["disks"] if os.path.isdir(disk)]
    return [tree["path"], *(f"{disk}/{tree['name']}" for disk in disks)]


def whereabouts(tree: Tree) -> str | None:
    """Return where the tree is that its path shows, None where it shows none."""
    path = tree["path"]
    if not os.path.islink(path):
        return path if os.path.isdir(path) else None
    leads = os.readlink(path)
    if not os.path.isdir(posixpath.dirname(leads)):
        raise WorkError(
            f"{path} leads to {leads}, whose folder is not there; mount its disk, or remove "
            "the link"
        )
    return leads if os.path.isdir(leads) else None


class Worker:
    """Makes the trees of one job as declared."""

    def __init__(self, secrets: Mapping[str, Mapping[str, Any]], progress: Progress) -> None:
        self.secrets = secrets
        self.progress = progress

    def settle(self, tree: Tree) -> None:
        """Make one tree as declared; raise WorkError or OSError where that cannot be."""
        if tree["state"] == "absent":
            self.remove(tree)
        else:
            look = look_of(tree)
            make = self.dataset if tree["kind"] == "datasets" else self.checkout
            real = make(tree, look)
            place.follow(real, look)
            self.link(tree, real)
        for path in places(tree):
            place.Stage(path).remove()

    def link(self, tree: Tree, real: str) -> None:
        """Let the tree's path lead to where it really is."""
        path = tree["path"]
        if real != path and not (os.path.islink(path) and os.readlink(path) == real):
            stage = place.Stage(path)
            with stage.entered():
                os.symlink(real, place.LINK)
                stage.show(place.LINK)

    def remove(self, tree: Tree) -> None:
        """Remove what the role made of a tree; what people added stays, or is refused to go."""
        path = tree["path"]
        real = whereabouts(tree)
        if real is None:
            return
        if tree["kind"] == "checkouts":
            checkout.refuse_to_remove(real)
        elif record.added(real):
            kept = record.remove(real)
            self.progress.say(f"{tree['name']}: {kept} files in {real} are not from it and stay")
            return
        place.Stage(real).take()
        if real != path:
            os.unlink(path)

    # Repositories.

    def checkout(self, tree: Tree, look: place.Look) -> str:
        """Bring a work tree to its revision; return where it is."""
        secret = self.secrets[tree["name"]]
        real = whereabouts(tree)
        if real is None:
            real = place.choose(places(tree), tree["size"], {})
            stage = place.Stage(real)
            with stage.entered():
                checkout.make(tree, secret, place.TREE, self.progress)
                place.follow(place.TREE, look)
                stage.show(place.TREE)
            return real
        # git then runs as who is declared to have it.
        place.follow(real, look)
        found = _probe.tree(real)
        revision = tree["from"], tree["revision"], tree["settled"]
        if (
            found is None
            or not standing.is_of(tree["version"], found)
            or any(standing.displaced(found, *revision))
        ):
            checkout.move(tree, secret, real, self.progress)
        return real

    # Data sets.

    def dataset(self, tree: Tree, look: place.Look) -> str:
        """Have a data set unpacked; return where it is."""
        shown = whereabouts(tree)
        for real in dict.fromkeys([shown or tree["path"], *places(tree)]):
            found = _probe.tree(real)
            if found and (found["record"] or {}).get("version") == tree["version"]:
                if found["missing"]:
                    self.heal(tree, look, real, found["missing"])
                return real
        if shown:
            self.refuse_to_replace(tree, shown)
        real = self.room_for(tree, shown)
        stage = place.Stage(real)
        with stage.entered():
            self.unpacked(tree, look)
            stage.show(place.TREE)
        if shown and shown not in (real, tree["path"]):
            self.link(tree, real)
            place.Stage(shown).take()
        return real

    def refuse_to_replace(self, tree: Tree, path: str) -> None:
        """Raise WorkError where people's own files are in a tree that another replaces."""
        added = record.added(path)
        if added:
            more = " and more" if len(added) > record.SHOWN else ""
            raise WorkError(
                f"{path} holds files that are not from its archive, or were changed "
                f"({', '.join(added[: record.SHOWN])}{more}); move them out, and run again"
            )

    def heal(self, tree: Tree, look: place.Look, real: str, names: list[str]) -> None:
        """Bring back what is gone at the top of a tree, and touch nothing else."""
        with place.Stage(real).entered():
            self.unpacked(tree, look)
            with place.opened_tree(real) as top:
                for name in names:
                    os.rename(f"{place.TREE}/{name}", name, dst_dir_fd=top)

    def room_for(self, tree: Tree, shown: str | None) -> str:
        """Return the place of a tree: the first with room for its archive and what is in it."""
        archive, inside = 0, tree["size"]
        if tree["local"]:
            with self.readable(tree):
                inside = inside or self.inside(tree, tree["from"])
        else:
            archive = self.source(tree).size() or 0
            inside = inside or (archive if tree["unpack"] else 0)
        folders = list(dict.fromkeys([shown or tree["path"], *places(tree)]))
        had = {path: self.staged(path) for path in folders}
        return place.choose(folders, archive + inside, had)

    def staged(self, path: str) -> int:
        """Return how much of a download lies beside a place already."""
        try:
            return os.stat(f"{place.Stage(path).path}/{download.PART}").st_size
        except OSError:
            return 0

    def inside(self, tree: Tree, archive: str) -> int:
        """Return what an archive takes when unpacked; where nobody knows, as much as it has."""
        size = os.stat(archive).st_size
        return (unpack.size_of(archive) or size) if tree["unpack"] else size

    def source(self, tree: Tree) -> download.Source:
        """Return where a tree's archive comes from."""
        secret = self.secrets[tree["name"]]
        return download.Source(secret["url"], secret["headers"], tree["from"])

    @contextmanager
    def readable(self, tree: Tree) -> Iterator[None]:
        """Say what it is about where an archive of the host cannot be read."""
        try:
            yield
        except OSError as error:
            raise WorkError(f"{tree['from']} cannot be read: {error.strerror}") from error

    def unpacked(self, tree: Tree, look: place.Look) -> None:
        """Make the complete tree in the working folder."""
        archive = self.archive(tree)
        checksum = self.checked(tree, archive)
        needed = tree["size"] or self.inside(tree, archive)
        if (tree["unpack"] or tree["local"]) and place.room(".") < needed:
            raise WorkError(
                f"unpacked it needs {amount(needed)}, free are {amount(place.room('.'))} in "
                f"{os.getcwd()}; the archive is kept there for the next run"
            )
        with self.enough_room("unpacking", place.clear):
            os.mkdir(place.TREE, 0o755)
            if tree["unpack"]:
                with place.working(place.TREE):
                    path = archive if tree["local"] else f"../{archive}"
                    unpack.unpack(path, tree["strip"], tree["name"], self.progress)
            else:
                name = posixpath.basename(urlsplit(tree["from"]).path) or tree["name"]
                bring = shutil.copyfile if tree["local"] else os.rename
                bring(archive, f"{place.TREE}/{name}")
                os.chmod(f"{place.TREE}/{name}", 0o644)
            record.write(place.TREE, tree["version"], checksum)
        place.follow(place.TREE, look)
        download.discard()

    def archive(self, tree: Tree) -> str:
        """Return the path of the archive, which is here afterwards."""
        if tree["local"]:
            return str(tree["from"])
        with self.enough_room("downloading", download.discard):
            download.fetch(self.source(tree), tree["name"], self.progress)
        return download.PART

    def checked(self, tree: Tree, archive: str) -> str:
        """Return the checksum of an archive; raise WorkError where it is not the declared one."""
        algorithm = tree["checksum"].partition(":")[0] or "sha256"
        with self.readable(tree):
            digits = download.digest(archive, algorithm, tree["name"], self.progress)
        found = f"{algorithm}:{digits}"
        if not tree["checksum"]:
            self.progress.say(f"{tree['name']}: no checksum is declared; what came has {found}")
        elif found != tree["checksum"]:
            if not tree["local"]:
                download.discard()
            raise WorkError(
                f"{tree['from']} has {found}, expected {tree['checksum']}; it was not unpacked. Is "
                "there a newer one, or was it changed on the way?"
            )
        return found

    @contextmanager
    def enough_room(self, doing: str, undo: Callable[[], None]) -> Iterator[None]:
        """Where the disk gets full, undo what filled it and say so."""
        try:
            yield
        except OSError as error:
            if not download.is_full(error):
                raise
            undo()
            raise WorkError(
                f"{os.getcwd()} got full while {doing}; what was written is removed again, which "
                f"leaves {amount(place.room('.'))}. Make room, state 'size' where it is known, or "
                "list a folder on a larger disk in ml_data_disks"
            ) from error


def carry_out(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Make all trees of a job as declared; one that fails leaves the others."""
    worker = Worker(job["secrets"], progress)
    done: list[str] = []
    failed: dict[str, str] = {}
    for tree in job["trees"]:
        try:
            worker.settle(tree)
            done.append(tree["name"])
        except Exception as error:
            known = isinstance(error, (WorkError, OSError))
            failed[tree["name"]] = str(error) if known else f"{type(error).__name__}: {error}"
            progress.say(f"{tree['name']}: FAILED")
    for entry in job["stages"]:
        try:
            place.sweep(entry["path"], entry["entries"])
        except OSError as error:
            failed[entry["path"]] = str(error)
    return {"done": done, "failed": failed}


def main(folder: Path) -> None:
    """Carry out the job in FOLDER."""
    # The one who started this may keep all from others; trees say themselves who reads them.
    os.umask(0o022)
    described = folder / "job.json"
    job = json.loads(described.read_text(encoding="utf-8"))
    # It holds secrets.
    described.unlink()
    os.environ.update(job["environment"])
    host_job.carry_out(folder, LOCK, "download of data", lambda progress: carry_out(job, progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
