# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of services: secrets, and folders that containers mount.

Keys of an entry (``?``: optional):

secrets: path, owner, group, content? or source?: another file of the host that it is a copy of.
Without these it may have any content, but must not be empty.

mounts: path, owner, group, read_only?: a folder that containers mount. Owner, group and mode of an
existing folder belong to people and stay. It may be a link of root's, but not into the system.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state import files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    Answer,
    Change,
    ConflictError,
    Entry,
    Kind,
)

ASKS = files.ASKS
SECRET_MODE = "0600"
# A container must not get these by a link.
SYSTEM_PARENTS = ("/", "/home", "/var", "/var/lib")
SYSTEM_TREES = (
    *("/bin/", "/boot/", "/dev/", "/etc/", "/lib/", "/lib32/", "/lib64/", "/proc/", "/root/"),
    *("/run/", "/sbin/", "/sys/", "/usr/", "/var/lib/docker/", "/var/lib/slipway/"),
)
NOTHING = hashlib.sha256().hexdigest()


def compare_secrets(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a secret."""
    source = entry.get("source")
    origin = answer["files"][source] if source else None
    if source and (origin is None or origin[4] in (None, NOTHING)):
        found = f"a {origin[0]}" if origin else "nothing"
        what = "an empty file" if origin and origin[4] else found
        raise ConflictError(
            f"{source}, the source of {entry['path']}: found {what}; expected a file with a "
            "secret. Write the secret into it"
        )
    file = {**entry, "mode": SECRET_MODE}
    yield from files.compare_files(file, answer)
    present = answer["files"][entry["path"]]
    digest = present[4] if present else None
    if origin and digest and digest != origin[4]:
        yield f"differs from {source}", "the same"
    elif digest == NOTHING:
        yield "empty", "a secret"


def compare_mounts(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the missing folder of a mount, and a link into a folder of the system."""
    path = entry["path"]
    state = answer["files"][path]
    if state is None:
        if entry.get("read_only"):
            raise ConflictError(
                f"{path}, a folder that a service reads: found nothing; expected a folder or a "
                "file. Create it, or remove it from the mounts of the service",
                missing=path,
            )
        yield MISSING, f"a folder of {entry['owner']}:{entry['group']}"
    elif state[0] == "link":
        target = answer["link_targets"][path]
        if target is None or is_system_path(target):
            yield f"a link to {target or 'nothing'}", "a folder"


def is_system_path(path: str) -> bool:
    """Return whether a real path is a folder of the system, or in one, or holds one."""
    return path in SYSTEM_PARENTS or f"{path}/".startswith(SYSTEM_TREES)


def _source_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("source"):
        yield "files", [entry["source"]]


def _link_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "link_targets", [entry["path"]]


def _path_of(entry: Entry) -> list[str]:
    return [entry["path"]]


KINDS = (
    Kind("secrets", "path", "files", compare_secrets, _source_of, guarded=_path_of),
    Kind("mounts", "path", "files", compare_mounts, _link_of),
)
