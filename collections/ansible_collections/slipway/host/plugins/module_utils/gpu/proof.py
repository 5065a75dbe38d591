# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove that the host and a container compute on all GPUs, also after `systemctl daemon-reload`.

The computation is the CUDA check of the package ``gpu``. `systemctl daemon-reload` removes the GPUs
from containers whose engine does not know the devices. So the check reloads systemd while its own
container uses the GPUs. That container consists of files of the host: the Python that runs this
module, and the libraries of nvidia-smi. It needs no image and no registry. The container runtime
adds the driver's libraries together with the GPUs.

Private to the collection.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_bundle,
    cuda_judge,
    driver_packages,
)
from ansible_collections.slipway.host.plugins.module_utils.state import containers, packages

# Marks the container and the image of an interrupted check; the container ends by itself.
LABEL = f"{labels.PROOF}=gpu"
LIFETIME = "600"
TIMEOUT = 120
HOLDER = "sleep"
SMI = "nvidia-smi"
TOOLKIT = "nvidia-ctk"
TOOLKIT_PACKAGE = "nvidia-container-toolkit"

BY_CDI = ("--device", "nvidia.com/gpu=all")
# A list of capabilities is one quoted field of the option, which is read as CSV.
BY_HOOK = ("--gpus", 'all,"capabilities=compute,utility"')
ADVICE: Mapping[tuple[str, ...], str] = {
    BY_CDI: "Regenerate the CDI specification: systemctl restart nvidia-cdi-refresh. Check that "
    "`nvidia-ctk cdi list` shows nvidia.com/gpu=all, then run again",
    BY_HOOK: "With Docker Engine 25.0 or newer, set features.cdi to true in "
    "/etc/docker/daemon.json; with an older engine, set native.cgroupdriver=cgroupfs",
}
# The CUDA check: its file in the container, memory to test per GPU in MiB, time limit in s.
CHECK = "/slipway/cuda_check.pyz"
CHECK_MEMORY_MIB = 64
CHECK_SECONDS = 300
# Memory that is tested in a second, at least; a simulated GPU is the slowest.
SLOWEST_MIB_PER_SECOND = 16
# Folders of the standard library that the CUDA check never imports.
UNUSED = ("__pycache__", "dist-packages", "site-packages", "test", "tests", "idlelib", "ensurepip")
# On hosts with a merged /usr, these are symbolic links.
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")


def has_driver(facts: Mapping[str, Any]) -> bool:
    """Return whether packages of a driver are installed on the host.

    A loaded kernel module counts for nothing: it outlives the removal of its packages.
    """
    return bool(driver_packages.installed_driver_packages(facts))


def has_toolkit() -> bool:
    """Return whether the package of the container toolkit is installed."""
    found = packages.ask_packages([TOOLKIT_PACKAGE])[TOOLKIT_PACKAGE]
    return bool(found and found[1] == "installed")


def _require(program: str, package: str) -> None:
    if not shutil.which(program):
        raise ValueError(
            f"{program} not found in {os.environ.get('PATH', '')}; expected the program of "
            f"{package}. Find its package: dpkg --search bin/{program}. Reinstall the package: "
            "apt-get install --reinstall --allow-change-held-packages PACKAGE"
        )


def check_host(expected: int, required: bool) -> str:
    """Check that nvidia-smi lists the EXPECTED number of GPUs; raise ValueError if not.

    REQUIRED says whether the host must have a driver.
    """
    if required:
        _require(SMI, "the NVIDIA driver")
    elif not shutil.which(SMI):
        return "not applicable: no driver is declared or installed"
    count, details = _count_gpus([])
    if count != expected:
        raise ValueError(
            f"{SMI} lists {count} of {expected} GPUs{details}; expected all of them. See the "
            "kernel's log: journalctl -k --grep 'NVRM|Xid'"
        )
    return f"{SMI} lists {count} of {expected}"


def compute_on_host(
    addresses: Sequence[str], memory_mib: int = CHECK_MEMORY_MIB, load_seconds: int = 0
) -> str:
    """Compute on the GPUs with these PCI ADDRESSES; raise ValueError if a check fails.

    MEMORY_MIB is the memory to test per GPU. LOAD_SECONDS keeps all GPUs busy afterwards.
    """
    if not shutil.which(SMI):
        return "not applicable: no driver is declared or installed"
    with tempfile.NamedTemporaryFile(suffix=".pyz") as program:
        program.write(cuda_bundle.bundle())
        program.flush()
        command = [sys.executable, "-I", "-S", program.name]
        return _run_cuda_check(command, ",".join(addresses), memory_mib, load_seconds)


def _run_cuda_check(
    command: Sequence[str],
    expected: str,
    memory_mib: int = CHECK_MEMORY_MIB,
    load_seconds: int = 0,
    *options: str,
) -> str:
    """Run the CUDA check by a COMMAND; return its result, raise ValueError if a check fails.

    EXPECTED is the number of GPUs, or their PCI addresses.
    """
    count = int(expected) if expected.isdigit() else expected.count(",") + 1
    seconds = CHECK_SECONDS + memory_mib * count // SLOWEST_MIB_PER_SECOND
    limits = ["--memory-mib", str(memory_mib), "--timeout", str(seconds)]
    limits += ["--load-seconds", str(load_seconds)] * bool(load_seconds)
    done = subprocess.run(
        [*command, "--expect", expected, *limits, *options],
        capture_output=True,
        text=True,
        errors="replace",
        # The check ends by itself at its own limit.
        timeout=seconds + load_seconds + TIMEOUT,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        output = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise ValueError(f"The CUDA check wrote no report: {output}") from None
    if not report["ok"]:
        raise ValueError(" ".join(cuda_judge.failures(report)))
    return summary(report)


def summary(report: Mapping[str, Any]) -> str:
    """Return a passed report of the CUDA check in one line."""
    driver = "a stand-in driver" if report["driver"]["stand_in"] else "the driver"
    speeds = [copy["gigabytes_per_second"] for copy in report["copies"]]
    slowest = f", slowest copy {min(speeds):.1f} GB/s" if speeds else ""
    return (
        f"{len(report['gpus'])} computed correctly with {driver}, CUDA "
        f"{report['driver']['cuda_version']}, {len(report['checks'])} checks in "
        f"{report['seconds']:.1f} s{slowest}{_loads(report)}"
    )


def _loads(report: Mapping[str, Any]) -> str:
    """Return what each GPU did under load, empty without a load."""
    loads = [check for check in report["checks"] if check["id"] == cuda_judge.LOAD]
    return "".join(f"; GPU {check['gpu']}: {check['found']}" for check in loads)


def check_container(expected: int, reload: bool, required: bool) -> str:
    """Check the GPUs in a container, also after a RELOAD; raise ValueError if one is missing.

    REQUIRED says whether the host must have the container toolkit.
    """
    if required:
        _require(TOOLKIT, "the NVIDIA Container Toolkit")
    if not (shutil.which(SMI) and shutil.which(TOOLKIT)):
        return "not applicable: driver and container toolkit are not both declared or installed"
    info = containers.ask_engine("/info")
    by_cdi = bool(info.get("CDISpecDirs"))
    options = BY_CDI if by_cdi else BY_HOOK
    method = f"{'CDI' if by_cdi else '--gpus'} on engine {info['ServerVersion']}, cgroup driver "
    method += str(info["CgroupDriver"])
    affected = _containers_with_hook() if reload and info["CgroupDriver"] == "systemd" else []
    with _container(options) as container:
        _expect_all_gpus(container, expected, "a new container", method, options)
        result = _compute_in_container(container, expected, method, options)
        summary = f"a container lists {expected} of {expected} by {method}: {result}"
        if not reload:
            return f"{summary}; skipped systemctl daemon-reload"
        if affected:
            return (
                f"{summary}; skipped systemctl daemon-reload: containers {', '.join(affected)}, "
                f"started with --gpus, would lose their GPUs. Restart them with {' '.join(options)}"
            )
        _run(["systemctl", "daemon-reload"])
        after = "after systemctl daemon-reload the same container"
        _expect_all_gpus(container, expected, after, method, options)
    return f"{summary}, also after systemctl daemon-reload"


def _expect_all_gpus(
    container: str, expected: int, description: str, method: str, options: tuple[str, ...]
) -> None:
    count, details = _count_gpus(["docker", "exec", container])
    if count != expected:
        raise ValueError(
            f"{description} lists {count} of {expected} GPUs{details}; expected all of them. GPUs "
            f"are added by {method}. {ADVICE[options]}"
        )


def _compute_in_container(
    container: str, expected: int, method: str, options: tuple[str, ...]
) -> str:
    """Compute on the GPUs of a CONTAINER; raise ValueError if a check fails."""
    program = ["docker", "exec", container, container_python(), "-I", "-S", CHECK]
    try:
        return _run_cuda_check(program, str(expected), CHECK_MEMORY_MIB, 0, "--container")
    except ValueError as error:
        raise ValueError(
            f"a new container cannot compute: {error} GPUs are added by {method}. {ADVICE[options]}"
        ) from None


def _count_gpus(prefix: Sequence[str]) -> tuple[int, str]:
    """Run nvidia-smi with a command PREFIX; return the number of GPUs and its other messages."""
    done = subprocess.run(
        [*prefix, SMI, "-L"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    # A slice of a GPU (MIG) is listed below its GPU, indented.
    gpus = [line for line in lines if re.match(r"GPU \d+:", line)]
    others = [line.strip() for line in lines if not re.match(r"GPU \d+:|\s+MIG ", line)]
    if done.returncode != 0:
        return 0, f" ({'; '.join(others) or f'exit status {done.returncode}'})"
    return len(gpus), f" ({'; '.join(others)})" if others else ""


def _containers_with_hook() -> list[str]:
    """Return the running containers that lose their GPUs when systemd reloads."""
    affected = []
    for running in containers.ask_engine("/containers/json"):
        try:
            host = containers.ask_engine(f"/containers/{running['Id']}/json")["HostConfig"]
        except ValueError:
            # The container was removed in the meantime.
            continue
        by_hook = any(map(_is_for_hook, host.get("DeviceRequests") or ()))
        if by_hook or host.get("Runtime") == "nvidia":
            affected.append(running["Names"][0].lstrip("/"))
    return affected


def _is_for_hook(request: Mapping[str, Any]) -> bool:
    """Return whether a container's device REQUEST comes from the option --gpus."""
    capability_sets = request.get("Capabilities") or ()
    return request.get("Driver") != "cdi" and any("gpu" in names for names in capability_sets)


# --- the container -----------------------------------------------------------------------------


@contextmanager
def _container(gpu_options: Sequence[str]) -> Iterator[str]:
    """Run an idle container with the GPUs; remove container and image afterwards."""
    image = _run(["docker", "import", "--change", f"LABEL {LABEL}", "-"], pack_root())
    try:
        options = ["--rm", "--detach", "--network", "none", "--label", LABEL, *gpu_options]
        try:
            container = _run(["docker", "run", *options, image, HOLDER, LIFETIME])
        except ValueError as error:
            raise ValueError(f"{error}. {ADVICE[tuple(gpu_options)]}") from None
        try:
            yield container
        finally:
            _run(["docker", "rm", "--force", container])
    finally:
        _run(["docker", "image", "rm", image])


def _run(command: Sequence[str], stdin: bytes = b"") -> str:
    """Run a COMMAND and return its output; raise ValueError with its errors if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT, check=False)
    if done.returncode != 0:
        details = done.stderr.decode("utf-8", "replace").strip() or f"status {done.returncode}"
        raise ValueError(f"{' '.join(command[:2])} failed: {details}")
    return done.stdout.decode("utf-8", "replace").strip()


def container_python() -> str:
    """Return the path of the Python that runs this module; it is copied into the container."""
    return str(Path(sys.executable).resolve())


def pack_root() -> bytes:
    """Return the container's files as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for link in ROOT_LINKS:
            if Path("/", link).is_symlink():
                tar.add(f"/{link}", arcname=link, recursive=False)
        for path in sorted(set(_files())):
            # Keep the name of a link: `sleep` may be a link to a program with many functions.
            name = Path(path).parent.resolve() / Path(path).name
            info = tar.gettarinfo(str(Path(path).resolve()), arcname=str(name)[1:])
            with Path(path).open("rb") as content:
                tar.addfile(info, content)
        program = cuda_bundle.bundle()
        info = tarfile.TarInfo(CHECK[1:])
        info.size = len(program)
        tar.addfile(info, io.BytesIO(program))
    return archive.getvalue()


def _files() -> Iterable[str]:
    """Yield the container's files: programs, their libraries and the standard library of Python."""
    holder, smi = (shutil.which(name) or name for name in (HOLDER, SMI))
    programs = [holder, container_python(), *_interpreter(smi)]
    yield from programs
    for program in (*programs, smi, *_ctypes()):
        yield from _libraries(program)
    for folder in dict.fromkeys((sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))):
        yield from _standard_library(Path(folder))


def _standard_library(folder: Path) -> Iterable[str]:
    """Yield the files of a FOLDER of Python's standard library that the CUDA check may import."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in UNUSED and not path.name.startswith("config-"):
            yield from _standard_library(path)
        elif path.suffix in (".py", ".so") and path.is_file():
            yield str(path)


def _ctypes() -> list[str]:
    """Return the file of the extension module _ctypes, none if it is built into Python."""
    import _ctypes

    file = getattr(_ctypes, "__file__", None)
    return [file] if file else []


def _interpreter(program: str) -> list[str]:
    """Return the interpreter of a PROGRAM that is a script, none for a binary."""
    with Path(program).open("rb") as stream:
        first = stream.readline(256)
    return first[2:].decode("ascii", "replace").split()[:1] if first.startswith(b"#!") else []


def _libraries(program: str) -> list[str]:
    """Return the shared libraries that a PROGRAM links to, and its loader."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(?:=> |^\s*)(/\S+) \(0x", done.stdout, re.MULTILINE)
