# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading nvidia-smi's XML across drivers, and its ways to fail."""

from __future__ import annotations

import re

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu.nvidia_smi import (
    SmiError,
    SmiGpu,
    SmiProcess,
    SmiReport,
    failure,
    parse,
    sysfs_address,
)

from lab.nvidia_packages.parts import SAMPLES


def sample(name: str) -> SmiReport:
    return parse((SAMPLES / f"{name}.xml").read_text())


@pytest.mark.parametrize(
    ("name", "driver", "cuda", "addresses"),
    [
        ("470-t4", "470.256.02", "11.4", ["0000:00:1e.0"]),
        ("535-a100-mig", "535.54.03", "12.2", ["0000:01:00.0", "0000:41:00.0"]),
        ("580-h100", "580.178.04", "13.0", ["0000:1b:00.0"]),
        ("580-h200", "580.159.04", "13.0", ["0000:00:06.0"]),
        ("595-rtx3080", "595.58.03", "13.2", ["0000:0c:00.0"]),
        ("615-l4", "615.71.09", "13.4", ["0000:09:00.0"]),
        ("620-l4", "620.10.01", "14.0", ["0000:09:00.0"]),
    ],
)
def test_versions_and_addresses_of_every_generation(
    name: str, driver: str, cuda: str, addresses: list[str]
) -> None:
    report = sample(name)
    assert (report.driver_version, report.cuda_version) == (driver, cuda)
    assert [gpu.address for gpu in report.gpus] == addresses


def test_every_sample_is_described() -> None:
    described = (SAMPLES / "README.md").read_text()
    assert [path.name for path in SAMPLES.glob("*.xml") if path.name not in described] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "470-t4",
            SmiGpu(
                address="0000:00:1e.0",
                name="Tesla T4",
                uuid="GPU-00000000-0000-4000-8000-000000000001",
                memory_mib=15109,
                persistence=True,
                ecc=True,
                virtualization="Pass-Through",
                processes=(SmiProcess(4711, "python3", "C"),),
            ),
        ),
        (
            "580-h200",
            SmiGpu(
                address="0000:00:06.0",
                name="NVIDIA H200",
                uuid="GPU-00000000-0000-4000-8000-000000000008",
                memory_mib=143771,
                persistence=True,
                ecc=True,
                mig=False,
                mig_pending=False,
                virtualization="Pass-Through",
                gsp_firmware="580.159.04",
            ),
        ),
        (
            "595-rtx3080",
            SmiGpu(
                address="0000:0c:00.0",
                name="NVIDIA GeForce RTX 3080",
                uuid="GPU-00000000-0000-4000-8000-000000000005",
                memory_mib=10240,
                persistence=False,
            ),
        ),
        ("620-l4", SmiGpu(address="0000:09:00.0", name="NVIDIA L4")),
    ],
)
def test_a_gpu_reads_whole(name: str, expected: SmiGpu) -> None:
    assert sample(name).gpus == (expected,)


def test_mig_is_told_for_each_gpu() -> None:
    split, whole = sample("535-a100-mig").gpus
    assert (split.mig, split.mig_pending, split.mig_devices) == (True, True, 2)
    assert (whole.mig, whole.mig_pending, whole.mig_devices) == (False, True, 0)
    # The memory is that of the GPU, not of its first MIG device.
    assert split.memory_mib == 81920


def test_fabric_and_processes_of_a_current_driver() -> None:
    (gpu,) = sample("580-h100").gpus
    assert (gpu.fabric_state, gpu.fabric_status) == ("Completed", "Success")
    assert gpu.recovery_action is None
    assert gpu.gsp_firmware == "580.178.04"
    # A process of another PID namespace has no number to report.
    assert gpu.processes == (
        SmiProcess(100, "/usr/bin/python3.12", "C"),
        SmiProcess(200, None, "G"),
    )


@pytest.mark.parametrize(
    ("bus_id", "address"),
    [
        ("00000000:0C:00.0", "0000:0c:00.0"),
        ("00000009:01:00.0", "0009:01:00.0"),
        ("0000:0C:00.0", "0000:0c:00.0"),
        # Hyper-V's PCI domains are wider than sixteen bits.
        ("00010002:00:00.0", "10002:00:00.0"),
        ("gone", "gone"),
    ],
)
def test_addresses_are_spelt_as_sysfs_does(bus_id: str, address: str) -> None:
    assert sysfs_address(bus_id) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing; expected XML"),
        ("No devices were found", "found No devices were found"),
        ("<nvidia_smi_log><gpu>", "expected XML"),
        ("<html/>", "found <html>; expected <nvidia_smi_log>"),
    ],
)
def test_other_output_is_named(text: str, words: str) -> None:
    with pytest.raises(SmiError, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (9, "", "nvidia-smi exited with 9: the NVIDIA driver is not loaded"),
        (15, "Unable to determine\n the device handle", "fallen off the bus .*Unable to determine"),
        (18, "Driver/library version mismatch", "differ in version"),
        (124, "", "time limit reached"),
        (77, "odd", r"exited with 77: unknown cause \(odd\)"),
    ],
)
def test_exit_codes_name_their_cause(code: int, output: str, words: str) -> None:
    assert re.search(words, failure(code, output))
