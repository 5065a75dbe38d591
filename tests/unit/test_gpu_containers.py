# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers on a Slurm node that use GPUs without a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.state import (
    containers,
    engine,
    gpu_containers,
    kinds,
)

from tests.unit.test_disturbance import ID, details
from tests.unit.test_disturbance import engine as answer_as_engine

SOCKET = containers.DOCKER_SOCKET
CDI = {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=0"]}]}
IN_JOB = {"Image": "x", "Labels": {"io.slipway.job": "7"}}
OF_ALICE = {"Image": "x", "Labels": {"io.slipway.user": "al\x1bice"}}


def say(found: Any) -> list[str]:
    owned = {"gpu_containers": [{"socket": SOCKET}]}
    assert (
        engine.compare({"": owned}, {"gpu_containers": {SOCKET: found}}, kinds.ALL)[""].differences
        == []
    )
    return engine.information([owned], {"gpu_containers": {SOCKET: found}}, kinds.ALL)


@pytest.mark.parametrize(
    ("changes", "records", "expected"),
    [
        ({"HostConfig": CDI}, {}, [["train", ""]]),
        ({"HostConfig": CDI, "Config": OF_ALICE}, {}, [["train", "al\x1bice"]]),
        ({"HostConfig": CDI, "Config": IN_JOB}, {}, []),
        ({}, {}, []),
        ({"HostConfig": CDI}, {"llm.json": {"containers": [ID]}}, []),
        ({"HostConfig": CDI}, {"llm.json": {"containers": ["b"]}}, [["train", ""]]),
        ({"HostConfig": CDI}, {"llm.json": {}, "other": [], "third": 1}, [["train", ""]]),
    ],
)
def test_containers_of_neither_jobs_nor_services_are_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    records: dict[str, Any],
    expected: list[list[str]],
) -> None:
    answer_as_engine(monkeypatch, details(**changes))
    monkeypatch.setattr(containers, "SERVICE_RECORDS", str(tmp_path))
    for name, record in records.items():
        (tmp_path / name).write_text(json.dumps(record))
    assert gpu_containers.ask_outside_of_jobs(SOCKET) == expected


@pytest.mark.parametrize("error", [ValueError("500"), FileNotFoundError(), OSError("timed out")])
def test_an_engine_that_does_not_answer_has_no_containers(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_path: str) -> None:
        raise error

    monkeypatch.setattr(containers, "ask_engine", fail)
    assert gpu_containers.ask_outside_of_jobs(SOCKET) == []


def test_they_are_no_drift_but_information() -> None:
    assert say([]) == []
    assert say([["train", ""], ["web", "al\x1bice"]]) == [
        "Slurm: container train uses GPUs without a job. Slurm may give these GPUs to a job. "
        "The command of its image would start it as a job",
        "Slurm: container web of al\\x1bice uses GPUs without a job. Slurm may give these GPUs to "
        "a job. The command of its image would start it as a job",
    ]
