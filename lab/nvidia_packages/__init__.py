# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for NVIDIA's packages: real names, versions and dependencies, without a driver.

Names and dependencies follow the package indexes of Ubuntu, Debian and NVIDIA of November 2026. A
kernel module is an ELF file with a module description only, so that depmod and modinfo read it like
a real module. Every program in the packages identifies itself as a stand-in.
"""

from lab.nvidia_packages.cuda import cuda_ubuntu
from lab.nvidia_packages.debian import debian
from lab.nvidia_packages.toolkit import toolkit
from lab.nvidia_packages.ubuntu import ubuntu
from lab.nvidia_packages.versions import (
    BRANCHES,
    DEBIAN_VERSIONS,
    SPARK_KERNEL,
    TOOLKIT_VERSIONS,
    UBUNTU_KERNEL,
    UBUNTU_KERNEL_PACKAGE,
    debian_kernel,
)

__all__ = [
    "BRANCHES",
    "DEBIAN_VERSIONS",
    "SPARK_KERNEL",
    "TOOLKIT_VERSIONS",
    "UBUNTU_KERNEL",
    "UBUNTU_KERNEL_PACKAGE",
    "cuda_ubuntu",
    "debian",
    "debian_kernel",
    "toolkit",
    "ubuntu",
]
