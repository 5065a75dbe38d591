# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of simulated GPU hosts, by the probe itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts

from lab import pci_tree

NOBLE = {
    "distribution": "Ubuntu",
    "distribution_version": "24.04",
    "distribution_major_version": "24",
    "distribution_release": "noble",
    "architecture": "x86_64",
    "kernel": "6.8.0-149-generic",
}
TRIXIE = {
    "distribution": "Debian",
    "distribution_version": "13",
    "distribution_major_version": "13",
    "distribution_release": "trixie",
    "architecture": "x86_64",
    "kernel": "6.12.57+deb13-amd64",
}
SID = {
    **TRIXIE,
    "distribution_version": "forky",
    "distribution_major_version": "forky",
    "distribution_release": "forky",
}
OTHERS = {
    "docker_package": "",
    "docker_version": "",
    "docker_snap": False,
    "systemd": True,
    "root": True,
}


@cache
def _devices(model: str) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return gpu_facts.ask_gpus(str(pci_tree.build(Path(folder), pci_tree.MODELS[model])))


def facts(
    model: str,
    host: Mapping[str, str] = NOBLE,
    packages: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the facts of a host with the devices of a MODEL and with these driver PACKAGES.

    MORE are facts of GPUs (kernel_metas, components, loaded, banner, run_installer, secure_boot)
    and of the host.
    """
    gpu: dict[str, Any] = dict(_devices(model))
    if gpu["devices"]:
        gpu |= {
            "secure_boot": False,
            "kernel_metas": ["generic"] if host is NOBLE else ["amd64"],
            "components": ["multiverse", "restricted"] if host is NOBLE else [],
            "packages": dict(packages or {}),
            "loaded": "",
            "banner": "",
            "run_installer": False,
            "recorded": 0,
        }
        gpu |= {key: more.pop(key) for key in list(more) if key in gpu}
    return {**host, **OTHERS, "gpu": gpu, "hosts": ["build01"], **more}
