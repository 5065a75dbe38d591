# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which NVIDIA driver a host gets, as one pure function over what is known of the host.

``decide`` asks three things in turn: what every GPU needs (``gpu.tables``), which package source
of the host's release has it, and which packages that makes (``gpu.packages``). Whatever cannot
work ends in a decision that is not supported, with a sentence that says why and what to do.

Private to the collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ansible_collections.slipway.host.plugins.module_utils.gpu import tables as data
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    NO_FABRIC,
    NVLINK5,
    NVSWITCH,
    Choice,
    HostFacts,
    PciDevice,
    Refusal,
    Wanted,
    listed,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.packages import (
    DKMS,
    PREBUILT,
    PackageSet,
    package_set,
)


@dataclass(frozen=True)
class Decision:
    """The driver of a host, or why there is none.

    ``needed`` is False where no GPU of this host wants a driver. ``packages`` are all packages to
    install, in order; ``running_kernel_packages`` are those of them that serve the running kernel
    alone: where the archive has dropped them, only the flavour's newest kernel and a reboot help.
    ``pin_package`` is the first of ``packages`` and goes in by itself before them. ``components``
    are archive areas that must be enabled, ``kernel_modules`` those to load at boot.
    ``cuda_major`` is the newest CUDA major version whose images run on every GPU here.
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


@dataclass(frozen=True)
class _Need:
    """What one kind of GPU, or several together, ask of a driver."""

    label: str
    first: int
    last: int | None
    modules: frozenset[str]
    certain: bool = True

    def reaches(self, branch: int) -> bool:
        return self.first <= branch and (self.last is None or branch <= self.last)

    def in_words(self) -> str:
        kind = "" if self.modules == data.BOTH else f"{next(iter(self.modules))} "
        if self.last is None:
            branches = f"branch {self.first} or newer"
        elif self.first == self.last:
            branches = f"branch {self.first}"
        else:
            branches = f"a branch from {self.first} to {self.last}"
        return f"{kind}kernel modules of {branches}"


def decide(host: HostFacts, wanted: Wanted) -> Decision:
    """Choose the driver for a host.

    Overrides in ``wanted`` are taken if they can work and refused, with the reason, if not.
    """
    mine = tuple(gpu for gpu in host.gpus if skip_reason(gpu) is None)
    notes = tuple(_notes(host, mine))
    if not mine:
        return Decision(supported=True, needed=False, reason=_idle(host), warnings=notes)
    try:
        for gpu in mine:
            _refuse_undrivable(gpu)
        _refuse_misfits(mine, wanted)
        decision = _first_source(host, wanted, mine, _common_need(mine, wanted))
    except Refusal as refusal:
        return Decision(supported=False, reason=str(refusal), warnings=notes)
    return replace(decision, warnings=notes + decision.warnings)


def label(gpu: PciDevice) -> str:
    """Name a GPU and its architecture as a sentence needs it."""
    return f"{data.name_of(gpu.device)} ({data.architecture_of(gpu.device).name})"


def summary(gpus: Iterable[PciDevice]) -> str:
    """List GPUs by number and kind, as in ``8x NVIDIA A100 SXM4 40GB (Ampere)``."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[label(gpu)] = counts.get(label(gpu), 0) + 1
    return listed(f"{count}x {kind}" if count > 1 else kind for kind, count in counts.items())


def skip_reason(device: PciDevice) -> str | None:
    """Say why a device is not the business of this host's driver, or None if it is."""
    if device.driver in data.PASSTHROUGH_DRIVERS:
        return f"bound to {device.driver} for a virtual machine"
    if device.virtual_function:
        return "a virtual function of a card that virtual machines share"
    return None


def driver_misfit(gpus: Iterable[PciDevice], branch: int, modules: str | None) -> str | None:
    """Say why a driver branch, with a module flavour if given, cannot drive these GPUs.

    None means that nothing known speaks against it; of a GPU outside the tables nothing does.
    """
    for gpu in gpus:
        if skip_reason(gpu) is None and (problem := _misfit(_need_of(gpu), branch, modules)):
            return problem
    return None


# --- what the GPUs need ------------------------------------------------------------------------


def _need_of(gpu: PciDevice) -> _Need:
    architecture = data.architecture_of(gpu.device)
    rule = data.DEVICE_RULES.get(gpu.device)
    return _Need(
        label(gpu),
        (rule and rule.first) or architecture.first,
        architecture.last,
        (rule and rule.modules) or architecture.modules,
        architecture.certain,
    )


def _refuse_undrivable(gpu: PciDevice) -> None:
    rule = data.DEVICE_RULES.get(gpu.device)
    if rule and rule.refusal:
        raise Refusal(f"{label(gpu)} cannot be served: {rule.refusal}.")
    if gpu.virtual:
        version = gpu.virtual_host_driver
        raise Refusal(
            f"{label(gpu)} at {gpu.address} is a vGPU, a slice that a hypervisor hands out"
            f"{f' (its driver is {version})' if version else ''}. It needs the licensed guest"
            " driver of that vGPU release, which no public package source has: install that one"
            " and let it be kept."
        )
    last = data.architecture_of(gpu.device).last
    if last is not None and last < min(data.BRANCHES):
        raise Refusal(
            f"{label(gpu)} at {gpu.address} is too old: branch {last} is its last, which NVIDIA no"
            " longer maintains and no supported release carries. Remove the card, or bind it to"
            " vfio-pci."
        )


def _refuse_misfits(gpus: Sequence[PciDevice], wanted: Wanted) -> None:
    """Refuse overrides that no package source could make work."""
    for gpu in gpus:
        need = _need_of(gpu)
        branch = need.first if wanted.branch is None else wanted.branch
        if problem := _misfit(need, branch, wanted.modules):
            raise Refusal(problem)
    if wanted.branch is not None and wanted.modules is not None:
        exist = _flavours_of(wanted.branch)
        if wanted.modules not in exist:
            raise Refusal(
                f"Branch {wanted.branch} has no {wanted.modules} kernel modules, only"
                f" {listed(exist)} ones."
            )


def _misfit(need: _Need, branch: int, modules: str | None) -> str | None:
    if not need.certain:
        return None
    if branch < need.first:
        return f"Branch {branch} is too old for {need.label}, which needs {need.in_words()}."
    if not need.reaches(branch):
        return f"Branch {branch} no longer drives {need.label}: {need.last} is the last that does."
    if modules is None or modules in need.modules:
        return None
    if modules == data.OPEN:
        return (
            f"Open kernel modules cannot drive {need.label}: it lacks the system processor (GSP)"
            " they rely on. It needs proprietary ones."
        )
    return f"Proprietary kernel modules cannot drive {need.label}: it needs open ones."


def _common_need(gpus: Sequence[PciDevice], wanted: Wanted) -> _Need:
    """Return what serves all GPUs at once.

    That every pair agrees is enough for the whole: branches are intervals, and there are only
    two flavours.
    """
    needs = [_relaxed(need, wanted) for need in dict.fromkeys(_need_of(gpu) for gpu in gpus)]
    for position, one in enumerate(needs):
        for other in needs[position + 1 :]:
            first = max(one.first, other.first)
            if not (one.reaches(first) and other.reaches(first) and one.modules & other.modules):
                raise Refusal(
                    f"No one driver serves all GPUs of this host: {one.label} needs"
                    f" {one.in_words()}, but {other.label} needs {other.in_words()}. Move one"
                    " kind to another host, or hand it to virtual machines (vfio-pci)."
                )
    return _Need(
        listed(need.label for need in needs),
        max(need.first for need in needs),
        min((need.last for need in needs if need.last is not None), default=None),
        frozenset.intersection(*(need.modules for need in needs)),
    )


def _relaxed(need: _Need, wanted: Wanted) -> _Need:
    """Let an override overrule what is only a guess."""
    if need.certain:
        return need
    if wanted.branch is not None:
        need = replace(need, first=0, last=None)
    return replace(need, modules=data.BOTH) if wanted.modules else need


def _flavours_of(branch: int) -> list[str]:
    """Return the module flavours that exist of a branch, the preferred one first."""
    if branch >= data.OPEN_ONLY_SINCE:
        return [data.OPEN]
    if branch >= data.OPEN_PREFERRED_SINCE:
        return [data.OPEN, data.PROPRIETARY]
    if branch >= data.OPEN_SINCE:
        return [data.PROPRIETARY, data.OPEN]
    return [data.PROPRIETARY]


# --- which source has it -----------------------------------------------------------------------


def _first_source(
    host: HostFacts, wanted: Wanted, gpus: Sequence[PciDevice], need: _Need
) -> Decision:
    """Decide for the first source that can serve; say why the ones before it cannot."""
    refusals: list[str] = []
    for source in _sources(host, wanted):
        try:
            decision = _decide_for(source, host, wanted, gpus, need)
        except Refusal as refusal:
            refusals.append(str(refusal))
            continue
        passed_over = f" Why not the archive: {refusals[0]}" if refusals else ""
        return replace(decision, reason=decision.reason + passed_over)
    raise Refusal(" ".join(refusals))


def _sources(host: HostFacts, wanted: Wanted) -> tuple[str, ...]:
    releases = {(distribution, release) for _, distribution, release in data.OFFERS}
    if (host.distribution, host.release) not in releases:
        raise Refusal(
            f"No driver packages are known for {host.place}. Supported are"
            f" {listed(f'{name.capitalize()} {release}' for name, release in sorted(releases))}."
        )
    known = data.SOURCES_OF[host.distribution]
    if wanted.source == AUTO:
        return known
    if wanted.source not in known:
        raise Refusal(
            f"{data.SOURCE_NAMES[wanted.source]} does not serve {host.place}; its driver sources"
            f" are {listed(known)}."
        )
    return (wanted.source,)


def _decide_for(
    source: str, host: HostFacts, wanted: Wanted, gpus: Sequence[PciDevice], need: _Need
) -> Decision:
    """Decide for one source, or raise what speaks against it."""
    offer = data.OFFERS.get((source, host.distribution, host.release))
    place = f"{data.SOURCE_NAMES[source]} for {host.place}"
    if offer is None:
        raise Refusal(f"{place} is not known to have driver packages.")
    branch = _choose_branch(offer, place, source, need, wanted)
    flavours = _flavours_of(branch)
    # Where an override overrules a guess, the branch may have nothing that the guess wants.
    fitting = [flavour for flavour in flavours if flavour in need.modules] or flavours
    modules = wanted.modules or fitting[0]
    choice = Choice(host, source, branch, modules, _fabric(host, gpus), wanted.video)
    packages = package_set(choice)
    if packages.build == DKMS and host.secure_boot:
        raise Refusal(
            f"Secure Boot is on, and {place} has branch {branch} for kernel {host.kernel} only as"
            " modules built on the host, which do not load until somebody enrols a key at the"
            " console. Signed modules exist for the kernels of Ubuntu's archive; elsewhere, switch"
            " Secure Boot off."
        )
    return Decision(
        supported=True,
        reason=_reason(choice, packages, gpus, place),
        source=source,
        branch=branch,
        modules=modules,
        build=packages.build,
        fabric_manager=choice.fabric != NO_FABRIC,
        fabric=choice.fabric,
        pin_package=packages.pin,
        packages=packages.packages,
        running_kernel_packages=packages.running_kernel,
        components=packages.components,
        # The fabric manager of NVLink 5 speaks to the switches through ib_umad.
        kernel_modules=("nvidia-uvm", *(("ib_umad",) if choice.fabric == NVLINK5 else ())),
        cuda_major=_cuda_major(branch, gpus),
        warnings=packages.warnings + tuple(_cautions(choice, gpus)),
    )


def _choose_branch(offer: data.Offer, place: str, source: str, need: _Need, wanted: Wanted) -> int:
    offered = listed(str(branch) for branch in sorted(offer.branches))
    if wanted.branch is not None:
        # NVIDIA's repository gets branches newer than the tables; its pinning package decides.
        newer = source == data.CUDA and wanted.branch > data.NEWEST_BRANCH
        if wanted.branch in offer.branches or newer:
            return wanted.branch
        if successor := offer.replaced.get(wanted.branch):
            raise Refusal(
                f"Branch {wanted.branch} is gone from {place}: its packages are empty and install"
                f" {successor} instead. Ask for {successor}."
            )
        raise Refusal(f"{place} has no branch {wanted.branch}; it has {offered}.")
    modules = need.modules & {wanted.modules} if wanted.modules else need.modules
    for branch in offer.branches:
        if need.reaches(branch) and modules & set(_flavours_of(branch)):
            return branch
    raise Refusal(f"{place} has branches {offered}, but {need.label} needs {need.in_words()}.")


def _fabric(host: HostFacts, gpus: Sequence[PciDevice]) -> str:
    """Say which NVSwitch fabric this host manages itself.

    Without its fabric manager such a host passes nvidia-smi and fails the first CUDA call, so a
    full NVLink 5 baseboard counts even where its management bridges could not be read.
    """
    ids = [gpu.device for gpu in gpus]
    if any(device in data.OFF_HOST_FABRIC_GPUS for device in ids):
        return NO_FABRIC
    baseboard = [device for device in ids if device in data.NVLINK5_BASEBOARD_GPUS]
    if baseboard and (host.nvlink_bridges or len(baseboard) >= data.NVLINK5_BASEBOARD_SIZE):
        return NVLINK5
    if any(skip_reason(switch) is None for switch in host.nvswitches):
        return NVSWITCH
    return NO_FABRIC


def _cuda_major(branch: int, gpus: Iterable[PciDevice]) -> int | None:
    known = data.BRANCHES.get(branch)
    limits = [known.cuda if known else None]
    limits += [data.architecture_of(gpu.device).cuda for gpu in gpus]
    return min((limit for limit in limits if limit is not None), default=None)


# --- what is said about it ---------------------------------------------------------------------


def _idle(host: HostFacts) -> str:
    if not host.gpus:
        return "No NVIDIA GPU is in this host, so it needs no driver."
    why = listed(f"{label(gpu)} at {gpu.address} is {skip_reason(gpu)}" for gpu in host.gpus)
    return f"No NVIDIA GPU is left for this host, so it needs no driver: {why}."


def _notes(host: HostFacts, mine: Sequence[PciDevice]) -> Iterable[str]:
    """Say what the owner should know of single GPUs, whatever is decided."""
    for gpu in host.gpus:
        if mine and (skipped := skip_reason(gpu)):
            yield f"{label(gpu)} at {gpu.address} is {skipped} and is left alone."
        elif gpu.driver in data.NOUVEAU_DRIVERS:
            yield (
                f"{gpu.driver} holds {label(gpu)} at {gpu.address}; it gives way to the NVIDIA"
                " driver at the next boot."
            )
    if any(gpu.virtual is None for gpu in mine):
        yield "Only root can tell a vGPU from a whole GPU, and this was not asked as root."
    for guess in {label(gpu): None for gpu in mine if not _need_of(gpu).certain}:
        yield f"{guess} is in no list known here: the choice for it is a guess to be verified."


def _reason(choice: Choice, packages: PackageSet, gpus: Sequence[PciDevice], place: str) -> str:
    prebuilt = packages.build == PREBUILT
    how = "prebuilt and signed" if prebuilt else "built on the host by DKMS"
    sentences = [
        f"{summary(gpus)}: driver branch {choice.branch} with {choice.modules} kernel modules"
        f" ({how}) from {place}."
    ]
    known = data.BRANCHES.get(choice.branch)
    if known and known.until and not known.ended:
        sentences.append(f"NVIDIA maintains this {known.support} branch until {known.until}.")
    needs = [need for need in dict.fromkeys(_need_of(gpu) for gpu in gpus) if need.certain]
    if final := [need for need in needs if need.last == choice.branch]:
        sentences.append(f"It is the last that drives {_these(final, gpus)}.")
    if strict := [need for need in needs if need.modules == {choice.modules}]:
        sentences.append(f"Only {choice.modules} modules drive {_these(strict, gpus)}.")
    if choice.fabric == NVSWITCH:
        sentences.append("For its NVSwitches the fabric manager of the same version comes in.")
    if choice.fabric == NVLINK5:
        sentences.append(
            "For its NVLink 5 baseboard the fabric manager of the same version and NVIDIA's"
            " subnet manager come in."
        )
    return " ".join(sentences)


def _these(needs: Sequence[_Need], gpus: Sequence[PciDevice]) -> str:
    """Name some of the kinds of GPUs, without repeating those a sentence has just listed."""
    kinds = {label(gpu) for gpu in gpus}
    if len(needs) < len(kinds):
        return listed(need.label for need in needs)
    return "this GPU" if len(gpus) == 1 else "these GPUs"


def _cautions(choice: Choice, gpus: Sequence[PciDevice]) -> Iterable[str]:
    known = data.BRANCHES.get(choice.branch)
    if known is None:
        yield f"Branch {choice.branch} is newer than any checked here."
    elif known.ended:
        yield f"NVIDIA no longer maintains branch {choice.branch}."
    baseboard = [gpu for gpu in gpus if gpu.device in data.NVLINK5_BASEBOARD_GPUS]
    if baseboard and choice.fabric == NO_FABRIC:
        yield (
            f"{summary(baseboard)} without NVSwitch bridges is taken for a share of a baseboard"
            " whose fabric the hypervisor manages."
        )
    if any(gpu.device in data.OFF_HOST_FABRIC_GPUS for gpu in gpus):
        yield "The NVSwitches of this rack are outside the host; IMEX is not set up here."
    limits = [limit for gpu in gpus if (limit := data.architecture_of(gpu.device).cuda)]
    if limits:
        yield (
            f"CUDA {min(limits)} is the newest whose toolkit builds for the oldest GPU here;"
            " images must not need a newer one."
        )
