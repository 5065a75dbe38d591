# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the CPU time of the outputs of a run: the view, plain lines, the output of Ansible.

Usage: ./slipway run python bench/output.py [--hosts 20] [--rounds 5]

All runs have the same playbook on hosts with a local connection, and write to a terminal of 200x50.
The outputs take turns, so that a busy machine disturbs all of them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402

PLAYBOOK = """
- name: Apply roles
  hosts: all
  gather_facts: false
  tasks:
{tasks}
    - name: Wait as for a long task
      ansible.builtin.raw: sleep 3
"""
TASK = """
    - name: Change number {number}
      ansible.builtin.raw: echo a line of output
"""
OUTPUTS = {
    "ansible": {"ANSIBLE_STDOUT_CALLBACK": "default"},
    "plain": {"ANSIBLE_STDOUT_CALLBACK": "slipway.host.live", "SLIPWAY_OUTPUT": "plain"},
    "live": {"ANSIBLE_STDOUT_CALLBACK": "slipway.host.live", "SLIPWAY_OUTPUT": "live"},
}


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the CPU seconds of a command that writes to a terminal, with its child processes."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def read() -> None:
        try:
            while os.read(parent, 65536):
                pass
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdin=child, stdout=child, stderr=child, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.close(child)
    reader.join()
    os.close(parent)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(usage=str(__doc__))
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")}
    found: dict[str, list[float]] = {name: [] for name in OUTPUTS}
    with tempfile.TemporaryDirectory() as folder:
        tasks = "".join(TASK.format(number=number) for number in range(10))
        playbook = Path(folder) / "play.yml"
        playbook.write_text(PLAYBOOK.format(tasks=tasks), encoding="utf-8")
        hosts = "".join(f"host{number:02}," for number in range(arguments.hosts))
        command = ["ansible-playbook", "-c", "local", "-i", hosts, str(playbook)]
        shared = {
            "TERM": "xterm-256color",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "SLIPWAY_STATE": folder,
        }
        for _round in range(arguments.rounds):
            for name, own in OUTPUTS.items():
                found[name].append(cpu_seconds(command, {**kept, **shared, **own}))
    least = min(found["ansible"])
    rows = [
        (
            name,
            f"{min(times):.2f}",
            f"{statistics.median(times):.2f}",
            f"{100 * (min(times) / least - 1):+.1f} %",
        )
        for name, times in found.items()
    ]
    print(report.table(rows, ("OUTPUT", "LEAST CPU S", "MEDIAN CPU S", "LEAST, TO ANSIBLE")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
