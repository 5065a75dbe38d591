# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue compared with the images of a host, as the engine reports them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.docker import labels as docker_labels
from ansible_collections.slipway.host.plugins.module_utils.images import listing
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild

from tests.contract.tree import ROOT

JUPYTER, PYTORCH = "slipway/jupyter:cpu", "slipway/pytorch:cpu"


@pytest.fixture(scope="module")
def builds() -> list[ImageBuild]:
    return load_catalogue(ROOT / "images").builds(["pytorch"], "cpu", "debian-13")


def inspected(identity: str, size: int, *tags: str) -> dict[str, Any]:
    """Return the fields of `docker image inspect` that are read."""
    labels = {docker_labels.IMAGE: "any", docker_labels.DIGEST: "a claim"}
    return {"Id": identity, "RepoTags": list(tags), "Size": size, "Config": {"Labels": labels}}


def recorded(reference: str, digest: str, identity: str = "", **details: Any) -> dict[str, Any]:
    """Return a record of an image; the default of its content ID is its digest."""
    return {"reference": reference, "digest": digest, "id": identity or digest, **details}


def answer(images: list[dict[str, Any]], *records: Mapping[str, Any]) -> str:
    """Return the answer of a host to QUESTION."""
    told = [f"{listing.SEPARATOR}\n{json.dumps(record)}\n" for record in records]
    return json.dumps(images) + "\n" + "".join(told)


def rows(builds: list[ImageBuild], text: str, *declared: str) -> dict[str, listing.Row]:
    held = listing.read_answer(text)
    return {row.reference: row for row in listing.compare(builds, held, declared)}


def test_the_answer_of_a_host_has_images_and_build_records() -> None:
    details: dict[str, Any] = {"build_seconds": 61.5, "smoke_seconds": 46.0, "proven": ["smoke: a"]}
    record = recorded(PYTORCH, "d1", **details)
    held = listing.read_answer(
        answer(
            [inspected("d1", 2000, PYTORCH), inspected("d2", 900, JUPYTER)],
            record,
            {"digest": "d2"},
        )
    )
    assert held[PYTORCH] == listing.HostImage(PYTORCH, 2000, record)
    # A record of an old version has no content ID.
    assert held[JUPYTER] == listing.HostImage(JUPYTER, 900, {})


def test_each_tag_of_an_image_is_listed_and_untagged_images_are_not() -> None:
    held = listing.read_answer(
        answer([inspected("d", 9, JUPYTER, "registry.example/jupyter:cpu"), inspected("e", 9)])
    )
    assert set(held) == {JUPYTER, "registry.example/jupyter:cpu"}


@pytest.mark.parametrize("text", ["", "permission denied", '[]\n-- records\n{"digest'])
def test_no_answer_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        listing.read_answer(text)


def test_images_are_current_outdated_missing_or_unknown(builds: list[ImageBuild]) -> None:
    jupyter, _ = builds
    images = [inspected(jupyter.digest, 900, JUPYTER), inspected("old", 2000, PYTORCH)]
    records = [recorded(JUPYTER, jupyter.digest), recorded(PYTORCH, "old")]
    images.append(inspected("x", 5, "slipway/gone:cpu"))
    found = rows(builds, answer(images, *records), PYTORCH)
    states = {reference: (row.state, row.declared) for reference, row in found.items()}
    assert states == {
        JUPYTER: (listing.CURRENT, False),
        PYTORCH: (listing.OUTDATED, True),
        "slipway/gone:cpu": (listing.UNKNOWN, False),
    }
    assert rows(builds, answer([]))[PYTORCH].state == listing.MISSING


def test_content_that_differs_from_the_record_is_not_current(builds: list[ImageBuild]) -> None:
    record = recorded(JUPYTER, builds[0].digest, "sha256:1")
    found = rows(builds, answer([inspected("sha256:2", 900, JUPYTER)], record))
    assert found[JUPYTER].state == listing.UNRECORDED


def test_the_added_size_excludes_the_image_below(builds: list[ImageBuild]) -> None:
    images = [inspected("a", 900, JUPYTER), inspected("b", 2000, PYTORCH)]
    found = rows(builds, answer(images))
    assert [(found[name].size, found[name].added) for name in (JUPYTER, PYTORCH)] == [
        (900, 900),
        (2000, 1100),
    ]
    # The added size is unknown if the parent is missing: the whole size is shown.
    assert rows(builds, answer([inspected("b", 2000, PYTORCH)]))[PYTORCH].added == 2000


def test_an_image_that_does_not_run_on_the_host_has_a_note(builds: list[ImageBuild]) -> None:
    (_, row) = listing.compare(builds, {}, [], {PYTORCH: "contains CUDA 13.2, which needs ..."})
    assert row.notes[-1] == "contains CUDA 13.2, which needs ..."
    assert row.notes[:-1] == list(builds[1].notes)


def test_unneeded_images_are_removed_before_their_parents(builds: list[ImageBuild]) -> None:
    images = [inspected("a", 900, JUPYTER), inspected("b", 2000, PYTORCH)]
    found = list(rows(builds, answer(images)).values())
    assert list(listing.unneeded(found)) == [PYTORCH, JUPYTER]
    # An image is needed by the images built on it: the catalogue declares both.
    found = list(rows(builds, answer(images), PYTORCH, JUPYTER).values())
    assert list(listing.unneeded(found)) == []
    assert list(listing.unneeded(list(rows(builds, answer([])).values()))) == []


def test_images_of_users_are_not_removed(builds: list[ImageBuild]) -> None:
    """`ml commit` and `docker commit` keep the labels of the source."""
    images = [inspected("a", 900, JUPYTER, "ada/work:1", "registry.example/slipway/jupyter:cpu")]
    images.append(inspected("b", 9, "slipway/renamed:cpu"))
    found = list(rows(builds, answer(images)).values())
    assert list(listing.unneeded(found)) == ["slipway/renamed:cpu", JUPYTER]


TABLE_ROWS = (
    listing.Row(JUPYTER, listing.CURRENT, True, 861_400_000, 861_400_000, 60.4, 22.0, ["a", "b"]),
    listing.Row(PYTORCH, listing.OUTDATED, False, 2_061_000_000, 1_199_600_000),
    listing.Row("slipway/keras:cpu", listing.MISSING, False, notes=["a note"]),
)


def test_the_table_in_the_terminal() -> None:
    assert listing.table(TABLE_ROWS) == "\n".join(
        [
            "image        on the host      size     adds     build  smoke test  proves",
            "jupyter:cpu  current          861 MB   861 MB   60 s   22 s        2 steps",
            "pytorch:cpu  outdated, extra  2061 MB  1200 MB",
            "keras:cpu    missing",
            "slipway/keras:cpu: a note",
        ]
    )


def test_the_table_for_a_documentation_page() -> None:
    """The page lists the images on the host, without the declared state."""
    foreign = listing.Row("slipway/gone:cpu", listing.UNKNOWN, False, 5)
    assert listing.page([*TABLE_ROWS, foreign]).splitlines() == [
        "| image | size | adds | build | smoke test | proves |",
        "| --- | --- | --- | --- | --- | --- |",
        "| jupyter:cpu | 861 MB | 861 MB | 60 s | 22 s | 2 steps |",
        "| pytorch:cpu | 2061 MB | 1200 MB |  |  |  |",
    ]


DOCKER = """#!/bin/sh
case "$*" in
"image ls "*) [ ! -e "$ENGINE/image" ] || printf 'sha256:1\\nsha256:1\\n' ;;
"image inspect sha256:1") cat "$ENGINE/image" ;;
*) echo "not asked for: $*" >&2 && exit 1 ;;
esac
"""


@pytest.mark.parametrize("holds", [True, False], ids=["an image", "nothing"])
def test_the_question_is_a_valid_shell_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: bool
) -> None:
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "jupyter.json").write_text(
        f'{{"reference": "{JUPYTER}", "id": "d", "digest": "e", "proven": ["smoke: a"]}}'
    )
    (tmp_path / "jupyter.cdx.json").write_text("not a record")
    if holds:
        (tmp_path / "image").write_text(json.dumps([inspected("d", 900, JUPYTER)]))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ENGINE", str(tmp_path))
    question = listing.QUESTION.replace("/var/lib/slipway/images", str(tmp_path))
    done = subprocess.run(["sh", "-c", question], capture_output=True, text=True, check=True)
    held = listing.read_answer(done.stdout)
    assert {reference: image.record.get("proven") for reference, image in held.items()} == (
        {JUPYTER: ["smoke: a"]} if holds else {}
    )
