# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open a bundle: the signature first, then the manifest, then the files that it lists.

Standard library only: ``./slipway setup --bundle`` reads a bundle before an environment exists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    archive,
    manifest,
    signature,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    BundleError,
    Entry,
    Manifest,
)


@dataclass(frozen=True)
class Bundle:
    """An open bundle whose manifest is trusted.

    signer: fingerprint of its key. digest: SHA-256 of its manifest. start: where the first file
    begins, in bytes.
    """

    source: BinaryIO
    manifest: Manifest
    signer: str
    digest: str
    start: int

    @property
    def path(self) -> Path:
        """Return the path of the bundle."""
        return Path(self.source.name)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Return where the content of each file of this archive begins, in bytes."""
        position, offsets = self.start, {}
        for entry in self.manifest.files:
            if not entry.omitted:
                offsets[entry.path] = position + len(archive.header(entry.path, entry.size))
                position = offsets[entry.path] + entry.size + len(archive.padding(entry.size))
        offsets[""] = position  # the end
        return offsets

    @cached_property
    def by_digest(self) -> dict[str, Entry]:
        """Return the files by their SHA-256."""
        return {entry.sha256: entry for entry in self.manifest.files}

    @cached_property
    def older(self) -> Bundle:
        """Return the bundle that has the omitted files; its manifest is known by its digest."""
        since = self.manifest.since
        if since is None:
            raise BundleError(
                f"{self.path}: files are omitted, and no older bundle is named; expected one. "
                "Make the bundle again."
            )
        path = self.path.parent / since["name"]
        if not path.exists():
            raise BundleError(
                f"bundle {since['name']}: not found in {self.path.parent}; expected it beside "
                f"{self.path.name}, which has only the differences. Copy it there."
            )
        source = archive.open_file(path)
        content = archive.read_start(source, archive.MANIFEST)
        if hashlib.sha256(content).hexdigest() != since["manifest"]:
            raise BundleError(
                f"{path}: another bundle than the one that {self.path.name} needs; expected a "
                f"manifest with SHA-256 {since['manifest']}. Copy the right one."
            )
        return _with_manifest(source, content, self.signer)

    def chain(self) -> Iterator[Bundle]:
        """Yield this bundle and the older ones that it needs."""
        yield self
        if any(entry.omitted for entry in self.manifest.files):
            yield from self.older.chain()

    def check_headers(self) -> None:
        """Raise BundleError unless the archive has exactly the form that the manifest gives.

        Older bundles that have omitted files are checked too.
        """
        for bundle in self.chain():
            bundle.check_archive()

    def check_archive(self) -> None:
        """Check one archive alone, as :meth:`check_headers` does."""
        size = os.fstat(self.source.fileno()).st_size
        expected = self.offsets[""] + len(archive.END)
        if size != expected:
            reason = "truncated" if size < expected else "longer than its manifest says"
            raise BundleError(
                f"{self.path}: {size} bytes, {reason}; expected {expected} bytes. Copy it again."
            )
        self.source.seek(self.start)
        for entry in self.manifest.files:
            if not entry.omitted:
                header = archive.header(entry.path, entry.size)
                found = self.source.read(len(header))
                if found != header:
                    raise archive.unexpected(self.source, found, entry.path)
                self.source.seek(entry.size, os.SEEK_CUR)
                self._expect_zeros(len(archive.padding(entry.size)), f"after {entry.path}")
        self._expect_zeros(len(archive.END), "at the end")
        for entry in self.manifest.files:
            if entry.omitted:
                self.find(entry)

    def _expect_zeros(self, size: int, place: str) -> None:
        if self.source.read(size) != bytes(size):
            raise BundleError(
                f"{self.path}: unknown bytes {place}; expected zeros. Copy the bundle again."
            )

    def find(self, entry: Entry) -> tuple[BinaryIO, int]:
        """Return an archive and the position in it of a file's content."""
        if not entry.omitted:
            return self.source, self.offsets[entry.path]
        other = self.older.by_digest.get(entry.sha256)
        if other is None or other.size != entry.size:
            raise BundleError(
                f"{self.path}: {entry.path} is in no bundle; expected it in {self.older.path}. "
                "Make the bundle again."
            )
        return self.older.find(other)

    def read(self, entry: Entry) -> bytes:
        """Return the content of a small file that has the digest of the manifest.

        Threads may call this: the position of the archive is not used.
        """
        source, position = self.find(entry)
        content = os.pread(source.fileno(), entry.size, position)
        self._compare(source, entry, hashlib.sha256(content).hexdigest())
        return content

    def check_file(self, entry: Entry) -> None:
        """Raise BundleError unless a file has the digest that the manifest gives."""
        self._copy(entry, None)

    def extract(self, entry: Entry, target: Path) -> None:
        """Write a file to TARGET, which must not exist; compare its digest once more."""
        with target.open("xb") as output:
            self._copy(entry, output)

    def _copy(self, entry: Entry, output: BinaryIO | None) -> None:
        source, position = self.find(entry)
        source.seek(position)
        found = archive.copy(source, entry.size, output.write if output else lambda _: None)
        self._compare(source, entry, found)

    def _compare(self, source: BinaryIO, entry: Entry, found: str) -> None:
        if found != entry.sha256:
            raise BundleError(
                f"{source.name}: {entry.path} is damaged: SHA-256 {found}; expected "
                f"{entry.sha256}. Copy the bundle again."
            )

    def check(self) -> None:
        """Check the whole bundle, omitted files in the older bundle included."""
        self.check_headers()
        for entry in self.manifest.files:
            self.check_file(entry)


def open_bundle(path: Path, signer: Path | None = None) -> Bundle:
    """Open a bundle after a check of its signature, see :func:`signature.verify`."""
    source = archive.open_file(path)
    content = archive.read_start(source, archive.MANIFEST)
    made = archive.read_start(source, archive.SIGNATURE)
    fingerprint = signature.verify(content, made, signer, str(path))
    source.seek(0)
    archive.read_start(source, archive.MANIFEST)
    return _with_manifest(source, content, fingerprint)


def read_unchecked(path: Path) -> Manifest:
    """Return the manifest of a bundle whose signature was not checked."""
    with archive.open_file(path) as source:
        return manifest.read(archive.read_start(source, archive.MANIFEST), str(path))


def _with_manifest(source: BinaryIO, content: bytes, signer: str) -> Bundle:
    """Return the bundle of a trusted manifest; SOURCE is at the signature."""
    archive.read_start(source, archive.SIGNATURE)
    digest = hashlib.sha256(content).hexdigest()
    return Bundle(source, manifest.read(content, source.name), signer, digest, start=source.tell())
