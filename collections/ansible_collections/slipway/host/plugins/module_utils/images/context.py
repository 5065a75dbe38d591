# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build contexts: reads, renders and packs the files of an image, and computes the digest.

Only for the collection itself. Runs on the controller.

Everything here depends on content alone: the same catalogue gives the same bytes and the same
digest on every controller, whatever its umask, clock or checkout.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

# Files of tools, which are not copied into an image.
_TOOL_FILES = frozenset({"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"})

_YEAR_2000 = 946_684_800
_TWENTY_YEARS = 631_152_000


class ContextError(Exception):
    """A file of a build context cannot be used; the message names the file."""


@dataclass(frozen=True)
class ContextFile:
    """One file of a build context: its path there, whether it is executable, its content."""

    path: str
    executable: bool
    content: bytes = field(repr=False)


def read_files(source: Path, path: str) -> Iterator[ContextFile]:
    """Yield a file, or all files of a folder in the order of their names, with paths below `path`.

    Of a file's mode only the executable bit counts, as in git. Raise ContextError for a missing
    file and for anything that is neither a file nor a folder: a link would point elsewhere inside
    the context.
    """
    if source.is_symlink() or not (source.is_dir() or source.is_file()):
        problem = "not a plain file or folder" if source.is_symlink() else "does not exist"
        raise ContextError(f"{source}: {problem}; expected a file or a folder. Replace or add it.")
    if source.is_dir():
        for entry in sorted(source.iterdir()):
            if entry.name not in _TOOL_FILES:
                yield from read_files(entry, f"{path}/{entry.name}")
    else:
        yield ContextFile(path, bool(source.stat().st_mode & 0o100), source.read_bytes())


@cache
def _environment(images: Path) -> jinja2.Environment:
    """Return the environment of a catalogue's templates: each is compiled once a process."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(images),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a Dockerfile is not HTML
    )
    environment.filters.update(json=json.dumps, quoted=_quoted, shell=shlex.join)
    return environment


def render(images: Path, template: str, variables: Mapping[str, Any]) -> str:
    """Return the Dockerfile rendered from a template below the catalogue's folder.

    Templates extend and import each other by their path in that folder. Raise ContextError with
    the template's file and line for a mistake in the template.
    """
    # Imported late, because the survey reads digests from its cache.
    import jinja2

    try:
        text = _environment(images).get_template(template).render(variables)
    except jinja2.TemplateSyntaxError as error:
        raise ContextError(f"{error.filename}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise ContextError(f"{images / template}: {error.message}") from error
    return re.sub(r"\n{3,}", "\n\n", text)


def digest(identity: str, files: Iterable[ContextFile]) -> str:
    """Return the SHA-256, in hex, over the base's identity and every file of the context."""
    listed = [
        [file.path, file.executable, hashlib.sha256(file.content).hexdigest()]
        for file in sorted(files, key=lambda file: file.path)
    ]
    return hashlib.sha256(json.dumps([identity, listed]).encode()).hexdigest()


def pack(files: Iterable[ContextFile]) -> bytes:
    """Return the files as a tar archive: sorted, owned by root, dated by their content.

    BuildKit caches the files of a context, and requests only files whose size or date differs. With
    one date for all files, a change from `x==1.0` to `x==1.1` would go unnoticed.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        ordered = sorted(files, key=lambda file: file.path)
        for folder in _folders(ordered):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for file in ordered:
            entry = tarfile.TarInfo(file.path)
            entry.size, entry.mode = len(file.content), 0o755 if file.executable else 0o644
            entry.mtime = _date(file.content)
            tar.addfile(entry, io.BytesIO(file.content))
    return archive.getvalue()


def _date(content: bytes) -> int:
    """Return a date after 2000, in seconds, derived from the content."""
    return _YEAR_2000 + int.from_bytes(hashlib.sha256(content).digest()[:4], "big") % _TWENTY_YEARS


def _folders(files: Iterable[ContextFile]) -> list[str]:
    parents = {str(parent) for file in files for parent in PurePosixPath(file.path).parents}
    return sorted(parents - {"."})


def _quoted(value: str) -> str:
    """Quote a value for ENV, ARG and LABEL, where a dollar begins a variable."""
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'
