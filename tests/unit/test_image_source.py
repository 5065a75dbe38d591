# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan says about where the images of a host come from."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images import delivery, record
from ansible_collections.slipway.host.plugins.module_utils.state import containers
from ansible_collections.slipway.host.plugins.plugin_utils import image_source

IRIS, OLD, NEW = "slipway/iris-api:cpu", "1" * 64, "2" * 64
MISSING = {"kind": "images", "name": IRIS, "found": "missing", "expected": "built"}
CHANGED = {**MISSING, "found": "context digest 1", "expected": "2"}
FOLDER = {"kind": "folders", "name": "/f", "found": "missing", "expected": "mode 0755"}
LAYERS = {"aaaa": 54_000_000, "bbbb": 12_000}


def layers(digest: str, *names: str) -> dict[str, Any]:
    return {IRIS: {"digest": digest, "layers": {name: LAYERS[name] for name in names}}}


def survey(position: int, *differences: dict[str, str], **delivery: Any) -> dict[str, Any]:
    defaults = {"builder": ["auto"], "architecture": "x86_64", "ssh": True, "layers": {}}
    return {
        "differences": {"ml_images": list(differences)} if differences else {},
        "images": {IRIS: NEW},
        "delivery": {"position": position, **defaults, **delivery},
    }


READY = survey(0, layers=layers(NEW, "aaaa", "bbbb"))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # A fresh fleet: nobody knows a size before the build.
        (survey(0, MISSING), survey(1, MISSING), "pull from build01"),
        # The builder has another content than the host will get.
        (
            survey(0, CHANGED, layers=layers(OLD, "aaaa")),
            survey(1, CHANGED),
            "2, pull from build01",
        ),
        (READY, survey(1, MISSING), "pull from build01 (54.0 MB)"),
        (
            READY,
            survey(1, CHANGED, layers=layers(OLD, "aaaa")),
            "2, pull from build01 (12.0 kB)",
        ),
        (
            READY,
            survey(1, CHANGED, layers=layers(OLD, "aaaa"), registry="r.example:5000"),
            "2, pull from r.example:5000 (12.0 kB)",
        ),
        (READY, survey(1, MISSING, builder=[]), "built"),
        (READY, survey(1, MISSING, builder=["gpu02"]), "built"),
        (READY, survey(1, MISSING, ssh=False), "built"),
        (survey(2, MISSING), survey(1, MISSING), "built"),
        (survey(0, ssh=False), survey(1, MISSING), "built"),
        (survey(0, architecture="aarch64"), survey(1, MISSING), "built"),
        (None, survey(1, MISSING), "built"),
        # The builder was not looked at: it says itself whether it can build.
        (None, survey(1, MISSING, builder=["build01"]), "pull from build01"),
        (
            survey(0, architecture="aarch64"),
            survey(1, MISSING, builder=["build01"]),
            "built, but ml_images_builder: build01 has the architecture aarch64; expected a host "
            "that builds for gpu02. Correct the list, or set it to [] to build on each host.",
        ),
    ],
)
def test_a_plan_names_the_host_that_an_image_comes_from(
    first: dict[str, Any] | None, second: dict[str, Any], expected: str
) -> None:
    surveys = {"gpu02": second, **({"build01": first} if first else {})}
    surveys = copy.deepcopy(surveys)
    image_source.name_sources(surveys, ())
    (difference,) = surveys["gpu02"]["differences"]["ml_images"]
    assert difference == {**second["differences"]["ml_images"][0], "expected": expected}


def test_a_builder_that_failed_in_this_run_is_no_source() -> None:
    surveys = {"gpu02": survey(1, MISSING, builder=["build01"])}
    ((_host, (difference,)),) = delivery.plan_pulls(surveys, {"build01"}).items()
    assert "build01 failed in this run" in difference["expected"]


def test_differences_of_other_things_stay() -> None:
    surveys = {"gpu02": survey(1, FOLDER, MISSING), "build01": READY}
    folder, image = delivery.plan_pulls(surveys, ())["gpu02"]
    assert folder == FOLDER
    assert image["expected"] == "pull from build01 (54.0 MB)"


def test_nothing_is_planned_without_drift_of_images() -> None:
    assert delivery.plan_pulls({"gpu02": survey(1), "build01": READY}, ()) == {}
    assert delivery.plan_pulls({"gpu02": survey(1, FOLDER), "build01": READY}, ()) == {}


def test_layers_are_those_of_the_recorded_content() -> None:
    found = {"digest": NEW, "id": "sha256:c", "layers": {"aaaa": 1}}
    answer = {
        "a": ["sha256:c", found],
        "other content": ["sha256:d", found],
        "no tag": ["", found],
        "no layers": ["sha256:c", {"id": "sha256:c", "digest": NEW}],
        "missing": None,
    }
    assert delivery.recorded_layers(answer) == {"a": {"digest": NEW, "layers": {"aaaa": 1}}}
    assert delivery.recorded_layers(None) == {}


def test_the_builder_records_the_layers_that_it_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path))
    path = Path(containers.image_record_path(IRIS))
    record.add_layers(IRIS, {"sha256:aaaa": 5})
    assert not path.exists()
    content = record.Content("sha256:c", {}, None)
    record.write_record(IRIS, content, NEW, record.BUILT)
    record.add_layers(IRIS, {f"sha256:{'a' * 64}": 5})
    assert containers.read_image_record(IRIS)["layers"] == {"a" * 12: 5}
    written = json.loads(path.read_text())
    assert (written["id"], written["origin"], written["replaced"]) == ("sha256:c", "built", [])


@pytest.mark.parametrize("hostile", [["sha256:a"], {"a": []}, {"a": None}, "a", 7])
def test_a_record_with_other_layers_has_no_known_size(
    hostile: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "IMAGE_RECORDS", str(tmp_path))
    path = Path(containers.image_record_path(IRIS))
    path.write_text(json.dumps({"digest": NEW, "id": "sha256:c", "layers": hostile}))
    found = containers.read_image_record(IRIS)
    answer = {IRIS: [found.get("id", ""), found]}
    assert delivery.recorded_layers(answer) == {}
