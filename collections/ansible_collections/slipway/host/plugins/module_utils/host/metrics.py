# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of a host in the text format of Prometheus. Pure.

Values: what the survey measured, ``{}`` without a survey. Keys: version (of Slipway), drift and
conflicts (counts by role), faulty (whether the host has a fault of a GPU that nobody accepted),
gpus (a list of mappings with uuid, model, driver, memory in MiB and healthy, in the order of the
PCI bus).

A text of a host is only in labels of ``slipway_gpu_info``, which has one series for each GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.state.reading import escape_control

HEALTH, CHECKED, GPU_CHECK = "slipway_health", "slipway_checks_timestamp_seconds", "gpu-health"
MAX_LABEL = 200
MEBIBYTE = 1 << 20
# Metrics in the order of the file, with their meaning.
HELP: Mapping[str, str] = {
    "slipway_info": "Version of Slipway that wrote this file.",
    "slipway_last_run_timestamp_seconds": "When a run last compared the host.",
    "slipway_drift": "Number of differences from the declared state.",
    "slipway_conflicts": "Number of conflicts about which a person must decide.",
    HEALTH: "Whether the last acceptance checks of a kind passed: 1 yes, 0 no.",
    CHECKED: "When acceptance checks last ran.",
    "slipway_gpu_info": "A GPU of the host.",
    "slipway_gpu_memory_bytes": "Memory of a GPU.",
    "slipway_gpu_health": "Whether a GPU has no fault: 1 yes, 0 no.",
}
_CHECK = re.compile(rf'^{HEALTH}\{{check="([a-z-]{{1,60}})"\}} ([01])$', re.MULTILINE)
_CHECKED = re.compile(rf"^{CHECKED} (\d{{1,12}})$", re.MULTILINE)
Sample = tuple[str, Mapping[str, str], int]


def render(
    values: Mapping[str, Any], checks: Iterable[Mapping[str, Any]], earlier: str, now: int
) -> str:
    """Return the content of the file.

    CHECKS are acceptance checks of this run; if there are none, their results in the EARLIER
    content stay. NOW is in seconds since 1970.
    """
    samples = [*_measured(values, now), *_health(values, list(checks), earlier, now)]
    blocks = []
    for name, meaning in HELP.items():
        lines = [_line(*sample) for sample in samples if sample[0] == name]
        if lines:
            blocks.append("\n".join([f"# HELP {name} {meaning}", f"# TYPE {name} gauge", *lines]))
    return "\n".join(blocks) + "\n"


def _measured(values: Mapping[str, Any], now: int) -> Iterator[Sample]:
    yield "slipway_last_run_timestamp_seconds", {}, now
    if "version" in values:
        yield "slipway_info", {"version": values["version"]}, 1
    for key in ("drift", "conflicts"):
        for role, count in sorted(values.get(key, {}).items()):
            yield f"slipway_{key}", {"role": role}, count
    for number, gpu in enumerate(values.get("gpus", ())):
        label = {"gpu": str(number)}
        words = {"uuid": gpu["uuid"], "model": gpu["model"], "driver_version": gpu["driver"]}
        yield "slipway_gpu_info", {**label, **words}, 1
        yield "slipway_gpu_memory_bytes", label, gpu["memory"] * MEBIBYTE
        yield "slipway_gpu_health", label, int(gpu["healthy"])


def _health(
    values: Mapping[str, Any], checks: list[Mapping[str, Any]], earlier: str, now: int
) -> Iterator[Sample]:
    passed: dict[str, bool] = {}
    for check in checks:
        # Several checks have one ID, such as those of images.
        passed[check["id"]] = passed.get(check["id"], True) and check["status"] != "failed"
    checked = now if checks else 0
    if not checks:
        passed = {name: value == "1" for name, value in _CHECK.findall(earlier)}
        checked = max(map(int, _CHECKED.findall(earlier)), default=0)
    if "faulty" in values:
        passed[GPU_CHECK] = not values["faulty"]
    for name, value in sorted(passed.items()):
        yield HEALTH, {"check": name}, int(value)
    if checked:
        yield CHECKED, {}, checked


def _line(name: str, labels: Mapping[str, str], value: int) -> str:
    text = ",".join(f'{key}="{escape(label)}"' for key, label in labels.items())
    return f"{name}{{{text}}} {value}" if text else f"{name} {value}"


def escape(label: str) -> str:
    """Return the value of a label as the exposition format has it, short, on one line."""
    text = str(label)[:MAX_LABEL].encode("utf-8", "replace").decode("utf-8")
    text = text.replace("\n", " ").replace("\t", " ")
    return escape_control(text).replace("\\", r"\\").replace('"', r"\"")
