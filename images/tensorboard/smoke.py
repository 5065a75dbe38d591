# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a run as frameworks do, and see it on TensorBoard's page."""

from __future__ import annotations

import subprocess
import tempfile
import time
import urllib.request

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

URL = "http://127.0.0.1:6006"
SECONDS = 180

runs = tempfile.mkdtemp()
writer = EventFileWriter(f"{runs}/first")
for step in range(3):
    loss = Summary(value=[Summary.Value(tag="loss", simple_value=1.0 / (step + 1))])
    writer.add_event(Event(step=step, wall_time=time.time(), summary=loss))
writer.close()


def answer(path: str) -> str:
    """Return what TensorBoard answers, nothing where it does not yet."""
    try:
        with urllib.request.urlopen(URL + path, timeout=10) as response:
            return str(response.read().decode())
    except OSError:
        return ""


with subprocess.Popen(["tensorboard", "--logdir", runs, "--bind_all"]) as server:
    deadline = time.monotonic() + SECONDS
    while '"loss"' not in answer("/data/plugin/scalars/tags"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"smoke: TensorBoard does not show the run within {SECONDS} s")
        time.sleep(0.5)
    page = answer("/")
    server.terminate()
if "TensorBoard" not in page:
    raise SystemExit(f"smoke: the page says {page[:200]!r}")
print("smoke: showed the run of a framework")
