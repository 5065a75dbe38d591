# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images in a bundle: one OCI layout, in which each layer is stored once.

The index of the layout has an entry for each image. Its annotations are the reference, the context
digest, the architecture and the unpacked size.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import MANIFESTS
from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.archive import CHUNK
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import (
    MAX_SIZE,
    BundleError,
    Entry,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.reading import Bundle

FOLDER = "images"
INDEX = f"{FOLDER}/index.json"
REFERENCE = "org.opencontainers.image.ref.name"
CONTEXT, ARCHITECTURE, SIZE = "slipway.context-digest", "slipway.architecture", "slipway.size"
MAX_MANIFEST = 4 << 20
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Json = dict[str, Any]


def blob_path(digest: str) -> str:
    """Return the path of a blob in a bundle, such as images/blobs/sha256/HEX."""
    return f"{FOLDER}/blobs/{digest.replace(':', '/')}"


def offer(bundle: Bundle, wanted: Mapping[str, str], architecture: str) -> Json:
    """Return the images of a bundle for a host, by reference; WANTED are their context digests.

    Each has manifest, config, layers (digest to bytes) and size, as :func:`offering.offer` returns.
    """
    entries = {entry.path: entry for entry in bundle.manifest.files}
    if INDEX not in entries:
        return {}
    try:
        return _read_offer(bundle, entries, wanted, architecture)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{bundle.path}: invalid layout of images: {type(error).__name__} {error}; expected an "
            "OCI layout of Slipway. Make the bundle again."
        ) from None


def _read_offer(
    bundle: Bundle, entries: Mapping[str, Entry], wanted: Mapping[str, str], architecture: str
) -> Json:
    offered: Json = {}
    for described in json.loads(bundle.read(entries[INDEX]))["manifests"]:
        notes, digest = described["annotations"], described["digest"]
        reference = notes[REFERENCE]
        if (wanted.get(reference), architecture) == (notes[CONTEXT], notes[ARCHITECTURE]):
            content = json.loads(bundle.read(entries[blob_path(digest)]))
            offered[reference] = {
                "manifest": digest,
                "config": content["config"]["digest"],
                "layers": {layer["digest"]: layer["size"] for layer in content["layers"]},
                "size": int(notes[SIZE]),
            }
    return offered


def check_offer(bundle: Bundle, wanted: Mapping[str, str], architecture: str) -> Json:
    """Return the images of :func:`offer`; raise BundleError if one is missing."""
    offered = offer(bundle, wanted, architecture)
    missing = sorted(set(wanted) - set(offered))
    if missing:
        raise BundleError(
            f"{bundle.path} has no image {', '.join(missing)} of this catalogue for "
            f"{architecture}; expected the image with its context digest. Make the bundle with "
            "--images, or unset ml_images_bundle."
        )
    return offered


class Layout:
    """An OCI layout in a folder of the controller, into which images of hosts are copied."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = folder / "blobs/sha256"
        self.index = folder / "index.json"
        self.entries: list[Json] = []
        if self.index.exists():
            self.entries = json.loads(self.index.read_text(encoding="utf-8"))["manifests"]

    def has(self, reference: str, context: str, architecture: str) -> bool:
        """Return whether the layout has an image."""
        key = [reference, context, architecture]
        names = (REFERENCE, CONTEXT, ARCHITECTURE)
        return any([entry["annotations"][name] for name in names] == key for entry in self.entries)

    def add(self, source: Path, image: Any, notes: Mapping[str, str]) -> int:
        """Copy an image from the registry on the socket SOURCE; return the bytes received.

        IMAGE: manifest and size as the host gives them, see :func:`offer`. NOTES: see
        :func:`make_notes`. Every blob is compared with its digest. Raise BundleError for a host
        whose answers do not match.
        """
        reference = notes[REFERENCE]
        try:
            return self._add(source, image["manifest"], {**notes, SIZE: str(_size(image["size"]))})
        except (
            *(KeyError, TypeError, ValueError, AttributeError, RecursionError),
            *(OSError, http.client.HTTPException),
        ) as error:
            # The text may be from the host.
            reason = escape_control(str(error).strip())
            raise BundleError(
                f"cannot copy {reference} from the host: {type(error).__name__}: {reason}; "
                "expected an image in its registry. Check the host and the disk of the "
                "controller, then run again."
            ) from None

    def _add(self, source: Path, digest: str, notes: Mapping[str, str]) -> int:
        self.blobs.mkdir(parents=True, exist_ok=True)
        name = notes[REFERENCE].rpartition(":")[0]
        content = _get(source, f"/v2/{name}/manifests/{_digest(digest)}", MAX_MANIFEST)
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise BundleError(
                f"manifest of {notes[REFERENCE]}: another content than {digest}; expected the "
                "image of the engine. Run again."
            )
        described = json.loads(content)
        kind = described.get("mediaType", MANIFESTS[1])
        if kind not in MANIFESTS:
            raise ValueError(f"media type {kind!r}")
        blobs = [described["config"], *described["layers"]]
        missing = {
            _digest(blob["digest"]): _size(blob["size"])
            for blob in blobs
            if not (self.blobs / _digest(blob["digest"]).partition(":")[2]).exists()
        }
        free, needed = shutil.disk_usage(self.folder).free, sum(missing.values())
        if needed > free:
            raise BundleError(
                f"{notes[REFERENCE]} does not fit into {self.folder.parent}: {free} bytes are "
                f"free; expected {needed}. Free some space, or name OUT on another disk."
            )
        received = len(content)
        for blob, size in missing.items():
            received += self._copy(source, name, blob, size)
        (self.blobs / digest.partition(":")[2]).write_bytes(content)
        self.entries.append(
            {
                "mediaType": kind,
                "digest": digest,
                "size": len(content),
                "annotations": dict(notes),
            }
        )
        self._write_index()
        return received

    def _copy(self, source: Path, name: str, digest: str, size: int) -> int:
        """Copy a blob; return the bytes received, at most one more than its size."""
        digester = hashlib.sha256()
        partial = self.folder / "partial"
        left = size + 1
        with partial.open("wb") as output, _request(source, f"/v2/{name}/blobs/{digest}") as answer:
            while content := answer.read(min(left, CHUNK)):
                digester.update(content)
                output.write(content)
                left -= len(content)
        if f"sha256:{digester.hexdigest()}" != digest or left != 1:
            raise BundleError(
                f"layer {digest} of {name}: other content; expected that of the engine. Run again."
            )
        partial.replace(self.blobs / digest.partition(":")[2])
        return size

    def _write_index(self) -> None:
        self.entries.sort(key=lambda entry: sorted(entry["annotations"].items()))
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.entries,
        }
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}\n')
        partial = self.folder / "index.partial"
        partial.write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
        partial.replace(self.index)


def make_notes(reference: str, context: str, architecture: str) -> dict[str, str]:
    """Return the annotations of an image in the index of a layout, without its size."""
    return {REFERENCE: reference, CONTEXT: context, ARCHITECTURE: architecture}


def _digest(value: Any) -> str:
    """Return a digest that a host gives; raise ValueError for another text."""
    if not DIGEST.fullmatch(value):
        raise ValueError(f"digest {value!r}")
    return str(value)


def _size(value: Any) -> int:
    """Return a size that a host gives; raise ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise ValueError(f"size {value!r}")
    return value


def layout_files(folder: Path) -> Iterable[tuple[str, Path]]:
    """Yield path in the bundle and file of each file of a layout."""
    for path in (
        folder / "oci-layout",
        folder / "index.json",
        *(folder / "blobs/sha256").iterdir(),
    ):
        yield f"{FOLDER}/{path.relative_to(folder)}", path


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self.path))


def _request(source: Path, path: str) -> http.client.HTTPResponse:
    connection = _Connection(source)
    connection.request("GET", path, headers={"Accept": ", ".join(MANIFESTS)})
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        raise BundleError(
            f"the registry answers {answer.status} for {path}; expected 200. Run again."
        )
    return answer


def _get(source: Path, path: str, limit: int) -> bytes:
    with _request(source, path) as answer:
        return answer.read(limit)
