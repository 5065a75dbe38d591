# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first commands of a new user, and a demo of a cluster: both in a copy of the project."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.processes import wait_until
from tests import page_commands
from tests.contract.tree import ROOT
from tests.page_commands import Checkout

# Two first runs, which other tests have as well.
pytestmark = [pytest.mark.host, pytest.mark.long]

BUNDLE_PAGE = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")
ON_CONTROLLER = "ansible demo-1 -i inventory/demo -b -m shell -a '%s' | tail -n +2"
# How a command ends, unless with 0.
STATUS = {"./slipway verify -i inventory/demo": 2}


def test_each_command_with_a_demo_works(tmp_path: Path) -> None:
    checkout, address, printed = Checkout(tmp_path), "", {}
    try:
        for command in page_commands.run_by("test_each_command_with_a_demo_works"):
            done = checkout.run(command.replace("172.17.0.2", address or "172.17.0.2"))
            output = done.stdout + done.stderr
            assert done.returncode == STATUS.get(command, 0), f"{command}: {output}"
            if command == "./slipway demo":
                hosts = yaml.safe_load((checkout.folder / "inventory/demo/hosts.yml").read_text())
                address = hosts["demo"]["hosts"]["demo-1"]["ansible_host"]
                assert f"iris-api: http://{address}:5000/predict" in " ".join(output.split())
            printed[command] = output
    finally:
        checkout.run("./slipway demo --destroy")
    assert any('{"prediction":"virginica"}' in one for one in printed.values())
    assert "row" in printed["./slipway verify -i inventory/demo"]


# A way out that leads nowhere, and an engine.
NO_WAY_OUT = """
sysctl -qw net.ipv4.ip_forward=1
ip link set lo up
ip link add out type veth peer name nowhere
sysctl -qw net.ipv6.conf.out.disable_ipv6=1 net.ipv6.conf.nowhere.disable_ipv6=1
ip address add 192.0.2.2/24 dev out
ip link set nowhere up
ip link set out up
ip route add default via 192.0.2.1
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" -H "$DOCKER_HOST"
"""


@contextlib.contextmanager
def closed_machine() -> Iterator[tuple[str, dict[str, str]]]:
    """Start an engine in a network without a way out.

    Yields words before a command that run it there, and its environment.
    """
    # Short, because sockets have short paths.
    with tempfile.TemporaryDirectory(prefix="closed-", dir="/var/tmp") as folder:
        # Hosts of both engines have the same addresses, hence connections of its own.
        environment = {
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{folder}/cp",
        }
        engine = subprocess.Popen(
            ["unshare", "--net", "sh", "-ec", NO_WAY_OUT, "sh", folder],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            answers = ["docker", "--host", environment["DOCKER_HOST"], "version"]
            assert wait_until(
                lambda: not subprocess.run(answers, capture_output=True).returncode, 60
            )
            yield f"nsenter --net --target {engine.pid} ", environment
        finally:
            engine.terminate()
            engine.wait(60)


def sent(checkout: Checkout, inside: str) -> int:
    """Return the number of packets that a closed machine sent out."""
    fields = checkout.run(f"{inside} grep out: /proc/net/dev").stdout.split()
    return int(fields[10])


def test_a_demo_needs_no_network_with_a_bundle(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a@a commit -qm a"
    assert checkout.run(commit).returncode == 0
    section = BUNDLE_PAGE.partition("\n## The demo without a network\n")[2].partition("\n## ")[0]
    make, copy, show = page_commands.commands(section)
    show, destroy = show.replace(" --signer signer.pub", ""), "./slipway demo --destroy"
    try:
        for command in (make, copy, destroy):
            done = checkout.run(command, XDG_STATE_HOME=str(tmp_path))
            assert done.returncode == 0, done.stdout + done.stderr
        with closed_machine() as (inside, environment):
            environment["XDG_STATE_HOME"] = str(tmp_path)
            shown = checkout.run(inside + show, **environment)
            assert shown.returncode == 0, shown.stdout + shown.stderr
            assert ":5000/predict" in shown.stdout and sent(checkout, inside) == 0
            checkout.run(inside + "ssh -oConnectTimeout=1 198.51.100.1", **environment)
            assert sent(checkout, inside) > 0
            removed = checkout.run(inside + destroy, **environment)
            assert removed.returncode == 0, removed.stdout
    finally:
        checkout.run(destroy)


def controller(checkout: Checkout, script: str) -> str:
    """Run a script without single quotes as root on the controller; return what it prints."""
    return checkout.run(ON_CONTROLLER % script).stdout.strip()


def wait_for(checkout: Checkout, job: str, state: str) -> None:
    """Wait for the state of a job for up to a minute."""
    found = ""
    for _attempt in range(30):
        found = controller(checkout, f"scontrol --oneliner show job {job}")
        if f"JobState={state} " in found:
            return
        time.sleep(2)
    raise AssertionError(found)


def test_a_demo_of_a_cluster_queues_jobs(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    make, status, submit = page_commands.run_by("test_a_demo_of_a_cluster_queues_jobs")
    try:
        made = checkout.run(make)
        assert made.returncode == 0, made.stdout + made.stderr
        assert checkout.run(status).stdout.splitlines()[-2:] == [
            "demo-2 idle gpu:h100_80gb_hbm3:2",
            "demo-3 idle gpu:h100_80gb_hbm3:2",
        ]
        again = checkout.run("./slipway site -i inventory/demo")
        assert "changed" not in again.stdout, again.stdout
        jobs = [checkout.run(submit).stdout.split()[-1] for _number in range(3)]
        for job in jobs[:2]:
            wait_for(checkout, job, "RUNNING")
        wait_for(checkout, jobs[2], "PENDING")
        controller(checkout, f"scancel {jobs[0]}")
        wait_for(checkout, jobs[2], "RUNNING")
        # Slurm declares a node that does not answer to be down after five minutes.
        place = controller(checkout, f"squeue --noheader --format=%N --job={jobs[1]}")
        listed = ["docker", "ps", "--quiet", f"--filter=label=slipway.host={place}"]
        listed.append(f"--filter=label=slipway.state={checkout.folder}/.slipway/hosts/demo")
        container = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        subprocess.run(["docker", "kill", container.strip()], check=True)
        controller(checkout, f"scontrol update nodename={place} state=down reason=killed")
        wait_for(checkout, jobs[1], "PENDING")
        controller(checkout, f"scancel {jobs[2]}")
        wait_for(checkout, jobs[1], "RUNNING")
        subprocess.run(["docker", "start", container.strip()], check=True)
        controller(checkout, f"scontrol update nodename={place} state=resume")
        controller(checkout, f"scancel {jobs[1]}")
        planned = checkout.run("./slipway plan -i inventory/demo")
        assert planned.returncode == 0, planned.stdout
        removed = checkout.run("./slipway remove --yes -i inventory/demo")
        assert removed.returncode == 0, removed.stdout
        left = 'dpkg --get-selections | grep -E "slurm|munge"; ls /etc/slurm /etc/munge'
        assert "install" not in controller(checkout, left)
    finally:
        checkout.run("./slipway demo --destroy")
