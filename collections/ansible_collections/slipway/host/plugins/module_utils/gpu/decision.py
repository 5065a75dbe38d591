# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision: which driver a host gets, from its facts and its owner's overrides.

``decide`` works in three steps: the common need of all GPUs (``gpu.needs``), the first package
source with a branch for it (``gpu.branches``), and the packages of that branch (``gpu.packages``).
If no driver fits, the decision is not supported, and its reason says why and what to do.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, facts, tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    NO_FABRIC,
    NVLINK5,
    NVSWITCH,
    Choice,
    DriverRequest,
    HostFacts,
    PciDevice,
    Refusal,
    join_words,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import (
    Need,
    common_need,
    refuse_misfits,
    refuse_undrivable,
    skip_reason,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import (
    DKMS,
    PackageSet,
    package_set,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.reasons import (
    explain_choice,
    explain_no_driver,
    list_notes,
    list_warnings,
)


@dataclass(frozen=True)
class Decision:
    """The driver of a host, or the reason why none is supported.

    ``needed`` is False if no GPU of this host needs a driver. ``packages`` are all packages to
    install, in order. ``running_kernel_packages`` are those of them for the running kernel only: if
    the archive no longer has them, install the flavour's newest kernel and reboot.
    ``pin_package`` is the first of ``packages`` and is installed separately before the others.
    ``components`` are archive areas to enable, ``kernel_modules`` the modules to load at boot.
    ``cuda_major`` is the newest CUDA major version whose images run on every GPU of the host.
    """

    supported: bool
    reason: str
    needed: bool = True
    source: str | None = None
    branch: int | None = None
    modules: str | None = None
    build: str | None = None
    fabric_manager: bool = False
    fabric: str = NO_FABRIC
    pin_package: str | None = None
    packages: tuple[str, ...] = ()
    running_kernel_packages: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    kernel_modules: tuple[str, ...] = ()
    cuda_major: int | None = None
    warnings: tuple[str, ...] = ()


def decide(host: HostFacts, request: DriverRequest) -> Decision:
    """Choose the driver for a host.

    The decision follows the overrides in REQUEST, or is not supported if they cannot work.
    """
    gpus = own_gpus(host)
    notes = tuple(list_notes(host, gpus))
    if not gpus:
        reason = explain_no_driver(host)
        return Decision(supported=True, needed=False, reason=reason, warnings=notes)
    try:
        for gpu in gpus:
            refuse_undrivable(gpu)
        refuse_misfits(gpus, request)
        need = common_need(gpus, request)
        decision = _decide_for_first_source(host, request, gpus, need)
    except Refusal as refusal:
        return Decision(supported=False, reason=str(refusal), warnings=notes)
    return replace(decision, warnings=notes + decision.warnings)


def own_gpus(host: HostFacts) -> tuple[PciDevice, ...]:
    """Return the GPUs that the driver of this host uses."""
    return tuple(gpu for gpu in host.gpus if skip_reason(gpu) is None)


def _decide_for_first_source(
    host: HostFacts, request: DriverRequest, gpus: Sequence[PciDevice], need: Need
) -> Decision:
    """Decide for the first source that fits; the reason says why earlier sources do not fit."""
    refusals: list[str] = []
    for source in _package_sources(host, request):
        try:
            decision = _decide_for_source(source, host, request, gpus, need)
        except Refusal as refusal:
            refusals.append(str(refusal))
            continue
        rejected = f" Why not the archive: {refusals[0]}" if refusals else ""
        return replace(decision, reason=decision.reason + rejected)
    raise Refusal(" ".join(refusals))


def _package_sources(host: HostFacts, request: DriverRequest) -> tuple[str, ...]:
    releases = {(distribution, release) for _source, distribution, release in branches.OFFERS}
    if (host.distribution, host.release) not in releases:
        names = join_words(f"{name.capitalize()} {release}" for name, release in sorted(releases))
        raise Refusal(
            f"No driver packages are known for {host.release_name}. Supported releases: {names}."
        )
    sources = tables.SOURCES_OF[host.distribution]
    if request.source == AUTO:
        return sources
    if request.source not in sources:
        raise Refusal(
            f"{tables.SOURCE_NAMES[request.source]} has no packages for {host.release_name}."
            f" Driver sources of this release: {join_words(sources)}."
        )
    return (request.source,)


def _decide_for_source(
    source: str, host: HostFacts, request: DriverRequest, gpus: Sequence[PciDevice], need: Need
) -> Decision:
    """Decide for one package source; raise Refusal if it does not fit."""
    offer = branches.OFFERS.get((source, host.distribution, host.release))
    source_name = f"{tables.SOURCE_NAMES[source]} for {host.release_name}"
    if offer is None:
        raise Refusal(f"{source_name} is not known to have driver packages.")
    branch = _choose_branch(offer, source_name, source, need, request)
    flavours = branches.module_flavours(branch)
    # An override may select a branch without any flavour of a guessed need.
    fitting = [flavour for flavour in flavours if flavour in need.modules] or flavours
    modules = request.modules or fitting[0]
    choice = Choice(host, source, branch, modules, detect_fabric(host, gpus), request.video)
    packages = package_set(choice)
    if packages.build == DKMS and host.secure_boot:
        raise Refusal(
            f"Secure Boot is on. {source_name} has branch {branch} for kernel {host.kernel} only as"
            " modules that are built on the host. They load only after somebody enrolls a key at"
            " the console. Use a kernel of Ubuntu's archive, which has signed modules, or disable"
            " Secure Boot."
        )
    reason = explain_choice(choice, packages, gpus, source_name)
    return _decision(choice, packages, gpus, reason)


def _decision(
    choice: Choice, packages: PackageSet, gpus: Sequence[PciDevice], reason: str
) -> Decision:
    return Decision(
        supported=True,
        reason=reason,
        source=choice.source,
        branch=choice.branch,
        modules=choice.modules,
        build=packages.build,
        fabric_manager=choice.fabric != NO_FABRIC,
        fabric=choice.fabric,
        pin_package=packages.pin,
        packages=packages.packages,
        running_kernel_packages=packages.running_kernel,
        components=packages.components,
        kernel_modules=kernel_modules(choice.fabric),
        cuda_major=newest_cuda(choice.branch, gpus),
        warnings=packages.warnings + tuple(list_warnings(choice, gpus)),
    )


def _choose_branch(
    offer: branches.Offer, source_name: str, source: str, need: Need, request: DriverRequest
) -> int:
    offered = join_words(str(branch) for branch in sorted(offer.branches))
    if request.branch is not None:
        # NVIDIA's repository gets branches newer than the tables. apt fails if one is missing.
        is_newer = source == branches.CUDA and request.branch > branches.NEWEST_BRANCH
        if request.branch in offer.branches or is_newer:
            return request.branch
        if successor := offer.replaced.get(request.branch):
            raise Refusal(
                f"{source_name} no longer has branch {request.branch}: its packages are empty and"
                f" install {successor} instead. Set nvidia_driver_branch to {successor}."
            )
        raise Refusal(f"{source_name} has no branch {request.branch}; it has {offered}.")
    modules = need.modules & {request.modules} if request.modules else need.modules
    for branch in offer.branches:
        if need.includes(branch) and modules & set(branches.module_flavours(branch)):
            return branch
    raise Refusal(
        f"{source_name} has branches {offered}, but {need.label} needs {need.description()}."
    )


def detect_fabric(host: HostFacts, gpus: Sequence[PciDevice]) -> str:
    """Return which NVSwitch fabric this host manages itself.

    Without its fabric manager such a host passes nvidia-smi and fails the first CUDA call. So a
    full NVLink 5 baseboard counts even if its management bridges could not be read.
    """
    ids = [gpu.device for gpu in gpus]
    if any(device in tables.OFF_HOST_FABRIC_GPUS for device in ids):
        return NO_FABRIC
    baseboard = [device for device in ids if device in tables.NVLINK5_BASEBOARD_GPUS]
    if baseboard and (host.nvlink_bridges or len(baseboard) >= facts.NVLINK5_BASEBOARD):
        return NVLINK5
    if any(skip_reason(switch) is None for switch in host.nvswitches):
        return NVSWITCH
    return NO_FABRIC


def kernel_modules(fabric: str) -> tuple[str, ...]:
    """Return the modules to load at boot.

    The fabric manager of NVLink 5 communicates with the switches by InfiniBand.
    """
    return ("nvidia-uvm", *(facts.FABRIC_MODULES if fabric == NVLINK5 else ()))


def newest_cuda(branch: int, gpus: Iterable[PciDevice]) -> int | None:
    """Return the newest CUDA major version of a driver branch that runs on all GPUs."""
    row = branches.BRANCHES.get(branch)
    limits = [row.cuda if row else None]
    limits += [tables.architecture_of(gpu.device).cuda for gpu in gpus]
    return min((limit for limit in limits if limit is not None), default=None)
