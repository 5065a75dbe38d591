# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cost of a first run, compared with a shell script that does the same work.

Usage: ./slipway run python bench/first_run.py [--rounds N]

Two new hosts are measured one after the other.  On the first host, `site.yml` runs.  On the second
host, a script runs the same apt, build, smoke test and compose commands over one ssh connection.
CPU is the sum of controller and host.  The difference between the rows is the cost of Slipway.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "collections")]

from ansible_collections.slipway.host.plugins.module_utils.images import (  # noqa: E402
    catalogue,
    context,
)
from ansible_collections.slipway.host.plugins.module_utils.state import report  # noqa: E402

from bench.run import SITE, Bench, Cost, children_cpu, on  # noqa: E402
from lab.host_spec import HostSpec  # noqa: E402
from lab.hosts import Group  # noqa: E402
from lab.state_folder import group_folder  # noqa: E402

GROUP = "bench-first"
COMPOSE = "/etc/slipway/services/iris-api/compose.yaml"
SCRIPT = """
set -e
export DEBIAN_FRONTEND=noninteractive
packages='docker.io docker-cli docker-buildx docker-compose iptables'
apt-get -qq update
apt-get -qq install -y --no-install-recommends $packages >/dev/null
apt-mark -qq hold $packages
apt-get -qq install -y --no-install-recommends bash-completion zstd >/dev/null
printf '{"log-driver":"json-file","log-opts":{"max-size":"50m","max-file":"3"}}' \
    >/etc/docker/daemon.json
systemctl restart docker
for user in alice bob carol; do useradd --create-home --shell /bin/bash --groups docker $user; done
apt-get -qq install -y --no-install-recommends mmdebstrap >/dev/null
MMDEBSTRAP /tmp/base.tar
docker import -c 'CMD ["bash"]' /tmp/base.tar base >/dev/null
apt-get -qq purge -y --auto-remove mmdebstrap >/dev/null
mkdir /tmp/context && tar -x -C /tmp/context -f /tmp/context.tar
docker buildx build --quiet --load --tag slipway/iris-api:cpu \
    --build-arg BASE=base --build-arg ROOT=base \
    --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt /tmp/context >/dev/null
docker run --rm --init --network none --read-only --tmpfs /tmp:exec --user 1234:1234 \
    --entrypoint python slipway/iris-api:cpu /opt/slipway/smoke.py >/dev/null
docker compose --file COMPOSE --project-name iris-api up --detach --wait --quiet-pull
"""


def upload(bench: Bench, content: bytes, target: str) -> None:
    """Write a file on the host."""
    script = f"mkdir -p {Path(target).parent}; cat >{target}"
    command = bench.host.ssh_command("sudo", "sh", "-c", script)
    subprocess.run(command, input=content, check=True)


def prepared_script(bench: Bench, compose: bytes) -> str:
    """Upload the build context and the compose file to the host; return the script."""
    build = catalogue.load_catalogue(ROOT / "images").builds(["iris-api"], "cpu", "debian-13")[0]
    upload(bench, context.pack(build.files), "/tmp/context.tar")
    upload(bench, compose, COMPOSE)
    assert build.root.bootstrap is not None
    mmdebstrap = f"mmdebstrap --variant=minbase --quiet {build.root.bootstrap.suite}"
    return SCRIPT.replace("MMDEBSTRAP", mmdebstrap).replace("COMPOSE", COMPOSE)


def measure_call(bench: Bench, function: Callable[[], object]) -> Cost:
    """Return the cost of a function call."""
    controller, host, began = children_cpu(), bench.host_cpu(), time.monotonic()
    function()
    wall = time.monotonic() - began
    return Cost(children_cpu() - controller, bench.host_cpu() - host, wall, None)


def one_round(group: Group, folder: Path) -> tuple[Cost, Cost]:
    """Return the cost of Slipway and of the script, each on a new host."""
    group.remove()
    ours = Bench(folder, group.ensure(HostSpec("first-1")), 1)
    inventory = ours.inventory(1)
    slipway = measure_call(ours, lambda: ours.run(["ansible-playbook", SITE, "-i", inventory]))
    compose = on(ours.host, f"cat {COMPOSE}").encode()
    group.remove()
    theirs = Bench(folder, group.ensure(HostSpec("first-2")), 1)
    script = prepared_script(theirs, compose)
    command = theirs.host.ssh_command("sudo", "sh", "-ec", script)
    return slipway, measure_call(theirs, lambda: theirs.run(command))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(usage=str(__doc__))
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    state = group_folder(GROUP)
    group = Group(GROUP, state)
    try:
        rounds = [one_round(group, state) for _round in range(arguments.rounds)]
    finally:
        group.remove()
    lines = []
    script = min((costs[1] for costs in rounds), key=lambda cost: cost.cpu)
    for label, which in (("slipway site", 0), ("shell script", 1)):
        best = min((costs[which] for costs in rounds), key=lambda cost: cost.cpu)
        seconds = [best.controller, best.host, best.cpu, best.wall]
        ratio = f"{best.cpu / script.cpu:.2f}"
        lines.append((label, *(f"{value:.1f}" for value in seconds), ratio))
    heading = ("FIRST RUN", "CONTROLLER S", "HOST S", "CPU S", "WALL S", "TIMES THE SCRIPT'S CPU")
    print(report.table(lines, heading))
    return 0


if __name__ == "__main__":
    sys.exit(main())
