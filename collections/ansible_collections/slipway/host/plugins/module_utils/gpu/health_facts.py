# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the health of GPUs is judged by, read on the host: nvidia-smi and the kernel log.

:mod:`gpu.health` judges it on the controller or, for the module verify, on the host.
"""

from __future__ import annotations

import os

from ansible_collections.slipway.host.plugins.module_utils.state import containers, reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]

# Modules that the survey sends along.
NEEDS = (containers.__name__,)
# A GPU that is off the bus can block nvidia-smi for minutes.
LIMIT, QUERY = ("timeout", "--kill-after=5", "60"), ("-q", "-x")
SMI = (*LIMIT, "nvidia-smi", *QUERY)
# Paths below the element of a GPU that are judged; one that ends with a slash means all below it.
FIELDS = (
    *("uuid", "fabric/", "gpu_recovery_action", "ecc_errors/", "remapped_rows/", "mig_mode/"),
    *("retired_pages/", "clocks_event_reasons/", "clocks_throttle_reasons/", "performance_state"),
    "pci/pci_gpu_link_info/",
)
# Further fields, for people.
PROCESSES = "processes/process_info/pid"
SHOWN = ("product_name", "fb_memory_usage/total", "fb_memory_usage/used", PROCESSES)
NO_PROGRAM = 127
CDI_FOLDERS, CDI_KIND = ("etc/cdi", "var/run/cdi"), b"nvidia.com/gpu"
KERNEL_LOG = "/dev/kmsg"
# The largest record of the kernel log.
RECORD_BYTES = 8192
# The driver writes one of these into its lines.
DRIVER_MARKS = ("NVRM", "SXid")
# Different lines of the driver that are kept; the newest ones count.
MAX_LINES = 500


def read_fields(text: str, wanted: tuple[str, ...] = FIELDS + SHOWN) -> Json:
    """Return from the output of ``nvidia-smi -q -x`` the WANTED fields of each GPU, by its bus ID.

    Values of a field that a GPU has several times are separated by a space. Raise ValueError if
    the text is no such output. ElementTree would cost more than the parsing.
    """
    import pyexpat

    gpus: Json = {}
    path: list[str] = []
    words: list[str] = []
    roots: list[str] = []

    def start(name: str, attributes: Json) -> None:
        words.clear()
        path.append(name)
        if len(path) == 1:
            roots.append(name)
        elif name == "gpu" and len(path) == 2:
            gpus[attributes.get("id", "")] = {}

    def end(_name: str) -> None:
        field, value = "/".join(path[2:]), "".join(words).strip()
        words.clear()
        path.pop()
        if gpus and value and field.startswith(wanted):
            gpu = gpus[list(gpus)[-1]]
            gpu[field] = f"{gpu[field]} {value}" if field in gpu else value

    parser = pyexpat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = words.append
    try:
        parser.Parse(text, True)
    except pyexpat.ExpatError as error:
        beginning = " ".join(text.split())[:120] or "nothing"
        raise ValueError(
            f"cannot parse nvidia-smi -q -x ({error}): found {beginning}; expected XML"
        ) from None
    if roots != ["nvidia_smi_log"]:
        raise ValueError(
            f"cannot parse nvidia-smi -q -x: found <{roots[0]}>; expected <nvidia_smi_log>"
        )
    gpus.pop("", None)
    return gpus


def find_owners(processes: str, proc: str = "/proc") -> list[int]:
    """Return the user IDs of PROCESSES, which are process IDs separated by spaces."""
    owners = set()
    for process in processes.split():
        try:
            owners.add(os.stat(f"{proc}/{int(process)}").st_uid)
        except (OSError, ValueError):
            continue  # The process has ended, or is in another namespace.
    return sorted(owners)


def ask_smi() -> Json:
    """Return the answer of nvidia-smi: ``status``, ``output`` if it failed, else ``gpus``.

    ``owners`` are the user IDs of the processes on each GPU in use.
    """
    status, output = reading.run_for_status(list(SMI))
    if status:
        return {"status": status, "output": output[:400]}
    try:
        gpus = read_fields(output)
    except ValueError as error:
        return {"status": 0, "output": str(error)}
    processes = {address: fields.pop(PROCESSES, "") for address, fields in gpus.items()}
    owners = {address: found for address in gpus if (found := find_owners(processes[address]))}
    return {"status": 0, "gpus": gpus, "owners": owners}


def read_log(path: str = KERNEL_LOG) -> tuple[list[str], bool]:
    """Return the driver's lines of the kernel log, and whether it reaches back to the boot.

    The kernel keeps only the newest lines. Raise OSError if the log cannot be read.
    """
    first = None
    lines = []
    for number, text in _read_records(path):
        first = number if first is None else first
        if any(mark in text for mark in DRIVER_MARKS):
            lines.append(text)
    return newest(lines), first == 0


def newest(lines: list[str]) -> list[str]:
    """Return the newest of equal lines of the driver, at most MAX_LINES.

    Lines about one Xid of one GPU are equal: a fault may repeat every second.
    """
    kept: Json = {}
    for line in lines:
        head, xid, rest = line.partition("Xid (")
        key = head[-4:] + xid + rest.partition(",")[0] if xid else line
        kept.pop(key, None)
        kept[key] = line
    return list(kept.values())[-MAX_LINES:]


def _read_records(path: str) -> Iterator[tuple[int, str]]:
    """Yield sequence number and text of each record of the kernel log.

    A record is ``level,number,time,flags;text`` with further lines that begin with a space.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                text = os.read(descriptor, RECORD_BYTES).decode("utf-8", "replace")
            except BlockingIOError:
                return
            except BrokenPipeError:
                # The kernel overwrote the next record; the one after it can be read.
                continue
            if not text:
                return
            for line in text.splitlines():
                head, separator, message = line.partition(";")
                fields = head.split(",")
                if separator and len(fields) > 2 and fields[1].isdigit():
                    yield int(fields[1]), message
    finally:
        os.close(descriptor)


def ask_outdated(root: str = "/") -> list[list[str]]:
    """Return ``[container, version]`` of the containers with libraries of another driver version.

    A container gets the driver's libraries when it starts. After an upgrade of the driver, CUDA
    fails in it. CONTAINER is the name, or the ID where the engine does not answer.
    """
    loaded = reading.read_word(f"{root}sys/module/nvidia/version")
    folder = f"{root}run/containerd/io.containerd.runtime.v2.task/moby"
    found = []
    for identifier in reading.list_names(folder) or []:
        process = reading.read_word(f"{folder}/{identifier}/init.pid")
        version = _library_version(f"{root}proc/{process}/mountinfo")
        if loaded and version and version != loaded:
            found.append([_container_name(identifier), version])
    return found


def ask_gone_devices(root: str = "/") -> list[list[str]]:
    """Return ``[specification, device file, ...]`` of CDI specifications that name missing files.

    The engine starts no container with such a specification.
    """
    import re

    found = []
    for folder in CDI_FOLDERS:
        for name in reading.list_names(f"{root}{folder}") or []:
            content = reading.read_file(f"{root}{folder}/{name}") or b""
            files = sorted(set(re.findall(rb"/dev/nvidia[\w/-]*", content)))
            gone = [file.decode() for file in files if not os.access(root.encode() + file, os.F_OK)]
            if gone and CDI_KIND in content:
                found.append([f"/{folder}/{name}", *gone])
    return found


def _library_version(path: str) -> str:
    """Return the version of the host's driver libraries among the mounts of a process, or nothing.

    A container may use newer libraries of its own image for compatibility (``/compat/``).
    """
    for line in reading.read_word(path).splitlines():
        _before, separator, rest = line.partition("/libcuda.so.")
        version = rest.split()[0].partition("/")[0] if separator and rest.split() else ""
        if "/compat/" not in line and "." in version and version.replace(".", "").isdigit():
            return version
    return ""


def _container_name(identifier: str) -> str:
    try:
        details = containers.ask_engine(f"/containers/{identifier}/json")
        return str(details["Name"]).lstrip("/")
    except (OSError, ValueError, LookupError):
        return identifier[:12]


def ask_health(names: list[str]) -> Json:
    """Return the answers named ``smi``, ``log``, ``containers`` and ``cdi``."""
    reply: Json = {}
    if "cdi" in names:
        reply["cdi"] = ask_gone_devices()
    if "containers" in names:
        reply["containers"] = ask_outdated()
    if "smi" in names:
        reply["smi"] = ask_smi()
    if "log" in names:
        try:
            reply["log"] = read_log()[0]
        except OSError:
            reply["log"] = []  # Some containers have no kernel log.
    return reply


ASKS = {"health": lambda names, _reply: ask_health(names)}


# --- Nothing below is sent to hosts with the survey. ---
KINDS = ()
