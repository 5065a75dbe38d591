# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The specification of a throwaway host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lab.bases import DEFAULT_BASE, base_named
from lab.errors import LabError

# Names become parts of file, container and host names.
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine that the host sees at `target`."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class HostSpec:
    """The specification of one host of a group.

    hostname: the host's own name; `name` when empty.
    """

    name: str
    base: str = DEFAULT_BASE
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()


def check_name(label: str, name: str) -> None:
    """Raise LabError for a name that cannot be part of a host name."""
    if not NAME_PATTERN.fullmatch(name):
        raise LabError(
            f"invalid {label} {name!r}; expected 1 to 40 lower-case letters, digits and hyphens,"
            " without a hyphen at either end"
        )


def check_spec(spec: HostSpec) -> None:
    """Raise LabError for an invalid specification."""
    base_named(spec.base)
    check_name("host name", spec.name)
    check_name("hostname", spec.hostname or spec.name)
    for mount in spec.mounts:
        for path in (mount.source, mount.target):
            if not path.startswith("/") or ":" in path:
                raise LabError(
                    f"invalid mount path {path!r}; expected an absolute path without a colon"
                )
        if not Path(mount.source).exists():
            raise LabError(f"mount source {mount.source} does not exist")
