# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The actions images_info and images, with prepared answers of a host."""

from __future__ import annotations

import io
import json
import re
import tarfile
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.playbook.task import Task
from ansible_collections.slipway.host.plugins.action import images, images_info
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    detached_job,
    host_command,
)

from tests.contract.tree import ROOT
from tests.unit.gpu_facts import facts
from tests.unit.test_image_list import answer, inspected, recorded

ARGUMENTS = {
    "names": ["pytorch"],
    "catalogue": str(ROOT / "images"),
    "variant": "gpu",
    "base": "debian-13",
}
OLD_DRIVER = facts("t4", loaded="570.211.01")


def action(module: Any, **arguments: Any) -> Any:
    """Return an action with these arguments for the host gpu01."""
    task = Task()
    task.args = {**ARGUMENTS, **arguments}
    connection = SimpleNamespace(_shell=SimpleNamespace(tmpdir=None), has_pipelining=True)
    templar = SimpleNamespace(available_variables={"inventory_hostname": "gpu01"})
    return module.ActionModule(task, connection, SimpleNamespace(), None, templar, None)


def ask_info(
    monkeypatch: pytest.MonkeyPatch, text: str, host: dict[str, Any] | None = None, **arguments: Any
) -> dict[str, Any]:
    """Return the result of images_info for the answer TEXT of the host."""
    asked = action(images_info, **arguments)
    output = f"{host_command.BEGIN}\n{text}\n{host_command.END}\n"
    reply = {"stdout": output, "stderr": "", "rc": 0}
    monkeypatch.setattr(asked, "_low_level_execute_command", lambda *_, **__: reply)
    result: dict[str, Any] = asked.run(None, {"ansible_facts": {"slipway": host} if host else {}})
    return result


def test_all_images_are_compared_and_declared_ones_are_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = ask_info(monkeypatch, answer([]))
    assert not result["changed"]
    states = {row["reference"]: row for row in result["images"]}
    # A host with a GPU uses the cpu image if there is no gpu image.
    assert {"slipway/pytorch:gpu", "slipway/iris-api:cpu"} <= set(states)
    declared = {name for name, row in states.items() if row["declared"]}
    assert declared == {"slipway/jupyter:gpu", "slipway/pytorch:gpu"}
    assert {row["state"] for row in result["images"]} == {"missing"}
    assert result["unneeded"] == []


def test_unneeded_images_of_a_host_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    catalogue = load_catalogue(ROOT / "images")
    (jupyter,) = catalogue.builds(["jupyter"], "gpu", "debian-13")
    held = [inspected(jupyter.digest, 9, jupyter.reference), inspected("x", 9, "slipway/keras:gpu")]
    records = [
        recorded("slipway/jupyter:gpu", jupyter.digest),
        recorded("slipway/keras:gpu", "x"),
    ]
    result = ask_info(monkeypatch, answer(held, *records))
    states = {row["reference"]: row["state"] for row in result["images"]}
    assert states["slipway/jupyter:gpu"] == "current"
    assert states["slipway/keras:gpu"] == "outdated"
    assert result["unneeded"] == ["slipway/keras:gpu"]


def test_an_image_that_does_not_run_on_the_host_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = ask_info(monkeypatch, answer([]), OLD_DRIVER)["images"]
    notes = {row["reference"]: " ".join(row["notes"]) for row in rows}
    assert "the host runs 570.211.01" in notes["slipway/pytorch:gpu"]
    assert "570" not in notes["slipway/jupyter:gpu"]


def test_the_table_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_info(monkeypatch, answer([]))
    assert capsys.readouterr().out == ""
    ask_info(monkeypatch, answer([]), show="table")
    shown = capsys.readouterr().out
    assert "gpu01, gpu:" in shown
    assert re.search(r"^pytorch:gpu +missing$", shown, re.MULTILINE)
    held = answer([inspected("x", 2_000_000, "slipway/pytorch:gpu")])
    ask_info(monkeypatch, held, show="markdown")
    assert "| pytorch:gpu | 2 MB | 2 MB |  |  |  |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        pytest.param(
            "Cannot connect to the Docker daemon", ["pytorch"], "expected JSON from Docker", id="no"
        ),
        pytest.param(answer([]), ["pytorhc"], "Did you mean 'pytorch'?", id="no such image"),
    ],
)
def test_an_error_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, text: str, names: list[str], words: str
) -> None:
    with pytest.raises(AnsibleActionFail, match=words.replace("?", r"\?")):
        ask_info(monkeypatch, text, names=names)


def build_images(
    monkeypatch: pytest.MonkeyPatch, host: dict[str, Any], check_mode: bool = False, **outcome: Any
) -> tuple[dict[str, Any], list[str]]:
    """Return the result of the action images, and the references that the host built."""
    build = action(images)
    build._task.check_mode = check_mode
    reply = {"facts": host, "images": {}, "engine": None}
    monkeypatch.setattr(ask_host, "ask", lambda *_: reply)
    jobs: list[str] = []

    def carry_out(_action: Any, _folder: str, _program: str, job: bytes) -> dict[str, Any]:
        with tarfile.open(fileobj=io.BytesIO(job)) as archive:
            member = archive.extractfile("job.json")
            assert member is not None
            jobs.extend(one["reference"] for one in json.load(member)["builds"])
        return {"built": jobs, "failed": {}, **outcome}

    monkeypatch.setattr(detached_job, "run_job", carry_out)
    return build.run(None, {}), jobs


@pytest.mark.parametrize("check_mode", [False, True], ids=["for real", "in check mode"])
def test_an_image_that_the_driver_cannot_run_is_a_conflict_and_others_are_built(
    monkeypatch: pytest.MonkeyPatch, check_mode: bool
) -> None:
    result, built = build_images(monkeypatch, OLD_DRIVER, check_mode)
    assert built == ([] if check_mode else ["slipway/jupyter:gpu"])
    assert (result["failed"], result["changed"]) == (True, True)
    (conflict,) = result["conflicts"]
    assert conflict["name"] == "slipway/pytorch:gpu"
    assert conflict["reason"].startswith("image slipway/pytorch:gpu contains CUDA 13.")
    assert result["msg"] == conflict["reason"]


def test_a_failed_build_beside_a_conflict_stops_the_role(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"slipway/jupyter:gpu": "no network"}
    result, _built = build_images(monkeypatch, OLD_DRIVER, failed=failed)
    # The role goes on only with the key conflicts.
    assert "conflicts" not in result
    first, second = result["msg"].splitlines()
    assert first == "slipway/jupyter:gpu: no network"
    assert second.startswith("image slipway/pytorch:gpu contains CUDA 13.")


def test_images_builds_releases_of_cuda_that_the_driver_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, _built = build_images(monkeypatch, facts("t4", loaded="580.65.06"))
    assert result["built"] == ["slipway/jupyter:gpu", "slipway/pytorch:gpu"]
    assert (result["failed"], result["conflicts"]) == (False, [])
