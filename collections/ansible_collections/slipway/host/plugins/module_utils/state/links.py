# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links to one target in a folder.

Keys of an entry of links: folder, target, names: the links to the target that are in the folder,
and no others. Everything else in the folder is not ours.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ansible_collections.slipway.host.plugins.module_utils.state.model import (
        Answer,
        Change,
        Entry,
    )

    Json = dict[str, Any]


def ask_links(path: str) -> Json | None:
    """Return where each name in a folder leads, None where there is no folder."""
    found: Json | None = reading.read_guarded(_read_links, path)
    return found


def _read_links(path: str) -> Json | None:
    if reading.is_trusted_path(path):
        return _link_targets(path, reading.list_names(path))
    with reading.safe_paths().opened_folder(path) as folder:
        opened_path = f"/proc/self/fd/{folder.descriptor}"
        return _link_targets(opened_path, reading.list_names(opened_path))


def _link_targets(path: str, names: list[str] | None) -> Json | None:
    """Return where the names in a folder lead, empty for what is no link."""
    if names is None:
        return None
    found: Json = {}
    for name in names:
        try:
            found[name] = os.readlink(f"{path}/{name}")
        except OSError:
            found[name] = ""
    return found


ASKS = {"links": reading.each(ask_links)}


# --- Nothing below is sent to hosts with the survey. ---
from ansible_collections.slipway.host.plugins.module_utils.state.model import (
    MISSING,
    ConflictError,
    Kind,
)


def compare_links(entry: Entry, answer: Answer) -> Iterator[Change]:
    """Yield missing and undeclared links."""
    folder, target = entry["folder"], entry["target"]
    found = answer["links"][folder] or {}
    for name in sorted(entry["names"]):
        leads = found.get(name)
        if leads is None:
            yield f"{name} is {MISSING}", f"a link to {target}"
        elif leads != target:
            raise ConflictError(
                f"{folder}/{name} is there and is {f'a link to {leads}' if leads else 'no link'}, "
                f"but has to be a link to {target}; move it out of the way, or do without {name}"
            )
    for name in sorted(set(found) - set(entry["names"])):
        if found[name] == target:
            yield f"{name} is there", "removed"


def _folder_of(entry: Entry) -> list[str]:
    return [f"{entry['folder']}/*"]


KINDS = (Kind("links", "folder", "links", compare_links, guarded=_folder_of),)
