# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences for the owner of a host: why a driver was chosen, and what to know about its GPUs.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.branches import BRANCHES
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    NO_FABRIC,
    NVLINK5,
    NVSWITCH,
    Choice,
    HostFacts,
    PciDevice,
    join_words,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import (
    Need,
    label,
    need_of,
    skip_reason,
    summary,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import PREBUILT, PackageSet


def explain_no_driver(host: HostFacts) -> str:
    """Return why a host needs no driver."""
    if not host.gpus:
        return "This host has no NVIDIA GPU, so it needs no driver."
    skipped = join_words(
        f"{label(gpu)} at {gpu.address} is {skip_reason(gpu)}" for gpu in host.gpus
    )
    return f"This host uses no NVIDIA GPU itself, so it needs no driver: {skipped}."


def list_notes(host: HostFacts, own_gpus: Sequence[PciDevice]) -> Iterable[str]:
    """Yield remarks about single GPUs, which are independent of the decision."""
    for gpu in host.gpus:
        if own_gpus and (reason := skip_reason(gpu)):
            yield f"{label(gpu)} at {gpu.address} is skipped: {reason}."
        elif gpu.driver in tables.NOUVEAU_DRIVERS:
            yield (
                f"{gpu.driver} uses {label(gpu)} at {gpu.address}; the NVIDIA driver replaces it at"
                " the next boot."
            )
    if any(gpu.virtual is None for gpu in own_gpus):
        yield "vGPU detection was skipped: it needs root. Run with --become."
    for unknown in {label(gpu): None for gpu in own_gpus if not need_of(gpu).certain}:
        yield (
            f"Unknown GPU {unknown}: the driver was chosen by its ID range. Check that it works"
            " (nvidia-smi)."
        )


def explain_choice(
    choice: Choice, packages: PackageSet, gpus: Sequence[PciDevice], source_name: str
) -> str:
    """Return why branch and module flavour of CHOICE were chosen for these GPUs."""
    prebuilt = packages.build == PREBUILT
    origin = "prebuilt and signed" if prebuilt else "built on the host by DKMS"
    sentences = [
        f"{summary(gpus)}: driver branch {choice.branch} with {choice.modules} kernel modules"
        f" ({origin}) from {source_name}."
    ]
    row = BRANCHES.get(choice.branch)
    if row and row.until and not row.ended:
        sentences.append(f"NVIDIA maintains this {row.support} branch until {row.until}.")
    needs = [need for need in dict.fromkeys(need_of(gpu) for gpu in gpus) if need.certain]
    if final := [need for need in needs if need.last == choice.branch]:
        sentences.append(f"It is the last branch for {_name_gpus(final, gpus)}.")
    if strict := [need for need in needs if need.modules == {choice.modules}]:
        sentences.append(f"Only {choice.modules} modules drive {_name_gpus(strict, gpus)}.")
    if choice.fabric == NVSWITCH:
        sentences.append("The fabric manager of the same version is installed for the NVSwitches.")
    if choice.fabric == NVLINK5:
        sentences.append(
            "The fabric manager of the same version and NVIDIA's subnet manager are installed for"
            " the NVLink 5 baseboard."
        )
    return " ".join(sentences)


def _name_gpus(needs: Sequence[Need], gpus: Sequence[PciDevice]) -> str:
    """Name some kinds of the GPUs, without repeating a complete list of the previous sentence."""
    kinds = {label(gpu) for gpu in gpus}
    if len(needs) < len(kinds):
        return join_words(need.label for need in needs)
    return "this GPU" if len(gpus) == 1 else "these GPUs"


def list_warnings(choice: Choice, gpus: Sequence[PciDevice]) -> Iterable[str]:
    """Yield the risks of a choice."""
    row = BRANCHES.get(choice.branch)
    if row is None:
        yield f"Branch {choice.branch} is newer than any branch that Slipway knows."
    elif row.ended:
        yield f"NVIDIA no longer maintains branch {choice.branch}."
    baseboard = [gpu for gpu in gpus if gpu.device in tables.NVLINK5_BASEBOARD_GPUS]
    if baseboard and choice.fabric == NO_FABRIC:
        yield (
            f"No NVSwitch bridges found for {summary(baseboard)}: assuming part of a baseboard"
            " whose fabric the hypervisor manages."
        )
    if any(gpu.device in tables.OFF_HOST_FABRIC_GPUS for gpu in gpus):
        yield "The NVSwitches of this rack are outside the host; Slipway does not set up IMEX."
    limits = [limit for gpu in gpus if (limit := tables.architecture_of(gpu.device).cuda)]
    if limits:
        yield (
            f"The newest CUDA version for the oldest GPU of this host is {min(limits)}; images must"
            " not need a newer one."
        )
