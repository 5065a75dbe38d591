# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the survey reads of a host's GPUs and driver, and the input of the choice of a driver."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import detection as detect
from ansible_collections.slipway.host.plugins.module_utils.gpu import facts as gpu_facts
from ansible_collections.slipway.host.plugins.module_utils.gpu import host as gpu_host
from ansible_collections.slipway.host.plugins.module_utils.state import (
    kernel_modules,
    packages,
    reading,
)

from lab import pci_tree
from tests.unit.gpu_facts import NOBLE, SID, TRIXIE, facts


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
def test_gpus_of_virtual_machines_do_not_count(model: str, has: bool) -> None:
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
def test_the_loaded_module_is_read_from_facts(
    loaded: str, banner: str, expected: detect.KernelModule | None
) -> None:
    assert gpu_host.loaded(facts("t4", loaded=loaded, banner=banner)) == expected


# What the probe reads beside the bus.

STATUS = """\
Package: nvidia-utils-580-server
Status: hold ok installed
Version: 580.178.04-0ubuntu0.24.04.1
Description: tools
 Version: not this one

Package: linux-modules-nvidia-580-server-open-generic
Status: hold ok installed
Version: 6.8.0-149.149+1

Package: libnvidia-compute-580-server
Status: install ok half-configured
Version: 580.178.04-0ubuntu0.24.04.1

Package: nvidia-container-toolkit
Status: install ok installed
Version: 1.20.1-1

Package: libnvidia-container1
Status: install ok installed
Version: 1.20.1-1

Package: linux-image-generic-hwe-24.04
Status: install ok installed
Version: 7.0.0-43.43

Package: linux-image-generic
Status: install ok installed
Version: 6.8.0-149.149

Package: linux-image-virtual
Status: deinstall ok config-files
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
        "linux-image-generic-hwe-24.04": "7.0.0-43.43",
        "linux-image-6.8.0-149-generic": "6.8.0-149.149",
        "linux-image-unsigned-6.8.0-31-generic": "6.8.0-31.31",
    }
    assert packages.installed_packages(("nvidia-driver",)) == {}


def test_a_gpu_hosts_driver_packages_and_kernels(tmp_path: Path) -> None:
    write(tmp_path, "status", STATUS)
    tree = pci_tree.build(tmp_path, pci_tree.MODELS["t4"])
    found = gpu_facts.ask_gpus(str(tree), status=str(tmp_path / "status"))
    # The container toolkit is not part of the driver; what is half installed is not there.
    assert found["packages"] == {
        "nvidia-utils-580-server": "580.178.04-0ubuntu0.24.04.1",
        "linux-modules-nvidia-580-server-open-generic": "6.8.0-149.149+1",
    }
    assert found["kernel_metas"] == ["generic", "generic-hwe-24.04"]


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("nvidia-driver-580", True),
        ("libnvidia-compute-580-server", True),
        ("firmware-nvidia-gsp-580", True),
        ("linux-objects-nvidia-580-6.8.0-149-generic", True),
        ("cuda-drivers-580", True),
        ("libcuda1", True),
        ("libnvsdm-580", True),
        ("nvlsm", True),
        ("nvlink5-580", True),
        ("nvidia-container-toolkit", False),
        ("libnvidia-container1", False),
        ("cuda-toolkit-13-0", False),
        ("linux-image-generic", False),
    ],
)
def test_which_packages_are_named_like_a_driver(name: str, belongs: bool) -> None:
    assert gpu_facts.is_driver_package(name) == belongs


def test_which_areas_of_the_archive_a_host_uses(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb http://mirror noble main restricted\n# deb x y universe\n")
    write(tmp_path, "sources.list.d/a.sources", "Components: main contrib\n#Components: non-free\n")
    write(tmp_path, "sources.list.d/slipway-nvidia-driver.sources", "Components: non-free\n")
    assert gpu_facts.read_apt_components(str(tmp_path)) == ["contrib", "restricted"]
    assert gpu_facts.read_apt_components(str(tmp_path / "none")) == []


def test_modules_that_are_loaded_tell_their_version() -> None:
    assert kernel_modules.ask_modules(["no_such_module"]) == {"no_such_module": None}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (False, True)),
        ({"build/Makefile": ""}, (True, True)),
        ({"modules.dep": "kernel/fs/nfs.ko.zst:\n"}, (False, False)),
        (
            {
                "modules.dep": "updates/dkms/mlx5_ib.ko.zst: kernel/x.ko\n",
                "modules.builtin": "kernel/drivers/infiniband/core/ib_umad.ko\n",
            },
            (False, True),
        ),
    ],
)
def test_what_the_running_kernel_has(
    tmp_path: Path, files: dict[str, str], expected: tuple[bool, bool]
) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/osrelease").write_text("6.17.0-1010-aws\n")
    for name, text in files.items():
        file = tmp_path / "modules/6.17.0-1010-aws" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = gpu_facts.read_kernel(True, str(tmp_path), str(tmp_path / "modules"))
    assert (found["headers"], found["fabric_modules"]) == expected
    assert gpu_facts.read_kernel(False, str(tmp_path), str(tmp_path / "modules"))["fabric_modules"]
