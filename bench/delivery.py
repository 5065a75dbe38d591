# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of images that one host builds and the others pull.

Usage: ./slipway run python bench/delivery.py [--hosts N] [--images NAME,...] [--keep]

  --hosts N      number of new hosts (default 4); one more is measured alone
  --images NAME  images of the catalogue (default iris-api,jupyter)
  --keep         keep the hosts

Rows: the first run of one host, the first run of N hosts, and a build of images after one changed
line in iris-api, on the builder and on all hosts.  CPU is that of the controller with all
processes of ssh.  "CPU/host" is the difference to the row above for each further host: comparison,
offer, pull and release.  "bytes/host" is what the network interface of a host that pulls received
and sent, with all scripts and modules of Ansible.  Wall time depends on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from bench.run import children_cpu  # noqa: E402
from lab.host_spec import HostSpec  # noqa: E402
from lab.hosts import Group, Host  # noqa: E402

GROUP = "bench-delivery"
SITE, BUILD = "site.yml", "playbooks/images_build.yml"
COUNTERS = "cat /sys/class/net/e*/statistics/[rt]x_bytes"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Masters:
    """The CPU seconds of ssh masters: nobody waits for them, so they are read while they run."""

    folder: str
    seconds: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        """Read the CPU seconds of each master whose socket is in the folder."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"ssh: {self.folder}/".encode() in (process / "cmdline").read_bytes():
                    words = (process / "stat").read_text().rpartition(")")[2].split()
                    self.seconds[process.name] = (int(words[11]) + int(words[12])) / TICKS
            except OSError:
                continue


class Fleet:
    """Hosts, and a catalogue of which one file changes."""

    def __init__(self, folder: Path, hosts: Sequence[Host], images: Sequence[str]) -> None:
        self.folder, self.hosts = folder, list(hosts)
        self.control = tempfile.mkdtemp(prefix="cp", dir="/tmp")
        shutil.copytree(ROOT / "images", folder / "images")
        self.variables = {
            "slipway_roles": ["docker_engine", "ml_images"],
            "ml_images_present": list(images),
            "ml_catalogue_folder": str(folder / "images"),
        }

    def change(self) -> None:
        """Change one line of iris-api."""
        with (self.folder / "images/iris-api/gunicorn.conf.py").open("a") as file:
            file.write(f"# {time.time()}\n")

    def run(self, playbook: str, hosts: Sequence[Host]) -> tuple[float, float]:
        """Run a playbook on hosts; return the CPU seconds of the controller and the wall time."""
        inventory = self.folder / "hosts.yml"
        names = {host.name: connection(host) for host in hosts}
        inventory.write_text(yaml.safe_dump({"all": {"hosts": names}}))
        words = ["ansible-playbook", playbook, "-i", str(inventory)]
        masters, over = Masters(self.control), threading.Event()

        def sample() -> None:
            while not over.wait(0.1):
                masters.read()

        masters.read()
        before = dict(masters.seconds)
        sampler = threading.Thread(target=sample)
        sampler.start()
        cpu, began = children_cpu(), time.monotonic()
        done = subprocess.run(
            [*words, "-e", json.dumps(self.variables)],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_SSH_CONTROL_PATH_DIR": self.control},
            capture_output=True,
            text=True,
            check=False,
        )
        wall, cpu = time.monotonic() - began, children_cpu() - cpu
        over.set()
        sampler.join()
        if done.returncode:
            raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
        used = sum(seconds - before.get(name, 0) for name, seconds in masters.seconds.items())
        return cpu + used, wall


def connection(host: Host) -> dict[str, Any]:
    """Return how Ansible reaches a host."""
    options = f"-o UserKnownHostsFile={host.known_hosts_file} -o IdentitiesOnly=yes"
    return {
        "ansible_host": host.address,
        "ansible_user": host.user,
        "ansible_ssh_private_key_file": str(host.private_key_file),
        "ansible_ssh_common_args": options,
        "ansible_become": True,
    }


def count_bytes(host: Host) -> int:
    """Return the bytes that the network interfaces of a host moved so far."""
    done = subprocess.run(
        host.ssh_command("sh", "-c", COUNTERS), stdout=subprocess.PIPE, check=True
    )
    return sum(map(int, done.stdout.split()))


def measure(fleet: Fleet, alone: Host) -> list[tuple[str, float, float, str, str]]:
    """Return the rows of the table."""
    first, *others = fleet.hosts
    rows = []
    for hosts in ([alone], fleet.hosts):
        cpu, wall = fleet.run(SITE, hosts)
        rows.append((f"first run, hosts: {len(hosts)}", cpu, wall, "", ""))
    # The difference of the next rows has one cause: both have warm connections and caches.
    fleet.run(BUILD, fleet.hosts)
    fleet.change()
    builder_cpu, wall = fleet.run(BUILD, [first])
    rows.append(("one line changed, builder", builder_cpu, wall, "", ""))
    fleet.change()
    before = [count_bytes(host) for host in others]
    cpu, wall = fleet.run(BUILD, fleet.hosts)
    moved = max(count_bytes(host) - former for host, former in zip(others, before, strict=True))
    each = (cpu - builder_cpu) / len(others)
    name = f"one line changed, hosts: {len(fleet.hosts)}"
    rows.append((name, cpu, wall, f"{each:.2f}", f"{moved:,}"))
    return rows


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--images", default="iris-api,jupyter")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    group = Group(GROUP)
    group.remove()
    try:
        alone, *hosts = [
            group.ensure(HostSpec(f"host-{number}")) for number in range(options.hosts + 1)
        ]
        with tempfile.TemporaryDirectory() as folder:
            fleet = Fleet(Path(folder), hosts, options.images.split(","))
            rows = measure(fleet, alone)
            shutil.rmtree(fleet.control, ignore_errors=True)
    finally:
        if not options.keep:
            group.remove()
    print(f"{'':32}{'CPU s':>8}{'wall s':>8}{'CPU/host':>10}{'bytes/host':>12}")
    for name, cpu, wall, each, moved in rows:
        print(f"{name:32}{cpu:8.2f}{wall:8.0f}{each:>10}{moved:>12}")


if __name__ == "__main__":
    main()
