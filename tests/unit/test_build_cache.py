# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bound of the build cache, with an engine on a socket of this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.images import build_cache
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import containers

from tests.unit.fake_engine import FakeEngine
from tests.unit.gpu_facts import facts
from tests.unit.role_options import options


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 0), ("0B", 0), ("7 kB", 7000), ("50GB", 50 * 10**9), ("1.5TB", 15 * 10**11)],
)
def test_a_size_has_a_unit(text: str, size: int) -> None:
    assert build_cache.parse_size(text) == size


@pytest.mark.parametrize("text", ["50", "50G", "50GiB", "-1GB", "GB", "1,5GB", "50GB\n", "५GB"])
def test_a_wrong_size_is_refused_before_a_change(text: str) -> None:
    asked = options("ml_images", present=[], cache_size=text, ml_catalogue_variant="cpu")
    with pytest.raises(ValueError, match=r"ml_images_cache_size: found .*; expected a number with"):
        ml_images.plan(facts("none"), asked)


Start = Callable[[object], FakeEngine]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setattr(containers, "DOCKER_SOCKET", str(tmp_path / "docker.sock"))

    def start(answer: object) -> FakeEngine:
        return FakeEngine(tmp_path / "docker.sock", {"POST /build/prune": answer})

    return start


def test_engines_of_all_versions_get_the_size(start: Start) -> None:
    engine = start({"CachesDeleted": ["a"], "SpaceReclaimed": 42})
    assert build_cache.shrink(1000) == 42
    assert engine.requests == ["POST /build/prune?keep-storage=1000&max-used-space=1000"]
    engine.close()


@pytest.mark.parametrize("answer", [(500, {"message": "no"}), b"nonsense"])
def test_an_engine_that_cannot_is_an_error(start: Start, answer: object) -> None:
    engine = start(answer)
    with pytest.raises(ValueError, match=r"Docker|Expecting"):
        build_cache.shrink(1000)
    engine.close()


def test_without_an_engine_the_error_is_one_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "DOCKER_SOCKET", str(tmp_path / "none"))
    with pytest.raises(OSError, match="No such file"):
        build_cache.shrink(1000)
