# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acceptance check of data sets: their files are as they were unpacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import folders, record
from ansible_collections.slipway.host.plugins.module_utils.data.progress import escape
from ansible_collections.slipway.host.plugins.module_utils.state.paths import Folder


def check(entry: Mapping[str, Any], by_digest: bool) -> str:
    """Return a sentence about a declared data set; raise ValueError with the files that differ.

    BY_DIGEST reads every file. Otherwise only those are read whose size, inode or ctime differ.
    Files that people added do not count. In a tree that others than root can write, changed files
    are theirs: they are named, and the check passes.
    """
    path = entry["path"]
    link = folders.read_link(path)
    if link and link.target in entry["places"]:
        path = link.target
    with folders.opened_tree(path) as tree:
        if tree is None:
            raise ValueError("found nothing; expected a data set. Run ./slipway site")
        return _check_tree(tree, entry, by_digest)


def _check_tree(tree: Folder, entry: Mapping[str, Any], by_digest: bool) -> str:
    if record.read(tree) is None:
        raise ValueError("found no record of root; expected a data set. Run ./slipway plan")
    found = record.find_differences(tree, by_digest)
    if found is None:
        raise ValueError(
            "the list of its files is missing or broken; expected the list of the unpacked files. "
            f"Move {entry['path']} out of the way, then run ./slipway site"
        )
    names = _listed("changed", found.changed) + _listed("missing", found.missing)
    if not names:
        how = "digest" if by_digest else "size, inode and ctime"
        return f"{found.files} files compared by {how if found.has_digests else 'size and time'}"
    sentence = "; ".join(names)
    if entry["owner"] != "root" or int(entry["mode"], 8) & 0o022:
        return f"{sentence}. Users may write this data set"
    raise ValueError(
        f"{sentence}; expected the files of the archive. If nobody needs the changes, move "
        f"{entry['path']} out of the way, then run ./slipway site"
    )


def _listed(what: str, names: list[str]) -> list[str]:
    more = " and more" if len(names) > record.SHOWN else ""
    shown = ", ".join(map(escape, names[: record.SHOWN]))
    return [f"{what}: {shown}{more}"] if names else []
