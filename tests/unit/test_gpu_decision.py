# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of a driver, as tables: single cards, mixed hosts, sources, overrides, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import (
    Decision,
    decide,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    DriverRequest,
    HostFacts,
    PciDevice,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.needs import driver_misfit, summary

K80, M40, P40, V100, T4 = 0x102D, 0x17FD, 0x1B38, 0x1DB6, 0x1EB8
A100, L40S, H100, H200, GH200 = 0x20B2, 0x26B9, 0x2330, 0x2335, 0x2342
B200, B300, GB200, RTX_PRO, GB10 = 0x2901, 0x3182, 0x2941, 0x2BB5, 0x2E12
FERMI, RUBIN, FUTURE, THOR = 0x1091, 0x3002, 0x3A00, 0x2B00


def gpu(device: int, position: int = 1, **more: object) -> PciDevice:
    address = f"0000:{position:02x}:00.0"
    return PciDevice(address, tables.VENDOR_NVIDIA, device, 0x030200, **more)  # type: ignore[arg-type]


def switch(device: int = 0x22A3, driver: str | None = None) -> PciDevice:
    return PciDevice(
        "0000:80:00.0", tables.VENDOR_NVIDIA, device, tables.CLASS_NVSWITCH, driver=driver
    )


NOBLE = HostFacts("ubuntu", "24.04", "6.8.0-149-generic", kernel_metas=("generic",))
JAMMY = HostFacts("ubuntu", "22.04", "5.15.0-203-generic", kernel_metas=("generic",))
RESOLUTE = HostFacts("ubuntu", "26.04", "7.0.0-43-generic", kernel_metas=("generic",))
BOOKWORM = HostFacts("debian", "12", "6.1.0-40-amd64")
TRIXIE = HostFacts("debian", "13", "6.12.57+deb13-amd64")
SID = HostFacts("debian", "sid", "6.17.8+deb14-amd64")


def choose(host: HostFacts, *devices: int, **wanted: object) -> Decision:
    gpus = tuple(gpu(device, position) for position, device in enumerate(devices, 1))
    return decide(replace(host, gpus=gpus), DriverRequest(**wanted))  # type: ignore[arg-type]


# --- one kind of card --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "branch", "modules"),
    [
        (K80, 470, "proprietary"),
        (0x0FFD, 470, "proprietary"),
        (M40, 580, "proprietary"),
        (0x13F2, 580, "proprietary"),
        (0x15F8, 580, "proprietary"),
        (P40, 580, "proprietary"),
        (0x1D81, 580, "proprietary"),
        (V100, 580, "proprietary"),
        (0x1DF6, 580, "proprietary"),
        (0x1E02, 580, "open"),
        (T4, 580, "open"),
        (0x20B0, 580, "open"),
        (A100, 580, "open"),
        (0x20B5, 580, "open"),
        (0x2235, 580, "open"),
        (0x2236, 580, "open"),
        (0x27B8, 580, "open"),
        (L40S, 580, "open"),
        (H100, 580, "open"),
        (H200, 580, "open"),
        (GH200, 580, "open"),
        (0x2348, 580, "open"),
        (0x2B85, 580, "open"),
        (RTX_PRO, 580, "open"),
        (GB10, 580, "open"),
        (GB200, 580, "open"),
        (0x31C2, 580, "open"),
        (0x31C3, 595, "open"),
        (FUTURE, 595, "open"),
        (0x1437, 580, "proprietary"),
    ],
    ids=lambda value: f"{value:04x}" if isinstance(value, int) and value > 1000 else str(value),
)
@pytest.mark.parametrize("host", [NOBLE, JAMMY], ids=["24.04", "22.04"])
def test_a_single_card_on_ubuntu(host: HostFacts, device: int, branch: int, modules: str) -> None:
    decision = choose(host, device)
    assert decision.supported, decision.reason
    assert (decision.source, decision.branch, decision.modules) == ("ubuntu", branch, modules)
    assert decision.build == ("dkms" if branch == 470 else "prebuilt")


@pytest.mark.parametrize(
    ("host", "device", "source", "branch", "modules"),
    [
        (TRIXIE, T4, "debian", 550, "proprietary"),
        (TRIXIE, V100, "debian", 550, "proprietary"),
        (TRIXIE, H200, "debian", 550, "proprietary"),
        (TRIXIE, GH200, "debian", 550, "open"),
        (TRIXIE, 0x233B, "cuda", 580, "open"),
        (TRIXIE, RTX_PRO, "cuda", 580, "open"),
        (TRIXIE, FUTURE, "cuda", 595, "open"),
        (BOOKWORM, T4, "debian", 535, "proprietary"),
        (BOOKWORM, H100, "debian", 535, "proprietary"),
        (BOOKWORM, H200, "cuda", 580, "open"),
        (BOOKWORM, K80, "debian", 470, "proprietary"),
        (SID, A100, "debian", 550, "proprietary"),
        (SID, K80, "debian", 470, "proprietary"),
        (RESOLUTE, V100, "ubuntu", 580, "proprietary"),
        (RESOLUTE, RTX_PRO, "ubuntu", 580, "open"),
    ],
)
def test_a_driver_is_chosen_on_each_release(
    host: HostFacts, device: int, source: str, branch: int, modules: str
) -> None:
    decision = choose(host, device)
    assert decision.supported, decision.reason
    assert (decision.source, decision.branch, decision.modules) == (source, branch, modules)


def test_an_archive_that_is_passed_over_is_explained() -> None:
    decision = choose(TRIXIE, RTX_PRO)
    assert decision.reason.startswith(
        "NVIDIA RTX PRO 6000 Blackwell Server Edition (Blackwell): driver branch 580 with open"
        " kernel modules (built on the host by DKMS) from NVIDIA's CUDA repository for Debian 13."
    )
    assert "Why not the archive: Debian's archive for Debian 13 has branches 550" in decision.reason


# --- hosts with several kinds ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "branch", "modules"),
    [
        ((V100, T4), 580, "proprietary"),
        ((P40, A100), 580, "proprietary"),
        ((M40, H100), 580, "proprietary"),
        ((T4, A100, L40S, H100), 580, "open"),
        ((T4, RTX_PRO), 580, "open"),
        ((A100, GH200), 580, "open"),
        ((H100, RTX_PRO, GB10), 580, "open"),
        ((T4, FUTURE), 595, "open"),
        ((K80, V100), 470, "proprietary"),
        ((K80, T4, A100), 470, "proprietary"),
    ],
)
def test_mixed_hosts_get_one_branch_for_all(
    devices: tuple[int, ...], branch: int, modules: str
) -> None:
    decision = choose(NOBLE, *devices)
    assert decision.supported, decision.reason
    assert (decision.branch, decision.modules) == (branch, modules)
    assert choose(NOBLE, *reversed(devices)).branch == branch


@pytest.mark.parametrize(
    "devices",
    [
        (V100, B200),
        (P40, RTX_PRO),
        (M40, GB10),
        (V100, GH200),
        (V100, T4, RTX_PRO),
        (K80, L40S),
        (K80, H100),
        (K80, RTX_PRO),
        (V100, FUTURE),
    ],
)
def test_mixed_hosts_that_no_driver_serves_are_refused(devices: tuple[int, ...]) -> None:
    decision = choose(NOBLE, *devices)
    assert not decision.supported
    assert decision.needed
    assert decision.packages == ()
    assert decision.reason.startswith("No driver supports all GPUs of this host: NVIDIA ")
    assert "Move one kind to another host" in decision.reason


def test_a_refusal_names_the_two_kinds_that_differ() -> None:
    decision = choose(NOBLE, T4, V100, B200)
    assert decision.reason == (
        "No driver supports all GPUs of this host: NVIDIA Tesla V100 PCIe 32GB (Volta) needs"
        " proprietary kernel modules of a branch from 470 to 580, but NVIDIA B200"
        " (Blackwell) needs open kernel modules of branch 570 or newer. Move one kind to another"
        " host, or assign it to virtual machines (vfio-pci)."
    )


def test_a_card_handed_to_virtual_machines_does_not_count() -> None:
    host = replace(NOBLE, gpus=(gpu(V100, 1, driver="vfio-pci"), gpu(RTX_PRO, 2)))
    decision = decide(host, DriverRequest())
    assert (decision.supported, decision.modules) == (True, "open")
    assert decision.warnings == (
        "NVIDIA Tesla V100 PCIe 32GB (Volta) at 0000:01:00.0 is skipped: bound to vfio-pci for a"
        " virtual machine.",
    )


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ((), "This host has no NVIDIA GPU"),
        ((gpu(L40S, driver="vfio-pci"),), "bound to vfio-pci"),
        ((gpu(FERMI, driver="pci-stub"),), "bound to pci-stub"),
        ((gpu(L40S, virtual_function=True),), "virtual function"),
    ],
)
def test_hosts_without_a_gpu_of_their_own_need_no_driver(
    gpus: tuple[PciDevice, ...], words: str
) -> None:
    decision = decide(replace(NOBLE, gpus=gpus), DriverRequest(branch=470))
    assert (decision.supported, decision.needed, decision.packages) == (True, False, ())
    assert words in decision.reason


# --- what cannot be served ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "device", "words"),
    [
        (NOBLE, FERMI, "too old: its last driver branch is 390"),
        (NOBLE, RUBIN, "needs open kernel modules of branch 616 or newer"),
        (NOBLE, THOR, "JetPack"),
        (RESOLUTE, K80, "Ubuntu's archive for Ubuntu 26.04 has branches 580, 595 and 615, but"),
        (RESOLUTE, K80, "CUDA repository for Ubuntu 26.04 has branches 595, 610 and 615, but"),
        (TRIXIE, K80, "needs proprietary kernel modules of branch 470"),
        (HostFacts("ubuntu", "20.04", "5.4.0-1-generic"), T4, "Supported releases: Debian 12"),
        (HostFacts("fedora", "43", "6.17.1-300.fc43.x86_64"), T4, "for Fedora 43"),
    ],
)
def test_refusals_say_what_is_wrong(host: HostFacts, device: int, words: str) -> None:
    decision = choose(host, device)
    assert not decision.supported
    assert words in decision.reason


@pytest.mark.parametrize(
    ("version", "words"),
    [("550.90.05", "of a hypervisor with driver 550.90.05"), (None, "is a vGPU. It")],
)
def test_a_vgpu_is_refused_with_the_version_it_must_match(version: str | None, words: str) -> None:
    slice_ = gpu(0x2236, virtual=True, virtual_host_driver=version)
    decision = decide(replace(NOBLE, gpus=(slice_,)), DriverRequest())
    assert not decision.supported
    assert words in decision.reason
    assert "licensed guest driver" in decision.reason


def test_an_unreadable_vgpu_state_is_admitted() -> None:
    decision = decide(replace(NOBLE, gpus=(gpu(0x2236, virtual=None),)), DriverRequest())
    assert decision.supported
    assert "vGPU detection was skipped" in decision.warnings[0]


# --- Secure Boot -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "device", "wanted", "supported"),
    [
        (NOBLE, T4, {}, True),
        (NOBLE, V100, {}, True),
        (NOBLE, K80, {}, False),
        (NOBLE, T4, {"source": "cuda"}, False),
        (TRIXIE, T4, {}, False),
        (replace(NOBLE, kernel="6.9.3-custom"), T4, {}, False),
        (replace(NOBLE, kernel="6.8.0-1-raspi"), T4, {}, False),
        (replace(NOBLE, kernel="6.8.0-1030-aws"), T4, {}, True),
    ],
)
def test_secure_boot_allows_signed_modules_alone(
    host: HostFacts, device: int, wanted: dict[str, object], supported: bool
) -> None:
    decision = choose(replace(host, secure_boot=True), device, **wanted)
    assert decision.supported == supported
    if not supported:
        assert "Secure Boot is on. " in decision.reason
    assert choose(host, device, **wanted).supported


def test_unreadable_secure_boot_is_a_warning_where_it_matters() -> None:
    unknown = replace(NOBLE, secure_boot=None)
    assert choose(unknown, T4).warnings == ()
    assert "Secure Boot" in choose(unknown, K80).warnings[0]


# --- fabric ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "switches", "bridges", "fabric"),
    [
        ([A100] * 8, [switch(0x1AF1)] * 6, [], "nvswitch"),
        ([H100] * 8, [switch()] * 4, [], "nvswitch"),
        # An NVSwitch of an ID nobody has seen counts by its class.
        ([H100] * 8, [switch(0x9999)], [], "nvswitch"),
        ([H100] * 8, [switch(driver="vfio-pci")] * 4, [], "none"),
        ([H100], [], [], "none"),
        ([V100] * 16, [switch(0x1AC2)] * 6, [], "nvswitch"),
        ([B200] * 8, [], [switch(0x1021)], "nvlink5"),
        ([B200] * 8, [], [], "nvlink5"),
        ([B300] * 8, [], [], "nvlink5"),
        ([B200] * 4, [], [switch(0x1021)], "nvlink5"),
        ([B200], [], [], "none"),
        ([GB200] * 4, [], [switch(0x1021)], "none"),
        ([RTX_PRO] * 8, [], [], "none"),
    ],
)
def test_fabric(
    devices: list[int], switches: list[PciDevice], bridges: list[PciDevice], fabric: str
) -> None:
    host = replace(NOBLE, nvswitches=tuple(switches), nvlink_bridges=tuple(bridges))
    decision = choose(host, *devices)
    assert decision.supported, decision.reason
    assert decision.fabric == fabric
    assert decision.fabric_manager == (fabric != "none")
    manager = [name for name in decision.packages if name.startswith("nvidia-fabricmanager")]
    assert bool(manager) == decision.fabric_manager


def test_fewer_gpus_than_a_baseboard_are_taken_for_a_share() -> None:
    assert "assuming part of a baseboard" in choose(NOBLE, B200).warnings[0]


def test_an_nvlink5_baseboard_needs_the_repository_that_has_its_subnet_manager() -> None:
    decision = choose(NOBLE, *[B200] * 8)
    assert (decision.source, decision.branch, decision.modules) == ("cuda", 580, "open")
    assert decision.kernel_modules == ("nvidia-uvm", "mlx5_ib", "ib_umad")
    refused = choose(NOBLE, *[B200] * 8, source="ubuntu")
    assert not refused.supported
    assert "nvlsm" in refused.reason


# --- overrides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "devices", "wanted", "source", "branch", "modules"),
    [
        (NOBLE, [T4], {"branch": 595}, "ubuntu", 595, "open"),
        (NOBLE, [T4], {"modules": "proprietary"}, "ubuntu", 580, "proprietary"),
        (NOBLE, [T4], {"branch": 470}, "ubuntu", 470, "proprietary"),
        (NOBLE, [T4], {"branch": 615}, "ubuntu", 615, "open"),
        (NOBLE, [T4], {"source": "cuda"}, "cuda", 580, "open"),
        (NOBLE, [T4], {"branch": 590}, "cuda", 590, "open"),
        (NOBLE, [RTX_PRO], {"source": "cuda", "branch": 630}, "cuda", 630, "open"),
        (NOBLE, [RUBIN], {"source": "cuda", "branch": 630}, "cuda", 630, "open"),
        (NOBLE, [FUTURE], {"branch": 580}, "ubuntu", 580, "open"),
        (NOBLE, [FUTURE], {"modules": "proprietary"}, "ubuntu", 595, "proprietary"),
        (NOBLE, [0x1437], {"branch": 615}, "ubuntu", 615, "open"),
        (
            NOBLE,
            [V100, FUTURE],
            {"branch": 580, "modules": "proprietary"},
            "ubuntu",
            580,
            "proprietary",
        ),
        (TRIXIE, [T4], {"modules": "open"}, "debian", 550, "open"),
        (TRIXIE, [V100], {"source": "cuda"}, "cuda", 580, "proprietary"),
    ],
)
def test_overrides_that_can_work_are_taken(
    host: HostFacts,
    devices: list[int],
    wanted: dict[str, object],
    source: str,
    branch: int,
    modules: str,
) -> None:
    decision = choose(host, *devices, **wanted)
    assert decision.supported, decision.reason
    assert (decision.source, decision.branch, decision.modules) == (source, branch, modules)


@pytest.mark.parametrize(
    ("host", "devices", "wanted", "words"),
    [
        (NOBLE, [V100], {"branch": 595}, "does not support NVIDIA Tesla V100 PCIe 32GB (Volta)"),
        (NOBLE, [V100], {"modules": "open"}, "has no system processor (GSP)"),
        (NOBLE, [RTX_PRO], {"modules": "proprietary"}, "needs open ones"),
        (NOBLE, [GH200], {"modules": "proprietary"}, "needs open ones"),
        (NOBLE, [RTX_PRO], {"branch": 550}, "Branch 550 is too old for NVIDIA RTX PRO 6000"),
        (NOBLE, [0x3182], {"branch": 570}, "needs open kernel modules of branch 580 or newer"),
        (NOBLE, [T4], {"branch": 615, "modules": "proprietary"}, "Branch 615 has no proprietary"),
        (NOBLE, [T4], {"branch": 470, "modules": "open"}, "Branch 470 has no open"),
        (
            NOBLE,
            [T4],
            {"branch": 535, "source": "ubuntu"},
            "install 580 instead. Set nvidia_driver_branch to 580.",
        ),
        (NOBLE, [T4], {"branch": 610, "source": "ubuntu"}, "install 615 instead"),
        (NOBLE, [T4], {"branch": 575, "source": "cuda"}, "has no branch 575; it has 580, 590"),
        (NOBLE, [T4], {"branch": 630, "source": "ubuntu"}, "has no branch 630"),
        (
            NOBLE,
            [T4],
            {"source": "debian"},
            "has no packages for Ubuntu 24.04. Driver sources of this release:",
        ),
        (TRIXIE, [T4], {"source": "ubuntu"}, "has no packages for Debian 13"),
        (SID, [T4], {"source": "cuda"}, "is not known to have driver packages"),
        (RESOLUTE, [V100], {"source": "cuda"}, "but NVIDIA Tesla V100 PCIe 32GB (Volta) needs"),
        (NOBLE, [T4, V100], {"modules": "open"}, "cannot drive NVIDIA Tesla V100"),
        (NOBLE, [RUBIN], {"source": "cuda", "branch": 615}, "too old for NVIDIA GPU 10de:3002"),
    ],
)
def test_overrides_that_cannot_work_are_refused(
    host: HostFacts, devices: list[int], wanted: dict[str, object], words: str
) -> None:
    decision = choose(host, *devices, **wanted)
    assert not decision.supported
    assert decision.packages == ()
    assert words in decision.reason


# --- what is said ------------------------------------------------------------------------------


def test_the_reason_reads_as_sentences() -> None:
    host = replace(NOBLE, nvswitches=(switch(0x1AF1),) * 6)
    assert choose(host, *[A100] * 8).reason == (
        "8x NVIDIA A100 SXM4 80GB (Ampere): driver branch 580 with open kernel modules (prebuilt"
        " and signed) from Ubuntu's archive for Ubuntu 24.04. NVIDIA maintains this long-term"
        " support branch until June 2028. The fabric manager of the same version"
        " is installed for the NVSwitches."
    )
    assert choose(NOBLE, V100, T4).reason == (
        "NVIDIA Tesla V100 PCIe 32GB (Volta) and NVIDIA Tesla T4 (Turing): driver branch 580 with"
        " proprietary kernel modules (prebuilt and signed) from Ubuntu's archive for Ubuntu 24.04."
        " NVIDIA maintains this long-term support branch until June 2028. It is the last branch"
        " for NVIDIA Tesla V100 PCIe 32GB (Volta). Only proprietary modules drive NVIDIA Tesla"
        " V100 PCIe 32GB (Volta)."
    )


def test_an_unlisted_card_is_named_by_number_and_called_a_guess() -> None:
    decision = choose(NOBLE, FUTURE)
    assert decision.reason.startswith("NVIDIA GPU 10de:3a00 (unknown, Turing or newer")
    assert "was chosen by its ID range" in decision.warnings[0]


@pytest.mark.parametrize(
    ("devices", "wanted", "words"),
    [
        ([K80], {}, "NVIDIA no longer maintains branch 470."),
        ([V100], {}, "The newest CUDA version for the oldest GPU of this host is 12"),
        (
            [T4],
            {"source": "cuda", "branch": 640},
            "Branch 640 is newer than any branch that Slipway knows.",
        ),
        ([GB200], {}, "Slipway does not set up IMEX"),
    ],
)
def test_cautions(devices: list[int], wanted: dict[str, object], words: str) -> None:
    warnings = choose(NOBLE, *devices, **wanted).warnings
    assert [warning for warning in warnings if words in warning]


def test_nouveau_is_named() -> None:
    host = replace(NOBLE, gpus=(gpu(T4, driver="nouveau"),))
    assert decide(host, DriverRequest()).warnings == (
        "nouveau uses NVIDIA Tesla T4 (Turing) at 0000:01:00.0; the NVIDIA driver"
        " replaces it at the next boot.",
    )


@pytest.mark.parametrize(
    ("host", "devices", "wanted", "major"),
    [
        (NOBLE, [T4], {}, 13),
        (NOBLE, [V100], {}, 12),
        (NOBLE, [V100, T4], {}, 12),
        (NOBLE, [K80], {}, 11),
        (NOBLE, [T4], {"branch": 470}, 11),
        (TRIXIE, [T4], {}, 12),
        (NOBLE, [T4], {"source": "cuda", "branch": 640}, None),
    ],
)
def test_the_newest_cuda_that_every_gpu_runs(
    host: HostFacts, devices: list[int], wanted: dict[str, object], major: int | None
) -> None:
    assert choose(host, *devices, **wanted).cuda_major == major


def test_summary_counts_kinds_in_order() -> None:
    gpus = [gpu(A100), gpu(T4), gpu(A100)]
    assert summary(gpus) == "2x NVIDIA A100 SXM4 80GB (Ampere) and NVIDIA Tesla T4 (Turing)"


# --- a driver that is already there ------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "branch", "modules", "words"),
    [
        (T4, 535, "proprietary", None),
        (T4, 580, None, None),
        (V100, 580, "proprietary", None),
        (FUTURE, 470, "proprietary", None),
        (V100, 595, "proprietary", "does not support"),
        (V100, 580, "open", "cannot drive"),
        (RTX_PRO, 580, "proprietary", "cannot drive"),
        (RTX_PRO, 550, "open", "too old"),
        (RTX_PRO, 580, None, None),
    ],
)
def test_a_present_driver_is_judged(
    device: int, branch: int, modules: str | None, words: str | None
) -> None:
    problem = driver_misfit([gpu(device)], branch, modules)
    assert problem is None if words is None else words in (problem or "")


def test_a_present_driver_is_not_judged_by_cards_it_leaves_alone() -> None:
    assert driver_misfit([gpu(RTX_PRO, driver="vfio-pci")], 470, "proprietary") is None


# --- properties over the whole number space ----------------------------------------------------


@pytest.mark.parametrize("host", [NOBLE, RESOLUTE, TRIXIE], ids=["24.04", "26.04", "13"])
def test_every_device_id_gets_a_consistent_answer(host: HostFacts) -> None:
    """Whatever the number, the decision is either complete or a reasoned refusal."""
    for device in range(0, 0x10000, 0x0B):
        decision = choose(host, device)
        assert decision.needed
        assert decision.reason.endswith(".")
        if not decision.supported:
            assert (decision.packages, decision.branch) == ((), None)
            continue
        assert decision.branch is not None
        assert driver_misfit([gpu(device)], decision.branch, decision.modules) is None
        assert decision.packages
        assert set(decision.running_kernel_packages) <= set(decision.packages)
        assert len(set(decision.packages)) == len(decision.packages)
