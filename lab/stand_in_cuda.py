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
FLAGS = (
    *("-std=gnu11", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Wextra", "-Werror"),
)


def has_compiler() -> bool:
    """Return whether this machine has gcc."""
    return shutil.which("gcc") is not None


def compiler(machine: str) -> str:
    """Return the name of the compiler for a machine, such as aarch64."""
    return "gcc" if machine == platform.machine() else f"{machine}-linux-gnu-gcc"


def build(folder: Path, machine: str = platform.machine()) -> Path:
    """Compile the library into FOLDER; return its file. Raises CalledProcessError."""
    file = folder / LIBRARY
    command = [compiler(machine), *FLAGS, f"-Wl,-soname,{LIBRARY}", "-o", str(file), str(SOURCE)]
    subprocess.run(command, check=True)
    return file


def installed(machine: str) -> str:
    """Return the path where packages install the library on hosts."""
    return f"/usr/lib/{machine}-linux-gnu/{LIBRARY}"


@cache
def content(machine: str) -> bytes:
    """Return the compiled library, for a stand-in package. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        return build(Path(folder), machine).read_bytes()
