# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of services: secrets, and folders that containers mount.

Keys of an entry (``?``: optional):

secrets: path, owner, group, content? or source?: another file of the host that it is a copy of.
Without these it may have any content, but must not be empty.

mounts: path, owner, group, read_only?, is_volume?: a folder that containers mount. Owner, group and
mode of an existing folder belong to people and stay. It may be a link of root's, but not into the
system. It may be a file, unless the image declares a volume for it.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )


def ask_writable(name: str) -> bool | None:
    """Return whether a user may write to a folder, None without a folder.

    NAME is ``UID:GID:PATH``. The folder is opened with root's rights: a container needs no rights
    on the way to it. It has no other groups than GID.
    """
    uid, gid, path = name.split(":", 2)
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    groups, own_uid, own_gid = os.getgroups(), os.geteuid(), os.getegid()
    try:
        if own_uid != 0:
            return os.access(".", os.W_OK | os.X_OK, dir_fd=folder)
        # Real and saved user ID stay root's, so the user can neither signal nor trace the process.
        os.setgroups([])
        os.setegid(int(gid))
        os.seteuid(int(uid))
        return os.access(".", os.W_OK | os.X_OK, dir_fd=folder, effective_ids=True)
    finally:
        os.close(folder)
        os.seteuid(own_uid)
        os.setegid(own_gid)
        if own_uid == 0:
            os.setgroups(groups)


def ask_address(address: str) -> bool:
    """Return whether a program of this host can listen on an IP address."""
    # The C module below socket, whose own imports cost more than the question.
    import _socket

    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    try:
        listener = _socket.socket(family, _socket.SOCK_DGRAM)
    except OSError:
        return False
    try:
        listener.bind((address, 0))
    except OSError:
        return False
    finally:
        listener.close()
    return True


ASKS = {"writable": reading.each(ask_writable), "addresses": reading.each(ask_address)}


# --- Nothing below is sent to hosts with the survey. ---
import hashlib

from ansible_collections.slipway.host.plugins.module_utils.state import files
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)

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
    """Yield what keeps a container from using the folder of a mount."""
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
        return
    if entry.get("is_volume") and state[0] not in ("directory", "link"):
        raise ConflictError(
            f"{path}, a volume of a service: found a {state[0]}; expected a folder. Choose "
            "another folder in volumes of ml_services_instances"
        )
    if state[0] == "link":
        target = answer["link_targets"][path]
        if target is None or is_system_path(target):
            yield f"a link to {target or 'nothing'}", "a folder"
            return
    if not entry.get("read_only") and answer["writable"][_writer_of(entry)] is False:
        user = f"{entry['owner']}:{entry['group']}"
        raise ConflictError(
            f"{user} may not write to {path}; expected a folder that the service can write. Run "
            f"chown {user} {path}, set uid and gid of the service to its owner, or add :ro to the "
            "volume"
        )


def is_system_path(path: str) -> bool:
    """Return whether a real path is a folder of the system, or in one, or holds one."""
    return path in SYSTEM_PARENTS or f"{path}/".startswith(SYSTEM_TREES)


def _source_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("source"):
        yield "files", [entry["source"]]


def _writer_of(entry: Entry) -> str:
    return f"{entry['owner']}:{entry['group']}:{entry['path']}"


def _link_and_writer_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "link_targets", [entry["path"]]
    if not entry.get("read_only"):
        yield "writable", [_writer_of(entry)]


def _path_of(entry: Entry) -> list[str]:
    return [entry["path"]]


KINDS = (
    Kind("secrets", "path", "files", compare_secrets, _source_of, guarded=_path_of),
    Kind("mounts", "path", "files", compare_mounts, _link_and_writer_of),
)
