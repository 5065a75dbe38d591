# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders and files of the host in the container of an alias."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .caller import user_folder


class Mounted(NamedTuple):
    """A folder of the host that is mounted; ``source`` is absolute."""

    source: Path
    target: PurePosixPath
    read_only: bool = False


def mount_option(mount: Mounted) -> str:
    """Return the option of docker run."""
    fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
    fields += ["readonly"] * mount.read_only
    return f"--mount={','.join(map(_quote_field, fields))}"


def _quote_field(field: str) -> str:
    """Return a field as docker reads it, as CSV."""
    if not re.search(r'[,"\r\n]', field):
        return field
    return '"' + field.replace('"', '""') + '"'


def packages_folder(alias: str) -> Path:
    """Return the folder of the caller for the Python packages that pip installs, one per alias."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "slipway" / "packages" / alias


def mount_packages(alias: str, target: str, mounts: list[Mounted], missing: list[Path]) -> None:
    """Add the mount of the caller's Python packages, unless the caller mounts another folder there.

    TARGET is the folder in the image, empty if pip installs nothing there.
    """
    if not target or PurePosixPath(target) in (mount.target for mount in mounts):
        return
    source = packages_folder(alias)
    if not os.path.isdir(source):
        missing.append(source)
    mounts.append(Mounted(source, PurePosixPath(target)))


def missing_in_mounts(workdir: str, mounts: Sequence[Mounted]) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files that are missing in mounted folders of the host.

    They stand for WORKDIR, and for mounts below other mounts.  The caller creates them, because
    docker would create them as root.
    """
    folders = [mount.target for mount in mounts if not os.path.isfile(mount.source)]
    files = [mount.target for mount in mounts if os.path.isfile(mount.source)]
    targets = [*folders, PurePosixPath(workdir)]
    return list(_missing_sources(targets, mounts)), list(_missing_sources(files, mounts))


def _missing_sources(targets: Iterable[PurePosixPath], mounts: Sequence[Mounted]) -> Iterator[Path]:
    for target in targets:
        above = [m for m in mounts if m.target in target.parents and not m.read_only]
        if above and ".." not in target.parts:
            mount = max(above, key=lambda m: len(m.target.parts))
            source = mount.source / target.relative_to(mount.target)
            if not os.path.lexists(source):
                yield source
