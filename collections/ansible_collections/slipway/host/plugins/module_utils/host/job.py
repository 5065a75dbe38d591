# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work on a host, apart from the connection that started it.

The controller packs a job, unpacks it into a folder on the host and starts a program of the job
there, detached; it then follows ``progress`` until ``result.json`` appears, see
:mod:`plugin_utils.detached_job`.  So a lost connection ends nothing, and a second run waits for the
first instead of doing the same.
"""

from __future__ import annotations

import ast
import fcntl
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

Result = dict[str, Any]
PACKAGE = __name__.partition("module_utils.")[0]


class Progress:
    """Lines for the person who waits."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def say(self, line: str) -> None:
        """Tell LINE at once."""
        self.stream.write(line + "\n")
        self.stream.flush()


def required_modules(program: ModuleType) -> list[ModuleType]:
    """Return a module of this collection with all of the collection that it imports."""
    found = {program.__name__: program}
    pending = [program]
    while pending:
        for name in _imported_names(pending.pop()):
            module = sys.modules.get(name)
            if name.startswith(PACKAGE) and module is not None and name not in found:
                found[name] = module
                pending.append(module)
    return list(found.values())


def _imported_names(module: ModuleType) -> Iterator[str]:
    """Yield the names of all modules that a module may import."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packed(files: Mapping[str, bytes], program: ModuleType) -> bytes:
    """Return a tar archive with FILES, the module PROGRAM and all that it imports.

    It may hold secrets, so it belongs into a folder that only root can read.
    """
    content = dict(files)
    for module in required_modules(program):
        file = Path(str(module.__file__))
        name = module.__name__.replace(".", "/")
        content[f"{name}/__init__.py" if file.stem == "__init__" else f"{name}.py"] = (
            file.read_bytes()
        )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, text in sorted(content.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), 0o600
            archive.addfile(member, io.BytesIO(text))
    return stream.getvalue()


def carry_out(
    folder: Path, lock_file: Path, doing: str, work: Callable[[Progress], Result]
) -> None:
    """Do WORK under a lock and write its result to FOLDER; DOING names it to who waits.

    What fails without a result of its own is told as ``failed``, under the name ``job``.
    """
    lock_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    result: Result = {"failed": {"job": f"{doing} was stopped"}}
    with (folder / "progress").open("a", encoding="utf-8") as stream, lock_file.open("w") as lock:
        progress = Progress(stream)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.say(f"another {doing} runs on this host; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            result = work(progress)
        except Exception as error:
            result["failed"] = {"job": f"{type(error).__name__}: {error}"}
        finally:
            written = folder / "result.json.new"
            written.write_text(json.dumps(result), encoding="utf-8")
            written.rename(folder / "result.json")
