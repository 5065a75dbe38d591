# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count how many small faults in a file the unit tests find.

Usage: ./slipway run python tools/mutants.py [--every N] [--tests PATH ...] -- FILE ...

Each mutant is a copy of FILE with one fault, such as `<=` for `<`. It is killed if a unit test that
runs its statement fails. Prints the surviving mutants, then one row per file. The tests run in a
copy of the working tree, one mutant after another. Needs Python 3.12 or later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.mutations import Mutant, find_mutants  # noqa: E402

# A mutant that uses more CPU time than this is an endless loop; one that takes longer waits.
CPU_SECONDS, WAIT_SECONDS = 60, 180
# Imported once, because the process of each mutant inherits it.
SLOW_IMPORTS = ("ansible.plugins.action", "ansible.template", "ansible.playbook.play", "jsonschema")

# Python 3.12 and later.
monitoring: Any = getattr(sys, "monitoring", None)


class LineRecorder:
    """A pytest plugin that records which tests run which lines of some files."""

    def __init__(self, files: list[Path]) -> None:
        self.tests: dict[str, dict[int, set[str]]] = {str(file): defaultdict(set) for file in files}
        self.seconds: dict[str, float] = {}
        self.test = ""
        monitoring.use_tool_id(monitoring.COVERAGE_ID, "mutants")
        monitoring.register_callback(
            monitoring.COVERAGE_ID, monitoring.events.LINE, self._record_line
        )
        monitoring.set_events(monitoring.COVERAGE_ID, monitoring.events.LINE)

    def _record_line(self, code: CodeType, line: int) -> object:
        if code.co_filename in self.tests:
            self.tests[code.co_filename][line].add(self.test)
        # Once a test is enough.
        return monitoring.DISABLE

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Record the lines that run from now on for another test."""
        self.test = nodeid
        monitoring.restart_events()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record how long a test takes."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration


class Selection:
    """A pytest plugin that runs only some tests, the fastest first."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remove all other tests."""
        chosen = [item for item in items if item.nodeid in self.seconds]
        items[:] = sorted(chosen, key=lambda item: self.seconds[item.nodeid])


class Coverage(NamedTuple):
    """For each file, the tests that run a line (empty name: import), and the seconds of tests."""

    tests: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def tests_of(self, file: Path, lines: range) -> dict[str, float]:
        """Return the tests that run a statement, with their seconds."""
        by_line = self.tests[str(file)]
        names = {name for line in lines for name in by_line.get(str(line), ())}
        if not names:
            # A process that a test forks records no lines: take the tests of the line before.
            last = max((int(line) for line in by_line if int(line) < lines.start), default=0)
            names = set(by_line.get(str(last), ()))
        if "" in names:
            # What runs when a file is imported matters to all tests of the file.
            names = set().union(*by_line.values())
        return {name: self.seconds[name] for name in names if name in self.seconds}


def in_child(
    work: Callable[[], int],
    cpu_seconds: int = CPU_SECONDS,
    wait_seconds: int = WAIT_SECONDS,
    output: Path = Path(os.devnull),
) -> int:
    """Return the exit status of WORK, run in a process of its own."""
    child = os.fork()
    if child:
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
        signal.alarm(wait_seconds)
        _pid, status = os.waitpid(child, 0)
        signal.alarm(0)
        # Whatever a test left running goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status)
    status = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(output, os.O_WRONLY | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(written, stream)
        status = work()
    finally:
        os._exit(status)


def copy_tree(folder: Path) -> None:
    """Copy the files of the working tree that git does not ignore to a folder."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in listing.split("\0"):
        if name and os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    # A test may look for the environment beside the files.
    (folder / ".slipway").symlink_to(ROOT / ".slipway")


def record(files: list[Path], tests: list[str], folder: Path) -> Coverage:
    """Run the tests without a mutant; leave notes in a folder."""
    data, log = folder / "coverage.json", folder / "coverage.log"

    def run() -> int:
        # Compiled for the processes of the mutants.
        sys.dont_write_bytecode = False
        recorder = LineRecorder(files)
        status = pytest.main(["-q", "-x", *tests], plugins=[recorder])
        lines = {
            file: {line: list(names) for line, names in found.items()}
            for file, found in recorder.tests.items()
        }
        data.write_text(json.dumps([lines, recorder.seconds]))
        return int(status)

    if in_child(run, cpu_seconds=1800, wait_seconds=1800, output=log) != 0:
        raise SystemExit(f"The unit tests fail without a mutant:\n{log.read_text()[-3000:]}")
    for file in files:
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()
    return Coverage(*json.loads(data.read_text()))


def is_killed(file: Path, source: bytes, mutant: Mutant, tests: dict[str, float]) -> bool:
    """Return whether one of TESTS fails with a mutant in the file."""
    if not tests:
        return False
    test_files = sorted({name.partition("::")[0] for name in tests})
    file.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
    try:
        return (
            in_child(
                lambda: int(pytest.main(["-q", "-x", *test_files], plugins=[Selection(tests)]))
            )
            != 0
        )
    finally:
        file.write_bytes(source)


def try_mutants(file: Path, name: str, coverage: Coverage, every: int) -> str:
    """Try one mutant in EVERY of a file, print those that survive, return the row of the file."""
    source = file.read_bytes()
    mutants = find_mutants(source)[::every]
    killed = 0
    for mutant in mutants:
        tests = coverage.tests_of(file, mutant.lines)
        if is_killed(file, source, mutant, tests):
            killed += 1
            continue
        line = source.count(b"\n", 0, mutant.start) + 1
        old = " ".join(source[mutant.start : mutant.end].decode().split())
        why = "" if tests else " (no test runs this)"
        print(f"{name}:{line}: {old[:70]} -> {mutant.text[:70]}{why}", flush=True)
    return f"{len(mutants):7} {killed:6} {killed / max(len(mutants), 1):7.1%}  {name}"


SANDBOX = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/changes,workdir=/mnt/work overlay /mnt/root
for folder in dev proc sys; do mount --rbind /$folder /mnt/root/$folder; done
for folder in run tmp; do mount -t tmpfs -o mode=1777 tmpfs /mnt/root/$folder; done
# The shell stays: the first process of a namespace must wait for processes without a parent.
folder=$PWD
chroot /mnt/root sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
exit $?
"""


def enter_sandbox() -> None:
    """Run this program again where its changes are lost and it sees only its own processes.

    Root's mutants of code that deletes files or ends processes could do so anywhere.
    """
    if os.environ.get("SLIPWAY_MUTANTS") or os.geteuid() != 0:
        return
    os.environ.update(SLIPWAY_MUTANTS="sandbox", HOME="/tmp", ANSIBLE_HOME="/tmp/ansible")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", SANDBOX, "sh"]
    os.execvp("unshare", [*command, sys.executable, *sys.argv])


def main() -> int:
    """Try the mutants of the files; return 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try one mutant in N")
    parser.add_argument("--tests", nargs="+", default=["tests/unit"], metavar="PATH")
    options = parser.parse_args()
    names = [str(file.resolve().relative_to(ROOT)) for file in options.files]
    enter_sandbox()
    sys.dont_write_bytecode = True
    for module in SLOW_IMPORTS:
        import_module(module)
    rows = ["mutants killed percent  file"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        os.chdir(tree)
        files = [tree / name for name in names]
        coverage = record(files, options.tests, tree)
        for file, name in zip(files, names, strict=True):
            rows.append(try_mutants(file, name, coverage, options.every))
            print(rows[-1], flush=True)
    print("", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
