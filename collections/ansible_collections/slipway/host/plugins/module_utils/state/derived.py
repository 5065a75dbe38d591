# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a command makes from other files: an initramfs, a CDI specification.

Keys of an entry of derived (``?``: optional): path, since: files that it is made from, required?,
holds?: text that the file contains, alone_in?: folders in which no other file contains this text.

The file is root's, not empty, and not writable by group or others. Where the module derived_files
ran the command, it recorded the digests of the file and of its sources (:data:`RECORD`). A file
that is as recorded must have sources as recorded. A file that was made again since is compared by
the time of the last change of content, owner, mode or name (ctime), which nobody can set. The time
of modification decides nothing. The content of a small file must be as recorded while its sources
are. The content of a large file, such as an initramfs, belongs to the tool that made it.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]

# A larger file has no digest here: reading it would cost more than the rest of the survey.
MAX_DIGEST_BYTES = 1 << 22


def ask_made(path: str) -> list[Any] | None:
    """Return ``[type, mode, owner, group, digest, uid, gid, size, ctime]``.

    The digest is null for a large file; ctime is in nanoseconds since 1970.
    """
    import hashlib

    try:
        info = os.lstat(path)
    except OSError:
        return None
    is_small = info.st_mode & 0o170000 == 0o100000 and info.st_size <= MAX_DIGEST_BYTES
    content = reading.read_file(path) if is_small else None
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    numbers = [info.st_uid, info.st_gid, info.st_size, info.st_ctime_ns]
    return [*reading.ownership(info), digest, *numbers]


def ask_holders(requests: list[list[str]], _reply: Json) -> Json:
    """Return for each folder the names of the files that contain a text.

    A request is ``[folder, text]``.
    """
    return {
        folder: [
            name
            for name in reading.list_names(folder) or []
            if text.encode() in (reading.read_file(f"{folder}/{name}") or b"")
        ]
        for folder, text in requests
    }


ASKS = {"made": reading.each(ask_made), "holders": ask_holders}


# --- Nothing below is sent to hosts with the survey. ---
import json

from ansible_collections.slipway.host.plugins.module_utils.docker.labels import STATE_FOLDER
from ansible_collections.slipway.host.plugins.module_utils.state import attributes
from ansible_collections.slipway.host.plugins.module_utils.state.model import MISSING, Kind

# What the files and their sources were when the module derived_files made them.
RECORD = f"{STATE_FOLDER}/derived.json"
ATTRIBUTES = attributes.Attributes(group=None, most=0o7777 & ~attributes.WRITABLE)
RECORD_ATTRIBUTES = attributes.exact(attributes.FILE, "root", "root", "0600")
# Files of the kernel are made when somebody looks, so their times mean nothing.
KERNEL_TREES = ("/proc/", "/sys/")
_DIGEST, _SIZE, _TIME = 4, 7, 8


def compare_derived(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield the differences of a derived file."""
    path = entry["path"]
    state = answer["made"][path]
    if state is None:
        if entry.get("required"):
            yield MISSING, "there"
        return
    yield from attributes.compare(state[:7], ATTRIBUTES)
    if record_state := answer["targets"].get(RECORD):
        for found, expected in attributes.compare(record_state, RECORD_ATTRIBUTES):
            yield f"its record {RECORD}: {found}", expected
    if state[_SIZE] == 0:
        yield "empty", "made by its command"
    elif state[0] == attributes.FILE:
        yield from _compare_sources(entry, answer)
    yield from _compare_holders(entry, answer)


def _compare_sources(entry: Entry, answer: Answer) -> Iterator[Change]:
    state = answer["made"][entry["path"]]
    record = read_record(answer["texts"].get(RECORD) or "").get(entry["path"])
    now = record_of(entry, answer)
    if record and record["sources"] != now["sources"] and record["made"] == now["made"]:
        for source in entry["since"]:
            if record["sources"].get(source) != now["sources"][source]:
                yield f"made from another {source}", "made from the present one"
        return
    if record and record["made"] == now["made"]:
        return
    if record and record["sources"] == now["sources"] and state[_DIGEST]:
        yield "content differs from what its command made", "as recorded"
        return
    for source in entry["since"]:
        source_state = None if source.startswith(KERNEL_TREES) else answer["made"][source]
        if source_state and source_state[_TIME] > state[_TIME]:
            yield f"older than {source}", "made after it"
    if not record and state[_DIGEST]:
        yield "not recorded", f"recorded in {RECORD}"


def _compare_holders(entry: Entry, answer: Answer) -> Iterator[Change]:
    text = entry.get("holds")
    if not text:
        return
    folder, _separator, name = entry["path"].rpartition("/")
    if folder in entry["alone_in"] and name not in answer["holders"][folder]:
        yield f"without {text}", f"a file that contains {text}"
    for rival in rivals(entry, answer):
        yield f"{rival} contains {text} too", "removed"


def rivals(entry: Entry, answer: Answer) -> list[str]:
    """Return the paths of other files that contain what only the derived file may contain."""
    return [
        path
        for folder in entry.get("alone_in") or ()
        for path in (f"{folder}/{name}" for name in answer["holders"][folder])
        if path != entry["path"]
    ]


def record_of(entry: Entry, answer: Answer) -> dict[str, Any]:
    """Return what to record of a derived file: ``made`` and ``sources``.

    ``made`` is the digest, or size and time of a large file; ``sources`` maps paths to digests.
    """
    state = answer["made"][entry["path"]]
    made = state[_DIGEST] or [state[_SIZE], state[_TIME]]
    sources = {source: answer["made"][source] for source in entry["since"]}
    return {
        "made": made,
        "sources": {
            source: found and (found[_DIGEST] or found[_SIZE]) for source, found in sources.items()
        },
    }


def read_record(text: str) -> dict[str, Mapping[str, Any]]:
    """Return the records by path; a broken record counts as a lost one."""
    try:
        records = json.loads(text)
        return {
            str(path): record
            for path, record in records.items()
            if isinstance(record["sources"], dict) and "made" in record
        }
    except (ValueError, AttributeError, TypeError, KeyError):
        return {}


def _further(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "made", entry["since"]
    yield "texts", [RECORD]
    yield "targets", [RECORD]
    if entry.get("holds"):
        yield "holders", [(folder, entry["holds"]) for folder in entry["alone_in"]]


def _guarded(entry: Entry) -> list[str]:
    folders = [f"{folder}/*" for folder in entry.get("alone_in") or ()]
    return [entry["path"], RECORD, *folders]


KINDS = (Kind("derived", "path", "made", compare_derived, _further, guarded=_guarded),)
