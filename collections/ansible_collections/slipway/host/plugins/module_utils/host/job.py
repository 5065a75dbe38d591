# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long jobs on a host, independent of the connection that started them.

The controller packs a job, unpacks it into a folder on the host and starts a program of the job
there, detached; it then shows ``progress`` until ``result.json`` appears, see
:mod:`plugin_utils.detached_job`. A lost connection does not end the job, and a second run waits for
the first.
"""

from __future__ import annotations

import ast
import fcntl
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from ansible_collections.slipway.host.plugins.module_utils.host.status import Status

Result = dict[str, Any]
# The file of a job's folder with what goes on now.
STATUS = "status"
WAIT_PAUSE = 0.5
PACKAGE = __name__.partition("module_utils.")[0]


class Progress:
    """Writes progress lines, which the controller shows, and what goes on now."""

    def __init__(self, stream: TextIO, status: Status | None = None) -> None:
        self.stream = stream
        self.status = status

    def say(self, line: str) -> None:
        """Write a line and flush it."""
        self.stream.write(line + "\n")
        self.stream.flush()

    def now(self, text: str) -> None:
        """Show what goes on now, until the next text; no log keeps it."""
        if self.status:
            self.status.show(text)


def _required_modules(program: ModuleType) -> list[ModuleType]:
    """Return a module of this collection and all modules of the collection that it imports."""
    required = {program.__name__: program}
    pending = [program]
    while pending:
        for name in _imported_names(pending.pop()):
            module = sys.modules.get(name)
            if name.startswith(PACKAGE) and module is not None and name not in required:
                required[name] = module
                pending.append(module)
    return list(required.values())


def _imported_names(module: ModuleType) -> Iterator[str]:
    """Yield the names of all modules that a module may import."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def pack(files: Mapping[str, bytes], program: ModuleType) -> bytes:
    """Return a tar archive with FILES, the module PROGRAM and all modules that it imports.

    The archive may contain secrets: unpack it into a folder that only root can read.
    """
    content = dict(files)
    for module in _required_modules(program):
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


def _wait_for_lock(lock: TextIO, activity: str, progress: Progress) -> None:
    """Wait until no other job has the lock; show the progress of the other job."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        progress.say(f"Waiting for another {activity} on this host")
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            lock.seek(0)
            progress.now(f"waits for another {activity}: {_read_status(lock.read())}")
            time.sleep(WAIT_PAUSE)


def _read_status(path: str) -> str:
    """Return what another job does now, empty if that is unknown."""
    try:
        return Path(path).read_text(encoding="utf-8").partition(" ")[2].strip()
    except (OSError, ValueError):
        return ""


def run_locked(
    folder: Path, lock_file: Path, activity: str, work: Callable[[Progress], Result]
) -> None:
    """Call WORK under a lock and write its result to FOLDER; ACTIVITY names the work in messages.

    An exception of WORK becomes the entry ``job`` of ``failed`` in the result.
    """
    lock_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    result: Result = {"failed": {"job": f"{activity} was stopped"}}
    with (folder / "progress").open("a", encoding="utf-8") as stream, lock_file.open("a+") as lock:
        progress = Progress(stream, Status(str(folder / STATUS)))
        try:
            _wait_for_lock(lock, activity, progress)
            # A job that waits for this one shows its progress.
            lock.seek(0)
            lock.truncate()
            lock.write(str(folder / STATUS))
            lock.flush()
            result = work(progress)
        except Exception as error:
            result["failed"] = {"job": f"{type(error).__name__}: {error}"}
        finally:
            new = folder / "result.json.new"
            new.write_text(json.dumps(result), encoding="utf-8")
            new.rename(folder / "result.json")
