# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions of the stand-in packages and of the simulated kernels."""

from __future__ import annotations

from collections.abc import Mapping

# Two versions of each branch, the older one first.
BRANCHES: Mapping[int, tuple[str, str]] = {
    470: ("470.256.01", "470.256.02"),
    580: ("580.173.02", "580.178.04"),
    595: ("595.84.01", "595.91.07"),
}
DEBIAN_VERSIONS = ("550.163.00", "550.163.01")
TOOLKIT_VERSIONS = ("1.20.0", "1.20.1")
UBUNTU_KERNEL, UBUNTU_KERNEL_PACKAGE = "6.8.0-149-generic", "6.8.0-149.149"
# A kernel of NVIDIA's DGX Spark.
SPARK_KERNEL = "6.17.0-1014-nvidia"


def debian_kernel(architecture: str) -> str:
    """Return the release of Debian's kernel for a dpkg architecture."""
    return f"6.12.57+deb13-{architecture}"
