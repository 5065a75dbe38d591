# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install, update and remove data sets and repositories on the host.

:mod:`host.job` describes how this program is started and followed. Only the standard library of
Python 3.10 is used.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import (
    checkout,
    checkout_drift,
    disk,
    folders,
    record,
    staging,
)
from ansible_collections.slipway.host.plugins.module_utils.data.archive import Archive
from ansible_collections.slipway.host.plugins.module_utils.data.file_set import FileSet
from ansible_collections.slipway.host.plugins.module_utils.data.location import (
    Location,
    allowed_paths,
    candidate_paths,
    find_location,
)
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import (
    Attributes,
    declared_attributes,
    set_attributes,
)
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    EscapedProgress,
    TreeError,
    escape,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.host import environment
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import trees
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)

LOCK = Path("/var/lib/slipway/data.lock")
# Memory limit of this program and of each program that it starts: archives and repositories can
# require any amount.
MEMORY = 4 << 30
Tree = Mapping[str, Any]


class Worker:
    """Installs, updates and removes the trees of one job."""

    def __init__(self, secrets: Mapping[str, Mapping[str, Any]], progress: Progress) -> None:
        self.secrets = secrets
        self.progress = progress

    def apply(self, tree: Tree) -> None:
        """Bring one tree to its declared state; raise TreeError, UnsafePathError or OSError."""
        location = find_location(tree)
        if tree["state"] == "absent":
            self.remove(tree, location)
        elif tree["kind"] == "datasets":
            self.install_dataset(tree, declared_attributes(tree), location)
        else:
            self.install_checkout(tree, declared_attributes(tree), location)
        for path in allowed_paths(tree):
            staging.Stage(path).delete()

    def link(self, tree: Tree, target: str, location: Location) -> None:
        """Make the declared path a link to TARGET, unless the tree is at the declared path."""
        path = tree["path"]
        if target == path or (location.link and location.path == target):
            return
        stage = staging.Stage(path)
        with stage.entered():
            os.symlink(target, staging.LINK)
            stage.move_to_path(staging.LINK, location.link or location.tree)

    def remove(self, tree: Tree, location: Location) -> None:
        """Remove a tree that the role installed; files that people added are not removed."""
        with folders.opened_tree(location.path) as folder:
            if folder is None or folders.identify(folder.info()) != location.tree:
                return
            if tree["kind"] == "checkouts":
                if not trees.read_record(folder.descriptor, trees.GIT_RECORD):
                    return
                checkout.refuse_to_remove(folder)
            elif record.read(folder) is None:
                return
            elif record.find_added_files(folder):
                kept = record.delete_unpacked_files(folder)
                self.progress.say(
                    f"{tree['name']}: {kept} files in {location.path} were added or changed by "
                    "others and were kept"
                )
                return
        staging.Stage(location.path).delete_tree(location.tree)
        if location.link:
            staging.Stage(tree["path"]).delete_tree(location.link)

    # Repositories.

    def install_checkout(self, tree: Tree, attributes: Attributes, location: Location) -> None:
        """Create a work tree, or update the existing one."""
        secret = self.secrets[tree["name"]]
        candidates = candidate_paths(tree, location)
        for path in candidates:
            with folders.opened_tree(path) as folder:
                if folder:
                    has_drift = self.has_drift(tree, folder)
                    # First the declared owner, because git runs as the owner of the tree.
                    set_attributes(folder, attributes)
                    if has_drift:
                        checkout.update(tree, secret, folder, self.progress)
                    break
        else:
            path = disk.select_folder(candidates, tree["size"], {})
            stage = staging.Stage(path)
            with stage.entered():
                checkout.create(tree, secret, attributes, self.progress)
                stage.move_to_path(staging.TREE, None)
        self.link(tree, path, location)

    def has_drift(self, tree: Tree, folder: Folder) -> bool:
        """Return whether an opened work tree differs; raise UnsafePathError for another tree."""
        git = trees.read_checkout(folder.descriptor)
        git_record = trees.read_record(folder.descriptor, trees.GIT_RECORD) if git else None
        if git is None or (git_record is None and git["url"] != tree["from"]):
            raise UnsafePathError(
                folder.path, "a folder that was not made from this declaration", "its work tree"
            )
        state = {"git": git, "record": git_record}
        return not checkout_drift.has_version(state, tree["version"]) or any(
            checkout_drift.differences(state, tree["from"], tree["revision"], tree["settled"])
        )

    # Data sets.

    def install_dataset(self, tree: Tree, attributes: Attributes, location: Location) -> None:
        """Install a data set, or restore missing files of the existing one."""
        source_type = FileSet if tree.get("files") else Archive
        source = source_type(tree, self.secrets.get(tree["name"], {}), self.progress)
        for path in candidate_paths(tree, location):
            with folders.opened_tree(path) as folder:
                present = record.read(folder) if folder else None
                if folder and present and present["version"] == tree["version"]:
                    if path != location.path:
                        self.check_replaceable(location.path)
                    names = record.missing_names(folder, present)
                    self.restore(source.part(names), attributes, folder, names)
                    set_attributes(folder, attributes, created_by_root=True)
                    break
        else:
            self.check_replaceable(location.path)
            path = source.select_path(location.path)
            stage = staging.Stage(path)
            with stage.entered():
                source.create_tree(attributes)
                # Checked again, because people may have added files during the download.
                replaced = self.check_replaceable(location.path)
                if path != location.path:
                    link = location.link if path == tree["path"] else None
                    replaced = link or self.check_replaceable(path)
                stage.move_to_path(source.created, replaced)
        if path != tree["path"]:
            self.link(tree, path, location)
        if location.link and location.tree and location.path != path:
            staging.Stage(location.path).delete_tree(location.tree)

    def check_replaceable(self, path: str) -> folders.Identity | None:
        """Return the identity of a data set that can be replaced, None if there is none.

        Raise TreeError if people added files to it, UnsafePathError if the role did not unpack it.
        """
        with folders.opened_tree(path) as folder:
            if folder is None:
                return None
            if record.read(folder) is None:
                raise UnsafePathError(
                    path, "a folder that was not made from this declaration", "a data set, or none"
                )
            added = record.find_added_files(folder)
            if added:
                more = " and more" if len(added) > record.SHOWN else ""
                raise TreeError(
                    f"cannot replace {path}: it holds files that were added or changed by "
                    f"others ({', '.join(added[: record.SHOWN])}{more}). Move the files out, then "
                    "run again."
                )
            return folders.identify(folder.info())

    def restore(
        self,
        source: Archive | FileSet,
        attributes: Attributes,
        folder: Folder,
        names: list[str],
    ) -> None:
        """Restore missing NAMES at the top of an opened tree; other files are not changed."""
        if not names:
            return
        with staging.Stage(folder.path).entered():
            source.create_tree(attributes)
            for name in names:
                staging.move_new(f"{source.created}/{name}", folder, name)


def apply_job(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Apply all trees of a job; after a failure, continue with the next tree."""
    progress = EscapedProgress(progress.stream, progress.status)
    worker = Worker(job["secrets"], progress)
    done: list[str] = []
    failed: dict[str, str] = {}
    for tree in job["trees"]:
        try:
            worker.apply(tree)
            done.append(tree["name"])
        except Exception as error:
            failed[tree["name"]] = escape(_describe_error(error))
            progress.say(f"{tree['name']}: FAILED")
    for entry in job["stages"]:
        try:
            staging.delete_stages(entry["path"], keep=entry["entries"])
        except (OSError, UnsafePathError) as error:
            failed[entry["path"]] = escape(str(error))
    return {"done": done, "failed": failed}


def _describe_error(error: Exception) -> str:
    """Return the reason of a failure for a person."""
    if isinstance(error, MemoryError):
        return (
            f"needs more memory than {format_size(_memory_limit())}; expected an archive or a "
            "repository that needs less. Check its content."
        )
    is_expected = isinstance(error, (TreeError, OSError, UnsafePathError))
    return str(error) if is_expected else f"{type(error).__name__}: {error}"


def _memory_limit() -> int:
    """Return the memory limit of each program: half of the host's memory, at most MEMORY."""
    with suppress(OSError, ValueError):
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        return min(MEMORY, max(half, MEMORY // 8))
    return MEMORY


def main(folder: Path) -> None:
    """Apply the job in FOLDER."""
    environment.apply()
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _memory_limit()
    if hard != resource.RLIM_INFINITY:
        limit = min(hard, limit)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    description = folder / "job.json"
    job = json.loads(description.read_text(encoding="utf-8"))
    # The description contains secrets.
    description.unlink()
    os.environ.update(job["environment"])
    host_job.run_locked(folder, LOCK, "download of data", lambda progress: apply_job(job, progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
