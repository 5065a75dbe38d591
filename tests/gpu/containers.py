# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers for the CUDA check without an image: files of the machine, and the GPUs by hand.

The root file system is that of the proof (``gpu.proof.pack_root``). Device files and the driver's
libraries are bind mounts, which is what a CDI specification asks an engine for.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import proof

# The libraries that libcuda.so.1 loads to compile PTX and to talk to the kernel module.
LIBRARIES = (
    "libcuda.so*",
    "libnvidia-ptxjitcompiler.so*",
    "libnvidia-nvvm*.so*",
    "libnvidia-gpucomp.so*",
    "libnvidia-ml.so*",
)
DRIVER = "/opt/driver"
PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# Where the machine's own crun lies, if not on the PATH.
CRUN = "SLIPWAY_CRUN"
LIMIT = 300


def device_files() -> list[str]:
    """Return NVIDIA's device files on this machine."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia*") if path.is_char_device())


def driver_files(library: str) -> dict[str, str]:
    """Return the driver's library files by their path in the container.

    LIBRARY is the path of libcuda on this machine; the others lie beside it.
    """
    folders = {Path(library).parent, Path(library).resolve().parent}
    found = {path for folder in folders for name in LIBRARIES for path in folder.glob(name)}
    return {f"{DRIVER}/{path.name}": str(path.resolve()) for path in sorted(found)}


def unpack_root(folder: Path) -> Path:
    """Unpack the proof's root file system into a FOLDER; return its path."""
    root = folder / "root"
    with tarfile.open(fileobj=io.BytesIO(proof.pack_root())) as tar:
        tar.extractall(root, filter="tar")
    return root


def mounts(library: str, with_gpus: bool) -> dict[str, str]:
    """Return what is bound into the container, as sources by target."""
    devices = [*PLAIN_DEVICES, *(device_files() if with_gpus else ())]
    return {**{device: device for device in devices}, **driver_files(library), "/sys": "/sys"}


def environment() -> dict[str, str]:
    """Return the environment of the program in the container."""
    passed_on = {name: os.environ[name] for name in os.environ if name.startswith("SLIPWAY_STAND")}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": DRIVER, **passed_on}


def command(options: Sequence[str]) -> list[str]:
    """Return the command of the CUDA check in the container."""
    return [proof.container_python(), "-I", "-S", proof.CHECK, "--container", *options]


def oci_config(root: Path, binds: dict[str, str], program: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a container for an OCI runtime."""
    kinds = ("pid", "mount", "ipc", "uts", "network")
    places = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    for target, source in binds.items():
        options = ["rbind", "ro"] if target == "/sys" else ["bind"]
        place = {"destination": target, "type": "bind", "source": source, "options": options}
        places.append(place)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(program),
            "env": [f"{name}={value}" for name, value in environment().items()],
            "cwd": "/",
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": places,
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }


def run_by_crun(folder: Path, library: str, options: Sequence[str], with_gpus: bool) -> str:
    """Run the check in a container of crun; return its output. Raises RuntimeError."""
    crun = os.environ.get(CRUN) or shutil.which("crun") or "crun"
    config = oci_config(unpack_root(folder), mounts(library, with_gpus), command(options))
    (folder / "config.json").write_text(json.dumps(config))
    state = ["--cgroup-manager=disabled", f"--root={folder / 'state'}"]
    run = ["run", f"--bundle={folder}", f"slipway-gpu-test-{os.getpid()}"]
    return _output([*CGROUPS_V2_ONLY, crun, *state, *run])


# crun refuses to run where cgroups of version 1 are in use, even beside version 2. This shows it
# version 2 alone. The container needs no cgroup of its own.
CGROUPS = """\
cgroups=/sys/fs/cgroup
[ "$(stat -f -c %T $cgroups)" = cgroup2fs ] || mount --bind $cgroups/unified $cgroups 2>/dev/null ||
    mount -t cgroup2 none $cgroups
exec "$@"
"""
CGROUPS_V2_ONLY = ("unshare", "--mount", "sh", "-c", CGROUPS, "sh")


def run_by_unshare(folder: Path, library: str, options: Sequence[str], with_gpus: bool) -> str:
    """Run the check in namespaces made by unshare; return its output. Raises RuntimeError."""
    root = unpack_root(folder)
    lines = ["set -e", f"cd {shlex.quote(str(root))}", "mkdir -p proc dev tmp sys"]
    lines += ["mount -t proc proc proc", "mount -t tmpfs tmpfs tmp"]
    # The driver creates missing device files as root; in this folder they cannot be opened.
    lines.append("mount -t tmpfs -o nodev tmpfs dev")
    for target, source in mounts(library, with_gpus).items():
        inner = shlex.quote(target[1:])
        if target != "/sys":
            lines.append(f"mkdir -p {shlex.quote(str(Path(target[1:]).parent))}; : >{inner}")
        lines.append(f"mount --rbind {shlex.quote(source)} {inner}")
    lines.append(shlex.join(["exec", "chroot", ".", *command(options)]))
    script = folder / "container.sh"
    script.write_text("\n".join(lines) + "\n")
    namespaces = ["--mount", "--pid", "--fork", "--ipc", "--uts", "--net"]
    return _output(["unshare", *namespaces, "sh", str(script)], environment())


def _output(program: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """Return what a PROGRAM writes. Raises RuntimeError if it writes no report."""
    done = subprocess.run(
        program, env=variables, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if not done.stdout.lstrip().startswith("{"):
        words = (done.stderr + done.stdout).strip()
        raise RuntimeError(f"{program[0]} wrote no report, exit status {done.returncode}: {words}")
    return done.stdout
