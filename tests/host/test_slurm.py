# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role slurm on two hosts: a cluster from bare hosts, its jobs, attacks, and its removal.

The GPUs are device files, and the description of the driver in /proc is simulated. Slurm, munge and
the jobs are real. The hosts are containers without controllers for control groups, so that Slurm
follows the processes of jobs by /proc.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from lab.bases import ENGINE_BASE
from lab.host_spec import HostSpec
from lab.hosts import Group
from tests import page_commands
from tests.host.conftest import ROOT, Named, Site
from tests.host.test_aliases import CDI, NVIDIA_SMI
from tests.host.test_removal import Found, look
from tests.host.test_remove import remove

pytestmark = pytest.mark.host

CONF, KEY = "/etc/slurm/slurm.conf", "/etc/munge/munge.key"
PARTITION = {"name": "main", "default": True, "default_time": "1:00:00", "max_time": "8:00:00"}
# Other packages suggest these libraries of munge, so that apt keeps them.
STAYS = {"libgcrypt20 installed", "libgpg-error0 installed"}
THEIRS = "/etc/systemd/system/slurmd.service.d/theirs.conf"
# Repeats a command for up to a minute.
WAIT = "for _ in $(seq 300); do if %s; then exit; fi; sleep 0.2; done; exit 1"
# A host with two GPUs, one user with the same number everywhere, and one user of this host alone.
PREPARE = """
mount -t tmpfs none /proc/driver
for gpu in 0 1; do
    mknod -m 0666 /dev/nvidia$gpu c 1 3
    mkdir -p /proc/driver/nvidia/gpus/0000:0$gpu:00.0
    printf 'Model: \\t\\t NVIDIA H100 PCIe\\nDevice Minor: \\t %s\\n' $gpu \
        >/proc/driver/nvidia/gpus/0000:0$gpu:00.0/information
done
useradd --create-home --uid 2001 alice
apt-get -qq update
export DEBIAN_FRONTEND=noninteractive
apt-get -qq install -y --no-install-recommends docker.io docker-cli iptables busybox-static \
    bash-completion zstd >/dev/null 2>&1
usermod --append --groups docker alice
echo '{"features": {"cdi": true}}' >/etc/docker/daemon.json
systemctl restart docker
mkdir -p /tmp/image/bin /tmp/image/code /etc/cdi
cp /bin/busybox /tmp/image/bin
for tool in sh cat echo mkfifo nc sleep true tty; do ln -s busybox /tmp/image/bin/$tool; done
tar -C /tmp/image -c . | docker import --change 'CMD ["sh"]' \
    --change 'LABEL io.slipway.image=testlab' - slipway/testlab:gpu >/dev/null
"""


# Adds a node to the record of the controller.
GHOST = """python3 -c 'import json, pathlib
file = pathlib.Path("/var/lib/slipway/slurm/nodes.json")
nodes = json.loads(file.read_text())
file.write_text(json.dumps({"ghost": {**nodes["node"], "hostname": "ghost"}, **nodes}))'"""


class Cluster(Site):
    """The controller, which is a node too; ``node`` is the other host."""

    extra = {"slipway_roles": ["slurm"]}
    variables: Mapping[str, Any] = {}
    node: Site

    def declare_cluster(self, partition: Mapping[str, Any] = PARTITION, **more: Any) -> None:
        """Write the inventory of both hosts. Slurm cannot have its name of the controller."""
        hosts = {"Head.example_1": self.connection, "node": self.node.connection}
        variables = {
            "slurm_controller": "Head.example_1",
            "slurm_partitions": [partition],
            **self.variables,
            **more,
        }
        inventory = {"slurm": {"hosts": hosts, "vars": variables}}
        self.inventory.write_text(yaml.safe_dump(inventory))

    def submit(self, script: str, *options: str) -> str:
        """Submit a job of alice and return its number."""
        words = " ".join(options)
        command = f"cd /tmp; runuser -u alice -- sbatch --parsable {words} --wrap='{script}'"
        return self.on(command)

    def state(self, job: str) -> str:
        """Return the state of a job, such as ``RUNNING``."""
        return self.on(f"scontrol --oneliner show job {job} | grep -o 'JobState=[A-Z]*'")[9:]

    def wait_for(self, job: str, state: str) -> None:
        """Wait until a job has a state."""
        self.on(WAIT % f"scontrol show job {job} | grep -q JobState={state}")

    def try_alice(self, script: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a script as alice on the node that is not the controller."""
        words = self.node.host.ssh_command("sudo", "runuser", "-u", "alice", "--", "sh", "-c")
        words[-1] += f" {shlex.quote(f'cd; {script}')}"
        return subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)

    def slipway(self, verb: str, *arguments: str) -> str:
        """Run a command of the project, which must succeed; return what it printed."""
        command = [str(ROOT / "slipway"), verb, "-i", str(self.inventory), *arguments]
        extra = ["-e", json.dumps(self.extra)]
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    group = Group("pytest-slurm")
    group.remove()
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(group.ensure(HostSpec("head", base=ENGINE_BASE)), folder)
    cluster.node = Site(group.ensure(HostSpec("node", base=ENGINE_BASE)), folder)
    for site in (cluster, cluster.node):
        site.on(
            f"{PREPARE}echo {shlex.quote(NVIDIA_SMI)} >/usr/bin/nvidia-smi;"
            "chmod 0755 /usr/bin/nvidia-smi;"
            f"echo {shlex.quote(json.dumps(CDI))} >/etc/cdi/nvidia.json"
        )
    cluster.declare_cluster()
    yield cluster
    group.remove()


@pytest.fixture(scope="module")
def before(bare: Cluster) -> tuple[Found, Found]:
    """Both hosts before the first run."""
    return look(bare), look(bare.node)


@pytest.fixture(scope="module")
def cluster(bare: Cluster, before: tuple[Found, Found]) -> Cluster:
    run = bare.run("site.yml", "-vvv", "--diff")
    assert run.status == "successful", run.output
    # The key of munge is in no output and no log of the hosts.
    for encoding in ("base64 -w0", "od -An -v -tx1 | tr -d ' \\n'"):
        key = bare.on(f"cat {KEY} | {encoding}")
        assert len(key) > 100
        assert key[:40] not in run.output
        assert key[:40] not in json.dumps(list(run.events), default=str)
        for site in (bare, bare.node):
            assert key[:40] not in site.on("journalctl --no-pager --output=cat")
    return bare


def test_slurm_of_somebody_else_and_a_foreign_key_are_conflicts(
    bare: Cluster, before: tuple[Found, Found]
) -> None:
    bare.node.on(f"mkdir -p /etc/slurm; echo ClusterName=theirs >{CONF}")
    bare.on("mkdir -m 0700 /etc/munge")
    limited = bare.run("site.yml", "--limit", "node")
    assert limited.status == "failed"
    assert "the hardware of host Head.example_1 is unknown" in limited.output
    run = bare.run("site.yml", "--check")
    assert run.status == "failed"
    assert f"{CONF}: found the configuration of a Slurm that Slipway did not install" in run.output
    assert bare.node.on(f"cat {CONF}") == "ClusterName=theirs"
    bare.node.on(f"rm -r /etc/slurm; mkdir /etc/munge; echo theirs >{KEY}")
    _status, planned = bare.plan()
    assert ("slurm", "munge_keys", KEY) in planned
    assert bare.node.on(f"cat {KEY}") == "theirs"
    for site in (bare, bare.node):
        site.on("rm -r /etc/munge")


def test_a_check_of_bare_hosts_changes_nothing(bare: Cluster, before: tuple[Found, Found]) -> None:
    run = bare.run("site.yml", "--check", "--diff")
    assert run.status == "successful", run.output
    assert "slurm: Install the packages of the node" in run.changed()
    assert look(bare).since(before[0]) == []
    assert look(bare.node).since(before[1]) == []


def test_the_nodes_are_idle_and_a_second_run_changes_nothing(cluster: Cluster) -> None:
    found = cluster.node.on("sinfo --noheader --Node --format='%N %t %G'").split("\n")
    assert [line.strip() for line in found] == [
        "head idle gpu:h100_pcie:2",
        "node idle gpu:h100_pcie:2",
    ]
    assert cluster.on(f"stat -c '%U %G %a' {KEY}") == "munge munge 400"
    assert cluster.on(f"sha256sum {KEY}") == cluster.node.on(f"sha256sum {KEY}")
    assert cluster.plan() == (0, set())
    assert cluster.converge(slipway_survey=False).changed() == set()


def test_jobs_wait_for_gpus_and_survive_a_new_limit(cluster: Cluster) -> None:
    jobs = [cluster.submit("sleep 3600", "--gres=gpu:2") for _number in range(3)]
    for job in jobs[:2]:
        cluster.wait_for(job, "RUNNING")
    assert cluster.state(jobs[2]) == "PENDING"
    cluster.declare_cluster({**PARTITION, "max_time": "2-00:00:00"})
    assert cluster.plan() == (2, {("slurm", "files", CONF)})
    assert cluster.converge().changed() == {
        "slurm: Write the configuration of Slurm",
        "slurm: Apply the configuration",
    }
    limit = "grep -o MaxTime=2-00:00:00"
    assert cluster.on(f"scontrol show partition main | {limit}")
    cluster.node.on(WAIT % f"{limit} /run/slurm/conf/slurm.conf")
    assert [cluster.state(job) for job in jobs] == ["RUNNING", "RUNNING", "PENDING"]
    for restart in ("slurmctld slurmd", "slurmd"):
        (cluster if "slurmctld" in restart else cluster.node).on(f"systemctl restart {restart}")
    cluster.on(f"scancel {jobs[0]}")
    cluster.wait_for(jobs[2], "RUNNING")
    assert cluster.state(jobs[1]) == "RUNNING"
    assert cluster.plan() == (0, set())
    cluster.on(f"scancel {' '.join(jobs[1:])}")


def test_commands_of_the_page_work_but_not_for_a_stranger(cluster: Cluster) -> None:
    for site in (cluster, cluster.node):
        site.on(
            "cd /home/alice; printf '#!/bin/sh\\nsleep 60\\n' >train.sh; "
            "echo 'import os; print(os.environ[\"CUDA_VISIBLE_DEVICES\"])' >train.py"
        )
    written = {}
    for command in page_commands.run_by("test_commands_of_the_page_work_but_not_for_a_stranger"):
        script = command.removeprefix("sudo ").replace("gpu02", "node")
        user = "root" if script != command.replace("gpu02", "node") else "alice"
        written[command.split()[0]] = cluster.node.on(
            f"cd /home/alice; runuser -u {user} -- {script}"
        )
    assert written["srun"] == "0"
    assert "train.sh" in written["squeue"]
    cluster.node.on("useradd stranger")
    refused = "sudo sh -c 'cd /tmp; runuser -u stranger -- srun true'"
    done = cluster.node.try_as(cluster.node.host.user, refused)
    assert done.returncode != 0
    assert "error" in done.stderr
    cluster.node.on("userdel stranger")


def test_a_wrong_key_is_drift_and_repaired(cluster: Cluster) -> None:
    # Of an ending job, the controller would wait minutes for a message with the wrong key.
    cluster.on(WAIT % "test $(sinfo --noheader --format=%T) = idle")
    cluster.node.on(f"head -c 128 /dev/urandom >{KEY}; systemctl restart munge")
    named: Named = {("slurm", "munge_keys", KEY), ("slurm", "units", "slurmd.service")}
    assert cluster.plan() == (2, named)
    output = cluster.slipway("site", "--limit", "node")
    assert "changed node: slurm: Write the munge key" in output
    assert "changed node: slurm: Enable and start daemons of the node" in output
    assert "changed Head" not in output
    assert cluster.plan() == (0, set())
    cluster.on(WAIT % "sinfo --noheader --nodes=node --format=%T | grep -qx idle")
    assert cluster.node.on("cd /tmp; runuser -u alice -- srun -w head hostname") == "head"


def test_verify_names_a_node_that_gets_no_jobs(cluster: Cluster) -> None:
    def verify(change: str) -> tuple[str, str]:
        cluster.on(f"scontrol update nodename=node {change}")
        run = cluster.run("playbooks/verify.yml")
        return run.status, " ".join(run.output.split())

    status, output = verify("state=drain reason='new memory'")
    assert status == "successful", output
    assert "drained by root: new memory; it gets no jobs" in output
    cluster.on("scontrol update nodename=node state=resume")
    status, output = verify("state=fail reason=broken")
    assert status == "failed", output
    assert "node node is fail: broken; expected a node that runs jobs" in output
    status, output = verify("state=resume")
    assert status == "successful", output
    assert "Slurm node: node node is idle" in output


@pytest.fixture(scope="module")
def commands(cluster: Cluster) -> Cluster:
    """The cluster with the command testlab."""
    cluster.extra = {"slipway_roles": ["ml_aliases", "slurm"]}
    cluster.variables = {
        "ml_catalogue_folder": str(ROOT / "tests/fixtures/catalogue"),
        "ml_catalogue_variant": "gpu",
        "ml_images_present": [],
        "ml_aliases_images": ["testlab"],
        "ml_aliases_contact": "Dana",
    }
    cluster.declare_cluster()
    cluster.converge()
    return cluster


def test_an_image_command_is_a_job_with_its_gpus(commands: Cluster) -> None:
    show = "echo $STAND_IN_GPU_0 $STAND_IN_GPU_1"
    done = commands.try_alice(f"testlab --gpus 2 sh -c '{show}; cat; exit 5'", stdin="typed")
    assert (done.returncode, done.stdout, done.stderr) == (5, "yes yes\ntyped", "")
    terminal = commands.try_alice("script -qec \"testlab sh -c 'tty; exit 3'\" /dev/null")
    assert terminal.returncode == 3
    assert "/dev/pts/" in terminal.stdout
    inside = f"testlab --gpus 1 sh -c '{show}'"
    batch = f"printf '#!/bin/sh\\n%s\\n' \"{inside}\" | srun --quiet --gres=gpu:2 sh"
    assert commands.try_alice(batch.replace("$", "\\$")).stdout == "yes\n"
    refused = {
        "--gpus 9": "no host of the cluster has 9 GPUs",
        "--gpus 0,1": "expected a number of GPUs such as 2",
        "--partition other": "there is no partition other",
        "--time 3-00:00:00": "the default partition does not permit a time of 3-00:00:00",
    }
    for options, sentence in refused.items():
        done = commands.try_alice(f"testlab {options} true")
        assert done.returncode == 125
        assert sentence in done.stderr
    commands.node.on("gpasswd --delete alice docker >/dev/null")
    stranger = commands.try_alice("testlab true")
    commands.node.on("usermod --append --groups docker alice")
    assert "alice may not use Docker on node. Ask Dana" in stranger.stderr


# The container of the first host prints what the other one sends, by the variables of torchrun.
# Its nc reads a pipe that never ends: at the end of its input nc closes its side of the connection,
# and then the other nc may end before it has sent anything.
MEET = """
words="$PET_NODE_RANK $PET_NNODES $PET_NPROC_PER_NODE $STAND_IN_GPU_1"
if [ $PET_NODE_RANK = 0 ]; then
    mkfifo /dev/shm/open
    echo "$words, $(nc -l -p $PET_MASTER_PORT <>/dev/shm/open)"
else
    until echo "$words" | nc $PET_MASTER_ADDR $PET_MASTER_PORT 2>/dev/null; do sleep 0.2; done
fi
"""


def test_one_command_runs_on_several_hosts(commands: Cluster) -> None:
    done = commands.try_alice(f"timeout 120 testlab --hosts 2 --gpus 2 sh -c '{MEET}'")
    # It may wait for the end of the last job, and says so on standard error.
    assert (done.returncode, done.stdout) == (0, "0 2 2 yes, 1 2 2 yes\n"), done.stderr
    too_many = commands.try_alice("testlab --hosts 3 true")
    assert too_many.returncode == 125
    assert "the default partition does not have 1 GPU on each of 3 hosts" in too_many.stderr
    # The end of one container ends the other one, and the error names the host.
    commands.try_alice("testlab --hosts 2 sleep 3600 >out 2>err </dev/null & sleep 0")
    for site in (commands, commands.node):
        site.on(WAIT % "docker ps --format '{{.Names}}' | grep -q alice-testlab")
    commands.on("docker kill $(docker ps --quiet) >/dev/null")
    for site in (commands, commands.node):
        site.on(WAIT % "! docker ps --all --quiet | grep .")
    commands.node.on(WAIT % "grep -q 'head: task 0: Exited with exit code 137' ~alice/err")


def test_containers_end_with_their_job(commands: Cluster) -> None:
    secret = "testlab --gpus 2 --env TOKEN=hunter2 sleep 3600"
    for number in "12":
        commands.try_alice(f"nohup {secret} >/dev/null 2>err{number} </dev/null & sleep 0")
    both = WAIT % "docker ps --format '{{.Names}}' | grep -q alice-testlab"
    for site in (commands, commands.node):
        site.on(both)
    assert "hunter2" not in commands.on("scontrol show job; squeue --format='%all'")
    by_hand = "docker run --detach --rm --name hand --device nvidia.com/gpu=0 slipway/testlab:gpu"
    commands.node.on(f"{by_hand} sleep 3600")
    planned = commands.slipway("plan")
    assert planned.count("without a job") == planned.count("container hand uses GPUs") == 1
    commands.node.on("docker rm --force hand")
    commands.try_alice("nohup testlab echo third >out 2>err </dev/null & sleep 0")
    commands.node.on(WAIT % "grep -q 'waits for 1 GPU: place 1 of 1 in part' ~alice/err")
    # An image of somebody with the labels of a job, and a container with the job of another user.
    job = commands.on("squeue --noheader --nodelist=node --format=%i")
    labels = f"io.slipway.job={job} io.slipway.uid"
    commands.node.on(
        f"echo 'FROM slipway/testlab:gpu\nLABEL {labels}=2001' | docker build -q -t hostile - ;"
        "docker run --detach --rm --name inherited hostile sleep 3600;"
        f"docker run --detach --rm --name other --label {labels.replace(' ', ' --label ')}=2002"
        " slipway/testlab:gpu sleep 3600"
    )
    commands.on(f"scancel {job}")
    commands.node.on(WAIT % "grep -q third ~alice/out")
    commands.node.on(WAIT % "! docker ps --all --format '{{.Names}}' | grep alice")
    assert set(commands.node.on("docker ps --format '{{.Names}}'").split()) == {
        "inherited",
        "other",
    }
    commands.node.on("docker rm --force inherited other")
    commands.on("systemctl restart slurmctld")
    # The container has this job's number; nohup clients have no guard, so that Slurm ends both.
    commands.on("scancel --user=alice")
    commands.on(WAIT % "! docker ps --all --quiet | grep .")
    for number in "12":
        commands.node.on(WAIT % f"grep -q 'ended: it was cancelled' ~alice/err{number}")
    # A client that is killed cannot end its job: its guard does.
    commands.try_alice("testlab sleep 3600 >/dev/null 2>&1 </dev/null & echo $! >client; sleep 0")
    commands.on(WAIT % "squeue --noheader --states=running | grep -q testlab")
    commands.node.on("kill -9 $(cat ~alice/client)")
    commands.on(WAIT % "! squeue --noheader | grep .")
    # The engine may still remove a container that the epilog stopped.
    for site in (commands, commands.node):
        site.on(WAIT % "! docker ps --all --quiet | grep .")
    assert commands.on("sinfo --noheader --format=%T") == "idle"
    state = commands.on(
        "kill -9 $(pidof slurmctld); sleep 1; systemctl show --property=SubState slurmctld"
    )
    assert state == "SubState=auto-restart"
    commands.on(WAIT % "scontrol ping | grep -q UP")


# Trains a small model in one or more processes and prints its loss; with an argument, for ever.
TRAIN = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
rank, world = (int(os.environ.get(name, size)) for name, size in (("RANK", 0), ("WORLD_SIZE", 1)))
torch.manual_seed(1)
torch.set_num_threads(1)
layers = torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
whole = model = torch.nn.Sequential(*layers).double()
data = torch.randn(64, 8, dtype=torch.float64)
target = data.sin().sum(1, keepdim=True)
own = slice(rank * 64 // world, (rank + 1) * 64 // world)
if world > 1:
    torch.distributed.init_process_group("gloo")
    model = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
steps = 0
while steps < 50 or sys.argv[1:]:
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(data[own]), target[own]).backward()
    optimizer.step()
    steps += 1
loss = torch.nn.functional.mse_loss(whole(data), target).item()
sys.stdout.write(f"{world} {loss:.12f}\\n" if rank == 0 else "")
if world > 1:
    torch.distributed.destroy_process_group()
"""
# The image is a copy of its host, with PyTorch. The host itself stays as it is. Torchrun asks for
# libuv, which the package of Debian lacks, and has no option against it.
TORCH = "/usr/lib/python3/dist-packages/torch/distributed"
PYTORCH = f"""
tar -C / --one-file-system --exclude './tmp/*' -c . | docker import - copy >/dev/null
mkdir -p /tmp/pytorch
printf %s {shlex.quote(TRAIN)} >/tmp/pytorch/train.py
echo 'FROM copy
RUN apt-get -qq install -y --no-install-recommends python3-torch && cd {TORCH} && \\
    sed -i "s/multi_tenant=True,/& use_libuv=False,/" elastic/*/static_tcp_*.py && \\
    sed -i "s/is_master=False,/& use_libuv=False,/" rendezvous.py
COPY train.py /srv/
CMD ["sh"]
LABEL io.slipway.image=testlab' >/tmp/pytorch/Dockerfile
docker build --quiet --network host --tag slipway/testlab:gpu /tmp/pytorch >/dev/null
"""


@pytest.mark.long
def test_a_training_on_two_hosts_has_the_loss_of_one_process(commands: Cluster) -> None:
    for site in (commands, commands.node):
        site.on(PYTORCH)
    alone = commands.try_alice("testlab python3 /srv/train.py")
    assert alone.returncode == 0, alone.stderr
    # Each host has two GPUs, and so two processes.
    both = "testlab --hosts 2 --gpus 2 torchrun /srv/train.py"
    together = commands.try_alice(f"timeout 300 {both}")
    assert together.returncode == 0, together.stderr
    (one, loss), (four, same) = alone.stdout.split(), together.stdout.split()
    assert (one, four) == ("1", "4")
    assert abs(float(loss) - float(same)) < 1e-6
    # The end of one process ends all others.
    commands.try_alice(f"{both} forever >out 2>err </dev/null & sleep 0")
    worker = "'^[^ ]*python[0-9.]* -u /srv/train.py forever'"
    for site in (commands, commands.node):
        site.on(WAIT % f"test $(pgrep -fc {worker}) = 2")
    commands.on(f"kill -9 $(pgrep -f {worker} | head -n 1)")
    for site in (commands, commands.node):
        site.on(WAIT % "! docker ps --all --quiet | grep .")
    commands.node.on(WAIT % "grep -q 'Signal 9 (SIGKILL) received by PID' ~alice/err")
    commands.node.on(WAIT % "grep -q 'task 0: Exited with exit code 1' ~alice/err")


@pytest.mark.long
def test_the_end_by_the_time_limit_is_named(commands: Cluster) -> None:
    # The shortest time limit of Slurm is a minute, and it looks every half minute.
    done = commands.try_alice("testlab --time 00:01:00 sleep 3600")
    assert done.returncode == 143
    assert "ended: its time limit is over. Ask for more with --time" in done.stderr
    for site in (commands, commands.node):
        site.on(WAIT % "! docker ps --all --quiet | grep .")


@pytest.mark.long
def test_an_account_has_records_and_limits(commands: Cluster) -> None:
    for site in (commands, commands.node):
        site.on("useradd --create-home --uid 2002 bob; usermod --append --groups docker bob")
    before = commands.submit("sleep 3600")
    commands.wait_for(before, "RUNNING")
    commands.extra = {"slipway_roles": ["ml_aliases", "slurmdbd", "slurm"]}
    account = {"name": "vision", "members": ["alice"], "share": 2, "gpus": 1}
    commands.variables = {
        **commands.variables,
        "slurm_accounting": True,
        "slurm_accounts": [account],
    }
    commands.declare_cluster()
    commands.on("mkdir -p /etc/slurm; touch /etc/slurm/slurmdbd.conf")
    theirs = commands.run("site.yml", "--check")
    assert "found the configuration of a slurmdbd that Slipway did not install" in theirs.output
    commands.on("rm /etc/slurm/slurmdbd.conf")
    # Their user is found before the first change.
    commands.on(
        "DEBIAN_FRONTEND=noninteractive apt-get -qq install -y mariadb-server >/dev/null; "
        "mariadb --execute 'CREATE USER slurm@localhost'"
    )
    theirs = commands.run("site.yml", slipway_survey=False)
    assert theirs.status == "failed"
    assert "found a user that Slipway did not make" in theirs.output
    assert not {task for task in theirs.changed() if task.startswith("slurmdbd")}
    commands.on(
        "apt-get -qq purge -y --autoremove mariadb-server >/dev/null; "
        "rm -rf /var/lib/mysql /etc/mysql"
    )
    assert commands.run("site.yml", "--check").status == "successful"
    commands.converge()
    assert commands.plan() == (0, set())
    assert commands.converge(slipway_survey=False).changed() == set()
    assert commands.state(before) == "RUNNING"
    commands.on(f"scancel {before}")
    jobs = [commands.submit("sleep 3600", "--gres=gpu:1") for _number in range(2)]
    commands.wait_for(jobs[0], "RUNNING")
    commands.on(WAIT % f"squeue --noheader --jobs={jobs[1]} --format=%r | grep -qx AssocGrpGRES")
    told = [
        commands.node.on(f"cd /tmp; runuser -u alice -- {command}")
        for command in page_commands.run_by("test_an_account_has_records_and_limits")
    ]
    for text in told:
        assert "vision" in text
    # Records have command lines: users see their own.
    assert commands.node.on("cd /tmp; runuser -u bob -- sacct --noheader --allusers") == ""
    refused = "cd /tmp; ! runuser -u bob -- %s 2>/tmp/refused; cat /tmp/refused"
    assert "bob has no account" in commands.node.on(refused % "testlab true")
    assert "Invalid account" in commands.node.on(refused % "srun true")

    commands.on(
        "sacctmgr --immediate modify account where name=vision set grptres=gres/gpu=8,cpu=900; "
        "sacctmgr --immediate add user bob account=vision"
    )
    assert commands.plan() == (2, {("slurm", "slurm_accounts", "slipway")})
    assert commands.converge().changed() == {"slurm: Declare the accounts"}
    listed = commands.on("sacctmgr -nP list associations format=Account,User,GrpTRES,Fairshare")
    assert {"vision||cpu=900,gres/gpu=1|2", "vision|bob||1"} <= set(listed.split("\n"))

    commands.variables = {**commands.variables, "slurm_accounts": []}
    commands.declare_cluster()
    leaving = commands.run("site.yml")
    assert leaving.status == "failed"
    assert "alice is a member of vision; expected none" in leaving.output
    assert commands.state(jobs[0]) == "RUNNING"
    commands.on(f"scancel {' '.join(jobs)}")
    commands.on(WAIT % "! squeue --noheader | grep .")
    commands.converge()
    listed = commands.on("sacctmgr -nP list associations format=Account,User")
    assert "vision|alice" not in listed
    assert "vision|bob" in listed


def test_a_job_delays_the_removal_which_then_leaves_nothing(
    cluster: Cluster, before: tuple[Found, Found]
) -> None:
    job = cluster.submit("sleep 3600", "--nodelist=node")
    cluster.wait_for(job, "RUNNING")
    # A node that slurmctld does not know leaves as well.
    cluster.on(GHOST)
    cluster.declare_cluster({**PARTITION, "name": "new"}, slurm_nodes=["Head.example_1"])
    leaving = cluster.run("site.yml")
    assert leaving.status == "failed"
    assert f"slurm: found jobs {job} on ghost, node, main" in leaving.output
    assert cluster.state(job) == "RUNNING"
    stopped = remove(cluster, "--yes", "--limit", "node")
    assert "slurm: found running jobs on node" in stopped.stdout
    assert cluster.state(job) == "RUNNING"
    cluster.on(f"scancel {job}")
    cluster.node.on(WAIT % "! pgrep slurmstepd")
    job = cluster.submit("sleep 3600", "--nodelist=head")
    cluster.wait_for(job, "RUNNING")
    stopped = remove(cluster, "--yes")
    for host in ("Head.example_1", "node"):
        assert f"slurm: found running jobs on {host} or on nodes" in stopped.stdout
    assert cluster.state(job) == "RUNNING"
    cluster.node.on(f"systemctl is-active slurmd; echo '[Unit]' >{THEIRS}")
    cluster.on(f"scancel {job}")
    cluster.on(WAIT % "! squeue --noheader | grep .")
    done = remove(cluster, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    for site, earlier in ((cluster, before[0]), (cluster.node, before[1])):
        stays = {*look(site).since(earlier)} - {*STAYS, THEIRS}
        if "slurm_accounting" in cluster.variables:
            # Other packages recommend perl and gawk, so that apt keeps them.
            stays = {one for one in stays if re.search("galera|maria|munge|mysql|slurm", one)}
        assert stays == set()
        left = "/var/lib/slipway/slurm /var/lib/slurm /var/log/slurm /var/lib/munge /var/log/munge"
        left += " /var/lib/slipway/slurmdbd /var/lib/mysql /etc/mysql"
        assert site.on(f"ls -d {left} || true") == ""
    assert cluster.on("ls -d /etc/systemd/system/slurm*.d || true") == ""
    assert cluster.node.on("echo /etc/systemd/system/slurm*.d/*") == THEIRS
