# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A data set of single files: download or copy each, and compare its checksum.

Works in a stage, which is the working folder, see :mod:`data.staging`. Complete files stay there
after an interruption, so that the next run continues with the next file. Users cannot open them:
what they could open, such as a replaced tree, is never continued.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from ansible_collections.slipway.host.plugins.module_utils.data import (
    download,
    folders,
    location,
    record,
    staging,
)
from ansible_collections.slipway.host.plugins.module_utils.data.archive import Archive
from ansible_collections.slipway.host.plugins.module_utils.data.checksums import join
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import (
    Attributes,
    set_attributes,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state.paths import Folder


class FileSet:
    """The files of one data set, with the interface of :class:`Archive`."""

    created = staging.FILES

    def __init__(
        self, tree: Mapping[str, Any], secret: Mapping[str, Any], progress: Progress
    ) -> None:
        """SECRET has the ``url`` of the folder and the ``headers``; a local folder needs none."""
        self.tree = tree
        self.secret = secret
        self.progress = progress
        self.checksums: Mapping[str, str] = tree["files"]

    def part(self, names: Collection[str]) -> FileSet:
        """Return the set of the files that are, or are below, NAMES at the top of the tree."""
        files = {
            name: checksum
            for name, checksum in self.checksums.items()
            if name.partition("/")[0] in names
        }
        return FileSet({**self.tree, "files": files}, self.secret, self.progress)

    def select_path(self, current: str) -> str:
        """Return the first path with space for all files; CURRENT is tried first."""
        sizes = (self._file(name).file_size() for name in self.checksums)
        return location.select_path(self.tree, current, self.tree["size"] or sum(sizes))

    def create_tree(self, attributes: Attributes) -> None:
        """Create the tree of all files in the working folder."""
        if self.tree["local"]:
            # Of an earlier declaration with a URL.
            download.discard()
        root = os.geteuid(), os.getegid()
        with folders.opened_working_folder() as stage:
            stage.make_folder(staging.FILES, 0o755, *root)
            with stage.entered(staging.FILES) as files:
                _prepare(files, self.checksums, root)
        # Each old file is deleted before the first download needs its space.
        missing = [name for name in self.checksums if not self._is_stored(name)]
        # The first download of another file deletes the part of an interrupted one.
        for name in sorted(missing, key=lambda name: not self._file(name).has_begun()):
            stored = f"{staging.FILES}/{name}"
            os.makedirs(posixpath.dirname(stored), 0o755, exist_ok=True)
            self._file(name).store(stored)
        with folders.opened_working_folder(staging.FILES) as created:
            # First, because a change of the owner changes the ctime of a file.
            set_attributes(created, attributes, created_by_root=True)
            version = self.tree["version"]
            record.write(created, version, version, _digests(self.checksums))

    def _file(self, name: str) -> Archive:
        """Return one file, as an archive that is not unpacked."""
        source = join(self.tree["from"], name)
        changes = {"name": f"{self.tree['name']}/{name}", "from": source}
        one = {**self.tree, **changes, "checksum": self.checksums[name]}
        url = {"url": join(self.secret["url"], quote(name))} if self.secret else {}
        return Archive(one, {**self.secret, **url}, self.progress)

    def _is_stored(self, name: str) -> bool:
        """Return whether an earlier run stored a file; delete one with another checksum."""
        stored = f"{staging.FILES}/{name}"
        algorithm, _colon, digits = self.checksums[name].partition(":")
        shown = f"{self.tree['name']}/{name}"
        try:
            with open(stored, "rb") as file:
                found = download.digest(file.fileno(), algorithm, shown, self.progress)
        except FileNotFoundError:
            return False
        if found != digits:
            os.unlink(stored)
        return found == digits


def _prepare(files: Folder, wanted: Collection[str], root: tuple[int, int]) -> None:
    """Delete files that are not WANTED from the tree of an earlier run; give the others to ROOT."""
    parents = {name[: end + 1] for name in wanted for end, char in enumerate(name) if char == "/"}
    files.remove(folders.RECORDS)
    for inside, names, others, folder in folders.walk(files):
        for name in list(names):
            if f"{inside}{name}/" in parents:
                folder.make_folder(name, 0o755, *root)
            else:
                folder.remove(name)
                names.remove(name)
        for name in others:
            if f"{inside}{name}" in wanted:
                folder.set_file(name, 0o644, *root)
            else:
                folder.remove(name)


def _digests(checksums: Mapping[str, str]) -> dict[str, bytes]:
    """Return the SHA-256 digests among checksums, by name."""
    return {
        name: bytes.fromhex(digits)
        for name, checksum in checksums.items()
        for algorithm, _colon, digits in [checksum.partition(":")]
        if algorithm == "sha256"
    }
