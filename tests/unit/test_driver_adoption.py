# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts with a driver that somebody else installed: it stays whole, or the run is refused.

The package sets have the names and version forms of the packaging of Ubuntu, Debian, NVIDIA, the
graphics-drivers PPA, and vendors of cloud images and workstations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import driver_files
from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_driver

from tests.unit import survey
from tests.unit.gpu_facts import NOBLE, TRIXIE, facts
from tests.unit.role_options import options

JAMMY = {**NOBLE, "distribution_version": "22.04", "distribution_release": "jammy"}
PLUCKY = {**NOBLE, "distribution_version": "25.10", "distribution_release": "questing"}
BOOKWORM = {**TRIXIE, "distribution_version": "12", "distribution_release": "bookworm"}
OPEN_BANNER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (buildd@host)"
)
BANNER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Release Build"
KERNEL = "6.8.0-149.149+1"
Packages = dict[str, str]


def ubuntu(branch: int, version: str, flavour: str = "", parts: str = "desktop") -> Packages:
    """Return a set of Ubuntu's archive; FLAVOUR is the end of its name, such as -server-open."""
    tail = f"{branch}{'-server' if '-server' in flavour else ''}"
    names = [f"libnvidia-compute-{tail}", f"nvidia-kernel-common-{tail}"]
    names += [f"libnvidia-cfg1-{tail}", f"nvidia-compute-utils-{tail}"]
    names += [f"nvidia-kernel-source-{branch}{flavour}", f"nvidia-utils-{tail}"]
    if parts == "desktop":
        names += [f"nvidia-driver-{branch}{flavour}", f"libnvidia-gl-{tail}"]
        names += [f"xserver-xorg-video-nvidia-{tail}", f"libnvidia-extra-{tail}"]
        names += [f"nvidia-dkms-{branch}{flavour}"]
    if parts == "headless":
        names += [f"nvidia-headless-{branch}{flavour}", f"nvidia-dkms-{branch}{flavour}"]
        names += [f"nvidia-headless-no-dkms-{branch}{flavour}"]
    if parts == "prebuilt":
        names += [f"nvidia-driver-{branch}{flavour}", f"libnvidia-gl-{tail}"]
    upstream = version.split("-", maxsplit=1)[0]
    packages = {
        **dict.fromkeys(names, version),
        f"nvidia-firmware-{tail}-{upstream}": version,
        "nvidia-prime": "0.8.17.1",
    }
    if parts == "prebuilt":
        packages |= {f"linux-modules-nvidia-{branch}{flavour}-generic": KERNEL}
        packages |= {f"linux-modules-nvidia-{branch}{flavour}-6.8.0-149-generic": KERNEL}
    return packages


def nvidia(version: str, modules: str = "-open", parts: str = "all") -> Packages:
    """Return a set of NVIDIA's repository for Ubuntu."""
    branch = int(version.split(".", maxsplit=1)[0])
    tail = "" if branch >= 590 else f"-{branch}"
    names = [f"libnvidia-compute{tail}", f"nvidia-dkms{tail}{modules}", "nvidia-persistenced"]
    names += [f"nvidia-kernel-common{tail}", f"nvidia-kernel-source{tail}{modules}"]
    names += [f"libnvidia-cfg1{tail}", "nvidia-modprobe", f"nvidia-firmware{tail}"]
    if parts == "all":
        names += [f"nvidia-driver{tail}{modules}", f"libnvidia-gl{tail}"]
        names += [f"nvidia-open{tail}" if modules else f"cuda-drivers{tail}"]
    return dict.fromkeys(names, version)


def debian(version: str, kernel: str = "nvidia-kernel-dkms") -> Packages:
    """Return a set of Debian, or with other names of kernel packages NVIDIA's set for Debian."""
    names = [kernel, "libcuda1", "nvidia-smi", "nvidia-driver", "nvidia-driver-libs"]
    names += ["libnvidia-ptxjitcompiler1", "nvidia-kernel-support", "nvidia-alternative"]
    names += ["xserver-xorg-video-nvidia"]
    return {**dict.fromkeys(names, version), "nvidia-installer-cleanup": "20240109+1"}


GRID = {"nvidia-linux-grid-580": "580.95.05"}


@dataclass(frozen=True)
class Case:
    """A host, and what is right: ``adopted``, ``managed`` (as before) or words of a refusal."""

    name: str
    packages: Packages
    right: str
    model: str = "t4"
    host: Mapping[str, str] = field(default_factory=lambda: NOBLE)
    loaded: str = ""
    banner: str = ""


def loaded(version: str, banner: str = OPEN_BANNER) -> dict[str, Any]:
    """Return the facts of a loaded driver."""
    return {"loaded": version, "banner": banner.format(version)}


UBUNTU_580, UBUNTU_595 = "580.178.04-0ubuntu0.24.04.1", "595.91.07-0ubuntu0.24.04.1"
ADOPTED = [
    # NVIDIA's installation guide, and a public baseline for GPU hosts.
    Case("nvidia-open without a pin", nvidia("595.58.03-1ubuntu1"), "NVIDIA's repository",
         **loaded("595.58.03")),
    Case("compute only, NVIDIA", nvidia("595.58.03-1ubuntu1", parts="compute"),
         "NVIDIA's repository", **loaded("595.58.03")),
    Case("Ubuntu's server meta package with display parts",
         ubuntu(595, UBUNTU_595, "-server-open", "prebuilt"), "Ubuntu's archive",
         **loaded("595.91.07")),
    Case("Ubuntu desktop, open", ubuntu(580, UBUNTU_580, "-open"), "Ubuntu's archive",
         **loaded("580.178.04")),
    Case("Ubuntu desktop, proprietary", ubuntu(580, UBUNTU_580), "Ubuntu's archive",
         **loaded("580.178.04", BANNER)),
    Case("Ubuntu desktop, prebuilt", ubuntu(580, UBUNTU_580, "-open", "prebuilt"),
         "Ubuntu's archive", **loaded("580.178.04")),
    Case("Ubuntu desktop, not loaded yet", ubuntu(580, UBUNTU_580, "-open"), "Ubuntu's archive"),
    Case("Ubuntu desktop 595", ubuntu(595, UBUNTU_595, "-open"), "Ubuntu's archive",
         **loaded("595.91.07")),
    Case("Ubuntu headless with DKMS, desktop flavour", ubuntu(580, UBUNTU_580, "-open", "headless"),
         "Ubuntu's archive", **loaded("580.178.04")),
    Case("Ubuntu 22.04 desktop", ubuntu(580, "580.178.04-0ubuntu0.22.04.1"), "Ubuntu's archive",
         host=JAMMY, **loaded("580.178.04", BANNER)),
    Case("a release without packages in the tables",
         ubuntu(580, "580.178.04-0ubuntu0.25.10.1", "-open"), "Ubuntu's archive", host=PLUCKY,
         **loaded("580.178.04")),
    Case("an ended branch that Ubuntu replaced",
         ubuntu(570, "570.211.01-0ubuntu0.24.04.1", "-server", "headless"), "Ubuntu's archive",
         **loaded("570.211.01", BANNER)),
    Case("an ended branch, desktop", ubuntu(550, "550.163.01-0ubuntu0.24.04.1"),
         "Ubuntu's archive", **loaded("550.163.01", BANNER)),
    Case("graphics-drivers PPA", ubuntu(580, "580.119.02-0ubuntu0~gpu24.04.1", "-open"),
         "the graphics-drivers PPA", **loaded("580.119.02")),
    Case("graphics-drivers PPA, newest branch",
         ubuntu(620, "620.20.01-0ubuntu0~gpu24.04.1", "-open"), "the graphics-drivers PPA",
         **loaded("620.20.01")),
    Case("NVIDIA, branch in the names, open", nvidia("580.95.05-0ubuntu1"), "NVIDIA's repository",
         **loaded("580.95.05")),
    Case("NVIDIA, branch in the names, proprietary", nvidia("550.90.07-0ubuntu1", ""),
         "NVIDIA's repository", **loaded("550.90.07", BANNER)),
    Case("cuda-drivers, newest", nvidia("595.71.05-1ubuntu1", ""), "NVIDIA's repository",
         **loaded("595.71.05", BANNER)),
    Case("NVIDIA 590, ended", nvidia("590.44.01-1ubuntu1"), "NVIDIA's repository",
         **loaded("590.44.01")),
    Case("NVIDIA 610, ended", nvidia("610.20.01-1ubuntu1"), "NVIDIA's repository",
         **loaded("610.20.01")),
    Case("NVIDIA for Ubuntu 22.04", nvidia("570.124.06-0ubuntu1"), "NVIDIA's repository",
         host=JAMMY, **loaded("570.124.06")),
    Case("NVIDIA for Debian 13, open", debian("595.58.03-1", "nvidia-kernel-open-dkms"), "",
         host=TRIXIE, **loaded("595.58.03")),
    Case("NVIDIA for Debian 12, proprietary", debian("580.95.05-1"), "", host=BOOKWORM,
         **loaded("580.95.05", BANNER)),
    Case("Debian's backports", debian("565.77-1~bpo12+1"), "Debian's backports", host=BOOKWORM,
         **loaded("565.77", BANNER)),
    Case("Lambda Stack", ubuntu(570, "570.148.08-0lambda0.22.04.1", "-server"),
         "Lambda's repository", host=JAMMY, **loaded("570.148.08", BANNER)),
    Case("System76", ubuntu(580, "580.105.08-1pop0~1762000000~24.04~abcdef0", "-open"),
         "System76's repository", **loaded("580.105.08")),
    Case("DGX OS with fabric manager",
         {**ubuntu(580, UBUNTU_580, "-server-open", "prebuilt"),
          "nvidia-fabricmanager-580": UBUNTU_580, "libnvidia-nscq-580": UBUNTU_580},
         "Ubuntu's archive", model="8xh100", **loaded("580.178.04")),
    Case("AWS deep learning image, NVIDIA's packages and fabric manager",
         {**nvidia("570.172.08-0ubuntu1"), "nvidia-fabricmanager-570": "570.172.08-1"},
         "NVIDIA's repository", model="8xa100", **loaded("570.172.08")),
    Case("GCP image, open, prebuilt for its kernel",
         {**ubuntu(580, UBUNTU_580, "-server-open", "prebuilt"),
          "linux-modules-nvidia-580-server-open-gcp": KERNEL},
         "Ubuntu's archive", host={**NOBLE, "kernel": "6.14.0-1021-gcp"}, **loaded("580.178.04")),
    Case("Azure image with GRID driver, loaded", GRID, "", **loaded("580.95.05", BANNER)),
    Case("B200 with NVIDIA's fabric manager and subnet manager",
         {**nvidia("580.95.05-0ubuntu1"), "nvidia-fabricmanager": "580.95.05-1",
          "nvlsm": "2025.06.11-1"},
         "NVIDIA's repository", model="8xb200", **loaded("580.95.05")),
]  # fmt: skip
MANAGED = [
    Case("a fresh host", {}, "ubuntu"),
    Case("libraries of CUDA without a driver", {"libnvidia-compute-535": "535.1.1-0ubuntu1"},
         "ubuntu"),
    Case("Slipway's own set of Ubuntu", ubuntu(580, UBUNTU_580, "-server", "headless"), "ubuntu"),
    Case("a pinned set of NVIDIA",
         {**nvidia("595.58.03-1ubuntu1"), "nvidia-driver-pinning-595": "595-1"}, "cuda"),
    Case("Debian's own set", debian("550.163.01-2"), "debian", host=TRIXIE),
    Case("a branch that does not support the GPUs",
         nvidia("535.54.03-0ubuntu1", "", "compute"), "cuda", model="8xb200"),
    Case("a flavour that does not support the GPUs",
         nvidia("580.95.05-0ubuntu1", "", "compute"), "ubuntu", model="rtx-pro-6000"),
]  # fmt: skip
REFUSED = [
    Case("loaded, without packages (a driver container)", {}, "no package owns it",
         **loaded("580.95.05")),
    Case("several versions, after a partial upgrade",
         {**nvidia("595.58.03-1ubuntu1"), "libnvidia-compute": "595.71.05-1ubuntu1"},
         "have several versions: 595.58.03 (", **loaded("595.58.03")),
    Case("kernel modules without libcuda", {"nvidia-dkms-open": "595.58.03-1ubuntu1"},
         "lack libcuda.so.1", **loaded("595.58.03")),
    Case("NVSwitches without fabric manager", nvidia("595.58.03-1ubuntu1"),
         "without nvidia-fabricmanager", model="8xh100", **loaded("595.58.03")),
    Case("a desktop driver that does not support the GPUs", ubuntu(580, UBUNTU_580),
         "with desktop parts is installed", model="rtx-pro-6000"),
    Case("packages of one driver, another one loaded by the .run installer",
         nvidia("595.58.03-1ubuntu1"), ".run installer", **loaded("575.57.08")),
]  # fmt: skip


def plan(case: Case, **variables: Any) -> dict[str, Any]:
    """Return the plan of the host of a case."""
    given = facts(
        case.model,
        case.host,
        case.packages,
        loaded=case.loaded,
        banner=case.banner,
        run_installer=".run" in case.name,
    )
    found = nvidia_driver.plan(given, options("nvidia_driver", **variables))
    survey.check("nvidia_driver", found["owned"])
    return found


def identity(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", ADOPTED, ids=identity)
def test_a_driver_that_supports_the_gpus_is_adopted_whole(case: Case) -> None:
    found = plan(case)
    assert found["owned"]["refused"] == []
    assert (found["source"], found["managed"]) == ("adopted", True)
    version = next(v for v in case.packages.values() if v[0] in "56").split("-")[0]
    assert f"Driver {version} with " in found["reason"]
    if case.right:
        assert f"from {case.right} was installed by somebody else" in found["reason"]
    named = {entry["name"]: entry for entry in found["owned"]["packages"]}
    assert {name for name in named if not name.startswith("linux-image-")} == set(case.packages)
    assert all(entry["hold"] for entry in named.values())
    assert not any({"state", "version"} & set(entry) for entry in named.values())
    written = {file["path"] for file in found["owned"]["files"] if "content" in file}
    record = nvidia_driver.GPU_RECORD
    assert written == {driver_files.UNATTENDED, driver_files.MODULES_LOAD, record}
    assert found["owned"]["modules"][0] == {"name": "nvidia", "version": version}
    fabric = "-fabricmanager" in " ".join(case.packages)
    assert bool(found["owned"]["units"]) == fabric
    flavour = "open" if "Open" in case.banner or "-open" in " ".join(named) else "proprietary"
    assert found["modules"] == flavour


@pytest.mark.parametrize("case", MANAGED, ids=identity)
def test_other_drivers_are_managed_as_before(case: Case) -> None:
    found = plan(case)
    assert (found["owned"]["refused"], found["source"]) == ([], case.right)


@pytest.mark.parametrize("case", REFUSED, ids=identity)
def test_a_driver_that_cannot_be_adopted_is_refused_with_ways_out(case: Case) -> None:
    found = plan(case)
    (why,) = found["owned"]["refused"]
    assert case.right in why
    assert "nvidia_driver_source" in why
    assert not found["managed"]


@pytest.mark.parametrize(
    ("variables", "source"),
    [
        ({"source": "cuda"}, "cuda"),
        ({"source": "distribution"}, "ubuntu"),
        ({"branch": 580}, "ubuntu"),
        ({"version": "595.71.05"}, "ubuntu"),
        ({"branch": 595, "modules": "open", "version": "595.58.03"}, "adopted"),
        ({"source": "keep"}, "keep"),
    ],
)
def test_an_option_that_names_another_driver_replaces_it(
    variables: dict[str, Any], source: str
) -> None:
    assert plan(ADOPTED[0], **variables)["source"] == source


def test_an_interrupted_run_of_the_role_is_not_taken_for_a_foreign_driver() -> None:
    half = {
        name: version
        for name, version in ubuntu(580, UBUNTU_580, "-server-open", "prebuilt").items()
        if name.startswith(("linux-modules", "libnvidia-compute"))
    }
    given = facts("t4", packages=half)
    given["gpu"]["managed"] = True
    found = nvidia_driver.plan(given, options("nvidia_driver"))
    assert found["source"] == "ubuntu"
    assert "nvidia-utils-580-server" in {entry["name"] for entry in found["owned"]["packages"]}


def test_an_adopted_driver_with_prebuilt_modules_holds_the_kernel() -> None:
    found = plan(ADOPTED[2])
    named = {entry["name"]: entry for entry in found["owned"]["packages"]}
    assert named["linux-image-generic"]["hold"]
    assert named["linux-modules-nvidia-595-server-open-6.8.0-149-generic"]["optional"]
    assert not named["nvidia-driver-595-server-open"].get("optional")


def test_an_upgrade_of_an_adopted_driver_stays_in_its_set() -> None:
    found = plan(ADOPTED[0], upgrade=True)
    assert {entry["name"] for entry in found["newest"]} == set(ADOPTED[0].packages)
    assert not any("version" in entry for entry in found["newest"])


def test_there_are_forty_hosts() -> None:
    assert len(ADOPTED) + len(MANAGED) + len(REFUSED) >= 40
