# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prove that the host and a container compute on all GPUs, also after `systemctl daemon-reload`.

The computation is the CUDA check of the package ``gpu``. The reload takes the GPUs from containers
that got them without the engine's knowledge, so it happens while a container of this module holds
them. That container consists of files of the host: the Python that runs this module, and what
nvidia-smi links to. It needs no image and no registry. The driver's libraries come with the GPUs.

Private to the collection.
"""

from __future__ import annotations

import io
import json
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
from ansible_collections.slipway.host.plugins.module_utils.gpu import cuda_bundle, cuda_judge
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import skip_reason
from ansible_collections.slipway.host.plugins.module_utils.state import containers

# By this what an interrupted proof left is known; its container ends by itself.
LABEL = f"{labels.PROOF}=gpu"
LIFETIME = "600"
TIMEOUT = 120
HOLDER = "sleep"
SMI = "nvidia-smi"
TOOLKIT = "nvidia-ctk"

BY_CDI = ("--device", "nvidia.com/gpu=all")
# A list of capabilities is one quoted field of the option, which is read as CSV.
BY_HOOK = ("--gpus", 'all,"capabilities=compute,utility"')
ADVICE: Mapping[tuple[str, ...], str] = {
    BY_CDI: "Have the specification written anew (systemctl restart nvidia-cdi-refresh), see that "
    "`nvidia-ctk cdi list` names nvidia.com/gpu=all, and run again",
    BY_HOOK: "Let the engine give them by CDI: features.cdi has to be true in "
    "/etc/docker/daemon.json from engine 25.0 on. Before, there is native.cgroupdriver=cgroupfs",
}
# The CUDA check: its file in the container, the memory to test per GPU in MiB, the limit in s.
CHECK = "/slipway/cuda_check.pyz"
CHECK_MEMORY_MIB = 64
CHECK_SECONDS = 300
# Folders of the standard library that the CUDA check never imports.
UNUSED = ("__pycache__", "dist-packages", "site-packages", "test", "tests", "idlelib", "ensurepip")
# A merged /usr is a matter of these links.
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")


def mine(facts: Mapping[str, Any]) -> list[str]:
    """Return the PCI addresses of the GPUs that the host's own driver serves.

    FACTS are those of the probe.
    """
    gpus = gpu_host.host_facts(facts).gpus
    return [gpu.address for gpu in gpus if skip_reason(gpu) is None]


def on_host(wanted: int) -> str:
    """Say which GPUs the driver tells of on the host; raise ValueError unless it is WANTED."""
    if not shutil.which(SMI):
        return "no driver is installed"
    seen, words = _listed([])
    if seen != wanted:
        raise ValueError(
            f"{SMI} sees {seen} of {wanted} GPUs{words}; expected all of them. The kernel's log "
            "says why: journalctl -k --grep 'NVRM|Xid'"
        )
    return f"{SMI} sees {seen} of {wanted}"


def computed_on_host(addresses: Sequence[str]) -> str:
    """Compute on the GPUs with these PCI ADDRESSES; raise ValueError if a check fails."""
    if not shutil.which(SMI):
        return "not run: no driver is installed"
    with tempfile.NamedTemporaryFile(suffix=".pyz") as program:
        program.write(cuda_bundle.bundle())
        program.flush()
        return _computed([sys.executable, "-I", "-S", program.name], ",".join(addresses))


def _computed(command: Sequence[str], expected: str, *options: str) -> str:
    """Run the CUDA check by a COMMAND; return its result, raise ValueError if a check fails.

    EXPECTED is the number of GPUs, or their PCI addresses.
    """
    limits = ("--memory-mib", str(CHECK_MEMORY_MIB), "--timeout", str(CHECK_SECONDS))
    done = subprocess.run(
        [*command, "--expect", expected, *limits, *options],
        capture_output=True,
        text=True,
        errors="replace",
        # The check ends by itself at its own limit.
        timeout=CHECK_SECONDS + TIMEOUT,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        words = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise ValueError(f"The CUDA check wrote no report: {words}") from None
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
        f"{report['seconds']:.1f} s{slowest}"
    )


def in_container(wanted: int, reload: bool) -> str:
    """Say how a container sees the GPUs, before and after a RELOAD; raise ValueError where not."""
    if not (shutil.which(SMI) and shutil.which(TOOLKIT)):
        return "not tried: driver and container toolkit are not both installed"
    info = containers.ask_engine("/info")
    by_cdi = bool(info.get("CDISpecDirs"))
    way = BY_CDI if by_cdi else BY_HOOK
    told = f"{'CDI' if by_cdi else '--gpus'} on engine {info['ServerVersion']}, cgroup driver "
    told += str(info["CgroupDriver"])
    in_danger = _in_danger() if reload and info["CgroupDriver"] == "systemd" else []
    with _container(way) as container:
        _expect_all(container, wanted, "a new container", told, way)
        result = _computed_in(container, wanted, told, way)
        seen = f"a container sees {wanted} of {wanted} by {told}: {result}"
        if not reload:
            return f"{seen}; systemctl daemon-reload was not tried"
        if in_danger:
            return (
                f"{seen}; systemctl daemon-reload was not tried, for it would take the GPUs from "
                f"{', '.join(in_danger)}, started with --gpus: start them anew with {' '.join(way)}"
            )
        _run(["systemctl", "daemon-reload"])
        after = "after systemctl daemon-reload the same container"
        _expect_all(container, wanted, after, told, way)
    return f"{seen}, and still does after systemctl daemon-reload"


def _expect_all(container: str, wanted: int, who: str, told: str, way: tuple[str, ...]) -> None:
    seen, words = _listed(["docker", "exec", container])
    if seen != wanted:
        raise ValueError(
            f"{who} sees {seen} of {wanted} GPUs{words}; expected all of them. They came by "
            f"{told}. {ADVICE[way]}"
        )


def _computed_in(container: str, wanted: int, told: str, way: tuple[str, ...]) -> str:
    """Compute on the GPUs of a CONTAINER; raise ValueError if a check fails."""
    program = ["docker", "exec", container, python(), "-I", "-S", CHECK]
    try:
        return _computed(program, str(wanted), "--container")
    except ValueError as error:
        raise ValueError(
            f"a new container cannot compute: {error} The GPUs came by {told}. {ADVICE[way]}"
        ) from None


def _listed(prefix: Sequence[str]) -> tuple[int, str]:
    """Return how many GPUs nvidia-smi lists, and what else it says, run behind PREFIX."""
    done = subprocess.run(
        [*prefix, SMI, "-L"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    # A slice of a GPU (MIG) is listed below it, and indented.
    gpus = [line for line in lines if re.match(r"GPU \d+:", line)]
    others = [line.strip() for line in lines if not re.match(r"GPU \d+:|\s+MIG ", line)]
    if done.returncode != 0:
        return 0, f" ({'; '.join(others) or f'exit status {done.returncode}'})"
    return len(gpus), f" ({'; '.join(others)})" if others else ""


def _in_danger() -> list[str]:
    """Return the running containers that lose their GPUs when systemd is told to reload."""
    found = []
    for running in containers.ask_engine("/containers/json"):
        try:
            host = containers.ask_engine(f"/containers/{running['Id']}/json")["HostConfig"]
        except ValueError:
            # It has ended meanwhile, and is gone.
            continue
        by_hook = any(map(_is_for_hook, host.get("DeviceRequests") or ()))
        if by_hook or host.get("Runtime") == "nvidia":
            found.append(running["Names"][0].lstrip("/"))
    return found


def _is_for_hook(request: Mapping[str, Any]) -> bool:
    """Whether a container's REQUEST for devices is one of `--gpus`."""
    together = request.get("Capabilities") or ()
    return request.get("Driver") != "cdi" and any("gpu" in names for names in together)


# --- the container -----------------------------------------------------------------------------


@contextmanager
def _container(way: Sequence[str]) -> Iterator[str]:
    """Run a container that does nothing but have the GPUs; remove it and its image after."""
    image = _run(["docker", "import", "--change", f"LABEL {LABEL}", "-"], root())
    try:
        options = ["--rm", "--detach", "--network", "none", "--label", LABEL, *way]
        try:
            container = _run(["docker", "run", *options, image, HOLDER, LIFETIME])
        except ValueError as error:
            raise ValueError(f"{error}. {ADVICE[tuple(way)]}") from None
        try:
            yield container
        finally:
            _run(["docker", "rm", "--force", container])
    finally:
        _run(["docker", "image", "rm", image])


def _run(command: Sequence[str], stdin: bytes = b"") -> str:
    """Run a COMMAND and return what it wrote; raise ValueError with its words where it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT, check=False)
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip() or f"status {done.returncode}"
        raise ValueError(f"{' '.join(command[:2])} failed: {words}")
    return done.stdout.decode("utf-8", "replace").strip()


def python() -> str:
    """Return the Python of the container, which is the one that runs this module."""
    return str(Path(sys.executable).resolve())


def root() -> bytes:
    """Return the container's files as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ROOT_LINKS:
            if Path("/", name).is_symlink():
                tar.add(f"/{name}", arcname=name, recursive=False)
        for path in sorted(set(_files())):
            # As itself, whatever it leads to: `sleep` may be a name of a program for many things.
            place = Path(path).parent.resolve() / Path(path).name
            info = tar.gettarinfo(str(Path(path).resolve()), arcname=str(place)[1:])
            with Path(path).open("rb") as content:
                tar.addfile(info, content)
        program = cuda_bundle.bundle()
        info = tarfile.TarInfo(CHECK[1:])
        info.size = len(program)
        tar.addfile(info, io.BytesIO(program))
    return archive.getvalue()


def _files() -> Iterable[str]:
    """Yield the programs of the container, what they and nvidia-smi link to, and Python's."""
    holder, smi = (shutil.which(name) or name for name in (HOLDER, SMI))
    programs = [holder, python(), *_interpreter(smi)]
    yield from programs
    for program in (*programs, smi, *_ctypes()):
        yield from _libraries(program)
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        yield from _standard_library(Path(folder))


def _standard_library(folder: Path) -> Iterable[str]:
    """Yield the files of a FOLDER of Python's standard library that the CUDA check may import."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in UNUSED and not path.name.startswith("config-"):
            yield from _standard_library(path)
        elif path.suffix in (".py", ".so") and path.is_file():
            yield str(path)


def _ctypes() -> list[str]:
    """Return the file of the extension module _ctypes, none where Python has it built in."""
    import _ctypes

    file = getattr(_ctypes, "__file__", None)
    return [file] if file else []


def _interpreter(program: str) -> list[str]:
    """Return what runs a PROGRAM that is a script, nothing where it is none."""
    with Path(program).open("rb") as stream:
        first = stream.readline(256)
    return first[2:].decode("ascii", "replace").split()[:1] if first.startswith(b"#!") else []


def _libraries(program: str) -> list[str]:
    """Return the shared libraries that a PROGRAM links to, and its loader."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(?:=> |^\s*)(/\S+) \(0x", done.stdout, re.MULTILINE)
