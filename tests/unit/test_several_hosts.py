# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs on several hosts: what is refused, and the variables by which their processes meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    jobs,
    several_hosts,
    slurm,
    start,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.ml.settings import Alias, Port

ALIAS = Alias("pytorch", "", "pytorch", "gpu", "bridge", ("bash",), {"web": Port(80, "/")}, {})
STEP = {
    "SLURM_JOB_ID": "30007",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5", "٢", "123456", "2 "])
def test_a_number_of_hosts_is_expected(text: str) -> None:
    with pytest.raises(MlError, match="expected a number of hosts such as 2"):
        several_hosts.count_hosts(text)
    assert several_hosts.count_hosts("16") == 16


@pytest.mark.parametrize(
    ("alias", "request_", "message"),
    [
        (ALIAS, slurm.Request(0, hosts=2), "--hosts 2 is for jobs with GPUs"),
        (ALIAS._replace(network="none"), slurm.Request(1, hosts=2), "pytorch has no network"),
        (ALIAS._replace(network="none"), slurm.Request(1), ""),
        (ALIAS, slurm.Request(0), ""),
        (ALIAS, slurm.Request(1, hosts=2), ""),
    ],
)
def test_a_start_that_cannot_work_is_refused(
    alias: Alias, request_: slurm.Request, message: str
) -> None:
    if not message:
        several_hosts.check_start(alias, request_)
        return
    with pytest.raises(MlError, match=message):
        several_hosts.check_start(alias, request_)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        # Two programs on each host, as somebody's own srun may start them.
        ({"SLURM_STEP_NUM_TASKS": "4"}, False),
        ({"SLURM_STEP_NUM_NODES": ""}, False),
        ({"SLURM_STEP_NUM_NODES": "two"}, False),
    ],
)
def test_a_part_is_the_one_program_of_its_host(changes: Mapping[str, str], expected: bool) -> None:
    assert several_hosts.is_part({**STEP, **changes}) is expected
    assert several_hosts.is_part({"SLURM_JOB_ID": "7"}) is False


def test_a_script_of_a_job_starts_the_parts_by_srun() -> None:
    several_hosts.check_step(STEP, 2, "pytorch")
    several_hosts.check_step({"SLURM_JOB_ID": "7"}, 1, "pytorch")
    with pytest.raises(MlError, match=r"in job 7: .* run: srun --nodes=2 --ntasks-per-node=1 pyt"):
        several_hosts.check_step({"SLURM_JOB_ID": "7"}, 2, "pytorch")


def test_torchrun_gets_its_options_from_variables() -> None:
    assert several_hosts.variables(STEP, 4, "192.0.2.7", "eth1") == {
        "MASTER_ADDR": "192.0.2.7",
        "MASTER_PORT": "20007",
        "PET_MASTER_ADDR": "192.0.2.7",
        "PET_MASTER_PORT": "20007",
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "4",
        "GLOO_SOCKET_IFNAME": "eth1",
        "NCCL_SOCKET_IFNAME": "=eth1",
    }
    assert "NCCL_SOCKET_IFNAME" not in several_hosts.variables(STEP, 4, "192.0.2.7", "")


def test_the_address_of_the_first_host_is_that_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(words: Any) -> tuple[int, str, str]:
        asked.append(words)
        return 0, "NodeName=gpu07 CoresPerSocket=1 NodeAddr=192.0.2.7 NodeHostName=x\n", ""

    monkeypatch.setattr(slurm, "run", run)
    assert several_hosts.find_address(STEP, "Dana") == "192.0.2.7"
    assert asked == [("scontrol", "--oneliner", "show", "node", "gpu07")]
    monkeypatch.setattr(slurm, "run", lambda _words: (0, "NodeName=gpu07 NodeAddr=::1\n", ""))
    with pytest.raises(MlError, match="cannot find the address of ::1"):
        several_hosts.find_address(STEP, "Dana")
    monkeypatch.setattr(slurm, "run", lambda _words: (1, "", "Unable to contact slurm controller"))
    with pytest.raises(MlError, match="does not answer"):
        several_hosts.find_address(STEP, "Dana")


def test_the_interface_is_the_one_of_the_route() -> None:
    assert several_hosts.find_interface("127.0.0.1") == "lo"
    assert several_hosts.find_interface("255.255.255.255") == ""


def test_several_hosts_have_no_terminal_and_end_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "is_terminal", lambda _descriptor: True)
    one = jobs.srun_words(slurm.Request(1), "pytorch", "")
    two = jobs.srun_words(slurm.Request(1, hosts=2), "pytorch", "")
    assert "--pty" in one and "--kill-on-bad-exit=1" not in one
    assert "--pty" not in two and "--kill-on-bad-exit=1" in two
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:1"} <= set(two)
    # srun names the host whose program failed.
    assert (one.count("--quiet"), two.count("--quiet")) == (2, 1)


def test_a_container_of_several_hosts_is_on_the_network_of_its_host() -> None:
    alias = several_hosts.on_network_of_host(ALIAS)
    assert (alias.network, alias.ports, alias.name) == ("host", {}, "pytorch")
