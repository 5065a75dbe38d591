# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and folders: type, mode, owner, group, content, default ACL, and the names in a folder.

Keys of an entry (``?``: optional):

files: path, content?, mode?, owner?, group?, state? (``file``, ``directory``, ``absent``),
default_acl?. A file without content may have any content. Owner and group are names, or numbers in
digits. default_acl is the mode of new files in a folder, whatever the umask; such a folder belongs
to people, so nothing in its place is replaced.

folders: path, entries: the names that may be in the folder, and no others.

obstacles: path, holds, why: a file in which the regular expression HOLDS matches (``^`` at each
line) prevents the role from working, and WHY says what to do.
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

    Json = dict[str, Any]


def ask_state(path: str) -> list[Any] | None:
    """Return ``[type, mode, owner, group, sha256, uid, gid]``; the digest is of files only."""
    found: list[Any] | None = reading.read_guarded(_read_state, path)
    return found


def _read_state(path: str) -> list[Any] | None:
    import hashlib

    if reading.is_trusted_folder(path.rpartition("/")[0]):
        try:
            info = os.lstat(path)
        except OSError:
            return None
        content = reading.read_file(path) if info.st_mode & 0o170000 == 0o100000 else None
    else:
        with reading.safe_paths().opened_parent(path) as (folder, name):
            info = folder.lstat(name)
            if info is None:
                return None
            kind = info.st_mode & 0o170000
            if kind not in (0o040000, 0o100000):
                raise folder.refuse(name, info, "a file or a folder")
            content = reading.read_untrusted(path) if kind == 0o100000 else None
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return [*reading.ownership(info), digest, info.st_uid, info.st_gid]


def ask_parent(path: str) -> list[Any] | None:
    """Return the state of a parent folder; a link that only root decides about is followed."""
    found: list[Any] | None = reading.read_guarded(_read_parent, path)
    return found


def _read_parent(path: str) -> list[Any] | None:
    if not os.path.islink(path):
        return _read_state(path)
    reading.safe_paths().check_parent(path)
    info = os.stat(path)
    return [*reading.ownership(info), None, info.st_uid, info.st_gid]


def ask_target(path: str) -> list[Any] | None:
    """Return the state, without a digest, of a file at the end of root's own links.

    A file in a folder that others can write is not looked at.
    """
    found: list[Any] | None = reading.read_guarded(_read_target, path)
    return found


def _read_target(path: str) -> list[Any] | None:
    target = path
    if os.path.islink(path):
        target = os.path.realpath(path)
        if not reading.is_trusted_folder(target.rpartition("/")[0]):
            raise reading.safe_paths().UnsafePathError(
                path, f"a link to {target}, which others can replace", "a file of root"
            )
    info = os.lstat(target)
    return [*reading.ownership(info), None, info.st_uid, info.st_gid]


def ask_link_target(path: str) -> str | None:
    """Return where root's own links lead from a path, None where nothing is there."""
    if not reading.is_trusted_folder(path.rpartition("/")[0]):
        return path  # Links in a folder that others can write are not followed.
    target = os.path.realpath(path)
    return target if os.path.exists(target) else None


def ask_time(path: str) -> float | None:
    """Return the time of a file's last change, in seconds since 1970, None where there is none.

    It is the ctime: anybody who may write a file can set its time of modification.
    """
    try:
        return os.stat(path).st_ctime
    except OSError:
        return None


def ask_names(path: str) -> list[str] | None:
    """Return the names in a folder of a path; None if there is no folder."""
    found: list[str] | None = reading.read_guarded(_read_names, path)
    return found


def _read_names(path: str) -> list[str] | None:
    if reading.is_trusted_path(path):
        return reading.list_names(path)
    with reading.safe_paths().opened_folder(path) as folder:
        names: list[str] = folder.names()
        return names


def ask_text(path: str) -> str | None:
    """Return a file's content as text, marked ``base64:`` where it is binary."""
    found: str | None = reading.read_guarded(_read_text, path)
    return found


def _read_text(path: str) -> str | None:
    content = (
        reading.read_file(path)
        if reading.is_trusted_path(path)
        else reading.read_untrusted(path, reading.MAX_TEXT)
    )
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        import base64

        return "base64:" + base64.b64encode(content).decode("ascii")


def ask_acl(path: str) -> str | None:
    """Return a folder's default ACL as the kernel writes it, in hexadecimal.

    It is empty where there is none, null where the file system keeps none, or there is no folder.
    """
    found: str | None = reading.read_guarded(_read_acl, path)
    return found


def _read_acl(path: str) -> str | None:
    if not reading.is_trusted_path(path):
        with reading.safe_paths().opened_parent(path) as (folder, name):
            opened_path = f"/proc/self/fd/{folder.descriptor}/{name}"
            return _acl_of(opened_path)
    return _acl_of(path)


def _acl_of(path: str) -> str | None:
    """Return the default ACL of a folder that is not behind a link."""
    import errno

    try:
        return os.getxattr(path, "system.posix_acl_default", follow_symlinks=False).hex()
    except OSError as error:
        return "" if error.errno == errno.ENODATA else None


ASKS = {
    "files": reading.each(ask_state),
    "parents": reading.each(ask_parent),
    "acls": reading.each(ask_acl),
    "targets": reading.each(ask_target),
    "link_targets": reading.each(ask_link_target),
    "ctimes": reading.each(ask_time),
    "folders": reading.each(ask_names),
    "texts": reading.each(ask_text),
}


# --- Nothing below is sent to hosts with the survey. ---
import hashlib
import re

from ansible_collections.slipway.host.plugins.module_utils.state import accounts, acl, attributes
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)


def declared_attributes(entry: Entry) -> attributes.Attributes:
    """Return the attributes that an entry of files declares."""
    state = entry.get("state") or attributes.FILE
    mode = entry.get("mode") or ("0755" if state == attributes.FOLDER else "0644")
    return attributes.exact(state, entry.get("owner") or "root", entry.get("group") or "root", mode)


def compare_files(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a file or folder."""
    state = entry.get("state", "file")
    found = answer["files"][entry["path"]]
    if state == "absent":
        if found is not None:
            yield "present", "absent"
        return
    if found is None:
        yield MISSING, f"a {state}"
        return
    kind, digest = found[0], found[4]
    default_acl = entry.get("default_acl")
    if kind != state and default_acl:
        raise ConflictError(
            f"{entry['path']}: found a {kind}; expected a folder. Declare the target of the link, "
            "or move it out of the way, then run again"
        )
    content = entry.get("content") if kind == state else None
    if content is not None and digest != hashlib.sha256(content.encode()).hexdigest():
        yield "content differs", "as declared"
    yield from attributes.compare(found, declared_attributes(entry))
    if kind == state and default_acl:
        yield from _compare_acl(entry["path"], default_acl, answer["acls"][entry["path"]])


def _compare_acl(path: str, mode: str, found: str | None) -> Iterator[Change]:
    if found is None:
        raise ConflictError(
            f"{path}: its file system does not support POSIX ACLs, which give new files to a team; "
            "expected a file system with ACLs. Mount it with ACLs, or declare the folder with "
            "'acl: false'"
        )
    change = acl.difference(mode, found)
    if change:
        yield change


def compare_folders(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the undeclared names in a folder."""
    for name in sorted(set(answer["folders"][entry["path"]] or ()) - set(entry["entries"])):
        yield f"{name} is there", "removed"


def compare_obstacles(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Raise ConflictError if the file has the obstructing content."""
    if re.search(entry["holds"], answer["texts"][entry["path"]] or "", re.MULTILINE):
        raise ConflictError(entry["why"])
    return iter(())


def _acls_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    if entry.get("default_acl"):
        yield "acls", [entry["path"]]


def _present_path(entry: Entry) -> Iterator[str]:
    """Yield the path of an entry that declares a file or folder."""
    if entry.get("state") != "absent":
        yield entry["path"]


def inside(entry: Entry) -> Iterator[str]:
    """Yield a path in a folder, so that the folder itself counts as a parent folder."""
    yield f"{entry['path']}/*"


KINDS = (
    Kind(
        *("files", "path", "files", compare_files, _acls_of),
        guarded=_present_path,
        needs=accounts.owner_and_group,
    ),
    Kind("folders", "path", "folders", compare_folders, guarded=inside),
    Kind("obstacles", "path", "texts", compare_obstacles),
)
