# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of `./slipway plan` for large fleets: a row for each number of hosts.

Usage: ./slipway run python bench/fleet.py [--hosts N ...] [--rounds N] [--keep]

  --hosts N    number of hosts (default 25 50 100 200)
  --rounds N   number of measurements of each row; the cheapest counts (default 2)
  --keep       keep the host for the next run

The hosts are many names of one throwaway host, with a connection and a survey each.  All of them
are as declared.  CPU is user and system time of all processes of the command on the controller,
memory is the highest sum of their proportional set sizes: shared pages count once.  The SSH
connections are open before the measurement.  Their processes do not belong to the command.  "RAW MS
PER HOST" is the CPU of the same hosts with the task `raw: true` only: a part that every task of
Ansible has, with 6 ms for the program ssh.  The main process waits for hosts with CPU too, so a
busy machine makes all figures worse.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402

from bench import run as bench_run  # noqa: E402
from lab.host_spec import HostSpec  # noqa: E402
from lab.hosts import Group  # noqa: E402
from lab.state_folder import group_folder  # noqa: E402

# Seconds between two looks at the memory.
PAUSE = 0.5


def memory(process: int) -> int:
    """Return the proportional set size of a process and of those below it, in bytes."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    total, left = 0, [process]
    while left:
        one = left.pop()
        left += children.get(one, [])
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return total * 1024


def measure_raw(bench: bench_run.Bench, hosts: int) -> float:
    """Return the CPU seconds of one task that does nothing."""
    playbook = bench.folder / "raw.yml"
    task = "- hosts: all\n  gather_facts: false\n  tasks: [{ansible.builtin.raw: 'true'}]\n"
    playbook.write_text(task, encoding="utf-8")
    before = bench_run.children_cpu()
    bench.run(["ansible-playbook", str(playbook), "-i", bench.inventory(hosts)])
    return bench_run.children_cpu() - before


def measure(bench: bench_run.Bench, hosts: int) -> tuple[float, float, int]:
    """Return CPU seconds, wall seconds and memory in bytes of one plan."""
    command = ["ansible-playbook", str(ROOT / "playbooks/plan.yml"), "-i", bench.inventory(hosts)]
    target = bench.folder / "report.json"
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "SLIPWAY_REPORT": str(target),
        "SLIPWAY_REPORTS": str(bench.folder / "reports"),
    }
    peak, over = 0, threading.Event()
    before, began = bench_run.children_cpu(), time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:

        def watch() -> None:
            nonlocal peak
            while not over.wait(PAUSE):
                peak = max(peak, memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        error = process.communicate()[1]
        over.set()
        watcher.join()
    wall = time.monotonic() - began
    found = json.loads(target.read_text(encoding="utf-8"))
    states = {entry["state"] for entry in found.values()}
    if process.returncode or len(found) != hosts or states != {report.NO_DRIFT}:
        raise SystemExit(f"plan of {hosts} hosts: {len(found)} hosts, {states}\n{error[-2000:]}")
    return bench_run.children_cpu() - before, wall, peak


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(usage=str(__doc__))
    parser.add_argument("--hosts", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    folder = group_folder(bench_run.GROUP)
    group = Group(bench_run.GROUP, folder)
    bench = bench_run.Bench(folder, group.ensure(HostSpec("bench-1")), arguments.rounds)
    rows = []
    try:
        # Connections of many names of one host at the same time.
        setting = "/etc/ssh/sshd_config.d/slipway-bench.conf"
        bench_run.on(bench.host, f"echo MaxStartups 200 >{setting}; systemctl reload ssh")
        bench.run(["ansible-playbook", bench_run.SITE, "-i", bench.inventory(1)])
        for hosts in arguments.hosts:
            measure(bench, hosts)  # connections and caches are warm from here on
            cpu, wall, peak = min(measure(bench, hosts) for _round in range(arguments.rounds))
            raw = min(measure_raw(bench, hosts) for _round in range(arguments.rounds))
            each = (f"{1000 * one / hosts:.0f}" for one in (cpu, raw))
            rows.append((str(hosts), f"{cpu:.1f}", *each, f"{wall:.1f}", f"{peak / 1e6:.0f}"))
            print(report.table(rows[-1:], [""] * 6), file=sys.stderr)
    finally:
        if not arguments.keep:
            group.remove()
    heading = ("HOSTS", "CPU S", "CPU MS PER HOST", "RAW MS PER HOST", "WALL S", "MEMORY MB")
    print(report.table(rows, heading))
    return 0


if __name__ == "__main__":
    sys.exit(main())
