# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A data set of single files: download or copy each, and compare its checksum.

Works in a stage, which is the working folder, see :mod:`data.staging`. Complete files stay in the
stage until the tree is complete, so that an interrupted download continues with the next file.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from ansible_collections.slipway.host.plugins.module_utils.data import (
    disk,
    download,
    folders,
    location,
    record,
    staging,
)
from ansible_collections.slipway.host.plugins.module_utils.data.archive import Archive
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import (
    Attributes,
    set_attributes,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress


class FileSet:
    """The files of one data set, with the interface of :class:`Archive`."""

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
        needed = self.tree["size"] or sum(self._file(name).file_size() for name in self.checksums)
        candidates = list(dict.fromkeys([current, *location.allowed_paths(self.tree)]))
        present = {path: staging.Stage(path).downloaded_bytes() for path in candidates}
        return disk.select_folder(candidates, needed, present)

    def create_tree(self, attributes: Attributes) -> None:
        """Create the tree of all files in the working folder."""
        with suppress(FileExistsError):
            os.mkdir(staging.FILES, 0o700)
        for name, checksum in self.checksums.items():
            if not self._is_stored(name, checksum):
                self._file(name).store(_stored(name))
        for name in self.checksums:
            target = f"{staging.TREE}/{name}"
            os.makedirs(posixpath.dirname(target), 0o755, exist_ok=True)
            os.rename(_stored(name), target)
        with (
            folders.opened_working_folder() as stage,
            stage.entered(staging.TREE) as created,
        ):
            # First, because a change of the owner changes the ctime of a file.
            set_attributes(created, attributes, created_by_root=True)
            version = self.tree["version"]
            record.write(created, version, version, _digests(self.checksums))

    def _file(self, name: str) -> Archive:
        """Return one file, as an archive that is not unpacked."""
        source = "/".join([self.tree["from"], name])
        changes = {"name": f"{self.tree['name']}/{name}", "from": source, "size": 0}
        one = {**self.tree, **changes, "checksum": self.checksums[name]}
        url = {"url": f"{self.secret['url']}/{quote(name)}"} if self.secret else {}
        return Archive(one, {**self.secret, **url}, self.progress)

    def _is_stored(self, name: str, checksum: str) -> bool:
        """Return whether an earlier run stored a file; delete one with another checksum."""
        algorithm, _colon, digits = checksum.partition(":")
        try:
            with (
                folders.opened_working_folder(staging.FILES) as files,
                files.opened(posixpath.basename(_stored(name))) as descriptor,
            ):
                shown = f"{self.tree['name']}/{name}"
                found = download.digest(descriptor, algorithm, shown, self.progress)
        except FileNotFoundError:
            return False
        if found != digits:
            os.unlink(_stored(name))
        return found == digits


def _stored(name: str) -> str:
    """Return the path in the stage of a complete file, whatever its name is."""
    return f"{staging.FILES}/{hashlib.sha256(name.encode()).hexdigest()}"


def _digests(checksums: Mapping[str, str]) -> dict[str, bytes]:
    """Return the SHA-256 digests among checksums, by name."""
    return {
        name: bytes.fromhex(digits)
        for name, checksum in checksums.items()
        for algorithm, _colon, digits in [checksum.partition(":")]
        if algorithm == "sha256"
    }
