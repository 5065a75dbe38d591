# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the files that list the Python packages of images, and refuses what no lock can contain.

Only for the collection itself. Runs on the controller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.slipway.host.plugins.module_utils.images.locks import normalise_name
from ansible_collections.slipway.host.plugins.module_utils.images.types import CatalogueError

_INCLUDE = re.compile(r"-r\s+(\S+)")
# A name, extras, versions and a marker of PEP 508, without a URL.
_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(\[[^\]/]*\])?\s*"
    r"(?P<bound>\(?\s*[<>=!~][^;@/]*)?(;.*)?"
)
_ARCHIVE = re.compile(r".*\.(whl|zip|tar\.\w+|tgz)", re.IGNORECASE)


def required_packages(file: Path) -> Iterator[str]:
    """Yield the normalised name of each package in a file, see `read_requirements`."""
    yield from (name for name, _bounded in read_requirements(file))


def read_requirements(file: Path, including: tuple[Path, ...] = ()) -> Iterator[tuple[str, bool]]:
    """Yield each package in a file and in the files that it includes.

    A package is its normalised name, and whether its versions are bounded.

    Raise CatalogueError with file and line for a path, a URL, an editable package or an option: a
    lock contains packages of an index only. INCLUDING are the files that include this one.
    """
    for number, line in enumerate(_read(file).splitlines(), 1):
        requirement = re.sub(r"(^|\s)#.*", "", line).strip()
        place = f"{file}:{number}: {requirement!r}"
        include, package = _INCLUDE.fullmatch(requirement), _PACKAGE.fullmatch(requirement)
        if include:
            included = file.parent / include[1]
            if not included.is_file() or included in (file, *including):
                raise CatalogueError(
                    f"{place}: expected another file beside {file.name}. Correct the name, or "
                    "remove the line."
                )
            yield from read_requirements(included, (file, *including))
        elif package and not _ARCHIVE.fullmatch(requirement):
            yield normalise_name(package["name"]), bool(package["bound"])
        elif requirement:
            raise CatalogueError(
                f"{place}: expected the name of a package with optional versions, or -r FILE. "
                "Name a package of a package index. Copy your own code with the key files."
            )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{file}: cannot read the file: {error}.") from error
