# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks: pins, changes, the source of PyTorch, and known problems of packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images.architectures import (
    ARCHITECTURES,
)
from ansible_collections.slipway.host.plugins.module_utils.images.catalogue import (
    Catalogue,
    load_catalogue,
)
from ansible_collections.slipway.host.plugins.module_utils.images.locks import (
    Pin,
    added_pins,
    cuda_release,
    describe_changes,
    left_behind,
    moved_back,
    read_pins,
    use_cpu_wheels,
    version_for,
    write_pins,
)
from ansible_collections.slipway.host.plugins.module_utils.images.template_variables import (
    release,
)
from ansible_collections.slipway.host.plugins.module_utils.images.types import VARIANTS

IMAGES = Path(__file__).parents[2] / "images"
PYTHONS = ("3.11", "3.12", "3.13")


def lock(*requirements: str) -> str:
    return "".join(
        f"{line} \\\n    --hash=sha256:{n:064d}\n" for n, line in enumerate(requirements)
    )


def names(text: str) -> list[str]:
    return [pin.name for pin in read_pins(text)]


def test_a_lock_is_read_with_markers_and_hashes_without_comments() -> None:
    text = (
        "# remark\n"
        "Numpy_X==2.4.6 ; python_full_version < '3.12' \\\n"
        "    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via -r a.in\n"
        "torch==2.13.0+cpu \\\n    --hash=sha256:cc\n"
    )
    numpy, torch = read_pins(text)
    assert (numpy.name, numpy.version) == ("numpy-x", "2.4.6")
    assert numpy.marker == "python_full_version < '3.12'"
    assert (torch.version, torch.marker) == ("2.13.0+cpu", "")
    assert str(numpy) == "numpy-x==2.4.6 ; python_full_version < '3.12'"
    assert write_pins([torch]) == "torch==2.13.0+cpu \\\n    --hash=sha256:cc\n"


def test_an_image_locks_only_packages_that_the_image_below_lacks() -> None:
    below = read_pins(lock("a==1", "b==1 ; python_full_version < '3.12'"))
    pins = read_pins(lock("a==1", "b==1", "c==1"))
    assert [str(pin) for pin in added_pins(pins, below)] == ["b==1", "c==1"]


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        pytest.param(["a==1"], ["a==1"], [], id="nothing"),
        pytest.param(["a==1"], ["a==2"], ["a: 1 -> 2"], id="moved"),
        pytest.param([], ["a==2"], ["a: new, 2"], id="new"),
        pytest.param(["a==1"], [], ["a: gone, was 1"], id="gone"),
        pytest.param(
            ["a==1"],
            ["a==1 ; python_full_version < '3.12'", "a==2 ; python_full_version >= '3.12'"],
            ["a: 1 -> 1 / 2"],
            id="split",
        ),
    ],
)
def test_changes_of_a_lock_are_listed(
    before: list[str], after: list[str], lines: list[str]
) -> None:
    assert describe_changes(read_pins(lock(*before)), read_pins(lock(*after))) == lines


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        pytest.param(["a==1"], ["a==2"], [], id="newer"),
        pytest.param(
            ["gensim==4.4.0"], ["gensim==0.10.1"], ["gensim: 4.4.0 -> 0.10.1"], id="older"
        ),
        pytest.param(["a==1.10"], ["a==1.9"], ["a: 1.10 -> 1.9"], id="versions are no texts"),
        pytest.param(["a==1"], ["a==1 ; python_full_version < '3.12'", "a==2"], [], id="split"),
        pytest.param(["a==1"], ["b==1"], [], id="gone"),
    ],
)
def test_packages_that_moved_back(before: list[str], after: list[str], lines: list[str]) -> None:
    assert moved_back(read_pins(lock(*before)), read_pins(lock(*after))) == lines


@pytest.mark.parametrize(
    ("locked", "available", "lines"),
    [
        pytest.param("2.3.0", "2.15", [], id="same series"),
        pytest.param("1.9", "2.0", ["a: 1.9, available is 2.0"], id="older series"),
        pytest.param("0.5.0.post1", "0.33", ["a: 0.5.0.post1, available is 0.33"], id="0 first"),
        pytest.param("0.33.1", "0.33.2", [], id="same series after 0"),
        pytest.param("3", "2", [], id="newer"),
        pytest.param("2026.1", "2026.11", [], id="a year"),
    ],
)
def test_packages_that_are_left_behind(locked: str, available: str, lines: list[str]) -> None:
    assert left_behind(read_pins(lock(f"a=={locked}")), read_pins(lock(f"a=={available}"))) == lines
    assert left_behind([], read_pins(lock("a==1"))) == []


@pytest.mark.parametrize(
    ("requirements", "python", "version"),
    [
        pytest.param(["a==1"], "3.13", "1", id="everywhere"),
        pytest.param(
            ["a==1 ; python_full_version < '3.12'", "a==2 ; python_full_version >= '3.12'"],
            "3.11",
            "1",
            id="old",
        ),
        pytest.param(
            ["a==1 ; python_full_version < '3.12'", "a==2 ; python_full_version >= '3.12'"],
            "3.12",
            "2",
            id="new",
        ),
        pytest.param(["a==1 ; sys_platform == 'win32'"], "3.13", None, id="elsewhere"),
        pytest.param(["a==1 ; platform_machine != 'x86_64'"], "3.13", None, id="another machine"),
        pytest.param(["b==1"], "3.13", None, id="another"),
    ],
)
def test_the_version_of_a_package_for_a_python(
    requirements: list[str], python: str, version: str | None
) -> None:
    assert version_for(read_pins(lock(*requirements)), "a", python, "x86_64") == version


CUDA = (
    *("cuda-toolkit==13.2.2", "nvidia-cuda-runtime==13.2.86", "nvidia-nccl-cu13==2.30.7"),
    *("torch==2.15.0", "torchvision==0.29.2", "triton==3.9.0"),
)
CPU_TORCH = lock("torch==2.15.0+cpu", "torchvision==0.29.2+cpu")


def test_cpu_wheels_replace_pytorch_and_cuda_is_removed() -> None:
    text = use_cpu_wheels(lock("absl-py==2", *CUDA, "werkzeug==3"), CPU_TORCH)
    assert [str(pin) for pin in read_pins(text)] == [
        "absl-py==2",
        "torch==2.15.0+cpu",
        "torchvision==0.29.2+cpu",
        "werkzeug==3",
    ]


def test_torchvision_for_cuda_is_removed_without_a_cpu_wheel() -> None:
    """Known problem: `operator torchvision::nms does not exist` with torch for CPUs."""
    text = use_cpu_wheels(lock(*CUDA), lock("torch==2.13.0+cpu"))
    assert names(text) == ["torch"]


def test_cpu_wheels_add_no_package() -> None:
    assert names(use_cpu_wheels(lock("torch==2.15.0"), CPU_TORCH)) == ["torch"]
    plain = "# a remark\n" + lock("flask==3")
    assert use_cpu_wheels(plain, CPU_TORCH) == plain


@pytest.mark.parametrize(
    ("requirements", "release"),
    [
        (["nvidia-cuda-runtime==13.2.86"], "13.2"),
        (["nvidia-cuda-runtime-cu12==12.9.79"], "12.9"),
        (["nvidia-cuda-nvrtc==13.2.86", "torch==2.15.0"], None),
    ],
)
def test_the_release_of_cuda_is_that_of_its_runtime(
    requirements: list[str], release: str | None
) -> None:
    assert cuda_release(read_pins(lock(*requirements))) == release


# The locks of the catalogue, with every Python of the bases.


def lines() -> Iterator[tuple[str, str, tuple[Pin, ...], str]]:
    """Yield each image and variant with all the pins of its line of images, for each Python."""
    catalogue = load_catalogue(IMAGES)
    for name, image in catalogue.images.items():
        for variant in sorted(set(VARIANTS) & set(image.settings["variants"])):
            if image.base not in catalogue.bases or catalogue.bases[image.base].python:
                pins = catalogue.builds([name], variant, _base(catalogue, name))[-1].pins
                for python in PYTHONS:
                    if release(python) >= release(image.settings["oldest_python"]):
                        yield name, variant, pins, python


def _base(catalogue: Catalogue, name: str) -> str:
    root = catalogue.lineage(name)[-1].base
    return root if root in catalogue.bases else catalogue.default_base


LINES = [pytest.param(*line, id=f"{line[0]}-{line[1]}-{line[3]}") for line in lines() if line[2]]


def held(pins: tuple[Pin, ...], python: str, machine: str) -> dict[str, str]:
    """Return the version of each package in an environment of this Python and architecture."""
    found = {pin.name: version_for(pins, pin.name, python, machine) for pin in pins}
    return {name: version for name, version in found.items() if version}


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(("name", "variant", "pins", "python"), LINES)
def test_no_image_has_a_known_problem(
    name: str, variant: str, pins: tuple[Pin, ...], python: str, machine: str
) -> None:
    packages = held(pins, python, machine)
    runtimes = [package for package in packages if re.match(r"nvidia-cuda-runtime", package)]
    assert len(runtimes) <= 1, f"two CUDAs: {runtimes}"
    nccl = [package for package in packages if package.startswith("nvidia-nccl-")]
    assert len(nccl) <= 1, f"two NCCLs: {nccl}"
    if "tensorflow" in packages and "torch" in packages:
        assert "nvidia-cublas-cu12" not in packages, "TensorFlow's CUDA beside PyTorch's"
    if variant == "cpu" and machine == "x86_64":
        assert "tensorflow" not in packages and "xgboost" not in packages, "built for GPUs"
    if "gensim" in packages:
        assert int(packages["gensim"].split(".")[0]) >= 4, "the last gensim without compiled code"
    if "pystan" in packages and python == "3.11":
        assert int(packages["setuptools"].split(".")[0]) < 82, "PyStan 3.10 needs pkg_resources"


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(("name", "variant", "pins", "python"), LINES)
def test_a_package_has_one_version_in_a_line_of_images(
    name: str, variant: str, pins: tuple[Pin, ...], python: str, machine: str
) -> None:
    ordered = sorted(pins, key=lambda pin: pin.name)
    for package, group in groupby(ordered, key=lambda pin: pin.name):
        versions = {version_for([pin], package, python, machine) for pin in group} - {None}
        assert len(versions) <= 1, f"{package}: {versions}"
