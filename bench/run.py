# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of a re-run: one table, all rows measured in one run on one throwaway host.

Usage: ./slipway run python bench/run.py [--playbook FILE ...] [--files] [--rounds N] [--keep]

  --playbook FILE  adds a row: another playbook on the same host, for example with other roles
  --files          adds a table: the survey of 50, 500 and 5000 owned files
  --rounds N       number of measurements of each row; the cheapest counts (default 3)
  --keep           keep the host for the next run

"Empty" is the first row, "one host" is the row of the same command with one host.  CPU is user and
system time of all processes: on the controller from the kernel, on the host from the engine, for
the container of the host.  Round trips are the EXEC lines of a separate run with -vvv.  Several
hosts are several names of one host with a connection each, so the CPU of the host is the sum.  Wall
time depends on the load of the machine; compare the other columns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.state import (  # noqa: E402
    containers,
    report,
)
from ansible_collections.slipway.host.plugins.plugin_utils import ask_host  # noqa: E402

from lab.host_spec import HostSpec  # noqa: E402
from lab.hosts import Group, Host  # noqa: E402
from lab.state_folder import group_folder  # noqa: E402

GROUP = "bench"
PYINFRA = "pyinfra==3.10.0"
USERS = ["alice", "bob", "carol"]
SITE = str(ROOT / "site.yml")


@dataclass(frozen=True)
class Cost:
    """The cost of a command: seconds, and number of round trips."""

    controller: float
    host: float
    wall: float
    trips: int | None

    @property
    def cpu(self) -> float:
        """Return the CPU seconds of both sides."""
        return self.controller + self.host


def children_cpu() -> float:
    """Return the CPU seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Bench:
    """Runs commands on one host and measures them."""

    def __init__(self, folder: Path, host: Host, rounds: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.host, self.rounds = folder, host, rounds
        self.container = self._container()

    def _container(self) -> str:
        for container in containers.ask_engine("/containers/json"):
            networks = container["NetworkSettings"]["Networks"].values()
            if any(network["IPAddress"] == self.host.address for network in networks):
                return str(container["Id"])
        raise SystemExit(f"no container has the address {self.host.address}")

    def host_cpu(self) -> float:
        """Return the CPU seconds that the host has used so far."""
        stats = containers.ask_engine(
            f"/containers/{self.container}/stats?stream=false&one-shot=true"
        )
        return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9

    def inventory(self, hosts: int) -> str:
        """Write an inventory with HOSTS names of the host; return its path."""
        file = self.folder / f"hosts-{hosts}.yml"
        connection = {
            "ansible_host": self.host.address,
            "ansible_user": self.host.user,
            "ansible_ssh_private_key_file": str(self.host.private_key_file),
            "ansible_ssh_common_args": " ".join(
                f"-o '{option}'" for option in self.host.ssh_options if option != "-o"
            ),
        }
        names = {
            f"host-{number}": {
                **connection,
                "ansible_control_path": str(self.folder / f"control-{number}"),
            }
            for number in range(hosts)
        }
        shared = {
            "ansible_become": True,
            "user_access_users": [{"name": name, "docker": True} for name in USERS],
        }
        file.write_text(yaml.safe_dump({"all": {"hosts": names, "vars": shared}}))
        return str(file)

    def run(self, command: Sequence[str], environment: dict[str, str] | None = None) -> str:
        """Run a command that must succeed; return its output."""
        settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), **(environment or {})}
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout

    def measure(
        self, command: Sequence[str], environment: dict[str, str] | None = None, trips: bool = True
    ) -> Cost:
        """Return the cheapest of several runs of a command that changes nothing."""
        self.run(command, environment)  # connections and caches are warm from here on
        costs = []
        for _round in range(self.rounds):
            controller, host, began = children_cpu(), self.host_cpu(), time.monotonic()
            self.run(command, environment)
            wall = time.monotonic() - began
            costs.append(Cost(children_cpu() - controller, self.host_cpu() - host, wall, None))
        best = min(costs, key=lambda cost: cost.cpu)
        told = self.run([*command, "-vvv"], environment).count("> SSH: EXEC") if trips else None
        return Cost(best.controller, best.host, best.wall, told)

    def play(self, playbook: str, hosts: int = 1, **variables: Any) -> Cost:
        """Measure a playbook."""
        command = ["ansible-playbook", playbook, "-i", self.inventory(hosts)]
        return self.measure([*command, "-e", json.dumps(variables)])


def on(host: Host, script: str) -> str:
    """Run a shell script on the host as root."""
    command = host.ssh_command("sudo", "sh", "-ec", script)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def install_pyinfra(folder: Path) -> str:
    """Install pyinfra in a separate environment if it is missing; return its path."""
    environment = folder / "pyinfra"
    program = environment / "bin" / "pyinfra"
    if not program.exists():
        subprocess.run(["uv", "venv", "--quiet", str(environment)], check=True)
        install = [
            "uv",
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--python",
            str(environment),
            PYINFRA,
        ]
        subprocess.run(install, check=True)
    return str(program)


def pyinfra_inventory(bench: Bench) -> str:
    """Write pyinfra's inventory; return its path."""
    file = bench.folder / "pyinfra_inventory.py"
    connection = {
        "ssh_user": bench.host.user,
        "ssh_key": str(bench.host.private_key_file),
        "ssh_known_hosts_file": str(bench.host.known_hosts_file),
    }
    file.write_text(f"hosts = [({bench.host.address!r}, {connection!r})]\n")
    return str(file)


def rows(bench: Bench, playbooks: Sequence[str]) -> list[tuple[str, int, Cost]]:
    """Measure everything; return label, number of hosts and cost."""
    empty = bench.folder / "empty.yml"
    empty.write_text("- hosts: all\n  gather_facts: false\n  tasks: []\n")
    least = bench.folder / "raw.yml"
    least.write_text(empty.read_text().replace("[]", "[{ansible.builtin.raw: 'true'}]"))
    data: dict[str, Any] = {
        "packages": ["docker.io", "docker-cli", "docker-buildx", "docker-compose", "iptables"],
        "absent": ["/etc/apt/sources.list.d/docker.sources", "/etc/apt/keyrings/docker.asc"],
        "units": ["docker.socket", "docker.service"],
        "users": USERS,
        "daemon_json": on(bench.host, "cat /etc/docker/daemon.json"),
        "compose": on(bench.host, "cat /etc/slipway/services/iris-api/compose.yaml"),
    }
    found = [
        ("empty playbook", 1, bench.play(str(empty))),
        ("one ssh", 1, bench.measure(bench.host.ssh_command("true"), trips=False)),
        # The lowest cost of a task in Ansible. The difference to it is the cost of Slipway.
        ("one task, raw: true", 1, bench.play(str(least))),
        ("one task, raw: true", 20, bench.play(str(least), 20)),
        ("slipway site", 1, bench.play(SITE)),
        ("slipway site", 8, bench.play(SITE, 8)),
        ("slipway site", 20, bench.play(SITE, 20)),
        ("slipway plan", 1, bench.play(str(ROOT / "playbooks" / "plan.yml"))),
        ("slipway site, without the survey", 1, bench.play(SITE, slipway_survey=False)),
        (
            "the same state, builtin modules",
            1,
            bench.play(str(ROOT / "bench/ordinary.yml"), **data),
        ),
    ]
    command = [install_pyinfra(bench.folder), "-y", pyinfra_inventory(bench)]
    deploy = [*command, str(ROOT / "bench/pyinfra_deploy.py")]
    environment = {"BENCH_DATA": json.dumps(data)}
    cost = bench.measure(deploy, environment, trips=False)
    found.append(("the same state, pyinfra", 1, cost))
    found += [(Path(file).name, 1, bench.play(file)) for file in playbooks]
    return found


def show(found: Sequence[tuple[str, int, Cost]]) -> str:
    """Return the table."""
    empty = found[0][2]
    alone = {label: cost for label, hosts, cost in found if hosts == 1}
    lines = [
        (
            label,
            str(hosts),
            f"{cost.controller:.2f}",
            f"{cost.host:.2f}",
            f"{cost.cpu / empty.cpu:.1f}",
            f"{cost.controller / alone[label].controller:.1f}",
            f"{cost.cpu / alone[label].cpu:.1f}",
            f"{1000 * max(cost.controller - empty.controller, 0) / hosts:.0f}",
            "-" if cost.trips is None else f"{cost.trips / hosts:g}",
            f"{cost.wall:.2f}",
        )
        for label, hosts, cost in found
    ]
    heading = (
        *("COMMAND", "HOSTS", "CONTROLLER S", "HOST S", "TIMES EMPTY"),
        *("CONTROLLER TIMES ONE HOST", "SUM TIMES ONE HOST", "CONTROLLER MS/HOST"),
        *("TRIPS/HOST", "WALL S"),
    )
    return report.table(lines, heading)


def files(bench: Bench) -> str:
    """Return a table of the cost of a survey on the host, by number of owned files."""
    on(bench.host, "mkdir -p /srv/bench; cd /srv/bench; seq 5000 | xargs -n 500 touch")
    lines = []
    for count in (0, 50, 500, 5000):
        files = [f"/srv/bench/{number}" for number in range(1, count + 1)]
        script = ask_host.script({"files": files} if files else {})
        script += "import resource; u = resource.getrusage(resource.RUSAGE_SELF)\n"
        script += "print(u.ru_utime + u.ru_stime)\n"
        command = bench.host.ssh_command("sudo", "/usr/bin/python3", "-I", "-S", "-")
        costs = []
        for _round in range(bench.rounds):
            done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
            costs.append(float(done.stdout.splitlines()[-1]))
        lines.append((str(count), f"{1000 * min(costs):.0f}", f"{len(done.stdout) / 1024:.0f}"))
    on(bench.host, "rm -r /srv/bench")
    return report.table(lines, ("OWNED FILES", "HOST CPU MS", "ANSWER KIB"))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(usage=str(__doc__))
    parser.add_argument("--playbook", action="append", default=[])
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    state = group_folder(GROUP)
    group = Group(GROUP, state)
    bench = Bench(state, group.ensure(HostSpec("bench-1")), arguments.rounds)
    try:
        print("configuring the host", file=sys.stderr)
        bench.run(["ansible-playbook", SITE, "-i", bench.inventory(1)])
        # A dependency of the modules of community.docker, which Slipway does not need.
        on(bench.host, "apt-get -qq install -y python3-requests >/dev/null")
        print(show(rows(bench, arguments.playbook)))
        if arguments.files:
            print("\n" + files(bench))
    finally:
        if not arguments.keep:
            group.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
