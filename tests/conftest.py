# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: the tests that need hardware say so where it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set, with the stand-in libcuda in LD_LIBRARY_PATH, the tests in tests/gpu run without a GPU.
STAND_IN_GPUS = "SLIPWAY_STAND_IN_GPUS"


def pytest_runtest_setup(item: pytest.Item) -> None:
    loaded = Path("/proc/driver/nvidia/version").exists()
    tried = STAND_IN_GPUS in os.environ and item.path.parent.name == "gpu"
    if item.get_closest_marker("gpu") and not loaded and not tried:
        pytest.skip("needs a real NVIDIA GPU; this machine has no NVIDIA driver loaded")
