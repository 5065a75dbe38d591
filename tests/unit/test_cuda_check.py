# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA check against the stand-in driver: each fault is named by exactly the right check."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from operator import mul
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_bundle,
    cuda_check,
    cuda_errors,
    cuda_judge,
    cuda_kernels,
    cuda_run,
)

from lab import pci_tree, stand_in_cuda

PROGRAM = Path(cuda_check.__file__)
# Hang guard of the tests, far above the time of any run.
GUARD = 300

Report = dict[str, Any]
RunCheck = Callable[..., Report]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in library."""
    if not stand_in_cuda.has_compiler():
        pytest.skip("needs gcc to compile the stand-in for libcuda.so.1")
    return stand_in_cuda.build(tmp_path_factory.mktemp("cuda")).parent


def run_program(program: Path, environment: Mapping[str, str], *options: str) -> tuple[int, Report]:
    done = subprocess.run(
        [sys.executable, str(program), "--memory-mib", "8", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=False,
    )
    assert done.stdout, done.stderr
    report: Report = json.loads(done.stdout)
    return done.returncode, report


@pytest.fixture
def run_check(library: Path) -> RunCheck:
    """Return a function that runs the check with faults; two GPUs are expected."""

    def run(faults: str = "", *options: str, gpus: int = 2) -> Report:
        environment = {
            "LD_LIBRARY_PATH": str(library),
            "SLIPWAY_STAND_IN_GPUS": str(gpus),
            "SLIPWAY_STAND_IN_FAULTS": faults,
        }
        status, report = run_program(PROGRAM, environment, "--expect", "2", *options)
        assert status == (0 if report["ok"] else 1)
        return report

    return run


def failed(report: Report) -> list[tuple[str, str | None]]:
    return [(check["id"], check["gpu"]) for check in report["checks"] if not check["ok"]]


def test_a_healthy_host_passes_every_check_once(run_check: RunCheck) -> None:
    report = run_check()
    assert report["ok"], cuda_judge.failures(report)
    ran = [(check["id"], check["gpu"]) for check in report["checks"]]
    addresses = ["0000:01:00.0", "0000:02:00.0"]
    per_gpu = [(name, address) for address in addresses for name in cuda_judge.GPU_CHECKS]
    peers = [(cuda_judge.PEER_COPY, address) for address in addresses]
    assert ran == [*((name, None) for name in cuda_judge.DRIVER_CHECKS), *per_gpu, *peers]
    assert report["not_run"] == []
    assert report["schema"] == cuda_judge.SCHEMA
    assert report["driver"]["stand_in"]
    assert report["driver"]["cuda_version"] == "13.0"
    assert report["driver"]["library"].endswith("/libcuda.so.1")
    assert report["gpus"][1] == {
        "number": 1,
        "name": "stand-in GPU 1",
        "address": "0000:02:00.0",
        "memory_bytes": 1 << 30,
        "compute_capability": "9.0",
        "mig_slice": False,
    }
    paths = {(copy["from"], copy["to"]) for copy in report["copies"]}
    ends = ["host", *addresses]
    assert paths == {(a, b) for a in ends for b in ends if a != b}
    assert all(copy["gigabytes_per_second"] > 0 for copy in report["copies"])


@pytest.mark.parametrize(("options", "copies"), [([], 3), (["--all-pairs"], 6)])
def test_copies_between_gpus_form_a_ring_or_all_pairs(
    run_check: RunCheck, options: list[str], copies: int
) -> None:
    report = run_check("", "--expect", "3", *options, gpus=3)
    pairs = [(c["from"], c["to"]) for c in report["copies"] if "host" not in (c["from"], c["to"])]
    assert len(set(pairs)) == len(pairs) == copies
    assert {source for source, _ in pairs} == {target for _, target in pairs}


def test_a_gpu_whose_memory_others_use_is_checked_with_what_is_left(run_check: RunCheck) -> None:
    report = run_check("free=24", "--memory-mib", "64")
    assert report["ok"], failed(report)
    sizes = {check["id"]: check["expected"] for check in report["checks"] if "copy" in check["id"]}
    assert set(sizes.values()) == {f"{1 << 20} bytes unchanged"}
    memory = next(check for check in report["checks"] if check["id"] == cuda_judge.MEMORY)
    assert memory["found"].startswith("the same in 1 MiB")


def test_more_memory_is_tested_where_it_is_free(run_check: RunCheck) -> None:
    report = run_check("free=200", "--memory-mib", "64")
    memory = next(check for check in report["checks"] if check["id"] == cuda_judge.MEMORY)
    assert memory["found"].startswith("the same in 64 MiB")


FIRST, SECOND = "0000:01:00.0", "0000:02:00.0"


@pytest.mark.parametrize(
    ("faults", "check", "gpu", "found"),
    [
        ("init=3", cuda_judge.INIT, None, "cuInit: CUDA error 3 (CUDA_ERROR_NOT_INITIALIZED)"),
        ("init=34", cuda_judge.INIT, None, "stub of the CUDA toolkit"),
        ("init=100", cuda_judge.INIT, None, "CUDA error 100 (CUDA_ERROR_NO_DEVICE)"),
        ("init=101", cuda_judge.INIT, None, "CUDA_ERROR_INVALID_DEVICE"),
        ("init=802", cuda_judge.INIT, None, "the NVSwitch fabric is not ready"),
        ("init=803", cuda_judge.INIT, None, "kernel module and libcuda have different versions"),
        ("init=804", cuda_judge.INIT, None, "forward compatibility package"),
        ("init=999", cuda_judge.INIT, None, "CUDA error 999 (CUDA_ERROR_UNKNOWN)"),
        ("init=4711", cuda_judge.INIT, None, "CUDA error 4711 (not in the table of errors)"),
        ("missing=1", cuda_judge.COUNT, None, "1 GPU (0000:01:00.0)"),
        ("compile=218", cuda_judge.COMPILE, FIRST, "(stand-in: the text is not compiled)"),
        ("compile=222", cuda_judge.COMPILE, FIRST, "older than the PTX version"),
        ("launch=719", cuda_judge.SUM, FIRST, "cuLaunchKernel: CUDA error 719"),
        ("launch=700", cuda_judge.SUM, FIRST, "an invalid address"),
        ("sum=0", cuda_judge.SUM, FIRST, "at byte 2097152"),
        ("sum=1", cuda_judge.SUM, SECOND, "at byte 2097152"),
        ("product=1", cuda_judge.PRODUCT, SECOND, "at byte 512"),
        ("memory=0", cuda_judge.MEMORY, FIRST, "at byte 4100 of block 0"),
        ("memory=1", cuda_judge.MEMORY, SECOND, "at byte 4100 of block 0"),
        ("copy=1", cuda_judge.COPY, SECOND, "at byte 8"),
        ("peer=1", cuda_judge.PEER_COPY, SECOND, "at byte 8"),
        ("crash=cuInit", cuda_judge.PROCESS, None, "signal 11 during cuda-init"),
        ("crash=cuLaunchKernel", cuda_judge.PROCESS, FIRST, "during gpu-vector-sum on GPU"),
    ],
)
def test_a_fault_is_named_by_its_check_alone(
    run_check: RunCheck, faults: str, check: str, gpu: str | None, found: str
) -> None:
    report = run_check(faults)
    assert not report["ok"]
    named = failed(report)
    # A compiler that refuses the text refuses it for each GPU.
    expected = [(check, FIRST), (check, SECOND)] if "compile" in faults else [(check, gpu)]
    assert named == expected
    bad = next(entry for entry in report["checks"] if not entry["ok"])
    assert found in bad["found"]
    assert bad["expected"]
    assert bad["remedy"].endswith((".", ")."))


@pytest.mark.parametrize(
    ("call", "step", "gpu"),
    [("cuInit", "cuda-init", None), ("cuLaunchKernel", "gpu-vector-sum", FIRST)],
)
def test_a_hang_ends_at_the_time_limit_with_its_step(
    run_check: RunCheck, call: str, step: str, gpu: str | None
) -> None:
    # A busy machine may need a longer limit to reach the step.
    for limit in ("3", "30", "200"):
        report = run_check(f"hang={call}", "--timeout", limit)
        (bad,) = (check for check in report["checks"] if not check["ok"])
        assert (bad["id"], bad["expected"]) == (cuda_judge.TIME_LIMIT, f"an end within {limit} s")
        if bad["found"].startswith(f"no end during {step}"):
            break
    assert bad["found"].startswith(f"no end during {step}")
    assert bad["gpu"] == gpu
    assert "Reset the GPU or reboot" in bad["remedy"]


def test_an_exception_of_the_check_itself_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def messages(options: cuda_run.Options) -> Iterator[cuda_run.Message]:
        yield "step", {"name": "cuda-init", "gpu": None}
        raise RuntimeError("no such thing")

    monkeypatch.setattr(cuda_run, "messages", messages)
    report = cuda_check.supervise(cuda_run.Options(1, 1 << 23, False), GUARD)
    (check,) = report["checks"]
    assert (check["id"], check["ok"]) == (cuda_judge.PROCESS, False)
    assert check["found"] == "RuntimeError: no such thing during cuda-init"


def test_checks_that_a_failure_prevents_are_listed(run_check: RunCheck) -> None:
    assert run_check("init=802")["not_run"] == [{"id": "gpu-count", "gpu": None}]
    prevented = [entry for entry in run_check("launch=719")["not_run"] if entry["gpu"] == FIRST]
    assert [entry["id"] for entry in prevented] == ["gpu-matrix-product", "gpu-memory", "gpu-copy"]


def test_a_container_gets_the_remedy_of_a_container(run_check: RunCheck) -> None:
    (host,) = cuda_judge.failures(run_check("init=100"))
    (container,) = cuda_judge.failures(run_check("init=100", "--container"))
    assert "lspci" in host
    assert "--device nvidia.com/gpu=all" in container


def test_a_mig_slice_counts_as_a_slice(run_check: RunCheck) -> None:
    report = run_check("mig=1", gpus=1)
    assert report["ok"], cuda_judge.failures(report)
    assert report["gpus"][0]["mig_slice"]
    count = next(check for check in report["checks"] if check["id"] == cuda_judge.COUNT)
    assert count["found"] == "1 MIG slice (stand-in GPU 0 MIG 1g.10gb)"
    assert count["expected"] == "a MIG slice of 2 GPUs"


def test_variables_that_hide_gpus_have_no_effect(
    run_check: RunCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert run_check()["ok"]


def test_a_missing_library_is_named(tmp_path: Path, library: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    status, report = run_program(PROGRAM, {"LD_LIBRARY_PATH": str(tmp_path)}, "--expect", "1")
    assert status == 1
    assert failed(report) == [(cuda_judge.LIBRARY, None)]
    assert "Install the driver" in report["checks"][0]["remedy"]
    assert [entry["id"] for entry in report["not_run"]] == ["cuda-init", "gpu-count"]


@pytest.mark.parametrize("options", [["--memory-mib", "0"], ["--timeout", "0"], ["--nonsense"]])
def test_wrong_usage_ends_with_status_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cuda_check.main(options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err


# The program as one file.


def test_the_packed_program_needs_nothing_but_python(tmp_path: Path, library: Path) -> None:
    packed = tmp_path / "cuda_check.pyz"
    packed.write_bytes(cuda_bundle.bundle())
    # Another collection of the same name must not get in the way.
    other = tmp_path / "other/ansible_collections/slipway"
    other.mkdir(parents=True)
    (other.parent / "__init__.py").touch()
    environment = {
        "LD_LIBRARY_PATH": str(library),
        "SLIPWAY_STAND_IN_GPUS": "1",
        "PYTHONPATH": str(tmp_path / "other"),
    }
    status, report = run_program(packed, environment, "--expect", "0000:01:00.0")
    assert status == 0, cuda_judge.failures(report)
    assert cuda_bundle.bundle() == packed.read_bytes()


@pytest.mark.parametrize("part", cuda_bundle.PARTS, ids=lambda part: part.__name__.split(".")[-1])
def test_the_program_has_the_syntax_of_python_3_8(part: ModuleType) -> None:
    ast.parse(Path(str(part.__file__)).read_text(), feature_version=(3, 8))


# Without the driver.


def test_the_bus_has_only_the_hosts_own_gpus(tmp_path: Path) -> None:
    tree = pci_tree.build(tmp_path, pci_tree.MODELS["vfio-part"])
    (own,) = cuda_check.bus_addresses(tree)
    assert (tree / own / "vendor").read_text().strip() == "0x10de"
    assert cuda_check.bus_addresses(tmp_path / "none") == []
    eight = pci_tree.build(tmp_path / "eight", pci_tree.MODELS["8xh100"])
    assert len(cuda_check.bus_addresses(eight)) == 8


def gpu(number: int, name: str = "NVIDIA H100") -> cuda_judge.Gpu:
    return cuda_judge.Gpu(number, name, f"0000:0{number}:00.0", 1, "9.0", " MIG " in name)


@pytest.mark.parametrize(
    ("gpus", "expected", "ok", "found"),
    [
        ([gpu(1)], 1, True, "1 GPU (0000:01:00.0)"),
        ([gpu(1)], 2, False, "1 GPU (0000:01:00.0)"),
        ([gpu(1), gpu(2)], 1, False, "2 GPUs (0000:01:00.0, 0000:02:00.0)"),
        ([gpu(1)], ["0000:01:00.0"], True, "1 GPU (0000:01:00.0)"),
        ([gpu(1)], [FIRST, SECOND], False, "1 GPU (0000:01:00.0); missing: 0000:02:00.0"),
        ([gpu(2)], [FIRST], False, "1 GPU (0000:02:00.0); missing: 0000:01:00.0"),
        ([], 1, False, "0 GPUs"),
        ([gpu(1, "NVIDIA A100 MIG 1g.5gb")], 8, True, "1 MIG slice (NVIDIA A100 MIG 1g.5gb)"),
    ],
)
def test_the_count_is_compared_with_the_bus(
    gpus: list[cuda_judge.Gpu], expected: int | list[str], ok: bool, found: str
) -> None:
    check = cuda_judge.judge_count(gpus, expected)
    assert (check.ok, check.found) == (ok, found)
    assert bool(check.remedy) != ok


def test_every_error_has_a_meaning_and_a_remedy() -> None:
    asked = {1, 2, 3, 34, 35, 46, 100, 101, 200, 201, 209, 218, 222, 700, 702, 719, 720, 801, 802}
    assert asked | {803, 804, 999} <= set(cuda_errors.CUDA_ERRORS)
    for code, error in cuda_errors.CUDA_ERRORS.items():
        assert error.name.startswith("CUDA_ERROR_" if code != 35 else "cudaError")
        assert error.meaning
        assert cuda_errors.remedy(code, False).endswith((".", ")."))
        assert cuda_errors.remedy(code, True).endswith((".", ")."))


@pytest.mark.parametrize("number", [0, 1, 77])
def test_the_address_pattern_is_that_of_the_kernel(number: int) -> None:
    first = cuda_kernels.first_block()
    made = cuda_kernels.block(first, number)
    for word in (0, 1, 4097, cuda_kernels.BLOCK_WORDS - 1):
        index = number * cuda_kernels.BLOCK_WORDS + word
        low = (index % cuda_kernels.BLOCK_WORDS) * cuda_kernels.LOW_FACTOR
        high = (index // cuda_kernels.BLOCK_WORDS) * cuda_kernels.HIGH_FACTOR
        expected = (low ^ high) & 0xFFFFFFFF
        assert int.from_bytes(made[4 * word : 4 * word + 4], "little") == expected


# --- load ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [32, 96, 128])
def test_the_product_of_the_load_is_that_of_its_matrices(order: int) -> None:
    left, right, product = (array("f", part) for part in cuda_kernels.load_matrices(order))
    columns = [right[column::order] for column in range(order)]
    rows = [left[row * order : (row + 1) * order] for row in range(order)]
    computed = [sum(map(mul, row, column)) for row in rows for column in columns]
    assert list(product) == computed


def test_the_load_starts_from_the_matrices_of_the_single_product() -> None:
    assert cuda_kernels.load_matrices(cuda_kernels.MATRIX_ORDER) == cuda_kernels.matrices()


LOAD = ("--load-seconds", "0.2")


def test_all_gpus_are_loaded_after_their_checks(run_check: RunCheck) -> None:
    report = run_check("", *LOAD)
    loaded = [check for check in report["checks"] if check["id"] == cuda_judge.LOAD]
    assert [check["gpu"] for check in loaded] == [FIRST, SECOND]
    assert all(check["ok"] and check["seconds"] >= 0.2 for check in loaded)
    assert all("correct products of order 64" in check["found"] for check in loaded)
    assert report["checks"][-2:] == loaded


@pytest.mark.parametrize(
    ("fault", "found"),
    [("load=1", "at byte 256"), ("load-error=1", "cuLaunchKernel: CUDA error 719")],
)
def test_a_fault_under_load_is_named_with_its_gpu(
    run_check: RunCheck, fault: str, found: str
) -> None:
    report = run_check(fault, *LOAD)
    assert failed(report) == [(cuda_judge.LOAD, SECOND)]
    assert found in cuda_judge.failures(report)[0]


@pytest.mark.parametrize(
    "options", [("--load-seconds", "-1"), ("--load-order", "33"), ("--load-order", "0")]
)
def test_a_wrong_load_is_refused(options: tuple[str, str]) -> None:
    with pytest.raises(SystemExit):
        cuda_check.parse(options)
