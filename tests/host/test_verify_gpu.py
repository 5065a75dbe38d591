# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that containers keep their GPUs, on an engine that has CDI on by default.

Real are engine, containers and `systemctl daemon-reload`.  Stand-ins are the GPU, its device files
and nvidia-smi, which lists those that it can open; and systemctl where it has to take them away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils._throwaway import Group, HostSpec, Mount
from ansible_collections.slipway.host.plugins.module_utils._throwaway_engine import (
    BaseUnavailableError,
)
from ansible_collections.slipway.host.plugins.module_utils._throwaway_state import (
    default_state_dir,
)

from tests.fixtures import gpu_host
from tests.host.conftest import ROOT, Run, Site

pytestmark = pytest.mark.host

GROUP = "pytest-verify-gpu"
BASE, MODEL = "debian-sid", "t4"
VERIFY = "playbooks/verify.yml"
KEPT = "still does after systemctl daemon-reload"
LEFT = "docker ps --all --quiet; docker image ls --all --quiet"
# As it happens to containers that got their devices behind the engine's back: they are gone from
# them once systemd has read its units anew.
FORGETFUL_SYSTEMCTL = """\
#!/bin/sh
# Stand-in on a simulated host.
/usr/bin/systemctl "$@"
[ "$1" = daemon-reload ] || exit
for container in $(docker ps --quiet); do
    rm -f "/proc/$(docker inspect --format '{{.State.Pid}}' "$container")"/root/dev/nvidia*
done
"""
# A container that got its GPUs by the older way, made of the host's own files.
TRAINING = """
tar -C / -c bin lib lib64 usr/bin/sleep usr/lib/x86_64-linux-gnu/libc.so.6 \
    usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 usr/lib64 | docker import - stand-in/training
docker run --detach --rm --name training --runtime nvidia stand-in/training sleep 300
"""


class GpuSite(Site):
    """A simulated GPU host."""

    extra = {"slipway_roles": ["nvidia_driver", "docker_engine", "nvidia_container_toolkit"]}

    def __init__(self, group: Group, folder: Path) -> None:
        self.stand_ins = folder / "stand-ins"
        simulated = gpu_host.prepare(self.stand_ins, MODEL, BASE)
        mounts = tuple(Mount(**mount) for mount in simulated.mounts)
        super().__init__(group.ensure(HostSpec(MODEL, base=BASE, mounts=mounts)), folder)
        self.declare(**simulated.variables)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuSite]:
    group = Group(GROUP, default_state_dir(GROUP, ROOT / "tests"))
    group.remove()
    try:
        yield GpuSite(group, tmp_path_factory.mktemp("verify-gpu"))
    except BaseUnavailableError as reason:
        pytest.skip(str(reason))
    finally:
        group.remove()


@pytest.fixture(scope="module")
def first(site: GpuSite) -> Run:
    return site.converge()


@pytest.fixture
def forgetful(site: GpuSite) -> Iterator[None]:
    """Containers lose their GPUs by daemon-reload."""
    file = site.stand_ins / "sbin/systemctl"
    file.write_text(FORGETFUL_SYSTEMCTL)
    file.chmod(0o755)
    yield
    file.unlink()


def test_the_first_run_ends_with_the_proof(site: GpuSite, first: Run) -> None:
    version = site.on("docker version --format '{{.Server.Version}}'")
    assert tuple(map(int, version.split(".")[:2])) >= (28, 2)
    # CDI is on by default from then on: nothing was written for it.
    assert "cdi" not in site.on("cat /etc/docker/daemon.json")
    assert f"a container sees 1 of 1 by CDI on engine {version}" in first.output
    assert KEPT in first.output


def test_verify_proves_it_again_and_leaves_nothing(site: GpuSite, first: Run) -> None:
    reloads = "journalctl --quiet --identifier systemd | grep -c 'Reload requested'"
    before = site.on(reloads)
    run = site.run(VERIFY)
    assert run.status == "successful", run.output
    assert run.changed() == set()
    assert KEPT in run.output
    assert int(site.on(reloads)) > int(before)
    assert site.on(LEFT) == ""


def test_gpus_that_are_lost_fail_the_proof(site: GpuSite, first: Run, forgetful: None) -> None:
    run = site.run(VERIFY)
    assert run.status == "failed"
    assert (
        "after systemctl daemon-reload the same container sees 0 of 1 GPUs (Failed to initialize "
        "NVML: Unknown Error); expected all of them"
    ) in " ".join(run.output.split())
    assert site.on(LEFT) == ""


def test_the_reload_can_be_switched_off(site: GpuSite, first: Run, forgetful: None) -> None:
    run = site.run(VERIFY, host_verify_daemon_reload=False)
    assert run.status == "successful", run.output
    assert "systemctl daemon-reload was not tried" in run.output


def test_somebodys_training_keeps_its_gpus(site: GpuSite, first: Run, forgetful: None) -> None:
    site.on(TRAINING)
    run = site.run(VERIFY)
    assert run.status == "successful", run.output
    assert "it would take the GPUs from training" in run.output
    site.on("docker rm --force training; docker image rm stand-in/training")


def test_without_cdi_the_proof_says_what_to_switch_on(site: GpuSite, first: Run) -> None:
    off = """echo '{"features": {"cdi": false}}' >/etc/docker/daemon.json"""
    site.on(f"cp /etc/docker/daemon.json /root; {off}; systemctl restart docker")
    run = site.run(VERIFY)
    assert run.status == "failed"
    # The stand-in for the hook gives nothing.
    assert "features.cdi has to be true in /etc/docker/daemon.json" in run.output
    assert site.on(LEFT) == ""
    site.on("cp /root/daemon.json /etc/docker; systemctl restart docker")
    assert site.run(VERIFY).status == "successful"
