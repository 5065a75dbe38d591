# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: the tests that need hardware say so where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not Path("/proc/driver/nvidia/version").exists():
        pytest.skip("needs a real NVIDIA GPU; this machine has no NVIDIA driver loaded")
