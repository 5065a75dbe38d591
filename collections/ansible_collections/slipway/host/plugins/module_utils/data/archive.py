# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of a data set: download or open it, compare its checksum, and unpack it.

Works in a stage, which is the working folder, see :mod:`data.staging`.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.slipway.host.plugins.module_utils.data import (
    disk,
    download,
    folders,
    limit,
    location,
    record,
    staging,
    unpack,
)
from ansible_collections.slipway.host.plugins.module_utils.data.ownership import (
    Attributes,
    set_attributes,
)
from ansible_collections.slipway.host.plugins.module_utils.data.progress import (
    TreeError,
    format_size,
)
from ansible_collections.slipway.host.plugins.module_utils.host.job import Progress
from ansible_collections.slipway.host.plugins.module_utils.state import paths
from ansible_collections.slipway.host.plugins.module_utils.state.paths import (
    Folder,
    UnsafePathError,
)


class Archive:
    """The archive of one data set."""

    # Name of the created tree in the stage.
    created = staging.TREE

    def __init__(
        self, tree: Mapping[str, Any], secret: Mapping[str, Any], progress: Progress
    ) -> None:
        """SECRET has the ``url`` with its secrets and the ``headers``; a local file needs none."""
        self.tree = tree
        self.secret = secret
        self.progress = progress

    def select_path(self, current: str) -> str:
        """Return the first path with space for archive and content; CURRENT is tried first."""
        archive_size, content_size = 0, self.tree["size"]
        if self.tree["local"]:
            with self._opened_local() as descriptor:
                content_size = content_size or self._content_size(descriptor)
        else:
            archive_size = self._source().size() or 0
            content_size = content_size or (archive_size if self.tree["unpack"] else 0)
        return location.select_path(self.tree, current, archive_size + content_size)

    def file_size(self) -> int:
        """Return the size of the archive itself, 0 if the server does not send it."""
        if self.tree["local"]:
            with self._opened_local() as descriptor:
                return os.fstat(descriptor).st_size
        return self._source().size() or 0

    def has_begun(self) -> bool:
        """Return whether an earlier run downloaded a part of the archive."""
        return not self.tree["local"] and download.has_begun(self._source())

    def store(self, target: str) -> None:
        """Put the archive into the working folder as the file TARGET, if it has its checksum."""
        with self._opened() as archive:
            self._check_checksum(archive)
            # A file of root is read where it is; all others are in the stage already.
            if not os.path.lexists(staging.PART):
                with self._describing_full_disk("copying", download.discard):
                    self._copy(archive, staging.PART)
            os.chmod(staging.PART, 0o644)
            os.rename(staging.PART, target)
        download.discard()

    def part(self, _names: Collection[str]) -> Archive:
        """Return what creates these names at the top of the tree: only the whole archive does."""
        return self

    def create_tree(self, attributes: Attributes) -> None:
        """Create the complete tree in the working folder."""
        tree = self.tree
        with folders.opened_working_folder() as stage:
            # Of an earlier declaration.
            stage.remove(staging.FILES)
        with self._opened() as archive:
            checksum = self._check_checksum(archive)
            size_limit = limit.for_archive(tree["name"], tree["size"], os.fstat(archive).st_size)
            needed, free = tree["size"] or self._content_size(archive), disk.free_bytes(".")
            if (tree["unpack"] or tree["local"]) and free < needed:
                raise TreeError(
                    f"not enough disk space for unpacking: found {format_size(free)} in "
                    f"{os.getcwd()}; expected {format_size(needed)}. The next run continues with "
                    f"the same archive. {disk.REMEDY}"
                )
            with (
                self._describing_full_disk("unpacking", staging.delete_unfinished),
                folders.opened_working_folder() as stage,
            ):
                os.mkdir(staging.TREE, 0o755)
                with stage.entered(staging.TREE) as created:
                    digests: dict[str, bytes] = {}
                    if tree["unpack"]:
                        with folders.working_folder(created.descriptor):
                            digests = unpack.unpack(
                                archive, tree["strip"], tree["name"], size_limit, self.progress
                            )
                    else:
                        self._add_file(archive, f"{staging.TREE}/{self._file_name()}")
                    # First, because a change of the owner changes the ctime of a file.
                    set_attributes(created, attributes, created_by_root=True)
                    record.write(created, tree["version"], checksum, digests)
        download.discard()

    def _content_size(self, archive: int) -> int:
        """Return the unpacked size of an archive; its own size if the unpacked size is unknown."""
        size = os.fstat(archive).st_size
        return (unpack.unpacked_size(archive) or size) if self.tree["unpack"] else size

    def _source(self) -> download.Source:
        return download.Source(self.secret["url"], self.secret["headers"], self.tree["from"])

    @contextmanager
    def _opened_local(self) -> Iterator[int]:
        """Open an archive that is a file of the host."""
        path = str(self.tree["from"])
        try:
            with folders.opened_parent(path) as (parent, name):
                if parent is None:
                    raise FileNotFoundError(2, os.strerror(2))
                with parent.opened(name) as descriptor:
                    _check_readable_by_others(path, parent, os.fstat(descriptor))
                    yield descriptor
        except FileNotFoundError as error:
            raise TreeError(f"cannot read {path}: {error.strerror}. Correct 'path'.") from error

    def _file_name(self) -> str:
        """Return the name of an archive that is not unpacked."""
        return posixpath.basename(urlsplit(self.tree["from"]).path) or str(self.tree["name"])

    def _add_file(self, archive: int, target: str) -> None:
        """Put an archive that is not unpacked into the working folder."""
        if self.tree["local"]:
            self._copy(archive, target)
        else:
            os.rename(staging.PART, target)
        os.chmod(target, 0o644)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the archive, after a download or copy into the stage if necessary."""
        if self.tree["local"]:
            with self._opened_local() as descriptor:
                info = os.fstat(descriptor)
                if info.st_uid == 0 and not info.st_mode & 0o022:
                    yield descriptor
                    return
                # The owner of the file could change it after the comparison of its checksum.
                with self._describing_full_disk("copying the archive", download.discard):
                    self._copy(descriptor, staging.PART)
        else:
            with self._describing_full_disk("downloading", download.discard):
                name, size = self.tree["name"], self.tree["size"]
                download.fetch(self._source(), name, size, self.progress)
        try:
            with (
                folders.opened_working_folder() as stage,
                stage.opened(staging.PART) as descriptor,
            ):
                yield descriptor
        finally:
            if self.tree["local"]:
                download.discard()

    def _copy(self, archive: int, target: str) -> None:
        """Copy an opened archive into the stage."""
        size_limit = limit.Limit(
            self.tree["name"], os.fstat(archive).st_size, "the archive had this size before"
        )
        os.lseek(archive, 0, os.SEEK_SET)
        with open(archive, "rb", closefd=False) as source, Path(target).open("wb") as file:
            while chunk := source.read(unpack.CHUNK):
                size_limit.add(len(chunk))
                file.write(chunk)

    def _check_checksum(self, archive: int) -> str:
        """Return the checksum of an archive; raise TreeError if it is not the declared one."""
        tree = self.tree
        algorithm = tree["checksum"].partition(":")[0] or "sha256"
        digits = download.digest(archive, algorithm, tree["name"], self.progress)
        checksum = f"{algorithm}:{digits}"
        if not tree["checksum"]:
            self.progress.say(f"{tree['name']}: no checksum declared; the archive has {checksum}")
        elif checksum != tree["checksum"]:
            if not tree["local"]:
                download.discard()
            unused = "archive was not unpacked" if tree["unpack"] else "file was not used"
            raise TreeError(
                f"checksum of {tree['from']}: found {checksum}; expected {tree['checksum']}. The "
                f"{unused}. Check whether the file has a newer version, or was "
                "changed by somebody else."
            )
        return checksum

    @contextmanager
    def _describing_full_disk(self, activity: str, undo: Callable[[], None]) -> Iterator[None]:
        """If the disk is full, delete what was written by UNDO and raise TreeError."""
        try:
            yield
        except OSError as error:
            if not disk.is_full(error):
                raise
            undo()
            free = format_size(disk.free_bytes("."))
            raise TreeError(
                f"the disk of {os.getcwd()} became full while {activity}. Written files were "
                f"deleted, which leaves {free} free. Free some space, declare 'size', or add a "
                "folder on a larger disk to ml_data_disks."
            ) from error


def _check_readable_by_others(path: str, parent: Folder, info: os.stat_result) -> None:
    """Raise UnsafePathError if root would read a file for users who cannot read it themselves.

    Users who can change names on the path could move a file of another user there.
    """
    readable = info.st_mode & 0o004 or info.st_uid == parent.info().st_uid
    if not parent.trusted and not readable:
        raise UnsafePathError(
            path,
            f"{paths.describe(info)}, which others cannot read",
            "a file that all users can read, or of the owner of its folder",
        )
