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
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import (
    bound,
    checkout,
    download,
    place,
    record,
    standing,
    unpack,
)
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    Told,
    WorkError,
    amount,
    printable,
)
from ansible_collections.slipway.host.plugins.module_utils.host import environment
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import paths, trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

LOCK = Path("/var/lib/slipway/data.lock")
# Memory of this program and of each that it starts: an archive or a repository may ask for any.
MEMORY = 4 << 30
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


def _is_folder(path: str) -> bool:
    with place.opened_tree(path) as folder:
        return folder is not None


def places(tree: Tree) -> list[str]:
    """Return where a tree can be: at its path, or on one of the disks that are there."""
    disks = [disk for disk in tree["disks"] if _is_folder(disk)]
    return [tree["path"], *(f"{disk}/{tree['name']}" for disk in disks)]


@dataclass(frozen=True)
class Shown:
    """What a tree's path shows.

    ``path`` is where the tree is, or would be; ``tree`` and ``link`` are the identities of the tree
    there, and of a link that leads there, None where there is none.
    """

    path: str
    tree: place.Identity | None
    link: place.Identity | None


def whereabouts(tree: Tree) -> Shown:
    """Return what the tree's path shows.

    Raise UnsafePathError for a link that leads to none of the tree's places, or anything else in
    the way, WorkError where the disk of a link is not there.
    """
    path, link = tree["path"], None
    found = place.link_at(path)
    if found:
        path = found.target
        if path not in [f"{disk}/{tree['name']}" for disk in tree["disks"]]:
            raise UnsafePathError(
                tree["path"], found.description, "a folder, or a link into one of ml_data_disks"
            )
        if not _is_folder(posixpath.dirname(path)):
            raise WorkError(
                f"{tree['path']} leads to {path}, whose folder is not there; mount its disk, or "
                "remove the link"
            )
        link = found.identity
    return Shown(path, identity_of(path), link)


def identity_of(path: str) -> place.Identity | None:
    """Return the identity of the folder at a path, None where there is none."""
    with place.opened_tree(path) as folder:
        return place.identity(folder.info()) if folder else None


class Worker:
    """Makes the trees of one job as declared."""

    def __init__(self, secrets: Mapping[str, Mapping[str, Any]], progress: Progress) -> None:
        self.secrets = secrets
        self.progress = progress

    def settle(self, tree: Tree) -> None:
        """Make one tree as declared; raise WorkError or OSError where that cannot be."""
        shown = whereabouts(tree)
        if tree["state"] == "absent":
            self.remove(tree, shown)
        else:
            make = self.dataset if tree["kind"] == "datasets" else self.checkout
            make(tree, look_of(tree), shown)
        for path in places(tree):
            place.Stage(path).remove()

    def link(self, tree: Tree, real: str, shown: Shown) -> None:
        """Let the tree's path lead to where it really is; what was SHOWN there goes."""
        path = tree["path"]
        if real == path or (shown.link and shown.path == real):
            return
        stage = place.Stage(path)
        with stage.entered():
            os.symlink(real, place.LINK)
            stage.show(place.LINK, shown.link or shown.tree)

    def remove(self, tree: Tree, shown: Shown) -> None:
        """Remove what the role made of a tree; what people added stays, or is refused to go."""
        with place.opened_tree(shown.path) as folder:
            if folder is None or place.identity(folder.info()) != shown.tree:
                return
            if tree["kind"] == "checkouts":
                if not trees.read_record(folder.descriptor, trees.GIT_RECORD):
                    return
                checkout.refuse_to_remove(folder)
            elif record.read(folder) is None:
                return
            elif record.added(folder):
                kept = record.remove(folder)
                self.progress.say(
                    f"{tree['name']}: {kept} files in {shown.path} are not from it and stay"
                )
                return
        place.Stage(shown.path).take(shown.tree)
        if shown.link:
            place.Stage(tree["path"]).take(shown.link)

    # Repositories.

    def checkout(self, tree: Tree, look: place.Look, shown: Shown) -> None:
        """Bring a work tree to its revision."""
        secret = self.secrets[tree["name"]]
        elsewhere = [path for path in places(tree) if not (shown.link and path == tree["path"])]
        folders = list(dict.fromkeys([shown.path, *elsewhere]))
        for real in folders:
            with place.opened_tree(real) as folder:
                if folder:
                    displaced = self.is_displaced(tree, folder)
                    # git then runs as who is declared to have it.
                    place.follow(folder, look)
                    if displaced:
                        checkout.move(tree, secret, folder, self.progress)
                    break
        else:
            real = place.choose(folders, tree["size"], {})
            stage = place.Stage(real)
            with stage.entered():
                checkout.make(tree, secret, look, self.progress)
                stage.show(place.TREE, None)
        self.link(tree, real, shown)

    def is_displaced(self, tree: Tree, folder: Folder) -> bool:
        """Return whether an opened work tree is elsewhere than declared; refuse one of others."""
        git = trees.read_checkout(folder.descriptor)
        noted = trees.read_record(folder.descriptor, trees.GIT_RECORD) if git else None
        if git is None or (noted is None and git["url"] != tree["from"]):
            raise UnsafePathError(
                folder.path, "a folder that was not made from this declaration", "its work tree"
            )
        found = {"git": git, "record": noted}
        return not standing.is_of(tree["version"], found) or any(
            standing.displaced(found, tree["from"], tree["revision"], tree["settled"])
        )

    # Data sets.

    def dataset(self, tree: Tree, look: place.Look, shown: Shown) -> None:
        """Have a data set unpacked."""
        elsewhere = [path for path in places(tree) if not (shown.link and path == tree["path"])]
        for real in dict.fromkeys([shown.path, *elsewhere]):
            with place.opened_tree(real) as folder:
                noted = record.read(folder) if folder else None
                if folder and noted and noted["version"] == tree["version"]:
                    if real != shown.path:
                        self.refuse_to_replace(shown.path)
                    self.heal(tree, look, folder, record.missing(folder, noted))
                    place.follow(folder, look, made=True)
                    break
        else:
            self.refuse_to_replace(shown.path)
            real = self.room_for(tree, shown.path)
            stage = place.Stage(real)
            with stage.entered():
                self.unpacked(tree, look)
                # Again, as a download takes its time.
                replaced = self.refuse_to_replace(shown.path)
                if real != shown.path:
                    at_link = real == tree["path"] and shown.link
                    replaced = at_link or self.refuse_to_replace(real)
                stage.show(place.TREE, replaced)
        if real == tree["path"]:
            if shown.link and shown.tree:
                place.Stage(shown.path).take(shown.tree)
            return
        self.link(tree, real, shown)
        if shown.link and shown.tree and shown.path != real:
            place.Stage(shown.path).take(shown.tree)

    def refuse_to_replace(self, path: str) -> place.Identity | None:
        """Return the identity of a data set that another may replace, None where there is none.

        Raise WorkError where people's own files are in it, UnsafePathError where it is not the
        role's.
        """
        with place.opened_tree(path) as folder:
            if folder is None:
                return None
            if record.read(folder) is None:
                raise UnsafePathError(
                    path, "a folder that was not made from this declaration", "a data set, or none"
                )
            added = record.added(folder)
            if added:
                more = " and more" if len(added) > record.SHOWN else ""
                raise WorkError(
                    f"{path} holds files that are not from its archive, or were changed "
                    f"({', '.join(added[: record.SHOWN])}{more}); move them out, and run again"
                )
            return place.identity(folder.info())

    def heal(self, tree: Tree, look: place.Look, folder: Folder, names: list[str]) -> None:
        """Bring back what is gone at the top of an opened tree, and touch nothing else."""
        if not names:
            return
        with place.Stage(folder.path).entered():
            self.unpacked(tree, look)
            for name in names:
                place.move_new(f"{place.TREE}/{name}", folder, name)

    def room_for(self, tree: Tree, shown: str) -> str:
        """Return the place of a tree: the first with room for its archive and what is in it."""
        archive, inside = 0, tree["size"]
        if tree["local"]:
            with self.opened_local(tree) as descriptor:
                inside = inside or self.inside(tree, descriptor)
        else:
            archive = self.source(tree).size() or 0
            inside = inside or (archive if tree["unpack"] else 0)
        folders = list(dict.fromkeys([shown, *places(tree)]))
        had = {path: place.Stage(path).downloaded() for path in folders}
        return place.choose(folders, archive + inside, had)

    def inside(self, tree: Tree, archive: int) -> int:
        """Return what an archive takes when unpacked; where nobody knows, as much as it has."""
        size = os.fstat(archive).st_size
        return (unpack.size_of(archive) or size) if tree["unpack"] else size

    def source(self, tree: Tree) -> download.Source:
        """Return where a tree's archive comes from."""
        secret = self.secrets[tree["name"]]
        return download.Source(secret["url"], secret["headers"], tree["from"])

    @contextmanager
    def opened_local(self, tree: Tree) -> Iterator[int]:
        """Open an archive that is a file of the host; say what it is where it cannot be read.

        Where others can change names on the way to it, it must be theirs to read: root would else
        read a file for them that was moved there.
        """
        path = str(tree["from"])
        try:
            with place.opened_parent(path) as (above, name):
                if above is None:
                    raise FileNotFoundError(2, os.strerror(2))
                with above.opened(name) as descriptor:
                    self.refuse_foreign(path, above, os.fstat(descriptor))
                    yield descriptor
        except FileNotFoundError as error:
            raise WorkError(f"{path} cannot be read: {error.strerror}") from error

    @staticmethod
    def refuse_foreign(path: str, above: Folder, info: os.stat_result) -> None:
        """Raise UnsafePathError where a file of others may have been put in an archive's place."""
        readable = info.st_mode & 0o004 or info.st_uid == above.info().st_uid
        if not above.trusted and not readable:
            raise UnsafePathError(
                path,
                f"{paths.describe(info)}, which others cannot read",
                "a file that everybody can read, or of the owner of its folder",
            )

    def unpacked(self, tree: Tree, look: place.Look) -> None:
        """Make the complete tree in the working folder."""
        with self.archive(tree) as archive:
            checksum = self.checked(tree, archive)
            limit = bound.of_archive(tree["name"], tree["size"], os.fstat(archive).st_size)
            needed = tree["size"] or self.inside(tree, archive)
            if (tree["unpack"] or tree["local"]) and place.free_bytes(".") < needed:
                raise WorkError(
                    f"unpacked it needs {amount(needed)}, free are "
                    f"{amount(place.free_bytes('.'))} in {os.getcwd()}; the archive is kept "
                    "there for the next run"
                )
            with self.enough_room("unpacking", place.clear), place.here() as stage:
                os.mkdir(place.TREE, 0o755)
                with stage.entered(place.TREE) as made:
                    if tree["unpack"]:
                        with place.working(made.descriptor):
                            unpack.unpack(
                                *(archive, tree["strip"], tree["name"]), limit, self.progress
                            )
                    else:
                        self.put(tree, archive)
                    record.write(made, tree["version"], checksum)
                    place.follow(made, look, made=True)
        download.discard()

    def put(self, tree: Tree, archive: int) -> None:
        """Put an archive into the tree as the file that it is."""
        name = posixpath.basename(urlsplit(tree["from"]).path) or tree["name"]
        target = f"{place.TREE}/{name}"
        if tree["local"]:
            self.copy(tree, archive, target)
        else:
            os.rename(place.PART, target)
        os.chmod(target, 0o644)

    @contextmanager
    def archive(self, tree: Tree) -> Iterator[int]:
        """Open the archive, which is here afterwards."""
        if tree["local"]:
            with self.opened_local(tree) as descriptor:
                info = os.fstat(descriptor)
                if info.st_uid == 0 and not info.st_mode & 0o022:
                    yield descriptor
                    return
                # Its owner could change it between the check of its checksum and its use.
                with self.enough_room("copying the archive", download.discard):
                    self.copy(tree, descriptor, place.PART)
        else:
            with self.enough_room("downloading", download.discard):
                download.fetch(self.source(tree), tree["name"], tree["size"], self.progress)
        try:
            with place.here() as stage, stage.opened(place.PART) as descriptor:
                yield descriptor
        finally:
            if tree["local"]:
                download.discard()

    @staticmethod
    def copy(tree: Tree, archive: int, target: str) -> None:
        """Copy an opened archive into the stage, as long as there is room."""
        limit = bound.Limit(tree["name"], os.fstat(archive).st_size, "the archive was as large")
        os.lseek(archive, 0, os.SEEK_SET)
        with open(archive, "rb", closefd=False) as source, Path(target).open("wb") as file:
            while chunk := source.read(unpack.CHUNK):
                limit.add(len(chunk))
                file.write(chunk)

    def checked(self, tree: Tree, archive: int) -> str:
        """Return the checksum of an archive; raise WorkError where it is not the declared one."""
        algorithm = tree["checksum"].partition(":")[0] or "sha256"
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
                f"leaves {amount(place.free_bytes('.'))}. Make room, state 'size' where it is "
                "known, or list a folder on a larger disk in ml_data_disks"
            ) from error


def carry_out(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Make all trees of a job as declared; one that fails leaves the others."""
    progress = Told(progress.stream)
    worker = Worker(job["secrets"], progress)
    done: list[str] = []
    failed: dict[str, str] = {}
    for tree in job["trees"]:
        try:
            worker.settle(tree)
            done.append(tree["name"])
        except Exception as error:
            failed[tree["name"]] = printable(_reason(error))
            progress.say(f"{tree['name']}: FAILED")
    for entry in job["stages"]:
        try:
            place.sweep(entry["path"], entry["entries"])
        except (OSError, UnsafePathError) as error:
            failed[entry["path"]] = printable(str(error))
    return {"done": done, "failed": failed}


def _reason(error: Exception) -> str:
    """Return why a tree failed, for a person."""
    if isinstance(error, MemoryError):
        return (
            f"found more to keep in memory than {amount(_memory())}; expected an archive or a "
            "repository that takes less. Look at what it holds."
        )
    known = isinstance(error, (WorkError, OSError, UnsafePathError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def _memory() -> int:
    """Return how much memory each program may take: half of what the host has, or less."""
    with suppress(OSError, ValueError):
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return min(MEMORY, max(half, MEMORY // 8))
    return MEMORY


def main(folder: Path) -> None:
    """Carry out the job in FOLDER."""
    environment.apply()
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = _memory() if hard == resource.RLIM_INFINITY else min(hard, _memory())
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    described = folder / "job.json"
    job = json.loads(described.read_text(encoding="utf-8"))
    # It holds secrets.
    described.unlink()
    os.environ.update(job["environment"])
    host_job.run_locked(folder, LOCK, "download of data", lambda progress: carry_out(job, progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
