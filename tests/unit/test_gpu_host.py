# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The survey's reading of a host's GPUs is gpu_info's, for every simulated host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables
from ansible_collections.slipway.host.plugins.module_utils.gpu.decision import decide
from ansible_collections.slipway.host.plugins.module_utils.gpu.model import DriverRequest, HostFacts
from ansible_collections.slipway.host.plugins.module_utils.state import (
    kernel_modules,
    packages,
    reading,
)

from lab import pci_tree
from tests.unit.gpu_facts import NOBLE, SID, TRIXIE, facts

PLACE = HostFacts("ubuntu", "24.04", "6.8.0-149-generic", kernel_metas=("generic",))


@pytest.mark.parametrize("model", sorted(set(pci_tree.MODELS) - {"unprivileged"}))
def test_both_readings_lead_to_the_same_driver(tmp_path: Path, model: str) -> None:
    found = detect.inventory(pci_tree.build(tmp_path, pci_tree.MODELS[model]))
    host = replace(
        PLACE,
        gpus=found.gpus,
        nvswitches=found.nvswitches,
        nvlink_bridges=found.nvlink_bridges,
    )
    assert decide(gpu_host.host_facts(facts(model)), DriverRequest()) == decide(
        host, DriverRequest()
    )


def test_what_the_probe_knows_of_baseboards_is_what_the_tables_say() -> None:
    assert {int(number, 16) for number in gpu_facts.NVLINK5_GPUS} == tables.NVLINK5_BASEBOARD_GPUS
    assert gpu_facts.NVLINK5_BASEBOARD == tables.NVLINK5_BASEBOARD_SIZE
    assert int(gpu_facts.NVIDIA, 16) == tables.VENDOR_NVIDIA
    assert int(gpu_facts.MELLANOX, 16) == tables.VENDOR_MELLANOX


@pytest.mark.parametrize(
    ("count", "bridges"), [(8, ()), (4, ("0000:08:00.0",)), (0, ())], ids=["all", "half", "none"]
)
def test_bridges_are_looked_for_only_where_they_matter(
    tmp_path: Path, count: int, bridges: tuple[str, ...]
) -> None:
    functions = pci_tree.MODELS["8xb200"]
    server, gpus, nics = functions[:2], functions[2:10], functions[10:]
    # The first bridge stands behind the server's own devices, the GPUs and eight other adapters.
    tree = pci_tree.build(tmp_path, (*server, *gpus[:count], *nics[8:9], *nics[:8]))
    found = gpu_facts.ask_gpus(str(tree))
    assert tuple(found.get("bridges", ())) == (bridges and (f"0000:{count + 3:02x}:00.0",))


def test_a_host_without_nvidia_tells_nothing_more(tmp_path: Path) -> None:
    assert gpu_facts.ask_gpus(str(pci_tree.build(tmp_path, pci_tree.MODELS["none"]))) == {
        "devices": []
    }
    assert gpu_facts.ask_gpus(str(tmp_path / "no bus")) == {"devices": []}


def test_a_vgpu_is_told_by_its_configuration_and_others_send_none(tmp_path: Path) -> None:
    (vgpu,) = gpu_host.host_facts(facts("vgpu")).gpus
    assert (vgpu.virtual, vgpu.virtual_host_driver) == (True, pci_tree.VGPU_HOST_DRIVER)
    tree = pci_tree.build(tmp_path, pci_tree.MODELS["t4"])
    assert [device[-1] for device in gpu_facts.ask_gpus(str(tree))["devices"]] == [""]


@pytest.mark.parametrize(
    ("model", "has"), [("none", False), ("t4", True), ("vfio", False), ("vfio-part", True)]
)
def test_whose_gpus_they_are(model: str, has: bool) -> None:
    assert gpu_host.has_gpu(facts(model)) == has


@pytest.mark.parametrize(
    ("host", "place"),
    [(NOBLE, ("ubuntu", "24.04")), (TRIXIE, ("debian", "13")), (SID, ("debian", "sid"))],
    ids=["noble", "trixie", "sid"],
)
def test_the_release_in_the_words_of_the_decision(
    host: dict[str, str], place: tuple[str, str]
) -> None:
    found = gpu_host.host_facts(facts("t4", host))
    assert (found.distribution, found.release) == place
    assert found.architecture == "amd64"


def test_facts_of_an_older_release_of_the_project_tell_of_no_gpu() -> None:
    remembered = facts("t4")
    del remembered["gpu"]
    assert not gpu_host.has_gpu(remembered)


@pytest.mark.parametrize(
    ("loaded", "banner", "expected"),
    [
        ("", "", None),
        ("580.178.04", "", detect.KernelModule("580.178.04")),
        (
            "580.178.04",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.178.04  Release Build",
            detect.KernelModule("580.178.04", "open"),
        ),
        (
            "",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8",
            detect.KernelModule("550.163.01", "proprietary"),
        ),
    ],
    ids=["nothing", "version", "open", "banner alone"],
)
def test_what_is_loaded(loaded: str, banner: str, expected: detect.KernelModule | None) -> None:
    assert gpu_host.loaded(facts("t4", loaded=loaded, banner=banner)) == expected


# What the probe reads beside the bus.

STATUS = """\
Package: nvidia-utils-580-server
Status: hold ok installed
Version: 580.178.04-0ubuntu0.24.04.1

Package: nvidia-container-toolkit
Status: install ok installed
Version: 1.20.1-1

Package: libnvidia-container1
Status: install ok installed
Version: 1.20.1-1

Package: linux-image-generic
Status: install ok installed
Version: 6.8.0-149.149

Package: linux-image-6.8.0-149-generic
Status: install ok installed
Version: 6.8.0-149.149

Package: linux-image-unsigned-6.8.0-31-generic
Status: install ok installed
Version: 6.8.0-31.31

Package: nvidia-driver-570
Status: deinstall ok config-files
Version: 570.1-1
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the probe finds what it reads of the system."""
    read = reading.read_file
    monkeypatch.setattr(reading, "read_file", lambda path: read(f"{tmp_path}{path}"))
    return tmp_path


def write(root: Path, path: str, text: str | bytes) -> None:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_installed_packages_of_a_kind(root: Path) -> None:
    write(root, "/var/lib/dpkg/status", STATUS)
    assert packages.installed_packages(("nvidia-utils", "linux-image-")) == {
        "nvidia-utils-580-server": "580.178.04-0ubuntu0.24.04.1",
        "linux-image-generic": "6.8.0-149.149",
        "linux-image-6.8.0-149-generic": "6.8.0-149.149",
        "linux-image-unsigned-6.8.0-31-generic": "6.8.0-31.31",
    }
    assert packages.installed_packages(("nvidia-driver",)) == {}


def test_a_gpu_hosts_driver_packages_and_kernels(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, "/var/lib/dpkg/status", STATUS)
    for name, text in {"vendor": "0x10de", "device": "0x1eb8", "class": "0x030200"}.items():
        write(root, f"/bus/0000:01:00.0/{name}", f"{text}\n")
    monkeypatch.setattr(reading, "list_names", lambda path: ["0000:01:00.0"] * (path == "/bus"))
    found = gpu_facts.ask_gpus("/bus")
    assert found["packages"] == {"nvidia-utils-580-server": "580.178.04-0ubuntu0.24.04.1"}
    assert found["kernel_metas"] == ["generic"]


def test_which_areas_of_the_archive_a_host_uses(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb http://mirror noble main restricted\n# deb x y universe\n")
    write(tmp_path, "sources.list.d/a.sources", "Components: main contrib\n#Components: non-free\n")
    write(tmp_path, "sources.list.d/slipway-nvidia-driver.sources", "Components: non-free\n")
    assert gpu_facts.read_apt_components(str(tmp_path)) == ["contrib", "restricted"]
    assert gpu_facts.read_apt_components(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("shim", "variable", "expected"),
    [
        (None, None, None),
        (None, b"\x06\0\0\0\x01", True),
        (None, b"\x06\0\0\0\x00", False),
        (b"\x06\0\0\0\x01", b"\x06\0\0\0\x01", False),
    ],
    ids=["unreadable", "on", "off", "off in the shim"],
)
def test_secure_boot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shim: bytes | None,
    variable: bytes | None,
    expected: bool | None,
) -> None:
    monkeypatch.setattr(gpu_facts, "EFI", str(tmp_path))
    names = {
        "MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23": shim,
        "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": variable,
    }
    for name, content in names.items():
        if content is not None:
            write(tmp_path, f"efivars/{name}", content)
    assert gpu_facts.read_secure_boot() is expected


def test_a_host_that_booted_without_uefi_has_no_secure_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_facts, "EFI", str(tmp_path / "none"))
    assert gpu_facts.read_secure_boot() is False


def test_modules_that_are_loaded_tell_their_version() -> None:
    assert kernel_modules.ask_modules(["no_such_module"]) == {"no_such_module": None}
