# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a tree is on the host: at its declared path, or on another disk with a link to it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.data import disk, folders, staging
from ansible_collections.slipway.host.plugins.module_utils.data.folders import Identity
from ansible_collections.slipway.host.plugins.module_utils.data.progress import TreeError
from ansible_collections.slipway.host.plugins.module_utils.state.paths import UnsafePathError

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Location:
    """The location of a tree.

    ``path`` is the path of the tree, or the path for a missing tree. ``tree`` is the identity of
    the tree, ``link`` of the link at the declared path; both are None if missing.
    """

    path: str
    tree: Identity | None
    link: Identity | None


def allowed_paths(tree: Tree) -> list[str]:
    """Return the paths at which a tree can be: its declared path, then one on each mounted disk."""
    mounted = [path for path in tree["disks"] if folders.is_folder(path)]
    return [tree["path"], *(f"{path}/{tree['name']}" for path in mounted)]


def select_path(tree: Tree, current: str, needed: int) -> str:
    """Return the first path with NEEDED bytes, also of downloads there; CURRENT is tried first."""
    candidates = list(dict.fromkeys([current, *allowed_paths(tree)]))
    present = {path: staging.Stage(path).downloaded_bytes() for path in candidates}
    return disk.select_folder(candidates, needed, present)


def find_location(tree: Tree) -> Location:
    """Return the location of a tree.

    Raise UnsafePathError if the declared path is neither a folder nor a link to an allowed path,
    TreeError if the disk of a link is not mounted.
    """
    path = tree["path"]
    link = folders.read_link(path)
    if link is None:
        return Location(path, folders.identify_folder(path), None)
    target = link.target
    if target not in [f"{folder}/{tree['name']}" for folder in tree["disks"]]:
        raise UnsafePathError(
            path, link.description, "a folder, or a link into one of ml_data_disks"
        )
    if not folders.is_folder(posixpath.dirname(target)):
        raise TreeError(
            f"{path} is a link to {target}, whose folder is missing. Mount its disk, or remove the "
            "link."
        )
    return Location(target, folders.identify_folder(target), link.identity)


def candidate_paths(tree: Tree, location: Location) -> list[str]:
    """Return the paths at which a tree may already be, or can be installed, best first."""
    others = [path for path in allowed_paths(tree) if not (location.link and path == tree["path"])]
    return list(dict.fromkeys([location.path, *others]))
