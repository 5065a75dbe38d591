# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The volumes and folders of the host that a project mounts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.services.project import Project

# What the engine accepts as the name of a volume.
VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Mount:
    """A mount: ``source`` is a folder of the host if it is absolute, else the name of a volume.

    is_volume: whether the image declares ``target`` as a volume, so that it is a folder.
    """

    source: str
    target: str
    read_only: bool
    is_volume: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder of the host."""
        return self.source.startswith("/")

    @property
    def compose(self) -> dict[str, Any]:
        """Return the mount as compose writes it."""
        kind = "bind" if self.is_folder else "volume"
        entry = {"type": kind, "source": self.source, "target": self.target}
        return {**entry, **({"read_only": True} if self.read_only else {})}


def project_mounts(project: Project) -> list[Mount]:
    """Return each volume of the image, then the host's own mounts."""
    image_volumes = project.build.image["volumes"]
    declared = project.declared.get("volumes") or {}
    sources = {**{name: f"{project.name}_{name}" for name in image_volumes}, **declared}
    mounts = []
    for name, spelled in sources.items():
        target = name if name.startswith("/") else image_volumes.get(name)
        if target is None:
            raise project.unknown("volume", name, image_volumes)
        source, colon, option = str(spelled).partition(":")
        if (colon and option != "ro") or not (
            VOLUME_NAME.fullmatch(source) or re.fullmatch(r"/[^\s,'\"$\\]+", source)
        ):
            raise project.error(
                f"volumes.{name}: {str(spelled)!r}; expected an absolute path or the name of a "
                "volume, with :ro at the end for read-only. Change the value."
            )
        mounts.append(Mount(source, target, bool(colon), name in image_volumes))
    return mounts


def share_writers_mounts(projects: Sequence[dict[str, Any]]) -> None:
    """Give a folder that one project reads the owner of the project that writes to it."""
    writers = {
        mount["path"]: mount
        for project in projects
        for mount in project["mounts"]
        if not mount["read_only"]
    }
    for project in projects:
        project["mounts"] = [
            writers.get(mount["path"], mount) if mount["read_only"] else mount
            for mount in project["mounts"]
        ]
