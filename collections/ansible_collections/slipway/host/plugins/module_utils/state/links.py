# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Links to one target in a folder.

Keys of an entry of links (``?``: optional): folder, target, names: the links to the target that are
in the folder, and no others. Everything else in the folder is not ours. unhidden?: folders with
commands of the system; a link must not hide one of these.
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


def compare_links(entry: Entry, answer: Answer) -> Iterator[Change | ConflictError]:
    """Yield missing and undeclared links, and what is in the way of single links."""
    folder, target = entry["folder"], entry["target"]
    found = answer["links"][folder] or {}
    for name in sorted(entry["names"]):
        leads = found.get(name)
        path = f"{folder}/{name}"
        hidden = next(
            (other for other in _hidden_paths(entry, name) if answer["files"][other] is not None),
            None,
        )
        if hidden:
            yield ConflictError(
                f"{path}: an alias would hide the existing command {hidden}; expected another "
                "name. Rename the alias in image.yml, or disable it in ml_aliases_settings",
                path,
            )
        elif leads is None:
            yield f"{name} is {MISSING}", f"a link to {target}"
        elif leads != target:
            what = f"a link to {leads}" if leads else "something that is not a link"
            yield ConflictError(
                f"{path}: found {what}; expected a link to {target}, or nothing. Move it out of "
                "the way, or disable the alias in ml_aliases_settings",
                path,
            )
    for name in sorted(set(found) - set(entry["names"])):
        if found[name] == target:
            yield f"{name} is there", "removed"


def _folder_of(entry: Entry) -> list[str]:
    return [f"{entry['folder']}/*"]


def _hidden_paths(entry: Entry, name: str) -> Iterator[str]:
    """Yield where a command of the system with this name would be."""
    for folder in entry.get("unhidden") or ():
        yield f"{folder}/{name}"


def _commands_of(entry: Entry) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "files", [path for name in entry["names"] for path in _hidden_paths(entry, name)]


KINDS = (Kind("links", "folder", "links", compare_links, _commands_of, guarded=_folder_of),)
