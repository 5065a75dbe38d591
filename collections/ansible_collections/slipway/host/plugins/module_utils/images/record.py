# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of each image on a host: which content was built, loaded or accepted, and tested.

The survey compares the record with the engine, see :mod:`state.containers`. Runs on hosts, as part
of the builder as well as of modules: Python 3.10, standard library only.
"""

from __future__ import annotations

import calendar
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.images import tested_system
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    containers,
    paths,
    reading,
)

BUILT, LOADED, ACCEPTED, DELIVERED = "built", "loaded", "accepted", "delivered"
MODE = 0o600
# Key of the digest of the system on which the smoke test passed last, see :mod:`tested_system`.
TESTED_WITH = "tested_with"
# Former contents of a tag that are remembered: a container may still use them.
MAX_REPLACED = 10


@dataclass(frozen=True)
class Content:
    """An image as the engine reports it.

    identity: its content ID. created: seconds since 1970, None if the engine reports another form.
    size: bytes that the engine reports.
    """

    identity: str
    labels: Mapping[str, str]
    created: float | None
    size: int = 0

    @property
    def digest(self) -> str:
        """Return the context digest that the label claims, empty for none."""
        return self.labels.get(labels.DIGEST, "")


def inspect_image(reference: str) -> Content | None:
    """Return an image of the host by its tag or content ID, None if there is none."""
    inspected = subprocess.run(
        ["docker", "image", "inspect", reference],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if inspected.returncode != 0:
        return None
    (image,) = json.loads(inspected.stdout)
    image_labels = (image.get("Config") or {}).get("Labels") or {}
    created = _seconds(str(image.get("Created")))
    return Content(image["Id"], image_labels, created, int(image.get("Size") or 0))


def _seconds(created: str) -> float | None:
    """Return the seconds since 1970 of a time such as ``2026-11-27T19:09:05.257541437Z``."""
    if not created.endswith("Z"):
        return None
    try:
        return calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def is_recorded(reference: str, digest: str, content: Content | None) -> bool:
    """Whether the record names this content, made from the context with this digest."""
    record = containers.read_image_record(reference)
    return (
        content is not None
        and record.get("id") == content.identity
        and record.get("digest") == digest
    )


def is_of_old_version(reference: str, digest: str, content: Content | None) -> bool:
    """Whether an old version of Slipway, which recorded no content ID, built this image.

    Its record has the same context digest and is not older than the image: an image that somebody
    made afterwards, for example from a container, is another one.
    """
    record = containers.read_image_record(reference)
    if content is None or content.created is None or "id" in record:
        return False
    if not record.get("digest") == digest == content.digest:
        return False
    path = containers.image_record_path(reference)
    with paths.opened_file(path) as descriptor:
        recorded = os.fstat(descriptor).st_mtime
    return content.created <= recorded


def secure_records() -> None:
    """Give the folder of the records to root alone; raise UnsafePathError for a link instead."""
    apply_files.secure_parents(containers.image_record_path("*"))


def write_record(
    reference: str, content: Content, digest: str, origin: str, **details: Any
) -> None:
    """Record that the smoke test passed with this content; DETAILS are further keys."""
    former = [containers.read_image_record(reference).get("id"), *_replaced_by(reference)]
    replaced = [identity for identity in former if identity not in (None, content.identity)]
    record = {
        "reference": reference,
        "digest": digest,
        "id": content.identity,
        "origin": origin,
        "time": int(time.time()),
        "replaced": replaced[:MAX_REPLACED],
        TESTED_WITH: tested_system.digest(),
        **details,
    }
    _write(reference, record)


def _write(reference: str, record: Mapping[str, Any]) -> None:
    secure_records()
    path = containers.image_record_path(reference)
    with paths.opened_parent(path, make=True) as (folder, name):
        folder.replace(name, json.dumps(record).encode(), MODE, os.geteuid(), os.getegid())


def passed_with(reference: str, identity: str, system: str) -> bool:
    """Whether the smoke test passed with this content ID on the SYSTEM of this digest."""
    record = _read(reference)
    return bool(system) and (record.get("id"), record.get(TESTED_WITH)) == (identity, system)


def note_test(reference: str, identity: str, system: str) -> None:
    """Record that the smoke test passed with this content ID on the SYSTEM of this digest.

    Nothing is recorded if the tag has other content by now, or while images are built.
    """
    try:
        with build_lock(wait=False):
            record = _read(reference)
            if record.get("id") == identity and record.get(TESTED_WITH) != system:
                _write(reference, {**record, TESTED_WITH: system})
    except BlockingIOError:
        return


@contextmanager
def build_lock(wait: bool = True) -> Iterator[None]:
    """Keep builds on this host from starting; wait for a running one, or raise BlockingIOError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with paths.opened_parent(labels.BUILD_LOCK, make=True) as (folder, name):
        descriptor = os.open(name, flags, MODE, dir_fd=folder.descriptor)
    with os.fdopen(descriptor, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def add_layers(reference: str, layers: Mapping[str, int]) -> None:
    """Add the compressed layers of an image, digest to bytes, to its record on the builder."""
    record = _read(reference)
    if record and record.get("layers") != layers:
        _write(reference, {**record, "layers": layers})


def _read(reference: str) -> dict[str, Any]:
    """Return the record with all its keys, empty if there is none."""
    try:
        return dict(
            json.loads(reading.read_record(containers.image_record_path(reference)) or b"{}")
        )
    except (TypeError, ValueError):
        return {}


def _replaced_by(reference: str) -> list[str]:
    """Return the recorded former content IDs of a tag."""
    replaced = _read(reference).get("replaced")
    return list(map(str, replaced)) if isinstance(replaced, list) else []


def remove_replaced(references: Iterable[str]) -> None:
    """Remove former images of these tags that have no tag now and that no container uses.

    By the record, not by their labels: an image that a user committed has the labels of its source.
    """
    replaced = {identity for reference in references for identity in _replaced_by(reference)}
    if not replaced:
        return
    command = ["docker", "image", "ls", "--quiet", "--no-trunc", "--filter", "dangling=true"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for identity in sorted(replaced.intersection(listed.split())):
        subprocess.run(["docker", "image", "rm", identity], capture_output=True, check=False)
