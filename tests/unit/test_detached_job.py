# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long work apart from its connection, with a shell of this machine in place of a host."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.plugin_utils import detached_job, host_progress
from ansible_collections.slipway.host.plugins.plugin_utils.live import progress_channel

DONE = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "progress").write_text("half\\n\\x1b[2Jall\\n")
(folder / "new").write_text(json.dumps({"built": [str(folder.stat().st_mode & 0o777)]}))
(folder / "new").rename(folder / "result.json")
"""
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"


def shell(command: str, in_data: bytes = b"", **_: Any) -> dict[str, Any]:
    """Run a command as a connection does."""
    done = subprocess.run(["/bin/sh", "-c", command], input=in_data, capture_output=True)
    return {
        "rc": done.returncode,
        "stdout": done.stdout.decode(),
        "stderr": done.stderr.decode(),
    }


def run_job(folder: Path, program: str) -> dict[str, Any]:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("program.py")
        member.size = len(program)
        archive.addfile(member, io.BytesIO(program.encode()))
    variables = {"inventory_hostname": "gpu01", "ansible_python_interpreter": sys.executable}
    action: Any = SimpleNamespace(
        _templar=SimpleNamespace(available_variables=variables), _low_level_execute_command=shell
    )
    return detached_job.run_job(action, str(folder / "work"), "program", stream.getvalue())


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not come true")


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached_job, "POLL_SECONDS", 0.05)


def test_the_result_and_the_progress_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_job(tmp_path, DONE)
    # The folder is root's alone: jobs have secrets.
    assert result == {"built": [str(0o700)]}
    shown = capsys.readouterr().out
    assert "gpu01: half" in shown
    # A host cannot clear the screen.
    assert "gpu01: \\x1b[2Jall" in shown
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("shown", [True, False])
def test_the_status_is_read_only_if_a_callback_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    run, reads = detached_job._run_command, []

    def count(action: Any, script: str, data: bytes = b"\n") -> str:
        reads.extend(["read"] * ("is_new" in script))
        return run(action, script, data)

    monkeypatch.setattr(detached_job, "_run_command", count)
    monkeypatch.setattr(progress_channel, "is_open", lambda: shown)
    monkeypatch.setattr(host_progress, "LOOKS", 1000)
    program = (
        "import os, pathlib, sys, time\n"
        "for number in range(3):\n"
        "    text = f'{os.getpid()} step {number}\\n'\n"
        "    pathlib.Path(sys.argv[1], 'status').write_text(text)\n"
        "    time.sleep(0.5)\n"
    )
    assert run_job(tmp_path, program + DONE)["built"]
    assert (len(reads) > 2) is shown


def test_killed_work_fails_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="killed"):
        run_job(tmp_path, KILLED)
    assert list((tmp_path / "work").iterdir()) == []


def lose_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command fail after the one that starts a job."""
    run = detached_job._run_command

    def until_the_job_runs(action: Any, script: str, data: bytes = b"\n") -> str:
        if "base64" not in script:
            raise AnsibleActionFail("the connection is gone")
        return run(action, script, data)

    monkeypatch.setattr(detached_job, "_run_command", until_the_job_runs)


def test_a_killed_program_takes_its_processes_and_secrets_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller is gone as well, so nobody removes the folder."""
    program = (
        "import os, pathlib, signal, subprocess, sys\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "(folder / 'secrets').mkdir()\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(tmp_path)!r}, 'child').write_text(str(child.pid))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = detached_job._run_command
    lose_the_connection(monkeypatch)
    with pytest.raises(AnsibleActionFail, match="gone"):
        run_job(tmp_path, program)
    (folder,) = (tmp_path / "work").iterdir()
    wait_for(lambda: not (folder / "secrets").exists() and (tmp_path / "child").exists())
    child = Path("/proc", (tmp_path / "child").read_text(), "comm")
    wait_for(lambda: not child.exists() or child.read_text() != "sleep\n")
    monkeypatch.setattr(detached_job, "_run_command", run)
    wait_for(lambda: not Path("/proc", (folder / "pid").read_text().strip()).exists())
    run_job(tmp_path, DONE)
    assert not folder.exists()


def test_a_result_that_no_controller_reads_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_connection(monkeypatch)
    monkeypatch.setattr(detached_job, "RESULT_SECONDS", 1)
    with pytest.raises(AnsibleActionFail, match="gone"):
        run_job(tmp_path, DONE)
    wait_for(lambda: not any((tmp_path / "work").iterdir()))


def test_a_controller_that_slept_too_long_says_that_the_result_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = detached_job._run_command

    def sleep_after_the_start(action: Any, script: str, data: bytes = b"\n") -> str:
        output = run(action, script, data)
        if "base64" in script:
            wait_for(lambda: not any((tmp_path / "work").iterdir()))
        return output

    monkeypatch.setattr(detached_job, "_run_command", sleep_after_the_start)
    monkeypatch.setattr(detached_job, "RESULT_SECONDS", 1)
    expected = r"found no result; expected one, which is removed 1 s after .* Run again\."
    with pytest.raises(AnsibleActionFail, match=expected):
        run_job(tmp_path, DONE)


def test_jobs_of_a_host_that_restarted_are_removed_after_a_week(tmp_path: Path) -> None:
    for name, days in (("old", 8), ("new", 1)):
        (tmp_path / "work" / name).mkdir(parents=True)
        subprocess.run(["touch", "-d", f"{days} days ago", tmp_path / "work" / name], check=True)
    run_job(tmp_path, DONE)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["new"]


def test_a_failure_on_the_host_has_its_output() -> None:
    reply = {"rc": 1, "stdout": "", "stderr": "No space left on device"}
    action: Any = SimpleNamespace(
        _templar=SimpleNamespace(available_variables={}),
        _low_level_execute_command=lambda *_, **__: reply,
    )
    with pytest.raises(AnsibleActionFail, match="No space left on device"):
        detached_job.run_job(action, "/nowhere", "program", b"")
