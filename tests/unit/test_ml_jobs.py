# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Image commands as jobs of Slurm: requests, the queue in words, GPUs of a job, its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    containers,
    gpus,
    jobs,
    labels,
    queue,
    settings,
    slurm,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError
from ansible_collections.slipway.host.plugins.module_utils.slurm import epilog

from tests.unit.fake_engine import FakeEngine

# As squeue prints the jobs. Job 9 has a name that users can read as the line of another job.
QUEUE = """\
7|RUNNING|alice|main|4294901760|gres/gpu:h100_pcie:2|1|gpu02|2026-11-28T20:00:00|2026-11-28T19:59:58|None
12|PENDING|bob|main|100|gres/gpu:1|1||2026-11-29T08:00:00|2026-11-28T20:02:00|Resources
11|PENDING|carol|main|90|gres/gpu:4|2||N/A|2026-11-28T20:01:00|Priority
13|PENDING|dave|long|500|N/A|1||N/A|2026-11-28T20:03:00|QOSMaxJobsPerUserLimit
99|RUNNING|mallory
"""


@pytest.mark.parametrize(
    ("merged", "options"),
    [
        ({"gpus": "free"}, ["--gres=gpu:1"]),
        ({"gpus": "2", "cpus": "1.5"}, ["--gres=gpu:2", "--cpus-per-task=2"]),
        ({"gpus": "1", "memory": "64g"}, ["--gres=gpu:1", "--mem=64G"]),
        ({"gpus": "1", "memory": "1500"}, ["--gres=gpu:1", "--mem=2K"]),
        (
            {"gpus": "8", "partition": "long", "time": "1-00:00:00"},
            ["--gres=gpu:8", "--partition=long", "--time=1-00:00:00"],
        ),
    ],
)
def test_a_request_has_the_settings_of_the_person(
    merged: Mapping[str, str], options: list[str]
) -> None:
    found = slurm.make_request(merged).options
    assert list(found) == ["--nodes=1", "--ntasks=1", "--ntasks-per-node=1", *options]


@pytest.mark.parametrize("setting", ["0", "0,1", "all", "0:1", "12:1"])
def test_nobody_chooses_the_gpus_of_a_job(setting: str) -> None:
    with pytest.raises(MlError, match="expected a number of GPUs such as 2"):
        slurm.count_gpus(setting)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"time": "12:00"}, "time is '12:00'; expected hours as 12:00:00"),
        ({"time": "90"}, "expected hours"),
        ({"partition": "--wrap=x"}, "expected the name of a partition"),
    ],
)
def test_ambiguous_times_and_options_are_refused(layer: Mapping[str, str], message: str) -> None:
    with pytest.raises(MlError, match=message):
        settings.check_layer(layer, "file")


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("N/A", 0),
        ("gpu:2", 2),
        ("gres/gpu:h100_pcie:8", 8),
        ("gpu:a100:2(S:0-1),gpu:h100:1(S:0)", 3),
        ("gpu", 1),
        ("gres/gpu", 1),
        ("gpu:h100_pcie:1(IDX:0)", 1),
        ("shard:3", -1),
    ],
)
def test_gpus_of_a_job_are_counted(gres: str, number: int) -> None:
    assert slurm.parse_gres(gres) == number


def test_the_place_counts_the_jobs_of_one_partition_by_priority() -> None:
    listed = slurm.parse_jobs(QUEUE)
    assert [job.id for job in listed] == ["7", "12", "11", "13"]
    request = slurm.Request(4, hosts=2)
    assert slurm.describe_place(listed, "11", request) == (
        "job 11 waits for 4 GPUs on each of 2 hosts: place 2 of 2 in partition main "
        "(other jobs are before it)"
    )
    assert slurm.describe_place(listed, "12", slurm.Request(1, memory="64G")) == (
        "job 12 waits for 1 GPU and 64G of memory: place 1 of 2 in partition main (next in the "
        "queue; no host has the free GPUs, CPUs and memory yet); expected start 2026-11-29 08:00:00"
    )
    assert slurm.describe_place(listed, "7", request) == ""


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        (
            "allocation failure: Requested node configuration is not available\n",
            "no host of the cluster has 2 GPUs. Ask for less",
        ),
        ("allocation failure: Invalid partition name specified", "there is no partition p"),
        (
            "User's group not permitted to use this partition",
            "your groups may not use partition p. Choose another one with --partition",
        ),
        (
            "Unable to contact slurm controller (connect failure)",
            "the controller of the cluster does not answer. Running jobs go on. Tell Dana",
        ),
        (
            "allocation failure: Protocol authentication error",
            "the controller of the cluster does not accept messages of this host: its munge key or",
        ),
        (
            "srun: fatal: Could not establish a configuration source",
            "slurmd does not run on this host",
        ),
        ("Something new", ""),
    ],
)
def test_refusals_of_slurm_become_sentences(errors: str, sentence: str) -> None:
    request = slurm.Request(2, partition="p")
    found = slurm.explain_refusal(errors, request, "alice", "Dana")
    assert found.startswith(sentence) if sentence else found == ""


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("TimeLimit", "TIMEOUT"), ("None", "TIMEOUT"), ("NonZeroExitCode", "COMPLETING")],
)
def test_the_end_of_a_job_is_known_after_its_epilog(
    monkeypatch: pytest.MonkeyPatch, reason: str, expected: str
) -> None:
    states = iter(["COMPLETING", "COMPLETING", "TIMEOUT"])
    output = f"7|%s|gpu02|{reason}|mine\n"
    monkeypatch.setattr(slurm, "run", lambda _words: (0, output % next(states), ""))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    assert jobs.find_end("mine") == ("7", expected, "gpu02", reason)


def test_the_queue_is_listed_in_its_order_with_reasons() -> None:
    assert queue.format_queue(slurm.parse_jobs(QUEUE)).splitlines() == [
        "RUNNING  USER   PARTITION  GPUS  HOST   SINCE        STATE",
        "7        alice  main       2     gpu02  11-28 20:00  running",
        "",
        "PLACE  WAITING  USER   PARTITION  GPUS   SINCE        EXPECTED     REASON",
        "1      13       dave   long       0      11-28 20:03  -            "
        "a limit for its owner is reached",
        "1      12       bob    main       1      11-28 20:02  11-29 08:00  "
        "next in the queue; no host has the free GPUs, CPUs and memory yet",
        "2      11       carol  main       2 x 4  11-28 20:01  -            "
        "other jobs are before it",
    ]
    assert queue.format_queue([]) == "no running jobs\n\nno waiting jobs"


def test_the_gpus_of_each_host_are_listed_once_with_their_jobs() -> None:
    line = "gpu02|gpu:h100_pcie:4|gpu:h100_pcie:2(IDX:0-1)|mixed|\n"
    nodes = queue.parse_nodes(f"{line}{line}head|(null)|gpu:0|idle|\n")
    assert queue.format_top(nodes, slurm.parse_jobs(QUEUE)) == [
        "HOST   MODEL      GPUS  FREE  STATE  USED BY",
        "gpu02  h100_pcie  4     2     mixed  job 7 of alice",
        "head   -          0     0     idle   -",
    ]


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("head", ["head"]),
        ("gpu[01-03,7],head", ["gpu01", "gpu02", "gpu03", "gpu7", "head"]),
        ("a1,b2", ["a1", "b2"]),
        ("", []),
    ],
)
def test_lists_of_hosts_are_expanded(names: str, hosts: list[str]) -> None:
    assert queue.expand_names(names) == hosts


def test_gpus_of_a_job_are_counted_by_address_as_docker_does(tmp_path: Path) -> None:
    for address, minor in (("0000:01:00.0", 1), ("0000:41:00.0", 0)):
        (tmp_path / address).mkdir()
        (tmp_path / address / "information").write_text(f"Model: \t X\nDevice Minor: \t {minor}\n")
    numbers = jobs.numbers_of_gpus(tmp_path)
    assert jobs.gpus_of_job({"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1"}, numbers) == ["0"]
    assert jobs.gpus_of_job({"SLURM_JOB_GPUS": "0,3"}, numbers) == ["1", "3"]
    assert jobs.gpus_of_job({}, numbers) == []
    assert jobs.numbers_of_gpus(tmp_path / "none") == {}


def test_a_start_in_a_job_gets_at_most_its_gpus() -> None:
    environment = {"SLURM_JOB_ID": "5", "SLURM_STEP_GPUS": "2,3"}
    merged = {"gpus": "1", "memory": "1g", "cpus": "2", "shm_size": "8g"}
    assert jobs.settings_in_job(merged, environment) == {"gpus": "2", "shm_size": "8g"}
    assert jobs.settings_in_job({"gpus": "free"}, environment)["gpus"] == "2,3"
    assert jobs.settings_in_job({"gpus": "none"}, environment)["gpus"] == "none"
    assert jobs.settings_in_job({"gpus": "free"}, {"SLURM_JOB_ID": "5"})["gpus"] == "none"
    with pytest.raises(MlError, match="expected at most 2, the number of GPUs of job 5"):
        jobs.settings_in_job({"gpus": "3"}, environment)


def test_a_container_gets_the_cpus_and_the_memory_of_its_job() -> None:
    environment = {"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "4"}
    assert jobs.slurm_limits(environment, {1, 0}, 4) == ("0,1", 400)
    assert jobs.slurm_limits({"SLURM_MEM_PER_NODE": "7"}, {0, 1}, 2) == ("", 7)
    assert jobs.slurm_limits({}, {0}, 1) == ("", 0)


def test_the_words_of_a_job_are_read_once_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jobs.WORDS, '["--gpus", "2"]')
    assert jobs.words_of_job(["own"]) == ["own"]
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    assert jobs.words_of_job(["a shell of salloc"]) == ["a shell of salloc"]
    monkeypatch.setenv("SLURMD_NODENAME", "gpu02")
    assert jobs.words_of_job([]) == ["--gpus", "2"]
    assert jobs.words_of_job(["the program of the job"]) == ["the program of the job"]


def container(name: str, **changes: Any) -> dict[str, Any]:
    """Return the engine's description of a running container."""
    return {
        "Id": name,
        "Name": f"/{name}",
        "Created": "2026-11-28T20:00:00Z",
        "Config": {"Image": "i", "Labels": changes.get("labels", {})},
        "HostConfig": changes.get("host", {}),
        "State": {"Status": "running", "StartedAt": "2026-11-28T20:00:00Z"},
        "NetworkSettings": {},
    }


def test_containers_around_slurm_are_named() -> None:
    by_hand = {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]}
    by_number = {"DeviceRequests": [{"DeviceIDs": ["1"]}, {"DeviceIDs": ["other.com/x=0"]}]}
    listed = [
        container("job", labels={labels.GPUS: "0", labels.JOB: "7"}),
        container("llm", labels={labels.GPUS: "2", labels.COMPOSE_PROJECT: "llm"}),
        container("hand", host=by_number),
        container("none"),
    ]
    found = containers.gpu_users_in_cluster(map(containers.parse_container, listed))
    assert found == {
        "job (job 7)": ("0",),
        "llm (service)": ("2",),
        "hand (outside of Slurm)": ("1",),
    }
    everything = containers.parse_container(container("all", host=by_hand))
    host = [gpus.Gpu("0", "H100", "a"), gpus.Gpu("1", "H100", "b")]
    users = gpus.find_users(host, {}, containers.gpu_users_in_cluster([everything]))
    assert users == dict.fromkeys("01", "all (outside of Slurm)")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """An engine with containers of job 7 of user 2001, one by inherited labels."""
    own = {labels.JOB: "7", labels.UID: "2001"}
    listed = [
        {"Id": "own", "ImageID": "plain", "Labels": own},
        {"Id": "inherited", "ImageID": "hostile", "Labels": own},
        {"Id": "other", "ImageID": "plain", "Labels": {**own, labels.UID: "2002"}},
    ]
    file = tmp_path / "docker.sock"
    fake = FakeEngine(
        file,
        {
            r"GET /containers/json": listed,
            r"GET /images/hostile/json": {"Config": {"Labels": own}},
            r"GET /images/": {"Config": {"Labels": None}},
            r"POST /containers/own/stop": {},
            r"DELETE /containers/own": (404, {}),
        },
    )
    monkeypatch.setattr(epilog, "SOCKET", str(file))
    monkeypatch.setattr(epilog, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(epilog, "APPEAR_SECONDS", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_UID", "2001")
    yield fake
    fake.close()


def test_the_epilog_removes_the_containers_of_the_job_alone(engine: FakeEngine) -> None:
    assert epilog.main() == 0
    changes = [request for request in engine.requests if not request.startswith("GET")]
    # The second time for containers that the engine was still creating.
    assert changes == 2 * [
        "POST /containers/own/stop?t=10",
        "DELETE /containers/own?force=1&v=1",
    ]


def test_the_epilog_fails_if_a_container_may_still_run(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answers[r"DELETE /containers/own"] = (500, {})
    assert epilog.main() == 1
    assert "containers of job 7 may still run" in capsys.readouterr().err
    monkeypatch.setattr(epilog, "SOCKET", "/no/engine")
    assert epilog.main() == 0


def test_the_labels_of_the_epilog_are_those_of_the_commands() -> None:
    assert (epilog.JOB, epilog.UID) == (labels.JOB, labels.UID)
