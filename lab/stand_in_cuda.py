# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for libcuda.so.1, compiled from stand_in_cuda.c."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "stand_in_cuda.c"
LIBRARY = "libcuda.so.1"
# Where packages install the library on hosts.
INSTALLED = f"/usr/lib/{platform.machine()}-linux-gnu/{LIBRARY}"
FLAGS = (
    *("-std=gnu11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror"),
)


def has_compiler() -> bool:
    """Return whether this machine has gcc."""
    return shutil.which("gcc") is not None


def build(folder: Path) -> Path:
    """Compile the library into FOLDER; return its file. Raises CalledProcessError."""
    file = folder / LIBRARY
    command = ["gcc", *FLAGS, f"-Wl,-soname,{LIBRARY}", "-o", str(file), str(SOURCE)]
    subprocess.run(command, check=True)
    return file


@cache
def content() -> bytes:
    """Return the compiled library, for a stand-in package. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        return build(Path(folder)).read_bytes()
