# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress within long tasks: what apt and builds write on a host, and how it is read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.apt import progress as apt_progress
from ansible_collections.slipway.host.plugins.module_utils.host import job
from ansible_collections.slipway.host.plugins.module_utils.host.status import Status
from ansible_collections.slipway.host.plugins.module_utils.images import activity
from ansible_collections.slipway.host.plugins.plugin_utils import host_progress


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "dlstatus:3:25.1234:Retrieving file 3 of 12 (4s remaining)",
            "apt: Retrieving file 3 of 12 (4s remaining), 25 %",
        ),
        (
            "pmstatus:docker.io:45.2:Unpacking docker.io (amd64)",
            "apt: Unpacking docker.io (amd64), 45 %",
        ),
        ("pmstatus:libc6:i386:5:Installing libc6:i386", "apt: Installing libc6:i386, 5 %"),
        ("pmerror:x:1:broken", ""),
        ("", ""),
    ],
)
def test_lines_of_apt(line: str, text: str) -> None:
    assert apt_progress.parse(line) == text


def test_a_command_that_keeps_the_descriptor_open_does_not_hang() -> None:
    shown: list[str] = []
    with apt_progress.follow(shown.append) as descriptor:
        os.write(descriptor, b"pmstatus:a:1:Unpacking a\npmstat")
        os.write(descriptor, b"us:b:2:Unpacking b\n")
        daemon = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
        for _ in range(200):
            if "apt: Unpacking b, 2 %" in shown:
                break
            time.sleep(0.02)
    daemon.kill()
    daemon.wait()
    assert shown[-1] == "apt: Unpacking b, 2 %"


def wait_for_news(file: Path, last: str, is_new: str = "false") -> str:
    script = host_progress.wait_script(str(file), last, is_new)
    done = subprocess.run(
        ["/bin/sh", "-c", f'{script}; printf %s "$line"'], capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout


def test_the_status_is_one_line_of_the_running_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_progress, "LOOKS", 1)
    file = tmp_path / "run" / "progress"
    assert wait_for_news(file, "") == ""
    status = Status(str(file))
    status.show("two\nlines  'quoted' $HOME")
    assert wait_for_news(file, "") == "two lines 'quoted' $HOME"
    assert file.parent.stat().st_mode & 0o777 == 0o700
    # Too soon after the last one, unless a step begins.
    status.show("next")
    assert wait_for_news(file, "") == "two lines 'quoted' $HOME"
    status.show("next", force=True)
    assert wait_for_news(file, "two") == "next"
    status.remove()
    assert wait_for_news(file, "next") == ""


def test_the_status_of_a_killed_process_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_progress, "LOOKS", 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file = tmp_path / "progress"
    file.write_text(f"{ended.pid} unpacking\n")
    assert wait_for_news(file, "") == ""


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Status(str(tmp_path / "file" / "progress")).show("text")


def test_news_of_a_job_end_the_wait(tmp_path: Path) -> None:
    began = time.monotonic()
    wait_for_news(tmp_path / "progress", "", is_new="true")
    assert time.monotonic() - began < host_progress.LOOKS * 0.2


def test_a_job_that_waits_shows_the_progress_of_the_other(tmp_path: Path) -> None:
    """A second run picks the view up."""
    first, second = tmp_path / "1", tmp_path / "2"
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from ansible_collections.slipway.host.plugins.module_utils.host import job\n"
        "def work(progress):\n"
        "    progress.now('base image')\n"
        "    while not Path(sys.argv[1], 'go').exists():\n        time.sleep(0.02)\n"
        "    return {}\n"
        "job.run_locked(Path(sys.argv[1]), Path(sys.argv[2]), 'build', work)\n"
    )
    processes = []
    for folder in (first, second):
        folder.mkdir()
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / "lock")]
        processes.append(subprocess.Popen(command))
        for _ in range(500):
            if (folder / job.STATUS).exists():
                break
            time.sleep(0.02)
    for _ in range(500):
        if "base image" in (second / job.STATUS).read_text():
            break
        time.sleep(0.02)
    assert "waits for another build: base image" in (second / job.STATUS).read_text()
    for folder in (first, second):
        (folder / "go").touch()
    assert [process.wait(20) for process in processes] == [0, 0]


COUNTERS = """Inter-|   Receive
 face |bytes    packets
    lo: 9000 1
  eth0: 5000 2
docker0: 70 1
veth12@if3: 80 1
  ib0: 400 1
"""


def test_received_bytes_are_those_from_outside() -> None:
    assert activity.received(COUNTERS) == 5400


@pytest.mark.parametrize(
    ("usual", "size", "text"),
    [
        (None, 0, "12 s"),
        (40.0, 0, "12 s (as a rule 40 s)"),
        (40.0, 120_000_000, "12 s (as a rule 40 s), received 120.0 MB, now 5.0 MB/s"),
    ],
)
def test_a_build_shows_time_size_rate_and_what_is_usual(
    usual: float | None, size: int, text: str
) -> None:
    assert activity.describe(12.3, usual, size, 5_000_000) == text


def test_builds_that_run_are_shown_together() -> None:
    shown: list[str] = []

    class Shown(job.Progress):
        def now(self, text: str) -> None:
            shown.append(text)

    progress = Shown(io.StringIO())
    activities = activity.Activities(progress)
    activities.show()
    activities.begin("jupyter", 40.0)
    activities.set("jupyter", "[2/5] Downloading")
    activities.begin("iris", None)
    activities.show()
    activities.end("jupyter")
    activities.end("iris")
    activities.show()
    (text,) = shown
    assert text.startswith("jupyter: 0 s (as a rule 40 s)")
    assert "[2/5] Downloading; iris: 0 s" in text
