# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver as owned state: packages with versions and holds, sources, files, refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    branches,
    driver_files,
    driver_repository,
)
from ansible_collections.slipway.host.plugins.module_utils.roles import nvidia_driver

from lab import pci_tree
from tests.unit import survey
from tests.unit.gpu_facts import NOBLE, SID, TRIXIE, facts
from tests.unit.role_options import options

REVISION = "0ubuntu0.24.04.1"
OLD, NEW = f"580.173.02-{REVISION}", f"580.178.04-{REVISION}"
MIRROR = {"url": "http://mirror/x", "key_url": "http://mirror/key", "fingerprint": "F" * 40}


def plan(given: Mapping[str, Any], **variables: Any) -> dict[str, Any]:
    """Return the plan of a host for the role's defaults and these VARIABLES."""
    found = nvidia_driver.plan(given, options("nvidia_driver", **variables))
    survey.check("nvidia_driver", found["owned"])
    return found


def packages(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the owned packages by name."""
    return {entry["name"]: entry for entry in found["owned"]["packages"]}


def content(found: Mapping[str, Any], path: str) -> str | None:
    """Return what an owned file holds, None where it is to be absent."""
    (entry,) = (entry for entry in found["owned"]["files"] if entry["path"] == path)
    text: str | None = entry.get("content")
    assert (text is None) == (entry.get("state") == "absent")
    return text


def installed(
    version: str = NEW, branch: int = 580, flavour: str = "-server-open"
) -> dict[str, str]:
    """Return Ubuntu's set as dpkg has it after the role ran."""
    server = f"{branch}-server"
    upstream = version.partition("-")[0]
    names = (
        *(f"nvidia-headless-no-dkms-{branch}{flavour}", f"nvidia-utils-{server}"),
        *(f"nvidia-kernel-common-{server}", f"nvidia-kernel-source-{branch}{flavour}"),
        *(f"libnvidia-compute-{server}", f"nvidia-firmware-{server}-{upstream}"),
    )
    kernel = "6.8.0-149.149+1"
    return {
        **dict.fromkeys(names, version),
        f"linux-modules-nvidia-{branch}{flavour}-generic": kernel,
        f"linux-modules-nvidia-{branch}{flavour}-6.8.0-149-generic": kernel,
    }


# --- which driver ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "host", "source", "branch", "modules", "fabric"),
    [
        ("t4", NOBLE, "ubuntu", 580, "open", False),
        ("8xv100", NOBLE, "ubuntu", 580, "proprietary", False),
        ("8xa100", NOBLE, "ubuntu", 580, "open", True),
        ("8xh100", NOBLE, "ubuntu", 580, "open", True),
        ("8xb200", NOBLE, "cuda", 580, "open", True),
        ("rtx-pro-6000", NOBLE, "ubuntu", 580, "open", False),
        ("k80", NOBLE, "ubuntu", 470, "proprietary", False),
        ("gh200", NOBLE, "ubuntu", 580, "open", False),
        ("t4", TRIXIE, "debian", 550, "proprietary", False),
        ("8xb200", TRIXIE, "cuda", 580, "open", True),
        ("t4", SID, "debian", 550, "proprietary", False),
    ],
)
def test_each_model_gets_its_driver_and_units(
    model: str, host: dict[str, str], source: str, branch: int, modules: str, fabric: bool
) -> None:
    found = plan(facts(model, host))
    assert (found["source"], found["branch"], found["modules"]) == (source, branch, modules)
    assert found["needed"] and found["managed"] and found["reason"]
    assert found["owned"]["refused"] == []
    units = {unit["name"] for unit in found["owned"]["units"]}
    assert units == {
        "nvidia-persistenced.service",
        *(["nvidia-fabricmanager.service"] if fabric else []),
    }


def test_services_files_and_modules_of_a_host_with_nvswitches() -> None:
    owned = plan(facts("8xh100"))["owned"]
    drop_in = "/etc/systemd/system/nvidia-persistenced.service.d/slipway.conf"
    assert owned["units"] == [
        {
            "name": "nvidia-persistenced.service",
            "enabled": True,
            "active": True,
            "unit_files": [drop_in],
        },
        {"name": "nvidia-fabricmanager.service", "enabled": True, "active": True},
    ]
    assert owned["derived"] == [
        {
            "path": "/boot/initrd.img-6.8.0-149-generic",
            "since": ["/etc/modprobe.d/slipway-nvidia-driver.conf"],
        }
    ]
    assert [entry["path"] for entry in owned["files"] if "content" in entry] == [
        "/var/lib/slipway/gpus.json",
        "/etc/apt/preferences.d/slipway-nvidia-driver.pref",
        "/etc/apt/apt.conf.d/60slipway-nvidia-driver",
        "/etc/modprobe.d/slipway-nvidia-driver.conf",
        "/etc/modules-load.d/slipway-nvidia-driver.conf",
        drop_in,
    ]
    assert owned["modules"] == [
        {"name": "nvidia"},
        {"name": "nvidia_uvm"},
        *({"name": name, "state": "absent"} for name in ("nouveau", "nova", "nova_core")),
    ]


@pytest.mark.parametrize("flavour", ["open", "proprietary"])
def test_a_kept_driver_is_described_by_its_own_branch_and_flavour(flavour: str) -> None:
    kind = "Open Kernel Module for x86_64" if flavour == "open" else "x86_64 Kernel Module"
    banner = f"NVRM version: NVIDIA UNIX {kind}  580.178.04  Release Build"
    found = plan(facts("t4", loaded="580.178.04", banner=banner), source="keep")
    assert (found["needed"], found["managed"]) == (True, False)
    assert (found["branch"], found["modules"]) == (580, flavour)
    assert found["owned"]["refused"] == []


@pytest.mark.parametrize("model", ["none", "vfio"])
@pytest.mark.parametrize("source", ["auto", "keep", "cuda"])
def test_a_host_that_needs_none_owns_nothing(model: str, source: str) -> None:
    found = plan(facts(model), source=source)
    assert not found["needed"] and not found["managed"]
    assert found["owned"] == {"refused": []}
    assert "needs no driver" in found["reason"]


@pytest.mark.parametrize("model", sorted(pci_tree.MODELS))
def test_every_simulated_host_gets_a_driver_or_a_sentence(model: str) -> None:
    found = plan(facts(model))
    assert found["reason"].endswith(".")
    for why in found["owned"]["refused"]:
        # The survey puts the full stop.
        assert not why.endswith(".")


@pytest.mark.parametrize(
    ("model", "more", "variables", "words"),
    [
        ("v100-b200", {}, {}, "No driver supports all GPUs"),
        ("t4", {}, {"branch": "newest"}, "found 'newest'; expected 'auto' or a number"),
        ("t4", {}, {"gpus": "all"}, "nvidia_driver_gpus: found 'all'; expected 'auto' or a number"),
        ("t4", {}, {"version": "580"}, "found '580'; expected a driver version"),
        (
            "t4",
            {},
            {"version": 580.95},
            "nvidia_driver_version: found the number 580.95; expected a string",
        ),
        ("t4", {}, {"version": "580.1.1", "branch": 595}, "580.1.1 belongs to branch 580, but"),
        ("t4", {}, {"branch": "390"}, "Branch 390 is too old for"),
        ("8xv100", {}, {"modules": "open"}, "Open kernel modules cannot drive"),
        ("t4", {"run_installer": True}, {}, ".run installer"),
        ("t4", {"loaded": "575.1.1"}, {}, "575.1.1 is loaded, but no package owns it"),
        ("t4", {}, {"source": "keep"}, "no NVIDIA driver is loaded"),
        ("8xb200", {"loaded": "550.1.1"}, {"source": "keep"}, "Branch 550 is too old for"),
        ("8xb200", {"secure_boot": True}, {}, "Secure Boot is on"),
        ("t4", {}, {"repository": {"url": "http://mirror"}}, "without key_url and fingerprint"),
        ("t4", {"distribution_version": "20.04"}, {}, "No driver packages are known for"),
    ],
)
def test_unsupported_hosts_and_settings_are_refused_with_the_reason(
    model: str, more: dict[str, Any], variables: dict[str, Any], words: str
) -> None:
    found = plan(facts(model, **more), **variables)
    assert not found["managed"]
    (why,) = found["owned"]["refused"]
    assert words in why


def test_the_number_of_a_kernel_is_no_branch() -> None:
    kernel = "6.8.0-149-generic"
    parts = (f"linux-signatures-nvidia-{kernel}", f"linux-objects-nvidia-580-server-{kernel}")
    present = {**installed(flavour="-server"), **dict.fromkeys(parts, "6.8.0-149.149+1")}
    named = packages(plan(facts("8xv100", packages=present)))
    # Without them, the modules would go.
    assert all(named[name].get("state", "present") == "present" for name in parts)


# Named like parts of the driver, and none.
NAMESAKES = {
    "nvidia-cuda-toolkit": "12.0.140~12.0.1-4build4",
    "nvidia-docker2": "2.13.0-1",
    "libnvidia-egl-wayland1": "1:1.1.13-1build1",
}


@pytest.mark.parametrize("variables", [{}, {"version": "580.178.04"}, {"state": "absent"}])
def test_packages_with_a_similar_name_are_left_alone(variables: dict[str, Any]) -> None:
    found = plan(facts("t4", packages={**installed(), **NAMESAKES}), **variables)
    assert not set(NAMESAKES) & set(packages(found))


def test_a_cuda_toolkit_does_not_own_a_driver() -> None:
    (why,) = plan(facts("t4", packages=NAMESAKES, loaded="580.1.1"))["owned"]["refused"]
    assert "580.1.1 is loaded, but no package owns it" in why


DESKTOP = {
    **dict.fromkeys(
        ("nvidia-driver-580-open", "nvidia-utils-580", "libnvidia-gl-580", "nvidia-imex-580"), NEW
    ),
    "nvidia-firmware-580-580.178.04": NEW,
    "linux-modules-nvidia-580-open-generic": "6.8.0-149.149+1",
}


def test_a_driver_with_its_desktop_parts_is_not_replaced_unasked() -> None:
    (why,) = plan(facts("t4", packages=DESKTOP), branch=595)["owned"]["refused"]
    assert "nvidia-driver-580-open with desktop parts is installed" in why
    assert "nvidia_driver_source to distribution" in why


def test_all_of_the_other_flavour_that_goes_is_named() -> None:
    found = plan(facts("t4", packages=DESKTOP), source="distribution")
    assert found["owned"]["refused"] == []
    gone = {name for name, entry in packages(found).items() if entry.get("state") == "absent"}
    assert gone == set(DESKTOP) - {"nvidia-imex-580"}


def test_a_driver_that_is_kept_is_only_looked_at() -> None:
    given = facts("t4", loaded="575.57.08", run_installer=True)
    found = plan(given, source="keep")
    assert set(found["owned"]) == {"refused", "modules", "files"}
    assert found["owned"]["modules"] == [{"name": "nvidia"}]
    assert [entry["path"] for entry in found["owned"]["files"]] == [nvidia_driver.GPU_RECORD]
    assert not found["managed"]
    assert "575.57.08" in found["reason"]


# --- what is installed stays -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "present", "source", "branch", "modules"),
    [
        ("t4", installed(f"595.91.07-{REVISION}", 595), "ubuntu", 595, "open"),
        ("t4", installed(NEW, 580, "-server"), "ubuntu", 580, "proprietary"),
        (
            "t4",
            {
                "nvidia-driver-pinning-595": "595-1",
                "nvidia-dkms-open": "595.91.07-1ubuntu1",
                "libnvidia-compute": "595.91.07-1ubuntu1",
            },
            "cuda",
            595,
            "open",
        ),
        # What does not drive the hardware does not stay.
        ("gh200", installed(f"470.256.02-{REVISION}", 470, "-server"), "ubuntu", 580, "open"),
        ("rtx-pro-6000", installed(NEW, 580, "-server"), "ubuntu", 580, "open"),
        ("t4", {}, "ubuntu", 580, "open"),
    ],
    ids=["branch", "flavour", "source", "branch misfit", "flavour misfit", "nothing"],
)
def test_an_installed_driver_that_fits_stays(
    model: str, present: dict[str, str], source: str, branch: int, modules: str
) -> None:
    found = plan(facts(model, packages=present))
    assert (found["source"], found["branch"], found["modules"]) == (source, branch, modules)


def test_the_reason_names_an_installed_driver_that_is_kept() -> None:
    found = plan(facts("t4", packages=installed(f"595.91.07-{REVISION}", 595)))
    assert "This driver is installed and is kept" in found["reason"]
    assert "it stays" not in plan(facts("t4", packages=installed()))["reason"]


def test_another_branch_comes_when_it_is_asked_for_and_the_old_one_goes_with_it() -> None:
    present = installed(NEW)
    found = plan(facts("t4", packages=present), branch=595)
    named = packages(found)
    assert {name for name, entry in named.items() if entry.get("state") == "absent"} == set(present)
    assert named["nvidia-utils-595-server"] == {"name": "nvidia-utils-595-server", "hold": True}


def test_packages_with_a_version_in_their_name_are_removed_with_that_version() -> None:
    present = installed(OLD)
    firmware = "nvidia-firmware-580-server-580.173.02"
    assert packages(plan(facts("t4", packages=present)))[firmware]["hold"]
    named = packages(plan(facts("t4", packages=present), version="580.178.04"))
    assert named[firmware] == {"name": firmware, "state": "absent"}


def test_ready_made_modules_follow_the_driver() -> None:
    modules = "linux-modules-nvidia-580-server-open-generic"
    named = packages(plan(facts("t4", packages=installed(OLD)), version="580.178.04"))
    assert named[modules] == {"name": modules, "hold": True, "follows": "580.178.04"}
    # On a fresh host the newest of all fit each other.
    assert named["linux-image-generic"] == {"name": "linux-image-generic", "hold": True}
    assert "follows" not in packages(plan(facts("t4")))[modules]


def test_another_source_takes_the_place_of_the_first() -> None:
    named = packages(plan(facts("t4", packages=installed(NEW)), source="cuda"))
    assert named["nvidia-firmware-580-server-580.178.04"]["state"] == "absent"
    assert next(iter(named)) == "nvidia-driver-pinning-580"


# --- versions and holds ------------------------------------------------------------------------


def test_everything_that_came_is_held() -> None:
    present = installed()
    named = packages(plan(facts("t4", packages=present)))
    assert set(present) <= set(named)
    assert all(named[name]["hold"] for name in present)
    # At the version it has, nothing of it is to change.
    assert not any("version" in named[name] for name in present)
    assert named["linux-modules-nvidia-580-server-open-6.8.0-149-generic"]["optional"]
    # Kernels wait for their modules.
    assert named["linux-image-generic"] == {"name": "linux-image-generic", "hold": True}
    assert not packages(plan(facts("t4"), hold_kernel=False))["linux-image-generic"]["hold"]
    assert not any(entry["hold"] for entry in packages(plan(facts("t4"), hold=False)).values())


def test_modules_that_are_built_let_kernels_go_on() -> None:
    named = packages(plan(facts("8xb200")))
    assert "linux-image-generic" not in named
    assert "hold" not in named["linux-headers-generic"]
    assert "hold" not in named["infiniband-diags"]


@pytest.mark.parametrize(
    ("changed", "versions"),
    [
        ({}, {}),
        ({"nvidia-utils-580-server": NEW}, {"nvidia-utils-580-server": "580.173.02-*"}),
        # Packages of the driver that have a version of their own are no strays.
        ({"nvidia-settings": "510.47.03-0ubuntu4", "nvlsm": "2025.06.11-1"}, {}),
        ({"nvidia-fabricmanager-580": "580.173.02-1"}, {}),
        ({"nvidia-utils-580-server": ""}, {"nvidia-utils-580-server": "580.173.02-*"}),
        # Firmware of an earlier version that was left, beside that of the set.
        ({"nvidia-firmware-580-server-580.142.00": f"580.142.00-{REVISION}"}, {}),
    ],
    ids=["one version", "a stray", "others", "another revision", "one missing", "firmware"],
)
def test_the_set_stays_at_the_version_that_most_of_it_has(
    changed: dict[str, str], versions: dict[str, str]
) -> None:
    present = {name: version for name, version in {**installed(OLD), **changed}.items() if version}
    found = packages(plan(facts("t4", packages=present)))
    assert {n: entry["version"] for n, entry in found.items() if "version" in entry} == versions


@pytest.mark.parametrize(
    ("present", "wish", "gone", "expected"),
    [
        ({}, "", "newest", None),
        ({}, "580.173.02", "newest", "580.173.02-*"),
        (installed(OLD), "580.178.04", "newest", "580.178.04-*"),
        (installed(OLD), "580.178.04", "none", "580.178.04-*"),
        # A later one took the place of a version that was gone.
        (installed(NEW), "580.173.02", "newest", None),
        (installed(NEW), "580.173.02", "none", "580.173.02-*"),
        (installed(NEW), "", "none", None),
    ],
)
def test_a_wished_version(
    present: dict[str, str], wish: str, gone: str, expected: str | None
) -> None:
    found = plan(facts("t4", packages=present), version=wish, version_fallback=gone)
    named = packages(found)
    assert named["nvidia-utils-580-server"].get("version") == expected
    assert "version" not in named["linux-modules-nvidia-580-server-open-generic"]
    assert found["branch"] == 580


@pytest.mark.parametrize(
    ("present", "version"), [({}, None), (installed(OLD), "580.173.02")], ids=["fresh", "there"]
)
def test_the_kernel_is_to_have_the_installed_version(
    present: dict[str, str], version: str | None
) -> None:
    modules = {
        entry["name"]: entry for entry in plan(facts("t4", packages=present))["owned"]["modules"]
    }
    assert modules["nvidia"].get("version") == version
    assert modules["nvidia_uvm"] == {"name": "nvidia_uvm"}
    assert modules["nouveau"]["state"] == "absent"


# --- upgrades ----------------------------------------------------------------------------------


def newest(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what an upgrade is about, by name."""
    return {entry["name"]: entry for entry in found["newest"]}


def test_an_upgrade_takes_the_whole_set_to_no_version_of_its_own() -> None:
    present = {**installed(OLD), "nvidia-utils-580-server": NEW}
    named = newest(plan(facts("t4", packages=present)))
    firmware = "nvidia-firmware-580-server-580.173.02"
    assert named.pop(firmware) == {"name": firmware, "hold": True, "replaced": True}
    assert not any({"version", "follows"} & set(entry) for entry in named.values())
    assert {"nvidia-utils-580-server", "linux-image-generic"} < set(named)


def test_an_upgrade_to_a_named_version_has_it_all_at_that() -> None:
    found = plan(facts("t4", packages=installed(OLD)), version="580.178.04")
    named = newest(found)
    assert named["nvidia-utils-580-server"]["version"] == "580.178.04-*"
    assert named["linux-modules-nvidia-580-server-open-generic"]["follows"] == "580.178.04"
    assert named["nvidia-firmware-580-server-580.173.02"]["state"] == "absent"


def test_an_upgrade_asks_for_the_named_version_where_a_later_one_took_its_place() -> None:
    found = plan(facts("t4", packages=installed(NEW)), version="580.173.02")
    named = newest(found)
    assert named["nvidia-utils-580-server"]["version"] == "580.173.02-*"
    assert named["linux-modules-nvidia-580-server-open-generic"]["follows"] == "580.173.02"
    # It goes only where another one came.
    assert named["nvidia-firmware-580-server-580.178.04"]["replaced"]
    assert "version" not in packages(found)["nvidia-utils-580-server"]


def test_an_upgrade_to_another_branch_takes_the_old_one_out() -> None:
    named = newest(plan(facts("t4", packages=installed(OLD)), branch="595"))
    assert named["nvidia-utils-580-server"] == {
        "name": "nvidia-utils-580-server",
        "state": "absent",
    }
    assert named["nvidia-utils-595-server"] == {"name": "nvidia-utils-595-server", "hold": True}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, False),
        ({"branch": "595"}, True),
        ({"branch": "595", "upgrade": True}, False),
        ({"version": "580.178.04"}, True),
        ({"version": "580.178.04", "upgrade": True}, False),
        ({"version": "580.173.02"}, False),
    ],
)
def test_a_driver_that_was_rolled_back_comes_again_only_by_an_upgrade(
    variables: dict[str, Any], refused: bool
) -> None:
    left = {name: [NEW, OLD] for name in installed(OLD)}
    left["nvidia-utils-595-server"] = [f"595.91.07-{REVISION}", ""]
    found = plan(facts("t4", packages=installed(OLD), rolled_back=left), **variables)
    assert bool(found["owned"]["refused"]) == refused
    assert found["owned"]["units"], "a rollback has to load what is there"


# --- where it comes from -----------------------------------------------------------------------


def test_every_release_that_the_cuda_repository_serves_has_its_key() -> None:
    served = {
        (distribution, release)
        for source, distribution, release in branches.OFFERS
        if source == branches.CUDA
    }
    assert set(driver_repository.CUDA_KEYS) == served
    for _folder, name, fingerprint in driver_repository.CUDA_KEYS.values():
        assert re.fullmatch(r"[0-9A-F]{40}", fingerprint)
        # NVIDIA names the file by the end of the fingerprint.
        assert fingerprint.endswith(name.removesuffix(".pub").upper())


def test_the_cuda_repository_by_the_key_of_its_release() -> None:
    found = plan(facts("8xb200", TRIXIE))
    assert found["key_url"].endswith("/debian13/x86_64/8793F200.pub")
    (keyring,) = found["owned"]["keyrings"]
    assert keyring["fingerprint"] == "02182E60104FCDC26EAE1B8597A5D4CB8793F200"
    sources = content(found, driver_repository.SOURCES) or ""
    assert "Suites: /\n" in sources and "Components" not in sources
    assert [entry["name"] for entry in found["first"]] == ["nvidia-driver-pinning-580"]


@pytest.mark.parametrize(
    ("host", "there", "components"),
    [
        (NOBLE, ["multiverse", "restricted"], None),
        (NOBLE, [], "restricted"),
        (TRIXIE, [], "contrib non-free non-free-firmware"),
        (TRIXIE, ["non-free-firmware"], "contrib non-free"),
        (TRIXIE, ["contrib", "non-free", "non-free-firmware"], None),
    ],
)
def test_areas_of_the_archive_are_added_where_they_lack(
    host: dict[str, str], there: list[str], components: str | None
) -> None:
    found = plan(facts("t4", host, components=there))
    sources = content(found, driver_repository.SOURCES)
    assert (sources is None) == (components is None)
    if sources and components:
        assert f"Components: {components}\n" in sources
        assert "archive-keyring.gpg\n" in sources
    assert found["owned"]["keyrings"] == [] and found["key_url"] == ""
    assert content(found, driver_repository.KEYRING) is None


@pytest.mark.parametrize(
    ("model", "host", "suites"),
    [
        ("t4", NOBLE, "noble noble-updates noble-security"),
        ("t4", TRIXIE, "trixie trixie-updates"),
        ("t4", SID, "unstable"),
        ("8xb200", NOBLE, "/"),
    ],
)
def test_a_mirror_takes_the_place_of_the_source(
    model: str, host: dict[str, str], suites: str
) -> None:
    found = plan(facts(model, host), repository=MIRROR)
    sources = content(found, driver_repository.SOURCES) or ""
    assert "URIs: http://mirror/x\n" in sources
    assert f"Suites: {suites}\n" in sources
    assert ("Components" in sources) == (suites != "/")
    assert found["key_url"] == "http://mirror/key"
    assert found["owned"]["keyrings"][0]["fingerprint"] == "F" * 40


# --- files -------------------------------------------------------------------------------------

DRIVERS = (
    *("nvidia-utils-580-server", "libnvidia-compute-580", "libnvidia-cfg1", "libnvidia-nscq-580"),
    *("nvidia-headless-no-dkms-580-server-open", "nvidia-kernel-common-580-server"),
    *("nvidia-fabricmanager", "nvidia-driver-pinning-580", "nvidia-open", "cuda-drivers-580"),
)
OTHERS = (
    *("libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit"),
    *("cuda-toolkit-13-0", "nvidia-cuda-toolkit"),
)


def apt_matches(pattern: str, name: str) -> bool:
    """Say whether a word of apt_preferences(5)'s Package field names a package."""
    if pattern.startswith("/"):
        return re.search(pattern.strip("/"), name) is not None
    return re.fullmatch(pattern.replace("*", ".*"), name) is not None


@pytest.mark.parametrize(
    ("name", "mine"), [*((n, True) for n in DRIVERS), *((n, False) for n in OTHERS)]
)
def test_the_pin_is_for_the_driver_and_for_nothing_else(name: str, mine: bool) -> None:
    text = content(plan(facts("t4")), driver_files.PREFERENCES) or ""
    (names,) = re.findall(r"^Package: (.*)$", text, re.M)
    assert any(apt_matches(pattern, name) for pattern in names.split()) == mine


@pytest.mark.parametrize(
    ("model", "priority"), [("t4", "-1"), ("8xb200", "600")], ids=["archive", "cuda"]
)
def test_the_driver_has_one_source(model: str, priority: str) -> None:
    text = content(plan(facts(model)), driver_files.PREFERENCES) or ""
    assert re.findall(r"^Pin: (.*)\nPin-Priority: (.*)$", text, re.M) == [
        ("release l=NVIDIA CUDA", priority)
    ]


def test_a_wished_version_is_pinned() -> None:
    text = content(plan(facts("t4"), version="580.173.02"), driver_files.PREFERENCES) or ""
    assert re.findall(r"^Pin: (.*)\nPin-Priority: (.*)$", text, re.M)[0] == (
        "version 580.173.02-*",
        "1001",
    )


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *((name, True) for name in DRIVERS),
        ("libnvidia-container1", False),
        ("nvidia-container-toolkit", False),
        ("linux-modules-nvidia-580-server-open-generic", True),
        ("linux-image-6.8.0-150-generic", True),
        ("linux-generic", True),
        ("linux-libc-dev", False),
        ("openssl", False),
    ],
)
def test_unattended_upgrades_leave_the_set_alone(name: str, kept: bool) -> None:
    text = content(plan(facts("t4")), driver_files.UNATTENDED) or ""
    patterns = re.findall(r'^    "(.*)";$', text, re.M)
    assert any(re.match(pattern, name) for pattern in patterns) == kept


def test_without_a_hold_they_may_take_it() -> None:
    assert content(plan(facts("t4"), hold=False), driver_files.UNATTENDED) is None


def test_the_daemon_is_made_persistent_where_it_is_not() -> None:
    dropin = content(plan(facts("t4")), driver_files.PERSISTENCE) or ""
    assert "\nExecStart=\nExecStart=/usr/bin/nvidia-persistenced" in dropin
    assert "--no-persistence-mode" not in dropin
    assert content(plan(facts("8xb200")), driver_files.PERSISTENCE) is None


def test_modules_loaded_early_and_modules_blocked_are_declared() -> None:
    found = plan(facts("8xb200"))
    early = (content(found, driver_files.MODULES_LOAD) or "").splitlines()
    assert early[1:] == ["nvidia-uvm", "mlx5_ib", "ib_umad"]
    never = content(found, driver_files.MODPROBE) or ""
    assert {"blacklist nouveau", "blacklist nova_core"} <= set(never.splitlines())
    (derived,) = found["owned"]["derived"]
    assert derived["since"] == [driver_files.MODPROBE]


# --- removal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["t4", "8xb200"])
def test_removal_names_all_that_could_be_there(model: str) -> None:
    present = {**installed(), "nvidia-driver-pinning-580": "580-1"}
    here = plan(facts(model))
    gone = plan(facts(model, packages=present), state="absent")
    assert not gone["needed"] and not gone["managed"]
    absent = {e["name"] for e in gone["owned"]["packages"] if e.get("state") == "absent"}
    assert absent == set(present)
    written = {e["path"] for e in here["owned"]["files"] if "content" in e}
    written |= {e["path"] for e in here["owned"]["keyrings"]}
    assert written <= {e["path"] for e in gone["owned"]["files"] if e["state"] == "absent"}
    assert {"name": "linux-image-generic", "hold": False} in gone["owned"]["packages"]


def test_removal_takes_back_the_links_that_enabled_daemons() -> None:
    here, gone = (plan(facts("8xh100"), state=state) for state in ("present", "absent"))
    enabled = {unit["name"] for unit in here["owned"]["units"]}
    assert enabled == {unit["name"] for unit in gone["owned"]["units"] if not unit["enabled"]}


def test_removal_from_a_host_that_never_had_one() -> None:
    gone = plan(facts("none"), state="absent")
    assert gone["owned"]["packages"] == []
