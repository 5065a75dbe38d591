# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build contexts: the files an image is made from, rendered, identified and packed.

PRIVATE to the collection. Runs on the controller.

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
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2

# Appears in a checkout without anybody meaning it to be in an image.
_LITTER = frozenset({"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"})

_YEAR_2000 = 946_684_800
_TWENTY_YEARS = 631_152_000


class ContextError(Exception):
    """A context that cannot be made; the text names the file."""


@dataclass(frozen=True)
class ContextFile:
    """One file of a build context: its path there, whether it is executable, its content."""

    path: str
    executable: bool
    content: bytes = field(repr=False)


def read_files(source: Path, path: str) -> Iterator[ContextFile]:
    """Yield a file, or all files of a folder in the order of their names, to lie under `path`.

    Of a file's mode only the executable bit counts, as in git. Raise ContextError for what is
    missing and for anything that is neither a file nor a folder: a link would mean something
    else inside the context.
    """
    if source.is_symlink() or not (source.is_dir() or source.is_file()):
        kind = "is not a plain file or folder" if source.is_symlink() else "does not exist"
        raise ContextError(f"{source}: {kind}")
    if source.is_dir():
        for entry in sorted(source.iterdir()):
            if entry.name not in _LITTER:
                yield from read_files(entry, f"{path}/{entry.name}")
    else:
        yield ContextFile(path, bool(source.stat().st_mode & 0o100), source.read_bytes())


def render(images: Path, template: str, variables: Mapping[str, Any]) -> str:
    """Return the Dockerfile that a template below the catalogue's folder makes.

    Templates extend and import each other by their path from that folder. Raise ContextError with
    the template's file and line for a mistake in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(images),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a Dockerfile is not HTML
    )
    environment.filters.update(json=json.dumps, quoted=_quoted, shell=shlex.join)
    try:
        text = environment.get_template(template).render(variables)
    except jinja2.TemplateSyntaxError as error:
        raise ContextError(f"{error.filename}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise ContextError(f"{images / template}: {error.message}") from error
    return re.sub(r"\n{3,}", "\n\n", text)


def digest(identity: str, files: Iterable[ContextFile]) -> str:
    """Return the SHA-256, in hex, over what the base is and every file of the context."""
    listed = [
        [file.path, file.executable, hashlib.sha256(file.content).hexdigest()]
        for file in sorted(files, key=lambda file: file.path)
    ]
    return hashlib.sha256(json.dumps([identity, listed]).encode()).hexdigest()


def pack(files: Iterable[ContextFile]) -> bytes:
    """Return the files as a tar archive: sorted, owned by root, dated by their content.

    BuildKit keeps what it was sent for a context and asks only for files whose size or date is
    another one. With one date for all, `x==1.0` would be built where `x==1.1` was asked for.
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
    """Return a date in this century's first years, in seconds, that stands for the content."""
    return _YEAR_2000 + int.from_bytes(hashlib.sha256(content).digest()[:4], "big") % _TWENTY_YEARS


def _folders(files: Iterable[ContextFile]) -> list[str]:
    parents = {str(parent) for file in files for parent in PurePosixPath(file.path).parents}
    return sorted(parents - {"."})


def _quoted(value: str) -> str:
    """Quote a value for ENV, ARG and LABEL, where a dollar would name a variable."""
    return '"' + re.sub(r'([\\"$])', r"\\\1", value) + '"'
