# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody works on a host that somebody else set up; a run says whom it disturbs, and waits.

The GPU is a device file that processes hold open; engine, containers and logins are real.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.host_spec import HostSpec
from lab.hosts import Group
from tests.host.conftest import ROOT, Site

pytestmark = pytest.mark.host

DAEMON_JSON = "/etc/docker/daemon.json"
SETTINGS = {"log-driver": "local", "live-restore": False}
# A host with an engine, a training container of alice and a process of bob on a GPU.
ADOPTED = f"""
mkdir -p /etc/docker; echo '{json.dumps(SETTINGS)}' >{DAEMON_JSON}
apt-get -qq update >/dev/null
apt-get -qq install -y --no-install-recommends docker.io docker-cli iptables >/dev/null
useradd --create-home alice; useradd --create-home bob
mknod -m 0666 /dev/nvidia0 c 1 3
tar -C / -c bin lib lib64 usr/bin/dash usr/bin/sh usr/bin/sleep \
    usr/lib/x86_64-linux-gnu/libc.so.6 usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 usr/lib64 |
    docker import - training:1 >/dev/null
docker run --detach --name train --device /dev/nvidia0 --volume /home/alice:/work training:1 \
    sh -c 'exec sleep 3600 </dev/nvidia0' >/dev/null
systemd-run --quiet --unit=bob --uid=bob sh -c 'exec sleep 3600 </dev/nvidia0'
"""
WORK = "docker inspect --format '{{.State.Pid}} {{.State.StartedAt}}' train; "
WORK += "systemctl show --property=MainPID docker bob"
CHANGED = {"log-level": "warn"}
WAITS = "container train of alice (image training:1) uses a GPU"


class Adopted(Site):
    """A host with an engine of somebody else."""

    extra = {"slipway_roles": ["docker_engine", "user_access"]}

    def slipway(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the project as a person does."""
        command = [str(ROOT / "slipway"), verb, "-i", str(self.inventory), *arguments]
        extra = ["-e", json.dumps(self.extra)]
        return subprocess.run([*command, *extra], capture_output=True, text=True, check=False)

    def declare_engine(self, settings: dict[str, Any], **more: Any) -> None:
        """Declare settings of the engine, and a user that is not there yet."""
        self.declare(
            docker_engine_extra_settings=settings, user_access_users=[{"name": "dora"}], **more
        )

    def settings(self) -> Any:
        """Return the content of daemon.json."""
        return json.loads(self.on(f"cat {DAEMON_JSON}"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adopted]:
    group = Group("pytest-consequences")
    group.remove()
    site = Adopted(group.ensure(HostSpec("adopted")), tmp_path_factory.mktemp("adopted"))
    site.on(ADOPTED)
    yield site
    group.remove()


@pytest.fixture(scope="module")
def login(site: Adopted) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who is logged in at a terminal."""
    command = [*site.ssh(site.host.user, "-tt"), "echo there; exec sleep 3600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"there" in process.stdout.readline()
        yield process
        process.terminate()


def test_plan_names_container_gpu_process_and_login(
    site: Adopted, login: subprocess.Popen[bytes]
) -> None:
    site.declare_engine(CHANGED)
    plan = site.slipway("plan")
    assert plan.returncode == 2, plan.stderr
    bob = site.on("systemctl show --property=MainPID --value bob")
    for row in (
        f"unit docker.service: restart waits: {WAITS}",
        "container train: would stop if Docker restarted (owner alice, image training:1",
        f"GPU process {bob}: sleep of bob uses /dev/nvidia0",
        f"user {site.host.user}: is logged in at pts/",
    ):
        assert row in plan.stdout, plan.stdout
    consequences = json.loads(site.slipway("plan", "--json").stdout)["adopted"]["consequences"]
    assert [one["kind"] for one in consequences] == [
        *("restart", "container", "gpu_process", "gpu_process", "session")
    ]


def test_the_restart_waits_and_all_else_is_done(
    site: Adopted, login: subprocess.Popen[bytes]
) -> None:
    work = site.on(WORK)
    checked = site.slipway("site", "--check")
    assert f"restart waits: {WAITS}" in checked.stdout
    run = site.slipway("site")
    assert run.returncode == 6, run.stdout + run.stderr
    told, _heading, applied = run.stdout.partition(" role ")
    assert f"restart waits: {WAITS}" in told
    assert f"(restarts docker.service) waits: {WAITS}" in applied
    assert site.on(WORK) == work
    assert login.poll() is None
    assert site.settings() == SETTINGS
    site.on("id dora; docker buildx version")
    # Nothing is remembered: the next run would come to the same result.
    assert site.plan() == (2, {("docker_engine", "json", DAEMON_JSON)})


def test_after_the_training_the_next_run_restarts_the_engine(
    site: Adopted, login: subprocess.Popen[bytes]
) -> None:
    engine, bob = site.on("systemctl show --property=MainPID --value docker bob").split()
    site.declare_engine(CHANGED)
    site.on("docker stop -t 1 train")
    run = site.slipway("site")
    assert run.returncode == 0, run.stdout
    # Values of the one who set up the host stay, also under the defaults of the role.
    assert site.settings() == {**SETTINGS, **CHANGED}
    after = site.on("systemctl show --property=MainPID --value docker bob").split()
    assert after[0] != engine
    assert after[1] == bob
    assert login.poll() is None
    assert site.plan() == (0, set())
    assert site.converge().changed() == set()


def test_an_engine_that_does_not_start_gets_its_old_settings(site: Adopted) -> None:
    before = site.settings()
    # dockerd accepts this when it validates, and cannot create it when it starts.
    site.declare_engine({**CHANGED, "data-root": "/proc/docker"})
    run = site.slipway("site")
    assert run.returncode == 2
    assert "systemctl restart docker.service failed" in run.stdout
    assert f"The previous {DAEMON_JSON} is restored, and docker.service runs with it" in run.stdout
    assert site.settings() == before
    engine = site.on("systemctl show --property=MainPID --value docker; docker info >/dev/null")
    # The restart that changed nothing is not repeated.
    again = site.slipway("site")
    assert again.returncode == 2
    assert "docker.service did not start with the new content" in again.stdout
    assert site.on("systemctl show --property=MainPID --value docker") == engine
    site.declare_engine(CHANGED)
    assert site.plan() == (0, set())


def test_live_restore_keeps_containers_over_a_restart(site: Adopted) -> None:
    site.declare_engine({**CHANGED, "live-restore": True})
    site.converge()
    site.on("docker start train")
    work = site.on("docker inspect --format '{{.State.Pid}} {{.State.StartedAt}}' train")
    site.declare_engine({"log-level": "info", "live-restore": True})
    assert "would restart; containers keep running" in site.slipway("plan").stdout
    site.converge()
    assert site.settings()["log-level"] == "info"
    assert site.on("docker inspect --format '{{.State.Pid}} {{.State.StartedAt}}' train") == work
    assert site.plan() == (0, set())


def test_a_default_runtime_goes_together_with_its_runtime(site: Adopted) -> None:
    runtime = {"runtimes": {"nvidia": {"path": "/bin/false"}}}
    settings = {"log-level": "info", "live-restore": True}
    site.on("docker stop -t 1 train")
    site.declare_engine({**settings, **runtime})
    site.converge()
    site.on(
        f'sed -i \'1s/{{/{{"default-runtime": "nvidia",/\' {DAEMON_JSON};'
        "systemctl reset-failed docker; systemctl restart docker"
    )
    site.declare_engine(settings)
    site.converge()
    assert not {"runtimes", "default-runtime"} & site.settings().keys()
    site.on("docker run --rm training:1 sleep 0")


@pytest.mark.long
def test_always_restarts_under_a_running_container(site: Adopted) -> None:
    site.declare_engine(
        {"log-level": "error", "live-restore": False}, docker_engine_restart="always"
    )
    site.on("docker start train")
    assert "container train: would stop (owner alice" in site.slipway("plan").stdout
    site.converge()
    assert site.on("docker inspect --format '{{.State.Running}}' train") == "false"


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Adopted]:
    """A host on which the command docker is podman's."""
    group = Group("pytest-podman")
    group.remove()
    site = Adopted(group.ensure(HostSpec("podman")), tmp_path)
    site.extra = {"slipway_roles": ["docker_engine"]}
    site.on("apt-get -qq update >/dev/null")
    site.on("apt-get -qq install -y --no-install-recommends podman-docker >/dev/null 2>&1")
    yield site
    group.remove()


def test_the_docker_command_of_podman_is_removed_only_by_consent(podman: Adopted) -> None:
    installed = "dpkg-query --show --showformat '${db:Status-Status} ' podman podman-docker"
    podman.declare()
    plan = podman.slipway("plan")
    assert plan.returncode == 2, plan.stderr
    assert "package podman-docker: would be removed" in " ".join(plan.stdout.split())
    run = podman.run()
    assert run.status == "failed"
    output = " ".join(run.output.split())
    assert "podman-docker" in output and "docker_engine_removable_packages" in output
    assert podman.on(installed) == "installed installed"
    podman.declare(docker_engine_removable_packages=["podman-docker"])
    podman.converge()
    assert podman.on(f"{installed} || true").split() in (
        ["installed"],
        ["installed", "config-files"],
    )
    assert podman.plan() == (0, set())
