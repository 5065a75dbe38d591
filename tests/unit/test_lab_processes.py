# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of this machine, and lock files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.engine import EngineProcess
from lab.errors import LabError
from lab.processes import locked, process_name, process_start, wait_until


def test_process_is_identified_by_id_and_start_time(daemon: int) -> None:
    start = process_start(daemon)
    assert start is not None
    assert EngineProcess(daemon, start).is_alive()
    assert not EngineProcess(daemon, "1").is_alive()
    assert not EngineProcess(daemon, "").is_alive()


def test_zombie_process_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        assert wait_until(lambda: process_start(process.pid) is None, 5)
        assert process_name(process.pid) is None


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    with (
        locked(path),
        pytest.raises(LabError, match="another process has held"),
        locked(path, seconds=0.1),
    ):
        pass
    with locked(path, seconds=0.1):
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import fcntl, os, sys; handle = open(sys.argv[1], 'w');"
        "fcntl.flock(handle, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "lock"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    with locked(path, seconds=0.1):
        assert path.exists()
