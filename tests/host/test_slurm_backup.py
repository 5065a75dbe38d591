# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup controller of Slurm on two hosts: it joins, takes over, hands back and leaves.

A folder of this machine that both hosts have mounted stands for the shared file system. Slurm,
munge and the jobs are real.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.containers import container_name
from lab.host_spec import HostSpec, Mount
from lab.hosts import Group
from tests.host.conftest import Site
from tests.host.test_removal import Found, look
from tests.host.test_remove import remove
from tests.host.test_slurm import CONF, STAYS, WAIT, Cluster

pytestmark = [pytest.mark.host, pytest.mark.long]

SHARED = "/srv/slurm"
JOBS = f"{SHARED}/slipway"
BACKUP: dict[str, Any] = {"slurm_backup_controller": "node", "slurm_state_folder": SHARED}
SLEEP = "sleep 7200"
# A controller that comes back waits for the backup, in a trial for 40 seconds.
LONG_WAIT = WAIT.replace("300", "900")


class Pair(Cluster):
    """The controller, which runs no jobs, and the node, which is the backup."""

    shared: Path
    container: str
    gateway: str

    def declare_pair(self, **more: Any) -> None:
        """Write the inventory."""
        self.declare_cluster(slurm_nodes=["node"], **more)

    def states(self, jobs: Sequence[str]) -> list[str]:
        """Return the states of jobs, as the node sees them."""
        shown = "scontrol --oneliner show job %s | grep -o 'JobState=[A-Z]*'"
        return [self.node.on(shown % job).removeprefix("JobState=") for job in jobs]

    def wait_for_ping(self, *states: str) -> None:
        """Wait until the first and the second controller have these states."""
        seen = "scontrol ping | grep -o 'UP$\\|DOWN$' | xargs"
        self.node.on(LONG_WAIT % f'test "$({seen})" = "{" ".join(states)}"')

    def refused(self) -> str:
        """Run site.yml, which must fail without a change; return its output."""
        run = self.run("site.yml")
        assert run.status == "failed"
        assert run.changed() == set()
        return " ".join(run.output.split())

    def verify(self, status: str) -> str:
        """Run the acceptance checks; return the output as one line without colours."""
        run = self.run("playbooks/verify.yml")
        assert run.status == status, run.output
        return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", run.output).split())

    def switch_off(self) -> None:
        """Freeze the controller's host, and take it off the network."""
        self.docker("pause", self.container)
        self.in_network("link", "set", "eth0", "down")

    def switch_on(self) -> None:
        """Let the host run again. Its slurmctld ends first, as if the host had crashed."""
        processes = self.docker("top", self.container, "-eo", "pid,comm").splitlines()
        pids = [line.split()[0] for line in processes if "slurmctld" in line]
        subprocess.run(["kill", "-KILL", *pids], check=True)
        self.in_network("link", "set", "eth0", "up")
        self.in_network("route", "add", "default", "via", self.gateway)
        self.docker("unpause", self.container)

    def in_network(self, *words: str) -> None:
        """Change the network of the controller's host from outside."""
        pid = self.docker("inspect", "--format={{.State.Pid}}", self.container).strip()
        subprocess.run(["nsenter", f"--target={pid}", "--net", "ip", *words], check=True)

    @staticmethod
    def docker(*words: str) -> str:
        """Run docker on this machine."""
        return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    group = Group("pytest-slurm-backup")
    group.remove()
    folder = tmp_path_factory.mktemp("slurm-backup")
    shared = folder / "shared"
    shared.mkdir()
    mounts = (Mount(str(shared), SHARED),)
    head = HostSpec("head", mounts=mounts)
    pair = Pair(group.ensure(head), folder)
    pair.node = Site(group.ensure(HostSpec("node", mounts=mounts)), folder)
    pair.shared = shared
    pair.container = container_name("head", group.group, group.state.path)
    pair.gateway = pair.on("ip route show default").split()[2]
    for site in (pair, pair.node):
        site.on("useradd --create-home --uid 2001 alice; apt-get -qq update")
    yield pair
    group.remove()


@pytest.fixture(scope="module")
def before(bare: Pair) -> tuple[Found, Found]:
    """Both hosts before the first run."""
    return look(bare), look(bare.node)


@pytest.fixture(scope="module")
def jobs(bare: Pair, before: tuple[Found, Found]) -> tuple[str, str]:
    """A cluster with one controller, and a running and a waiting job."""
    bare.declare_pair(slurm_state_folder="/srv")
    assert "no folder /srv on a shared file system on host Head.example_1" in bare.refused()
    bare.node.on(f"mount -t tmpfs none {SHARED}")
    bare.declare_pair(**BACKUP)
    assert f"found {SHARED} on host node, where others than root can change" in bare.refused()
    bare.node.on(f"chmod 0755 {SHARED}")
    assert f"different folders {SHARED} on hosts Head.example_1, node" in bare.refused()
    bare.node.on(f"umount {SHARED}")
    for site, earlier in ((bare, before[0]), (bare.node, before[1])):
        assert look(site).since(earlier) == []
    bare.declare_pair()
    bare.converge()
    running = bare.submit(SLEEP)
    bare.wait_for(running, "RUNNING")
    return running, bare.submit(SLEEP, "--hold")


@pytest.fixture(scope="module")
def pair(bare: Pair, jobs: tuple[str, str]) -> Pair:
    """The cluster with its backup."""
    bare.declare_pair(**BACKUP)
    assert bare.run("site.yml", "--check").status == "successful"
    bare.converge()
    return bare


def test_a_backup_joins_and_all_jobs_stay(pair: Pair, jobs: tuple[str, str]) -> None:
    assert pair.states(jobs) == ["RUNNING", "PENDING"]
    assert pair.plan() == (0, set())
    assert pair.converge(slipway_survey=False).changed() == set()
    assert pair.on(f"cat {CONF}") == pair.node.on(f"cat {CONF}")
    assert list(pair.shared.iterdir()) == [pair.shared / "slipway"]
    pair.declare_pair()
    assert f"expected the parent folder of '{JOBS}'" in pair.refused()
    pair.declare_pair(**BACKUP)


def test_slurmctld_does_not_start_without_the_shared_folder(pair: Pair) -> None:
    pair.on(f"mount --bind /srv {SHARED}; systemctl restart slurmctld || true")
    assert pair.on("systemctl is-active slurmctld || true") == "activating"
    assert pair.on(f"ls {SHARED}/slipway || true") == ""
    pair.on(f"umount {SHARED}; systemctl restart slurmctld")


def test_the_backup_takes_over_and_hands_back(pair: Pair, jobs: tuple[str, str]) -> None:
    for site in (pair, pair.node):
        site.on(f"echo SlurmctldTimeout=10 >>{CONF}; systemctl restart slurmctld")
    pair.wait_for_ping("UP", "UP")
    pair.switch_off()
    pair.node.on(LONG_WAIT % "sinfo --noheader --format=%T | grep -q .")
    assert pair.states(jobs) == ["RUNNING", "PENDING"]
    pair.wait_for_ping("DOWN", "UP")
    new = pair.node.on(f"cd /tmp; runuser -u alice -- sbatch --parsable --wrap='{SLEEP}'")
    pair.node.on(LONG_WAIT % f"scontrol show job {new} | grep -q JobState=RUNNING")
    pair.switch_on()
    pair.wait_for_ping("UP", "UP")
    assert pair.states((*jobs, new)) == ["RUNNING", "PENDING", "RUNNING"]

    pair.on("systemctl stop slurmctld")
    pair.wait_for_ping("DOWN", "UP")
    pair.node.on(LONG_WAIT % "sinfo --noheader --format=%T | grep -q .")
    assert "node answers, Slurmctld(primary) at head is DOWN" in pair.verify("failed")
    status, planned = pair.plan()
    assert status == 2
    assert {("slurm", "files", CONF), ("slurm", "units", "slurmctld.service")} < planned
    pair.converge()
    both = "Slurmctld(primary) at head is UP, Slurmctld(backup) at node is UP"
    assert f"head answers, {both}" in pair.verify("successful")
    assert pair.plan() == (0, set())
    assert pair.states((*jobs, new)) == ["RUNNING", "PENDING", "RUNNING"]
    pair.node.on(f"scancel {new}")


def test_a_backup_leaves_and_all_jobs_stay(pair: Pair, jobs: tuple[str, str]) -> None:
    pair.declare_pair(slurm_state_folder=SHARED)
    pair.converge()
    assert pair.plan() == (0, set())
    assert pair.states(jobs) == ["RUNNING", "PENDING"]
    left = pair.node.on("ls -d /etc/slurm/slurm.conf /usr/sbin/slurmctld 2>/dev/null || true")
    assert left == ""
    assert pair.node.on("pgrep slurmctld || true") == ""
    pair.wait_for_ping("UP")


def test_a_backup_without_jobs_leaves_and_the_removal_leaves_nothing(
    pair: Pair, jobs: tuple[str, str], before: tuple[Found, Found]
) -> None:
    pair.declare_cluster(slurm_nodes=["Head.example_1", "node"], **BACKUP)
    pair.converge()
    pair.on(f"scancel {' '.join(jobs)}")
    pair.declare_cluster(slurm_nodes=["Head.example_1"], **BACKUP)
    pair.node.on(WAIT % "! pgrep slurmstepd")
    pair.converge()
    job = pair.submit(SLEEP)
    pair.wait_for(job, "RUNNING")
    # Only the backup leaves: the jobs of other hosts do not stop it.
    pair.declare_cluster(slurm_nodes=["Head.example_1"], slurm_state_folder=SHARED)
    pair.converge()
    assert pair.state(job) == "RUNNING"
    stays = set(look(pair.node).since(before[1])) - STAYS
    assert {name for name in stays if not name.startswith("/var/lib/slipway/started/")} == set()
    assert pair.node.on("ls -d /etc/slurm /var/lib/slurm /var/log/slurm || true") == ""
    pair.declare_cluster(slurm_nodes=["Head.example_1"], **BACKUP)
    pair.converge()
    stopped = remove(pair, "--yes")
    for host in ("Head.example_1", "node"):
        assert f"slurm: found running jobs on {host} or on nodes" in stopped.stdout
    assert pair.state(job) == "RUNNING"
    pair.on(f"scancel {job}")
    pair.on(WAIT % "! squeue --noheader | grep .")
    done = remove(pair, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    for site, earlier in ((pair, before[0]), (pair.node, before[1])):
        assert set(look(site).since(earlier)) <= STAYS
    assert list(pair.shared.iterdir()) == []
