# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the maker of a bundle downloads for other hosts: the packages of fresh hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu import host, kernels
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import packages
from ansible_collections.slipway.host.plugins.plugin_utils.bundle.manifest import BundleError

# Variables of the maker that describe the GPUs and the kernel of the other hosts.
GPUS, KERNEL = "slipway_bundle_gpus", "slipway_bundle_kernel"
APT = "/etc/apt/"
# A line of `lspci -n -d 10de:`.
FUNCTION = re.compile(r"([0-9a-f:.]+) ([0-9a-f]{4}): 10de:([0-9a-f]{4})\b.*")
# What a host is before its first run, and without a network.
FRESH: Mapping[str, Any] = {
    "reachable": {},
    "docker_package": "",
    "docker_version": "",
    "rolled_back": {},
}
FRESH_GPU: Mapping[str, Any] = {
    "packages": {},
    "loaded": "",
    "banner": "",
    "run_installer": False,
    "managed": False,
    # The other hosts may lack them.
    "headers": False,
}


def describe_fresh(facts: Mapping[str, Any], gpus: str, kernel: str) -> dict[str, Any]:
    """Return the facts of a fresh host like the one of FACTS.

    GPUS: its GPUs as `lspci -n -d 10de:` prints them, empty for those of FACTS. KERNEL: the same
    for its kernel. Raise BundleError for other text.
    """
    gpu = {**facts.get("gpu", {}), **FRESH_GPU}
    if gpus:
        gpu["devices"] = [_read_function(line.strip()) for line in gpus.strip().splitlines()]
    if kernel:
        gpu["kernel_metas"] = ()
    fresh = {**facts, **FRESH, "gpu": gpu, "kernel": kernel or facts["kernel"]}
    # A host without GPUs does not say which kernels it has.
    gpu["kernel_metas"] = gpu.get("kernel_metas") or kernels.kernel_metas(host.host_facts(fresh))
    return fresh


def _read_function(line: str) -> list[Any]:
    """Return a PCI function as the facts of a host have it, see :func:`gpu.facts.read_function`."""
    match = FUNCTION.fullmatch(line)
    if not match:
        raise BundleError(
            f"{GPUS}: {line!r}; expected lines such as '01:00.0 0302: 10de:1eb8'. Copy the output "
            "of `lspci -n -d 10de:` on a host with the GPUs."
        )
    address, class_code, device = match.groups()
    return [address, f"0x{device}", f"0x{class_code}00", "", False, ""]


def list_packages(plans: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the module bundle_packages downloads for the PLANS of roles.

    Raise BundleError if a role does not support the host.
    """
    names: set[str] = set()
    optional: set[str] = set()
    first: set[str] = set()
    files: dict[str, str | None] = {}
    keys: dict[str, dict[str, str]] = {}
    for role, plan in plans.items():
        owned = plan["owned"]
        if problems := owned.get("refused"):
            raise BundleError(f"{role}: {'; '.join(problems)}.")
        for entry in packages.list_present(owned):
            word = "=".join(filter(None, (entry["name"], entry.get("version"))))
            (optional if entry.get("optional") else names).add(word)
        first |= {entry["name"] for entry in plan.get("first", ())}
        for key in owned.get("keyrings", ()):
            keys[key["path"]] = {"url": plan["key_url"], "fingerprint": key["fingerprint"]}
        for file in owned.get("files", ()):
            if file["path"].startswith((f"{APT}sources.list.d/", f"{APT}preferences.d/")):
                files[file["path"]] = file.get("content")
    return {
        "names": sorted(names),
        "optional": sorted(optional),
        "first": sorted(first),
        "files": files,
        "keys": keys,
    }
