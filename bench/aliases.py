# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of an alias and of `ml` over a plain `docker run`: one table, measured in one run.

Usage: ./slipway run python bench/aliases.py [--image IMAGE] [--rounds N]

  --image IMAGE  start containers of this image on the engine of this machine; without it, docker is
                 a script that only ends, and the engine is a stand-in
  --rounds N     number of measurements of each row; the cheapest counts (default 20)

The program is installed in a temporary folder, from the files that the role ml_aliases installs.
CPU is user and system time of all processes, including the guard that waits for the end of a
container. MODULES is the time that Python needs to import the modules. Wall time depends on the
load of the machine; compare CPU.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.images.index import (  # noqa: E402
    Planned,
)
from ansible_collections.slipway.host.plugins.module_utils.ml import program  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_aliases  # noqa: E402
from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402

from tests.unit import fake_engine  # noqa: E402

STAND_IN = "slipway/bench:cpu"
PYTHON = "/usr/bin/python3"
PR_SET_CHILD_SUBREAPER = 36
ANSWERS: dict[str, Any] = {
    "GET /info": {},
    "GET /images/json": [],
    "GET /images/": {"Id": "sha256:1", "Config": {"Env": []}},
    "GET /containers/json": [],
    # The files of the image, read once: a missing file is an empty one.
    "POST /containers/create": {"Id": "1"},
    "DELETE /": {},
}


class Cost(NamedTuple):
    """The cost of a command, in milliseconds."""

    cpu: float
    wall: float


def install(folder: Path, image: str) -> Path:
    """Install the program below a folder, with one alias; return the path of the alias."""
    alias = {"description": "", "names": [], "gpus": "none", "publish": {}, "urls": {}}
    settings = {"ports": {}, "network": "bridge", "command": ["true"], "aliases": {"bench": alias}}
    planned = Planned(
        name="bench",
        variant="cpu",
        reference=image,
        digest="",
        parent=None,
        cuda=None,
        unavailable={},
        image=settings,
    )
    owned = ml_aliases.owned([planned], ml_aliases.Options("the administrator"))
    for entry in owned["files"]:
        file = folder / entry["path"].lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(entry["content"].replace("/etc/slipway", f"{folder}/etc/slipway"))
    installed = folder / ml_aliases.PROGRAM.lstrip("/")
    installed.chmod(0o755)
    (folder / "bench").symlink_to(installed)
    return folder / "bench"


def cpu_seconds() -> float:
    """Return the CPU time of all ended processes that this process started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(command: Sequence[str], rounds: int) -> Cost:
    """Return the lowest cost of a command, including the processes that it leaves behind."""
    costs = []
    for _ in range(rounds + 1):
        cpu, begin = cpu_seconds(), time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall = time.monotonic() - begin
        try:
            while True:
                os.wait()
        except ChildProcessError:
            pass
        costs.append(Cost(1000 * (cpu_seconds() - cpu), 1000 * wall))
    # The first round compiles the modules.
    costs = costs[1:]
    return Cost(min(cost.cpu for cost in costs), min(cost.wall for cost in costs))


def import_milliseconds(executable: Path, words: Sequence[str]) -> float:
    """Return the time for the imports of a command of the program."""
    command = [PYTHON, "-ISB", "-X", "importtime", str(executable), *words]
    times = []
    for _ in range(5):
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(sum(map(int, re.findall(r"import time: +(\d+) \|", completed.stderr))) / 1000)
    return min(times)


def rows(folder: Path, image: str, rounds: int, engine: fake_engine.FakeEngine | None) -> Any:
    """Yield the cells of each row."""
    alias = install(folder, image)
    ml = alias.resolve()
    baseline = None
    for label, command in (
        ("docker run", ["docker", "run", "--rm", "--init", image, "true"]),
        ("alias", [str(alias), "true"]),
        ("alias --print", [str(alias), "--print", "true"]),
        ("ml list", [str(ml), "list"]),
    ):
        cost = measure(command, rounds)
        baseline = baseline or cost
        requests = "-"
        if engine:
            engine.requests.clear()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            requests = str(len(engine.requests))
        is_python = command[0] != "docker"
        yield (
            label,
            f"{cost.cpu:.0f}",
            f"{cost.cpu - baseline.cpu:+.0f}",
            f"{cost.wall:.0f}",
            f"{cost.wall - baseline.wall:+.0f}",
            f"{import_milliseconds(Path(command[0]), command[1:]):.0f}" if is_python else "-",
            requests,
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(usage=str(__doc__))
    parser.add_argument("--image")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    # Processes that a command leaves behind become children of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        stack.callback(shutil.rmtree, Path.home() / program.CACHE / folder.relative_to("/"), True)
        engine = None
        if not arguments.image:
            engine = stack.enter_context(fake_engine.running(folder / "engine.sock", ANSWERS))
            os.environ["DOCKER_HOST"] = f"unix://{folder}/engine.sock"
            (folder / "docker").write_text("#!/bin/sh\n")
            (folder / "docker").chmod(0o755)
            os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        heading = ("COMMAND", "CPU MS", "MORE", "WALL MS", "MORE", "MODULES MS", "REQUESTS")
        image = arguments.image or STAND_IN
        print(report.table([*rows(folder, image, arguments.rounds, engine)], heading))
    return 0


if __name__ == "__main__":
    sys.exit(main())
