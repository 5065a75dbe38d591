# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that a host can run: architectures, releases of CUDA, and the messages for others."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.action import survey
from ansible_collections.slipway.host.plugins.module_utils.images import fit
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import load_catalogue
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import model

from tests.contract.tree import ROOT
from tests.unit.gpu_facts import facts

H100, V100, GTX_1080 = 0x2330, 0x1DB4, 0x1B80


@pytest.mark.parametrize(
    ("cuda", "driver", "gpus", "words"),
    [
        pytest.param("13.2", "580.65.06", [H100], [], id="the oldest driver for 13"),
        pytest.param("13.2", "610.43.02", [H100], [], id="a newer driver"),
        pytest.param(
            "13.2",
            "575.57.08",
            [H100],
            ["contains CUDA 13.2", "needs NVIDIA driver 580 or newer", "the host runs 575.57.08"],
            id="one branch too old for 13",
        ),
        pytest.param("12.5", "525.60.13", [H100], [], id="the oldest driver for 12"),
        pytest.param("12.9", "520.61.05", [H100], ["driver 525 or newer"], id="too old for 12"),
        pytest.param("11.8", "450.80.02", [V100], [], id="the oldest driver for 11"),
        pytest.param("11.8", "440.33.01", [V100], ["driver 450 or newer"], id="too old for 11"),
        pytest.param("10.2", "440.33.01", [V100], ["driver 450"], id="older than the table"),
        pytest.param("14.0", "575.57.08", [H100], ["driver 580 or newer"], id="newer than it"),
        pytest.param(
            "13.2",
            "580.65.06",
            [H100, V100],
            ["contains CUDA 13.2", "CUDA 12 is the newest release for the host's", "V100"],
            id="one card is too old",
        ),
        pytest.param(
            "13.0", "580.65.06", [GTX_1080], ["CUDA 12 is the newest release"], id="Pascal"
        ),
        pytest.param("12.5", "580.65.06", [V100, GTX_1080], [], id="old cards with their CUDA"),
        pytest.param("13.2", "580.65.06", [], [], id="no card is seen"),
    ],
)
def test_releases_of_cuda_that_drivers_and_gpus_run(
    cuda: str, driver: str, gpus: list[int], words: list[str]
) -> None:
    found = fit.misfit(cuda, driver, gpus)
    assert (found is None) == (not words)
    for word in words:
        assert word in (found or "")


def entries(*names: str, variant: str = "gpu") -> list[dict[str, Any]]:
    """Return images of the catalogue as the role ml_images declares them."""
    names = names or ("pytorch", "iris-api")
    builds = load_catalogue(ROOT / "images").builds(names, variant, "debian-13")
    return list(map(ml_images.image_entry, builds))


def test_images_of_the_catalogue_on_a_host_with_an_old_driver() -> None:
    found = fit.misfits(entries(), facts("t4", loaded="570.211.01"))
    # jupyter, the image below, and iris-api contain no CUDA.
    assert set(found) == {"slipway/pytorch:gpu"}
    assert "the host runs 570.211.01" in found["slipway/pytorch:gpu"]
    assert fit.misfits(entries(), facts("t4", loaded="580.65.06")) == {}


def test_a_host_without_a_driver_builds_all_images() -> None:
    assert fit.misfits(entries(), facts("none")) == {}
    assert fit.misfits(entries(), facts("t4")) == {}


def test_cpu_images_run_with_any_driver() -> None:
    assert fit.misfits(entries(variant="cpu"), facts("t4", loaded="470.1")) == {}


OLD_DRIVER = facts("t4", loaded="570.211.01")
IMAGE = {"reference": "slipway/pytorch:gpu", "digest": "d" * 64, "cuda": "13.0"}


def compare(driver: dict[str, Any], image: Any = None) -> dict[str, model.Comparison]:
    """Return the comparison of an image and of what is on it on a host with an old driver."""
    statements = {
        "nvidia_driver": driver,
        "ml_images": {
            "images": [
                IMAGE,
                {
                    "reference": "slipway/on:gpu",
                    "digest": "e",
                    "needs": [["images", "slipway/pytorch:gpu"]],
                },
                {"reference": "slipway/other:gpu", "digest": "f"},
            ]
        },
    }
    answer = {
        "engine": None,
        "facts": OLD_DRIVER,
        "images": {"slipway/pytorch:gpu": image},
        "packages": {"nvidia-driver": None},
    }
    return survey.compare_with_images(statements, answer, [])


def test_the_survey_shows_what_the_driver_cannot_run_and_what_is_built_on_it() -> None:
    compared = compare({})["ml_images"]
    (conflict,) = compared.conflicts
    assert (conflict.kind, conflict.name) == ("images", "slipway/pytorch:gpu")
    assert conflict.reason.startswith(
        "image slipway/pytorch:gpu contains CUDA 13.0, which needs NVIDIA driver 580 or newer"
    )
    assert conflict.blocks == ("images slipway/on:gpu",)
    assert [one.name for one in compared.differences] == ["slipway/other:gpu"]


def test_an_image_that_is_there_is_no_conflict() -> None:
    present = ["id", {"id": "id", "digest": IMAGE["digest"], "origin": "built", "time": 1}]
    assert compare({}, present)["ml_images"].conflicts == []


def test_a_driver_that_changes_in_the_same_run_is_waited_for() -> None:
    driver = {"packages": [{"name": "nvidia-driver", "state": "present"}]}
    assert compare(driver)["ml_images"].conflicts == []


ARM = {**facts("none"), "architecture": "aarch64"}
RISC = {**facts("none"), "architecture": "riscv64"}


def test_images_that_are_not_built_for_the_architecture_of_a_host() -> None:
    named = ("keras", "pytorch", "legacy-torch7")
    found = fit.misfits(entries(*named), ARM)
    assert set(found) == {
        "slipway/tensorflow:gpu",
        "slipway/keras:gpu",
        "slipway/legacy-torch7:cpu",
    }
    expected = (
        "is not built for aarch64, the architecture of the host: the tensorflow that PyPI has for "
        "aarch64 contains no CUDA. Use the image pytorch, or the cpu variant "
        "(ml_catalogue_variant: cpu)"
    )
    assert found["slipway/keras:gpu"] == found["slipway/tensorflow:gpu"] == expected
    assert set(fit.misfits(entries(*named, variant="cpu"), ARM)) == {"slipway/legacy-torch7:cpu"}
    assert fit.misfits(entries(*named), facts("none")) == {}


def test_no_image_is_built_for_an_unknown_architecture() -> None:
    found = fit.misfits(entries("iris-api"), RISC)
    assert "is not built for riscv64" in found["slipway/iris-api:cpu"]
    assert "expected x86_64 or aarch64" in found["slipway/iris-api:cpu"]


@pytest.mark.parametrize("driver", [{}, {"packages": [{"name": "nvidia-driver"}]}])
def test_the_survey_refuses_an_image_of_another_architecture(driver: dict[str, Any]) -> None:
    statements = {
        "nvidia_driver": driver,
        "ml_images": {"images": entries("tensorflow")},
    }
    answer = {"engine": None, "facts": ARM, "images": {}, "packages": {"nvidia-driver": None}}
    compared = survey.compare_with_images(statements, answer, [])["ml_images"]
    (conflict,) = compared.conflicts
    assert conflict.reason.startswith("image slipway/tensorflow:gpu is not built for aarch64")
    assert [one.name for one in compared.differences] == ["slipway/jupyter:gpu"]
