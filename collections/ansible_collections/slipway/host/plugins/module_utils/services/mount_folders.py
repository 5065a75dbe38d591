# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folders of a host that services mount."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.services.failures import (
    ServiceFailure,
    collected,
)
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    paths,
    service_files,
)

Project = Mapping[str, Any]


def _is_link_into_system(path: str, info: os.stat_result) -> bool:
    """Return whether a link leads into a folder of the system, or nowhere."""
    target = files.ask_link_target(path) if paths.type_of(info) == paths.LINK else path
    return target is None or (target != path and service_files.is_system_path(target))


def create_mount(mount: Mapping[str, Any], check: bool = False) -> bool:
    """Create a folder that a service mounts if it is missing; return whether it was missing.

    A link of root's into a folder of the system counts as missing. CHECK changes nothing. Raise
    UnsafePathError if root cannot reach the folder without following somebody's link.
    """
    with suppress(FileNotFoundError), paths.opened_parent(mount["path"]) as (folder, name):
        info = folder.lstat(name)
        if info is not None:
            # Links of root may stay.
            if not folder.trusted and paths.type_of(info) not in (paths.FOLDER, paths.FILE):
                raise folder.refuse(name, info, "a folder")
            if not _is_link_into_system(mount["path"], info):
                return False
            if mount.get("read_only"):
                raise folder.refuse(name, info, "a folder")
    if not check:
        place = {key: mount[key] for key in ("path", "owner", "group")}
        apply_files.settle({**place, "state": "directory", "mode": "0750"})
    return True


def create_mounts(
    projects: Sequence[Project], failures: list[ServiceFailure], check: bool = False
) -> tuple[set[str], set[str]]:
    """Create the folders that projects mount.

    Return the names of the projects that mount a folder created now, and of those refused.
    """
    created: set[str] = set()
    refused: set[str] = set()
    for project in projects:
        name, before = project["name"], len(failures)
        for mount in project["mounts"]:
            with collected(failures, name):
                if create_mount(mount, check):
                    created.add(mount["path"])
        if len(failures) > before:
            refused.add(name)
    # Projects can share a folder, and a running container keeps the folder that was removed.
    mounting = {
        project["name"]
        for project in projects
        if any(mount["path"] in created for mount in project["mounts"])
    }
    return mounting, refused
