# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Base images as files, for a machine that cannot build them: `./slipway demo --bundle`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.bases import REPOSITORY
from lab.engine import Engine
from lab.errors import LabError
from lab.hosts import Group
from lab.processes import locked


def save_bases(group: Group, folder: Path) -> list[Path]:
    """Write the base images of a group's hosts to files, which have the names of the images' tags.

    Raises LabError if the group has no host.
    """
    tags = group.images()
    if not tags:
        raise LabError(
            f"cannot save the base of group {group.group}: no host; expected at least one. Create"
            " a host first."
        )
    folder.mkdir()
    files = [folder / tag.partition(":")[2] for tag in tags]
    for tag, file in zip(tags, files, strict=True):
        group.engine.docker("image", "save", "--output", str(file), tag)
    return files


def load_base(engine: Engine, name: str, write: Callable[[Path], None]) -> None:
    """Load a base image unless the engine has it.

    name: of the file that `save_bases` made. write: writes this file to a path.
    """
    tag = f"{REPOSITORY}:{name}"
    with locked(engine.lock), tempfile.TemporaryDirectory(prefix="slipway-base-") as folder:
        engine.ensure()
        if engine.docker("image", "inspect", tag, check=False).rc == 0:
            return
        write(Path(folder) / name)
        engine.docker("image", "load", "--input", str(Path(folder) / name))
        if engine.docker("image", "inspect", tag, check=False).rc != 0:
            raise LabError(
                f"cannot load the base {name}: the file has another image; expected {tag}. Make"
                " the bundle again."
            )
