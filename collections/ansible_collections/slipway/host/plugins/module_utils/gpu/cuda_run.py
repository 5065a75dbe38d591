# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of the CUDA check in their order, as messages for the supervising process.

A message is a pair of its kind and its content: ``step`` (the work that starts now), ``driver``,
``gpu``, ``check``, ``copy`` and, after the last check, ``end``. Runs on Python 3.8 and newer.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

# Python 3.8 cannot index the built-in types of the alias Message.
from typing import Any, Dict, Tuple

from ansible_collections.slipway.host.plugins.module_utils.gpu import (
    cuda_judge,
    cuda_kernels,
    cuda_load,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.cuda_driver import (
    THREADS,
    CudaCallError,
    Device,
    Driver,
    library_path,
)
from ansible_collections.slipway.host.plugins.module_utils.gpu.cuda_judge import Check, Gpu

Message = Tuple[str, Dict[str, Any]]

BLOCK_BYTES = cuda_kernels.BLOCK_WORDS * cuda_kernels.WORD_BYTES
# Copies of this size reach the full speed of PCIe and NVLink.
COPY_BYTES = 64 << 20
COPY_REPEATS = 5
# Blocks of the grid that fills memory; each thread takes every word of its residue class.
FILL_GRID = 4096
# Left free for the driver's own buffers.
RESERVED_BYTES = 64 << 20


@dataclass(frozen=True)
class Options:
    """What to check: the GPUs expected (a number, or PCI addresses), memory in bytes per GPU.

    ``load_seconds`` is the duration of the load at the end; 0 leaves it out.
    """

    expected: int | list[str]
    memory_bytes: int
    in_container: bool
    all_pairs: bool = False
    load_seconds: float = 0.0
    load_order: int = cuda_kernels.LOAD_ORDER


@dataclass(frozen=True)
class Opened:
    """A GPU with its context."""

    gpu: Gpu
    device: Device


def messages(options: Options) -> Iterator[Message]:
    """Run every check; yield the messages."""
    yield _step(cuda_judge.LIBRARY)
    started = time.monotonic()
    try:
        driver = Driver()
    except OSError as error:
        yield _check(_library_failure(str(error), options.in_container), started)
        yield "end", {}
        return
    yield "driver", {"library": library_path(), "stand_in": driver.stand_in}
    loaded = Check(cuda_judge.LIBRARY, True, "libcuda.so.1", library_path() or "libcuda.so.1")
    yield _check(loaded, started)
    try:
        yield from _driver(driver, options)
    except CudaCallError as error:
        yield _check(_failure(cuda_judge.INIT, error, options), started)
    yield "end", {}


def _driver(driver: Driver, options: Options) -> Iterator[Message]:
    """Initialize the driver, count the GPUs, and check each GPU and each pair."""
    yield _step(cuda_judge.INIT)
    started = time.monotonic()
    driver.initialize()
    version = driver.cuda_version()
    yield "driver", {"cuda_version": version}
    yield _check(Check(cuda_judge.INIT, True, "cuInit returns 0", f"CUDA {version}"), started)
    yield _step(cuda_judge.COUNT)
    started = time.monotonic()
    described = []
    try:
        devices = [driver.device(number) for number in range(driver.device_count())]
        described = [(describe(number, device), device) for number, device in enumerate(devices)]
    except CudaCallError as error:
        yield _check(_failure(cuda_judge.COUNT, error, options), started)
        return
    for gpu, _value in described:
        yield "gpu", asdict(gpu)
    gpus = [gpu for gpu, _value in described]
    yield _check(cuda_judge.judge_count(gpus, options.expected, options.in_container), started)
    opened: list[Opened] = []
    for gpu, device in described:
        yield from _gpu(Opened(gpu, device), options, opened)
    yield from _pairs(opened, options)
    yield from _load(opened, options)
    for entry in opened:
        with suppress(CudaCallError):
            entry.device.close()


def describe(number: int, device: Device) -> Gpu:
    """Return the driver's description of GPU NUMBER. Raises CudaCallError."""
    name = device.name()
    return Gpu(
        number,
        name,
        device.address(),
        device.memory_bytes(),
        device.compute_capability(),
        cuda_judge.is_mig_slice(name),
    )


def _gpu(entry: Opened, options: Options, opened: list[Opened]) -> Iterator[Message]:
    """Check one GPU; add it to those OPENED if each call of the driver returned 0.

    After a failed call the context may be unusable, so the rest of the GPU's checks is left out.
    """
    copies: list[dict[str, Any]] = []
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        (cuda_judge.CONTEXT, lambda: _context(entry)),
        (cuda_judge.COMPILE, lambda: _compile(entry)),
        (cuda_judge.SUM, lambda: _vector_sum(entry)),
        (cuda_judge.PRODUCT, lambda: _matrix_product(entry)),
        (cuda_judge.MEMORY, lambda: _memory(entry, options.memory_bytes)),
        (cuda_judge.COPY, lambda: _copy(entry, copy_bytes(options, entry.device), copies)),
    )
    for name, act in checks:
        yield _step(name, entry.gpu.address)
        started = time.monotonic()
        try:
            yield _check(act(), started)
        except CudaCallError as error:
            yield _check(_failure(name, error, options, entry.gpu.address), started)
            return
    for copy in copies:
        yield "copy", copy
    opened.append(entry)


def _context(entry: Opened) -> Check:
    entry.device.open()
    free = entry.device.free_bytes()
    found = f"{free >> 20} of {entry.gpu.memory_bytes >> 20} MiB free"
    return Check(cuda_judge.CONTEXT, True, "a context", found, gpu=entry.gpu.address)


def _compile(entry: Opened) -> Check:
    names = (cuda_kernels.FILL, cuda_kernels.SUM, cuda_kernels.PRODUCT)
    entry.device.build(cuda_kernels.PTX, names)
    found = f"{len(names)} for compute capability {entry.gpu.compute_capability}"
    expected = f"{len(names)} compiled kernels"
    return Check(cuda_judge.COMPILE, True, expected, found, gpu=entry.gpu.address)


def _vector_sum(entry: Opened) -> Check:
    blocks = cuda_kernels.VECTOR_WORDS // THREADS
    return _compute(
        entry,
        cuda_judge.SUM,
        (cuda_kernels.SUM, blocks, cuda_kernels.VECTOR_WORDS),
        cuda_kernels.vectors(),
    )


def _matrix_product(entry: Opened) -> Check:
    order = cuda_kernels.MATRIX_ORDER
    return _compute(
        entry,
        cuda_judge.PRODUCT,
        (cuda_kernels.PRODUCT, order * order // THREADS, order),
        cuda_kernels.matrices(),
    )


def _compute(
    entry: Opened, check: str, kernel: tuple[str, int, int], data: tuple[bytes, bytes, bytes]
) -> Check:
    """Run a KERNEL (name, blocks, number) on two inputs; compare with the third of the DATA."""
    device, (left, right, expected) = entry.device, data
    pointers = [device.allocate(len(part)) for part in data]
    try:
        device.copy_to(pointers[0], left, len(left))
        device.copy_to(pointers[1], right, len(right))
        # So that a kernel that writes nothing is seen.
        device.fill(pointers[2], 0, len(expected) // cuda_kernels.WORD_BYTES)
        name, blocks, number = kernel
        device.run(name, blocks, pointers, number)
        result = device.read(pointers[2], len(expected))
    finally:
        _free(device, pointers)
    offset = cuda_kernels.first_difference(expected, result)
    return cuda_judge.judge_result(check, entry.gpu.address, offset, expected, result)


def _memory(entry: Opened, requested: int) -> Check:
    """Write and read patterns over REQUESTED bytes, or fewer if others use the memory."""
    device, address = entry.device, entry.gpu.address
    blocks = max(1, min(requested, _room(device)) // BLOCK_BYTES)
    size = blocks * BLOCK_BYTES
    words = size // cuda_kernels.WORD_BYTES
    pointer = device.allocate(size)
    try:
        for pattern in cuda_kernels.FILL_PATTERNS:
            device.fill(pointer, pattern, words)
            expected = cuda_kernels.fill(pattern, BLOCK_BYTES)
            failed = _compare_blocks(entry, pointer, [expected] * blocks)
            if failed:
                return failed
        device.run(cuda_kernels.FILL, FILL_GRID, [pointer], words)
        first = cuda_kernels.first_block()
        made = (cuda_kernels.block(first, number) for number in range(blocks))
        failed = _compare_blocks(entry, pointer, made)
        if failed:
            return failed
    finally:
        _free(device, [pointer])
    found = f"the same in {size >> 20} MiB, {len(cuda_kernels.FILL_PATTERNS) + 1} patterns"
    return Check(cuda_judge.MEMORY, True, "memory that holds what was written", found, gpu=address)


def _room(device: Device) -> int:
    """Return how many bytes a check may take: half of the free memory, in whole blocks."""
    device.use()
    free = device.free_bytes() - RESERVED_BYTES
    return max(free // 2 // BLOCK_BYTES, 1) * BLOCK_BYTES


def _compare_blocks(
    entry: Opened, pointer: int, blocks: Sequence[bytes] | Iterator[bytes]
) -> Check | None:
    """Compare memory from POINTER on with BLOCKS; return the failed check, None if all agree."""
    for number, expected in enumerate(blocks):
        start = number * BLOCK_BYTES
        result = entry.device.read(pointer + start, BLOCK_BYTES)
        offset = cuda_kernels.first_difference(expected, result)
        if offset >= 0:
            failed = cuda_judge.judge_result(
                cuda_judge.MEMORY, entry.gpu.address, offset, expected, result
            )
            return Check(**{**asdict(failed), "found": f"{failed.found} of block {number}"})
    return None


def _copy(entry: Opened, size: int, copies: list[dict[str, Any]]) -> Check:
    """Copy SIZE bytes to the GPU and back by page-locked memory; add both speeds to COPIES."""
    device, data = entry.device, cuda_kernels.blocks(size // BLOCK_BYTES)
    pointer = device.allocate(size)
    source, target = device.allocate_host(size), device.allocate_host(size)
    try:
        ctypes.memmove(source, data, size)
        ctypes.memset(target, 0, size)
        there = _speed(size, lambda: device.copy_to(pointer, source, size))
        back = _speed(size, lambda: device.copy_from(target, pointer, size))
        result = ctypes.string_at(target, size)
    finally:
        for buffer in (source, target):
            with suppress(CudaCallError):
                device.free_host(buffer)
        _free(device, [pointer])
    here = entry.gpu.address
    copies.append({"from": "host", "to": here, "gigabytes_per_second": there})
    copies.append({"from": here, "to": "host", "gigabytes_per_second": back})
    offset = cuda_kernels.first_difference(data, result)
    check = cuda_judge.judge_result(cuda_judge.COPY, here, offset, data, result)
    if offset < 0:
        speeds = f"the same, {there:.1f} GB/s to the GPU, {back:.1f} GB/s back"
        check = Check(**{**asdict(check), "expected": f"{size} bytes unchanged", "found": speeds})
    return check


def _pairs(opened: Sequence[Opened], options: Options) -> Iterator[Message]:
    """Copy from each GPU to the next one, and from the last to the first; or between all pairs."""
    count = len(opened)
    distances = range(1, count if options.all_pairs else min(count, 2))
    pairs = [(at, (at + distance) % count) for at in range(count) for distance in distances]
    for source, target in ((opened[start], opened[end]) for start, end in pairs):
        here = source.gpu.address
        yield _step(cuda_judge.PEER_COPY, here)
        started = time.monotonic()
        try:
            size = copy_bytes(options, source.device, target.device)
            check, copy = _peer_copy(source, target, size)
        except CudaCallError as error:
            yield _check(_failure(cuda_judge.PEER_COPY, error, options, here), started)
            return
        yield _check(check, started)
        yield "copy", copy


def _load(opened: Sequence[Opened], options: Options) -> Iterator[Message]:
    """Load all GPUs at the same time."""
    if not (opened and options.load_seconds):
        return
    yield _step(cuda_judge.LOAD)
    started = time.monotonic()
    devices = {entry.gpu.address: entry.device for entry in opened}
    results = cuda_load.run(devices, options.load_seconds, options.load_order)
    for address, result in results.items():
        if isinstance(result, CudaCallError):
            yield _check(_failure(cuda_judge.LOAD, result, options, address), started)
        else:
            yield "check", asdict(result)


def _peer_copy(source: Opened, target: Opened, size: int) -> tuple[Check, dict[str, Any]]:
    data = cuda_kernels.blocks(size // BLOCK_BYTES)
    here, there = source.gpu.address, target.gpu.address
    target.device.use()
    sink = target.device.allocate(size)
    target.device.fill(sink, 0, size // cuda_kernels.WORD_BYTES)
    source.device.use()
    direct = source.device.reaches(target.device)
    if direct:
        source.device.enable_peer(target.device)
    pointer = source.device.allocate(size)
    source.device.copy_to(pointer, data, size)
    speed = _speed(size, lambda: source.device.copy_to_peer(sink, target.device, pointer, size))
    _free(source.device, [pointer])
    target.device.use()
    result = target.device.read(sink, size)
    _free(target.device, [sink])
    offset = cuda_kernels.first_difference(data, result)
    check = cuda_judge.judge_result(cuda_judge.PEER_COPY, here, offset, data, result)
    if offset < 0:
        path = "directly" if direct else "through the host"
        comparison = f"the same on GPU {there}, {speed:.1f} GB/s {path}"
        check = Check(
            **{**asdict(check), "expected": f"{size} bytes unchanged", "found": comparison}
        )
    copy = {"from": here, "to": there, "gigabytes_per_second": speed, "direct": direct}
    return check, copy


def _speed(size: int, act: Callable[[], None]) -> float:
    """Return the best speed of several copies of SIZE bytes, in 10**9 bytes per second."""
    best = float("inf")
    for _number in range(COPY_REPEATS):
        started = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - started)
    return round(size / max(best, 1e-9) / 1e9, 2)


def copy_bytes(options: Options, *devices: Device) -> int:
    """Return the size of a copy in bytes: never more than to test, or than each GPU has free."""
    return min(COPY_BYTES, options.memory_bytes, *map(_room, devices))


def _free(device: Device, pointers: Sequence[int]) -> None:
    """Free GPU memory. After a failed call this fails as well; the first failure is reported."""
    for pointer in pointers:
        with suppress(CudaCallError):
            device.free(pointer)


def _failure(check: str, error: CudaCallError, options: Options, gpu: str | None = None) -> Check:
    """Return the failed CHECK of a call of the driver."""
    return cuda_judge.judge_error(
        check,
        "every call of the driver returns 0",
        error.code,
        error.name,
        error.function,
        options.in_container,
        gpu,
        error.details,
    )


def _library_failure(message: str, in_container: bool) -> Check:
    remedy = cuda_judge.NO_LIBRARY_IN_CONTAINER if in_container else cuda_judge.NO_LIBRARY
    return Check(cuda_judge.LIBRARY, False, "libcuda.so.1", message, remedy)


def _step(name: str, gpu: str | None = None) -> Message:
    return "step", {"name": name, "gpu": gpu}


def _check(check: Check, started: float) -> Message:
    return "check", asdict(check.timed(time.monotonic() - started))
