# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which driver branches and kernel module flavours the GPUs of a host need.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    DriverRequest,
    PciDevice,
    Refusal,
    join_words,
)


@dataclass(frozen=True)
class Need:
    """The branches and module flavours that drive one kind of GPU, or several kinds at once."""

    label: str
    first: int
    last: int | None
    modules: frozenset[str]
    certain: bool = True

    def includes(self, branch: int) -> bool:
        """Return whether BRANCH is in the range of branches."""
        return self.first <= branch and (self.last is None or branch <= self.last)

    def description(self) -> str:
        """Describe the need: ``open kernel modules of branch 570 or newer``."""
        flavour = "" if self.modules == tables.BOTH else f"{next(iter(self.modules))} "
        if self.last is None:
            branch_range = f"branch {self.first} or newer"
        elif self.first == self.last:
            branch_range = f"branch {self.first}"
        else:
            branch_range = f"a branch from {self.first} to {self.last}"
        return f"{flavour}kernel modules of {branch_range}"


def label(gpu: PciDevice) -> str:
    """Return product and architecture of a GPU: ``NVIDIA A100 SXM4 40GB (Ampere)``."""
    return f"{tables.name_of(gpu.device)} ({tables.architecture_of(gpu.device).name})"


def summary(gpus: Iterable[PciDevice]) -> str:
    """List GPUs by number and kind, as in ``8x NVIDIA A100 SXM4 40GB (Ampere)``."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[label(gpu)] = counts.get(label(gpu), 0) + 1
    return join_words(f"{count}x {kind}" if count > 1 else kind for kind, count in counts.items())


def skip_reason(device: PciDevice) -> str | None:
    """Return why the driver of this host does not use a device, None if it does."""
    if device.driver in tables.PASSTHROUGH_DRIVERS:
        return f"bound to {device.driver} for a virtual machine"
    if device.virtual_function:
        return "a virtual function of a card that virtual machines share"
    return None


def driver_misfit(gpus: Iterable[PciDevice], branch: int, modules: str | None) -> str | None:
    """Return why a driver branch, with a module flavour if known, cannot drive these GPUs.

    None means that no known fact excludes it. GPUs that are not in the tables exclude nothing.
    """
    for gpu in gpus:
        if skip_reason(gpu) is None and (problem := _misfit(need_of(gpu), branch, modules)):
            return problem
    return None


def need_of(gpu: PciDevice) -> Need:
    """Return the need of one GPU."""
    architecture = tables.architecture_of(gpu.device)
    rule = tables.DEVICE_RULES.get(gpu.device)
    return Need(
        label(gpu),
        (rule and rule.first) or architecture.first,
        architecture.last,
        (rule and rule.modules) or architecture.modules,
        architecture.certain,
    )


def refuse_undrivable(gpu: PciDevice) -> None:
    """Raise Refusal for a GPU that no driver package supports."""
    rule = tables.DEVICE_RULES.get(gpu.device)
    if rule and rule.refusal:
        raise Refusal(f"{label(gpu)} is not supported: {rule.refusal}.")
    if gpu.virtual:
        version = gpu.virtual_host_driver
        raise Refusal(
            f"{label(gpu)} at {gpu.address} is a vGPU"
            f"{f' of a hypervisor with driver {version}' if version else ''}. It needs the licensed"
            " guest driver of that vGPU release, which no public package source has. Install that"
            " driver and set nvidia_driver_source to keep."
        )
    last = tables.architecture_of(gpu.device).last
    if last is not None and last < min(branches.BRANCHES):
        raise Refusal(
            f"{label(gpu)} at {gpu.address} is too old: its last driver branch is {last}, which"
            " NVIDIA no longer maintains and no supported release has. Remove the card, or bind it"
            " to vfio-pci."
        )


def refuse_misfits(gpus: Sequence[PciDevice], request: DriverRequest) -> None:
    """Raise Refusal for overrides that work with no package source."""
    for gpu in gpus:
        need = need_of(gpu)
        branch = need.first if request.branch is None else request.branch
        if problem := _misfit(need, branch, request.modules):
            raise Refusal(problem)
    if request.branch is not None and request.modules is not None:
        flavours = branches.module_flavours(request.branch)
        if request.modules not in flavours:
            raise Refusal(
                f"Branch {request.branch} has no {request.modules} kernel modules, only"
                f" {join_words(flavours)} ones."
            )


def _misfit(need: Need, branch: int, modules: str | None) -> str | None:
    if not need.certain:
        return None
    if branch < need.first:
        return f"Branch {branch} is too old for {need.label}, which needs {need.description()}."
    if not need.includes(branch):
        return (
            f"Branch {branch} does not support {need.label}: the last branch for it is {need.last}."
        )
    if modules is None or modules in need.modules:
        return None
    if modules == branches.OPEN:
        return (
            f"Open kernel modules cannot drive {need.label}: the GPU has no system processor (GSP),"
            " which they require. It needs proprietary ones."
        )
    return f"Proprietary kernel modules cannot drive {need.label}: it needs open ones."


def common_need(gpus: Sequence[PciDevice], request: DriverRequest) -> Need:
    """Return the need that all GPUs have in common; raise Refusal if there is none.

    If every pair of needs agrees, all agree: needs are intervals of branches, and there are only
    two flavours.
    """
    needs = [_relax_guess(need, request) for need in dict.fromkeys(need_of(gpu) for gpu in gpus)]
    for position, left in enumerate(needs):
        for right in needs[position + 1 :]:
            first = max(left.first, right.first)
            both_include = left.includes(first) and right.includes(first)
            if not (both_include and left.modules & right.modules):
                raise Refusal(
                    f"No driver supports all GPUs of this host: {left.label} needs"
                    f" {left.description()}, but {right.label} needs {right.description()}. Move"
                    " one kind to another host, or assign it to virtual machines (vfio-pci)."
                )
    return Need(
        join_words(need.label for need in needs),
        max(need.first for need in needs),
        min((need.last for need in needs if need.last is not None), default=None),
        frozenset.intersection(*(need.modules for need in needs)),
    )


def _relax_guess(need: Need, request: DriverRequest) -> Need:
    """Remove the limits of a guessed need that the request overrides."""
    if need.certain:
        return need
    if request.branch is not None:
        need = replace(need, first=0, last=None)
    return replace(need, modules=tables.BOTH) if request.modules else need
